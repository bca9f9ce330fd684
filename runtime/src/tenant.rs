//! On whose behalf things happen: a tenant's queue, identities and plugins, as the operator set them. Plain data.

mod tenants;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use url::Url;

use crate::grant::Grant;
use crate::grant::quota::Quotas;
use crate::intake::notification::Identities;
use crate::sandbox::Limits;
use crate::store::Binding;
pub use tenants::{ByName, Tenants};

/// Why nothing more is done for a tenant that the operator took away.
pub const TENANT_REMOVED: &str = "tenant removed";
/// Why nothing more is sent by an account that the operator took away.
pub const ACCOUNT_REMOVED: &str = "account removed";

/// One tenant.
#[derive(Clone, Debug, PartialEq)]
pub struct Tenant {
    /// Its name.
    pub name: String,
    /// Where its messages come from.
    pub queue: Queue,
    /// What its tasks may name in `ids`.
    pub identities: Identities,
    /// Its plugins, by name.
    pub plugins: BTreeMap<String, PluginTerms>,
    /// Where its tasks' logs are collected, when they are.
    pub logs: Option<LogCollection>,
}

/// Where logs are collected, and where they come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogCollection {
    /// What precedes a log's key in the address where people read it.
    pub url_base: Url,
    /// Where a run's log is, by provisioner: the name of an artifact, or an address in which `{task_id}` and `{run_id}`
    /// are filled in.
    pub sources: BTreeMap<String, String>,
    /// The same for every other provisioner.
    pub source: String,
}

impl LogCollection {
    /// The artifact that is a run's log unless the operator says otherwise.
    pub const SOURCE: &str = "public/logs/live_backing.log";

    /// Logs in a bucket, read by everybody at its own address; none when its name makes no address.
    #[must_use]
    pub fn in_bucket(bucket: &str) -> Option<Self> {
        let url_base = Url::parse(&format!("https://{bucket}.s3.amazonaws.com/")).ok()?;
        Some(Self { url_base, sources: BTreeMap::new(), source: Self::SOURCE.into() })
    }
}

/// Which events of its tenant's bindings a plugin is told of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum On {
    /// Those whose task names it.
    #[default]
    Named,
    /// Every one.
    Every,
}

/// On what terms a plugin runs for a tenant.
#[derive(Clone, Default, PartialEq)]
pub struct PluginTerms {
    /// Which events it is told of.
    pub on: On,
    /// What it may ask for.
    pub grant: Arc<Grant>,
    /// How much of it in an hour.
    pub quotas: Arc<Quotas>,
    /// What the operator set for it.
    pub settings: Arc<BTreeMap<String, String>>,
    /// How much it may use.
    pub limits: Limits,
}

/// A setting may be a secret: its name alone is shown.
impl fmt::Debug for PluginTerms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { on, grant, quotas, settings, limits } = self;
        let names: Vec<_> = settings.keys().collect();
        let mut shown = f.debug_struct("PluginTerms");
        shown
            .field("on", on)
            .field("grant", grant)
            .field("quotas", quotas)
            .field("settings", &names)
            .field("limits", limits)
            .finish()
    }
}

/// A queue on the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Its full name, `queue/<login>/<name>`.
    pub name: String,
    /// What to declare when there is none yet.
    pub kind: QueueKind,
    /// What is bound to it.
    pub bindings: Vec<Binding>,
}

/// What kind of queue to declare when there is none yet. An existing one is used as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueueKind {
    /// Durable and without arguments, as the predecessor declared it.
    #[default]
    Plain,
    /// `x-queue-type: classic`.
    Classic,
    /// `x-queue-type: quorum`.
    Quorum,
}

/// An account's name among those of all tenants. `default` is the tenant that variables make, whose accounts are the
/// first.
#[must_use]
pub fn account_of(tenant: &str, name: &str) -> String {
    if tenant == DEFAULT { name.to_owned() } else { format!("{tenant}.{name}") }
}

/// Whose account a destination, `email/red.mail` for one, is.
#[must_use]
pub fn tenant_of(destination: &str) -> Option<&str> {
    let (_, account) = destination.split_once('/')?;
    Some(account.split_once('.').map_or(DEFAULT, |(tenant, _)| tenant))
}

/// The tenant that variables make.
const DEFAULT: &str = "default";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_has_one_owner() {
        for (tenant, name) in [("default", "smtp"), ("red", "mail"), ("a-b", "c_d")] {
            let destination = crate::effect::destination("email", &account_of(tenant, name));
            assert_eq!(tenant_of(&destination), Some(tenant), "{destination}");
        }
    }
}

//! On whose behalf things happen: a tenant's queue, identities and plugins, as the operator set them. Plain data.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::grant::Grant;
use crate::intake::notification::Identities;
use crate::sandbox::Limits;
use crate::store::Binding;

/// One tenant.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// Its name.
    pub name: String,
    /// Where its messages come from.
    pub queue: Queue,
    /// What its tasks may name in `ids`.
    pub identities: Identities,
    /// Its plugins, by name.
    pub plugins: BTreeMap<String, PluginTerms>,
}

/// On what terms a plugin runs for a tenant.
#[derive(Clone, Debug, Default)]
pub struct PluginTerms {
    /// What it may ask for.
    pub grant: Arc<Grant>,
    /// What the operator set for it.
    pub settings: Arc<BTreeMap<String, String>>,
    /// How much it may use.
    pub limits: Limits,
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

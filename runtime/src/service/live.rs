//! Who runs, and for whom we speak: all of it changes at once, or nothing does.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::gone::Gone;
use crate::config::{Config, DeliveryMode};
use crate::courier::destinations::{Accounts, Destinations};
use crate::courier::sinks::SinkError;
use crate::intake::queues::Queues;
use crate::registry::{Registry, RegistryError};
use crate::tenant::{Tenant, Tenants};

/// What can change while the service runs.
pub struct Live {
    /// The tenants.
    pub tenants: Tenants,
    /// Their plugins, where any run.
    pub registry: Option<Arc<Registry>>,
    /// Whom effects go to, where any are delivered.
    pub destinations: Option<Destinations>,
    /// Where events come from, once anything is consumed.
    pub queues: OnceLock<Arc<Queues>>,
    /// Who was taken away.
    pub gone: Gone,
    /// What is wrong with the configuration as it is now, which is why another one is in effect.
    pub problems: Mutex<Vec<String>>,
}

/// Who shall run.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// The tenants.
    pub tenants: Vec<Tenant>,
    /// Who we are, by destination.
    pub accounts: Accounts,
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// Plugins that have nothing to run.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Plugins(Vec<RegistryError>),
    /// A destination that cannot be made ready.
    #[error(transparent)]
    Sink(#[from] SinkError),
}

impl Wanted {
    /// What a configuration says of it, where effects are performed or captured.
    #[must_use]
    pub fn by(config: &Config, delivery: DeliveryMode) -> Self {
        let account = |account| match delivery {
            DeliveryMode::Send => Some(account),
            DeliveryMode::Capture => None,
        };
        let accounts = config.accounts.iter().map(|(name, one)| (name.clone(), account(one.clone()))).collect();
        Self { tenants: config.tenants.clone(), accounts }
    }
}

impl Live {
    /// Makes it so, or changes nothing. Tenants, accounts and plugins that are as they were do not notice.
    ///
    /// # Errors
    /// [`ChangeError`], all that was found.
    pub async fn change(&self, wanted: Wanted) -> Result<(), ChangeError> {
        let admitted = match &self.registry {
            Some(registry) => Some((registry, registry.admit(&wanted.tenants).await.map_err(ChangeError::Plugins)?)),
            None => None,
        };
        let made = match &self.destinations {
            Some(destinations) => Some((destinations, destinations.make(&wanted.accounts).await?)),
            None => None,
        };
        let names: BTreeSet<_> = wanted.tenants.iter().map(|tenant| tenant.name.clone()).collect();
        let there = names.iter().map(String::as_str).collect();
        self.gone.forget(&wanted.accounts.keys().map(String::as_str).collect(), &there);
        // Whom they may speak to is there before them.
        let (mut mended, mut gone) = (None, BTreeSet::new());
        if let Some((destinations, made)) = made {
            mended = (!made.is_empty()).then_some(destinations);
            gone = destinations.serve(&wanted.accounts, made);
        }
        if let Some((registry, admitted)) = admitted {
            registry.go_live(admitted);
        }
        let before = self.tenants.replace(wanted.tenants);
        if let Some(queues) = self.queues.get() {
            queues.keep_up(&self.tenants.now());
        }
        // Events are for the half that consumes to end.
        let went = before.keys().map(String::as_str).filter(|name| self.registry.is_some() && !there.contains(name));
        self.gone.note(gone.iter().map(String::as_str), went, |tenant| there.contains(tenant));
        if let Some(destinations) = mended {
            // Without an answer, the next probe is a few seconds later.
            let probe = destinations.courier.store.probe_now();
            drop(tokio::time::timeout(PROBE_LIMIT, probe).await);
        }
        Ok(())
    }

    /// Something has happened to plugins in the store.
    pub fn wake_plugins(&self) {
        if let Some(registry) = &self.registry {
            registry.wake();
        }
    }

    /// What is wrong with the configuration as it is now; nothing when it is in effect.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on, this is what is wrong with it.
    pub fn found(&self, problems: Vec<String>) {
        *self.problems.lock().unwrap_or_else(PoisonError::into_inner) = problems;
    }
}

const PROBE_LIMIT: Duration = Duration::from_secs(1);

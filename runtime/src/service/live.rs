//! Who runs, and for whom we speak: all of it changes at once, or nothing does.

use std::sync::{Arc, OnceLock};

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
    /// Their plugins.
    pub registry: Arc<Registry>,
    /// Whom effects go to.
    pub destinations: Destinations,
    /// Where events come from, once anything is consumed.
    pub queues: OnceLock<Arc<Queues>>,
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
    /// What a configuration says of it.
    #[must_use]
    pub fn by(config: &Config) -> Self {
        let account = |account| match config.delivery {
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
        let admitted = self.registry.admit(&wanted.tenants).await.map_err(ChangeError::Plugins)?;
        let made = self.destinations.make(&wanted.accounts).await?;
        // Whom they may speak to is there before them.
        self.destinations.serve(&wanted.accounts, made);
        self.registry.go_live(admitted);
        self.tenants.replace(wanted.tenants);
        if let Some(queues) = self.queues.get() {
            queues.keep_up(&self.tenants.now());
        }
        Ok(())
    }
}

//! What the registry keeps in the store, and who may look: versions, deployments, quarantine, tokens.

use super::rows::{Changed, Deployed, Deployment, FaultSeen, Quarantined, RegistryChange, Token, VersionKept};
use super::writer::{Write, Written};
use super::{Store, StoreError, sqlite};
use crate::effect::Hash;

impl Store {
    /// Commits a change of what is live, of what is not run, or of who may ask.
    ///
    /// # Errors
    /// [`StoreError::Rejected`] when the engine refuses its content, [`StoreError::Closed`].
    pub async fn change(&self, change: RegistryChange) -> Result<Changed, StoreError> {
        match self.write(Write::Registry(change)).await? {
            Written::Registry(changed) => Ok(changed),
            _ => Err(StoreError::Closed),
        }
    }

    /// The last deployment of each tenant's plugin, of those after one.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub async fn deployments(&self, after: i64) -> Result<Vec<Deployed>, StoreError> {
        self.reader.read(move |connection| sqlite::registry::deployments(connection, after)).await
    }

    /// What was live of a tenant's plugin, the last first.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub async fn history(&self, tenant: &str, plugin: &str) -> Result<Vec<VersionKept>, StoreError> {
        let (tenant, plugin) = (tenant.to_owned(), plugin.to_owned());
        self.reader.read(move |connection| sqlite::registry::history(connection, &tenant, &plugin)).await
    }

    /// The bytes of a version.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub async fn wasm(&self, digest: Hash) -> Result<Option<Vec<u8>>, StoreError> {
        self.reader.read(move |connection| sqlite::registry::wasm(connection, digest)).await
    }

    /// The last faults of a version, the latest first.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub async fn last_faults(
        &self,
        tenant: &str,
        plugin: &str,
        digest: Hash,
        limit: u32,
    ) -> Result<Vec<FaultSeen>, StoreError> {
        let (tenant, plugin) = (tenant.to_owned(), plugin.to_owned());
        let read = move |connection: &_| sqlite::registry::last_faults(connection, &tenant, &plugin, digest, limit);
        self.reader.read(read).await
    }

    /// All versions in quarantine.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub async fn quarantined(&self) -> Result<Vec<Quarantined>, StoreError> {
        self.reader.read(sqlite::registry::quarantined).await
    }

    /// The token with this id, or all of them.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub async fn tokens(&self, id: Option<&str>) -> Result<Vec<Token>, StoreError> {
        let id = id.map(str::to_owned);
        self.reader.read(move |connection| sqlite::registry::tokens(connection, id.as_deref())).await
    }

    /// Makes a version live for a tenant, unless it is; the place of its deployment among all, and whether that was news.
    ///
    /// # Errors
    /// As [`Store::change`].
    pub async fn deploy(&self, deployment: Deployment) -> Result<(i64, bool), StoreError> {
        match self.change(RegistryChange::Deploy(deployment)).await? {
            Changed::Live { seq, is_news } => Ok((seq, is_news)),
            Changed::Yes | Changed::No | Changed::To(_) => Err(StoreError::Closed),
        }
    }
}

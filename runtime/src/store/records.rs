//! What happened, for those who want to see it.

use super::rows::{DeadDeliverySeen, EffectSeen, InvocationSeen, Wish};
use super::{Store, StoreError, sqlite};

impl Store {
    /// A tenant's invocations, the latest first: no more than wished for, and fewer when they are large.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub async fn invocations(&self, wish: &Wish) -> Result<Vec<InvocationSeen>, StoreError> {
        Ok(sqlite::records::invocations(&self.reader, wish).await?)
    }

    /// A tenant's effects with their attempts, the latest first: no more than wished for, and fewer when they are large.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub async fn effects(&self, wish: &Wish) -> Result<Vec<EffectSeen>, StoreError> {
        Ok(sqlite::records::effects(&self.reader, wish).await?)
    }

    /// Messages from a tenant's queue that were no events, the latest first.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub async fn dead_deliveries(&self, wish: &Wish) -> Result<Vec<DeadDeliverySeen>, StoreError> {
        Ok(sqlite::records::dead_deliveries(&self.reader, wish).await?)
    }
}

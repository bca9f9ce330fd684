//! What happened, for those who want to see it.

use super::rows::{DeadDeliverySeen, EffectSeen, Ended, InvocationSeen, Wish};
use super::{Store, StoreError, sqlite};

impl Store {
    /// A tenant's invocations, the latest first: no more than wished for, and fewer when they are large.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub async fn invocations(&self, wish: &Wish) -> Result<Vec<InvocationSeen>, StoreError> {
        let wish = wish.clone();
        self.lists.read(move |connection| sqlite::records::invocations(connection, &wish)).await
    }

    /// A tenant's effects with their attempts, the latest first: no more than wished for, and fewer when they are large.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub async fn effects(&self, wish: &Wish) -> Result<Vec<EffectSeen>, StoreError> {
        let wish = wish.clone();
        self.lists.read(move |connection| sqlite::records::effects(connection, &wish)).await
    }

    /// Messages from a tenant's queue that were no events, the latest first.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub async fn dead_deliveries(&self, wish: &Wish) -> Result<Vec<DeadDeliverySeen>, StoreError> {
        let wish = wish.clone();
        self.lists.read(move |connection| sqlite::records::dead_deliveries(connection, &wish)).await
    }

    /// Every effect that has come to its end, in the order of their events: for a database that holds few.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub async fn ended(&self) -> Result<Vec<Ended>, StoreError> {
        self.lists.read(sqlite::records::ended).await
    }
}

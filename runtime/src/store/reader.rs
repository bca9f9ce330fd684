//! Reads: on connections of their own, which change nothing, and on threads that may wait.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::{StoreError, sqlite};
use crate::store::sqlite::BUSY_MAX;

/// A few connections that are opened when they are needed and kept. Cheap to clone.
#[derive(Clone)]
pub(super) struct Reader {
    path: Arc<PathBuf>,
    slots: Arc<Semaphore>,
    idle: Arc<Mutex<Vec<Connection>>>,
}

impl Reader {
    /// So many connections at most.
    pub(super) fn new(path: PathBuf, connections: usize) -> Self {
        Self { path: Arc::new(path), slots: Arc::new(Semaphore::new(connections)), idle: Arc::default() }
    }

    /// Reads with one of the connections, when one is free.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let slot = tokio::time::timeout(BUSY_MAX, Arc::clone(&self.slots).acquire_owned()).await;
        let slot = slot.map_err(|_| StoreError::Busy)?.map_err(|_| StoreError::Closed)?;
        let Self { path, idle, .. } = self.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let kept = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let connection = kept.map_or_else(|| sqlite::connect_to_read(&path), Ok)?;
            let read = read(&connection)?;
            idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            drop(slot);
            Ok(read)
        });
        reading.await.unwrap_or_else(super::over)
    }
}

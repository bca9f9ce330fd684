//! What has happened to plugins or their files since somebody looked.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

/// News for whoever looks after the plugins.
#[derive(Default)]
pub(super) struct News {
    some: Notify,
    urgent: Notify,
    store: Notify,
    /// Files that somebody has closed after writing to them, or has put in their place.
    whole: Mutex<BTreeSet<PathBuf>>,
}

impl News {
    /// Something has happened, and more of it may come.
    pub(super) fn heard(&self) {
        self.some.notify_one();
    }

    /// Nobody is writing to these any more, unless he begins anew.
    pub(super) fn heard_whole(&self, paths: Vec<PathBuf>) {
        self.whole.lock().unwrap_or_else(PoisonError::into_inner).extend(paths);
        self.urgent.notify_one();
    }

    /// There is something for the store, or in it.
    pub(super) fn heard_of_store(&self) {
        self.store.notify_one();
    }

    /// The files that were whole since this was last asked.
    pub(super) fn whole(&self) -> BTreeSet<PathBuf> {
        std::mem::take(&mut *self.whole.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until something has happened.
    pub(super) async fn some(&self) {
        self.some.notified().await;
    }

    /// Waits until something has happened that nobody need wait after.
    pub(super) async fn urgent(&self) {
        self.urgent.notified().await;
    }

    /// Waits until there is something for the store, or in it.
    pub(super) async fn for_store(&self) {
        self.store.notified().await;
    }
}

//! Tenants and destinations that were taken away: what waits for them is ended, and so is what comes late, from an event
//! that was in hand or an attempt that was under way.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::courier::destinations::Accounts;
use crate::store::{Store, StoreError, Withdrawn};
use crate::tenant::{ACCOUNT_REMOVED, ByName, TENANT_REMOVED, tenant_of};

/// What is gone.
#[derive(Default)]
pub struct Gone {
    /// Read once it is the database's turn: whoever is back by then loses nothing.
    gone: Arc<Mutex<Withdrawn>>,
    news: Notify,
}

impl Gone {
    /// Those that something waits for since an earlier start, and that are there no more.
    pub async fn of_an_earlier_start(store: &Store, tenants: &ByName, accounts: &Accounts) -> Result<Self, StoreError> {
        let (destinations, owners) = store.waited_for().await?;
        let destinations = destinations.iter().map(String::as_str).filter(|name| !accounts.contains_key(*name));
        let owners = owners.iter().map(String::as_str).filter(|name| !tenants.contains_key(*name));
        let gone = Self::default();
        // A folder of tenants that is empty may not be mounted yet.
        if !tenants.is_empty() {
            gone.note(destinations, owners, |tenant| tenants.contains_key(tenant));
        }
        Ok(gone)
    }

    /// Events and invocations are for the half that consumes to end, effects for the half that delivers: the other one
    /// may not know yet who has come.
    pub fn of(self, takes_in: bool, delivers: bool) -> Self {
        if !takes_in {
            self.gone().tenants.clear();
        }
        if !delivers {
            self.gone().destinations.clear();
        }
        self
    }

    /// These destinations are gone, and these tenants; whatever is there is not.
    pub fn note<'a>(
        &self,
        destinations: impl IntoIterator<Item = &'a str>,
        tenants: impl IntoIterator<Item = &'a str>,
        is_there: impl Fn(&str) -> bool,
    ) {
        let mut gone = self.gone();
        for tenant in tenants {
            gone.tenants.insert(tenant.to_owned(), TENANT_REMOVED.to_owned());
        }
        for destination in destinations {
            let is_there = tenant_of(destination).is_some_and(&is_there);
            let reason = if is_there { ACCOUNT_REMOVED } else { TENANT_REMOVED };
            gone.destinations.insert(destination.to_owned(), reason.to_owned());
        }
        self.news.notify_one();
    }

    /// These are there again.
    pub fn forget(&self, destinations: &BTreeSet<&str>, tenants: &BTreeSet<&str>) {
        let mut gone = self.gone();
        gone.destinations.retain(|destination, _| !destinations.contains(destination.as_str()));
        gone.tenants.retain(|tenant, _| !tenants.contains(tenant.as_str()));
    }

    /// Ends what waits for them, until asked to stop.
    pub async fn run(&self, store: &Store, stop: CancellationToken) {
        loop {
            let is_any = *self.gone() != Withdrawn::default();
            if is_any {
                match store.withdraw(Arc::clone(&self.gone)).await {
                    Ok(0) => {}
                    Ok(ended) => tracing::warn!(ended, "what waited for tenants or accounts that are gone is refused"),
                    Err(error) => tracing::debug!(%error, "what waits for those who are gone waits on"),
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.news.notified() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    fn gone(&self) -> MutexGuard<'_, Withdrawn> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const LOOK_EVERY: Duration = Duration::from_secs(5);

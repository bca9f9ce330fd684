//! The destinations that are served, as accounts come, change and go. An attempt ends with the sink it began with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Courier;
use super::sinks::amqp::Amqp;
use super::sinks::irc::Irc;
use super::sinks::s3::S3;
use super::sinks::ses::Ses;
use super::sinks::smtp::Smtp;
use super::sinks::sns::Sns;
use super::sinks::webhook::Webhook;
use super::sinks::{Sink, SinkError};
use crate::config::Account;
use crate::taskcluster::Taskcluster;
use crate::threads::Threads;

/// Who we are, by destination; nobody where effects are captured.
pub type Accounts = BTreeMap<String, Option<Account>>;

/// All destinations of one courier.
pub struct Destinations {
    /// Serves them.
    pub courier: Arc<Courier>,
    /// Where artifacts come from.
    pub taskcluster: Arc<Taskcluster>,
    /// No new claims.
    pub stop: CancellationToken,
    /// Cancelled when a part ends that nobody asked to.
    pub ended: CancellationToken,
    /// Where it works, whatever intake is doing.
    pub threads: Threads,
    /// The attempts.
    pub attempts: TaskTracker,
    /// The tasks of sinks, which end once no sink is left.
    pub connections: TaskTracker,
    /// Those that are served now.
    pub served: Mutex<BTreeMap<String, Served>>,
}

/// One of them.
pub struct Served {
    account: Option<Account>,
    stop: CancellationToken,
}

/// Sinks of accounts that are new, ready to be served.
pub struct Made(BTreeMap<String, (Option<Account>, Sink)>);

impl Made {
    /// Whether every account is served as it is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Destinations {
    /// Makes the sinks that these accounts need and that are not there; nothing changes yet.
    ///
    /// # Errors
    /// When one cannot be made ready.
    pub async fn make(&self, accounts: &Accounts) -> Result<Made, SinkError> {
        let mut made = BTreeMap::new();
        for (destination, account) in accounts {
            let is_served = self.served().get(destination).is_some_and(|served| served.account == *account);
            if !is_served {
                made.insert(destination.clone(), (account.clone(), self.sink(account.clone()).await?));
            }
        }
        Ok(Made(made))
    }

    /// Serves the destinations of these accounts and no others, with the sinks made for them. Returns those that are
    /// served no longer.
    pub fn serve(&self, accounts: &Accounts, made: Made) -> BTreeSet<String> {
        let mut served = self.served();
        let mut gone = BTreeSet::new();
        served.retain(|destination, one| {
            if !accounts.contains_key(destination) {
                gone.insert(destination.clone());
            }
            let stays = accounts.get(destination).is_some_and(|account| *account == one.account);
            if !stays {
                one.stop.cancel();
            }
            stays
        });
        for (destination, (account, sink)) in made.0 {
            let stop = self.stop.child_token();
            let courier = Arc::clone(&self.courier);
            let serve = courier.serve(destination.clone(), Arc::new(sink), stop.clone(), self.attempts.clone());
            let ended = self.ended.clone().drop_guard();
            let asked = stop.clone();
            let serving = async move {
                serve.await;
                if asked.is_cancelled() {
                    ended.disarm();
                }
            };
            self.attempts.spawn_on(serving, self.threads.handle());
            served.insert(destination, Served { account, stop });
        }
        gone
    }

    fn served(&self) -> MutexGuard<'_, BTreeMap<String, Served>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn sink(&self, account: Option<Account>) -> Result<Sink, SinkError> {
        Ok(match account {
            None => Sink::Capture,
            Some(Account::Smtp(smtp)) => Sink::Smtp(Box::new(Smtp::new(smtp)?)),
            Some(Account::Ses(ses)) => Sink::Ses(Box::new(Ses::new(ses).await)),
            Some(Account::Sns(aws)) => Sink::Sns(Box::new(Sns::new(&aws).await)),
            Some(Account::S3(s3)) => Sink::S3(Box::new(S3::new(s3, Arc::clone(&self.taskcluster)).await)),
            Some(Account::Irc(irc)) => {
                let _here = self.threads.handle().enter();
                Sink::Irc(Irc::start(irc, &self.connections, &self.ended))
            }
            Some(Account::Amqp(broker)) => Sink::Amqp(Box::new(Amqp::new(broker))),
            Some(Account::Webhook(account)) => Sink::Webhook(Box::new(Webhook::new(account)?)),
        })
    }
}

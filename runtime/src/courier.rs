//! The second half of the path: a claimed effect becomes a receipt. Drives sinks, runs no guest code.
//!
//! An attempt is on record before it begins, and only the attempt that holds the claim may say how it ended. What each
//! kind of receipt leads to is decided in [`next`] alone.

pub mod destinations;
pub mod sinks;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;
use crate::pace::Pace;
use crate::retry;
use crate::store::{Claimed, Claimer, Finished, Given, LEASE_MS, Next, Store, StoreError, now_ms};
use crate::tenant::{TENANT_REMOVED, Tenants};
use crate::timing::Timing;
use sinks::Sink;

/// The world's answer to one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// It is done.
    Delivered(String),
    /// Not now: the network, a server that is busy.
    Transient(String),
    /// Never: the recipient or the content was turned down.
    Permanent(String),
    /// Not before a person mends something: the login, the configuration.
    Suspended(String),
    /// It may or may not be done: the answer was lost.
    InDoubt(String),
    /// The grant no longer covers it; it was not attempted.
    Refused(String),
}

impl Receipt {
    /// The kind, as `attempt.outcome` has it.
    const fn kind(&self) -> &'static str {
        match self {
            Self::Delivered(_) => "delivered",
            Self::Transient(_) => "transient",
            Self::Permanent(_) => "permanent",
            Self::Suspended(_) => "suspended",
            Self::InDoubt(_) => "in doubt",
            Self::Refused(_) => "refused",
        }
    }

    fn answer(&self) -> &str {
        match self {
            Self::Delivered(answer)
            | Self::Transient(answer)
            | Self::Permanent(answer)
            | Self::Suspended(answer)
            | Self::InDoubt(answer)
            | Self::Refused(answer) => answer,
        }
    }
}

/// What the second half works with.
pub struct Courier {
    /// Where effects are claimed.
    pub store: Store,
    /// The tenants, whose grants are checked again.
    pub tenants: Tenants,
    /// Names this courier in claims: no two running ones share a name.
    pub owner: String,
    /// For how long repeated events are recognised.
    pub keep: Duration,
    /// Counts what happens.
    pub metrics: Arc<Metrics>,
    /// Notes how long it takes.
    pub timing: Timing,
    /// What each tenant may send while there are others.
    pub pace: Pace,
    /// The rows of what is being performed, whose leases are kept.
    pub in_flight: Arc<Mutex<HashSet<i64>>>,
}

impl Courier {
    /// A name no other courier has.
    #[must_use]
    pub fn new_owner() -> String {
        format!("{}-{:016x}", std::process::id(), rand::random::<u64>())
    }

    /// Performs what is due at one destination, so that a slow one delays no other, until asked to stop; `tracker` then
    /// still has the attempts in flight.
    async fn serve(
        self: Arc<Self>,
        destination: String,
        sink: Arc<Sink>,
        stop: CancellationToken,
        tracker: TaskTracker,
    ) {
        let (slots, answers) = (Arc::new(Semaphore::new(sink.concurrency())), Arc::default());
        let claimer = Claimer { owner: self.owner.clone(), destination, slots };
        let Ok(mut claims) = self.store.claims(claimer).await else { return };
        loop {
            let given = tokio::select! {
                given = claims.next() => given,
                () = stop.cancelled() => break,
            };
            match given {
                Some(given) => self.begin(&sink, &answers, given, &tracker),
                None => return,
            }
        }
        if self.store.end_claims(&claims).await.is_ok() {
            while let Some(given) = claims.next().await {
                self.begin(&sink, &answers, given, &tracker);
            }
        }
    }

    /// Begins an attempt that was claimed.
    fn begin(
        self: &Arc<Self>,
        sink: &Arc<Sink>,
        answers: &Arc<Answers>,
        given: Result<Given, StoreError>,
        tracker: &TaskTracker,
    ) {
        let Given { claimed, slot, more_wait } = match given {
            Ok(given) => given,
            Err(error) => return tracing::error!(%error, "claim"),
        };
        // Of a sink that does one thing after the other it says nothing.
        let more_wait = (sink.concurrency() > 1).then_some(more_wait);
        let (in_flight, id) = (InFlight::begin(self, claimed.seq), claimed.id);
        let (sink, answers) = (Arc::clone(sink), Arc::clone(answers));
        tracker.spawn(async move {
            let courier = Arc::clone(&in_flight.courier);
            let finished = courier.attempt(&sink, &answers, claimed, more_wait).await;
            if let Err(error) = courier.store.finish(finished, Some(slot)).await {
                tracing::error!(effect = %id, %error, "a receipt was not recorded: the effect is in doubt");
            }
            drop(in_flight);
        });
    }

    async fn attempt(&self, sink: &Sink, answers: &Answers, claimed: Claimed, more_wait: Option<bool>) -> Finished {
        self.pace.send(&claimed.tenant, claimed.effect.bytes(), more_wait).await;
        let began = Instant::now();
        let receipt = match self.still_granted(&claimed) {
            Err(why) => Receipt::Refused(why),
            Ok(()) => answers.understood(claimed.seq, sink.perform(&claimed).await),
        };
        self.timing.took(&claimed.plugin, began.elapsed());
        let next = next(&receipt, &claimed);
        say(&claimed, &receipt, &next);
        self.metrics.attempt(&claimed.tenant, claimed.effect.capability(), receipt.kind());
        Finished {
            seq: claimed.seq,
            owner: self.owner.clone(),
            attempt: claimed.attempt,
            destination: claimed.effect.destination(),
            ended_ms: now_ms(),
            outcome: receipt.kind(),
            answer: receipt.answer().to_owned(),
            in_doubt: matches!(receipt, Receipt::InDoubt(_)),
            next,
        }
    }

    fn still_granted(&self, claimed: &Claimed) -> Result<(), String> {
        let tenant = self.tenants.named(&claimed.tenant).ok_or(TENANT_REMOVED)?;
        let terms = tenant.plugins.get(&claimed.plugin).ok_or("the plugin was removed")?;
        terms.grant.allows(&claimed.effect).map_err(|refusal| refusal.to_string())
    }

    /// Keeps the leases of what is in flight, takes back what anybody has let lapse and forgets what is old, until no attempt
    /// is left.
    pub async fn keep_house(self: Arc<Self>, stop: CancellationToken) {
        let mut keep = tokio::time::interval(Duration::from_millis(LEASE_MS.unsigned_abs() / 5));
        let mut prune = tokio::time::interval(PRUNE_EVERY);
        loop {
            let done = tokio::select! {
                () = stop.cancelled() => return,
                _ = keep.tick() => self.store.keep_claims(&self.owner, Arc::clone(&self.in_flight)).await,
                _ = prune.tick() => self.store.prune(jiff::Timestamp::now() - self.keep).await,
            };
            if let Err(error) = done {
                tracing::debug!(%error, "keep house");
            }
        }
    }
}

/// What a destination answered lately.
#[derive(Default)]
struct Answers(Mutex<Answered>);

#[derive(Default)]
struct Answered {
    /// How often it has delivered something.
    deliveries: u64,
    /// How often it had when it answered to these effects as one that has to be mended.
    suspended: HashMap<i64, u64>,
}

impl Answers {
    /// A destination that has delivered others since it answered so to the same effect needs no mending: it is something
    /// about the effect, which is then tried again by itself, until it expires.
    fn understood(&self, seq: i64, receipt: Receipt) -> Receipt {
        let mut answered = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = answered.suspended.remove(&seq);
        match receipt {
            Receipt::Suspended(answer) => {
                let is_about_it = before.is_some_and(|before| before < answered.deliveries);
                let then = before.filter(|_| is_about_it).unwrap_or(answered.deliveries);
                if answered.suspended.len() >= SUSPENDED_KEPT {
                    answered.suspended.clear();
                }
                answered.suspended.insert(seq, then);
                if is_about_it { Receipt::Transient(answer) } else { Receipt::Suspended(answer) }
            }
            Receipt::Delivered(_) => {
                answered.deliveries += 1;
                receipt
            }
            other => other,
        }
    }
}

/// One effect in flight, for as long as this lives: an attempt that is gone, however it went, keeps no lease.
struct InFlight {
    courier: Arc<Courier>,
    seq: i64,
}

impl InFlight {
    fn begin(courier: &Arc<Courier>, seq: i64) -> Self {
        courier.in_flight.lock().unwrap_or_else(PoisonError::into_inner).insert(seq);
        Self { courier: Arc::clone(courier), seq }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.courier.in_flight.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.seq);
    }
}

/// What a receipt leads to.
fn next(receipt: &Receipt, claimed: &Claimed) -> Next {
    let later = || match retry::next_try_ms(claimed.failures + 1, claimed.created_ms, now_ms()) {
        Some(due_ms) => Next::Pending { due_ms },
        None => Next::Expired,
    };
    match receipt {
        Receipt::Delivered(_) => Next::Delivered,
        Receipt::Transient(_) | Receipt::InDoubt(_) => later(),
        Receipt::Permanent(_) => Next::Dead,
        Receipt::Suspended(_) => Next::Suspended { probe_ms: retry::after_ms(PROBE_EVERY, now_ms()) },
        Receipt::Refused(_) => Next::Refused,
    }
}

fn say(claimed: &Claimed, receipt: &Receipt, next: &Next) {
    let (effect, attempt, plugin, tenant) = (claimed.id, claimed.attempt, &claimed.plugin, &claimed.tenant);
    let (destination, answer) = (claimed.effect.destination(), receipt.answer().escape_debug());
    if claimed.in_doubt > 0 {
        tracing::warn!(%effect, attempt, tenant, plugin, destination, "resent in doubt: it may arrive twice");
    }
    match next {
        Next::Delivered => tracing::info!(%effect, attempt, tenant, plugin, destination, %answer, "delivered"),
        Next::Pending { .. } => {
            let in_doubt = matches!(receipt, Receipt::InDoubt(_));
            tracing::warn!(%effect, attempt, tenant, plugin, destination, %answer, in_doubt, "not delivered: trying again");
        }
        Next::Suspended { .. } => {
            tracing::error!(destination, %answer, "destination suspended: its effects wait until this is mended");
        }
        Next::Dead | Next::Expired | Next::Refused => {
            let state = next.state();
            tracing::error!(%effect, attempt, tenant, plugin, destination, %answer, state, "never delivered");
        }
    }
}

const PROBE_EVERY: Duration = Duration::from_secs(15);
/// Of so many effects of a destination is known that it answered them as one that has to be mended.
const SUSPENDED_KEPT: usize = 1_024;
const PRUNE_EVERY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_one_effect_draws_is_about_that_effect() {
        let (answers, no) = (Answers::default(), || Receipt::Suspended("403 Forbidden".into()));
        let is_suspended = |seq: i64| matches!(answers.understood(seq, no()), Receipt::Suspended(_));
        assert!(is_suspended(1) && is_suspended(2) && is_suspended(1), "nothing has gone well meanwhile");
        answers.understood(3, Receipt::Delivered("200 OK".into()));
        assert!(!is_suspended(1) && !is_suspended(1), "others are delivered");
        assert!(is_suspended(4), "of another one nothing is known");
        assert!(!is_suspended(2));
    }
}

//! The one writer. Writes that wait while a transaction runs share the next one, so the busier it is, the larger the
//! group and the fewer the waits for the disk; a lone write waits for nobody, but receipts wait a moment for others.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::checkpoint::Checkpoints;
use super::queue::Queue;
use super::rows::{
    Binding, Changed, Claim, Claimed, DeadDelivery, DeferredEvent, DueRetry, Fate, Finished, Outcome, ROW_WEIGHT,
    RegistryChange, Retried, Room, Settled, Verdict, Withdrawn,
};
use super::sqlite::{self, Applied};
use super::standing::{Claimer, Given, Standing, Tried};
use super::{Health, StoreError};
use crate::fair::Company;

/// One thing to write.
pub(super) enum Write {
    Settle(Settled),
    Retried(Retried),
    Bury(DeadDelivery),
    DueEvents {
        room: Room,
    },
    DueRetries {
        room: Room,
    },
    /// Stands until it is ended or nobody takes any more.
    BeginClaims(Claimer, Give),
    /// Of the one with these slots.
    EndClaims(Arc<Semaphore>),
    /// With its slot, which is free as soon as this is here.
    Finish(Finished, Option<OwnedSemaphorePermit>),
    Keep {
        owner: String,
        in_flight: Arc<Mutex<HashSet<i64>>>,
    },
    ProbeNow,
    Registry(RegistryChange),
    Withdraw(Arc<Mutex<Withdrawn>>),
    Prune {
        before_ms: i64,
    },
    Bindings {
        queue: String,
        bindings: Vec<Binding>,
    },
    Unbound {
        queue: String,
        binding: Binding,
    },
}

impl Write {
    /// Whose it is; nobody's for what serves all.
    fn tenant(&self) -> &str {
        match self {
            Self::Settle(settled) => &settled.tenant,
            Self::Retried(retried) => &retried.tenant,
            Self::Bury(dead) => &dead.tenant,
            Self::Registry(RegistryChange::Deploy(deployment)) => &deployment.tenant,
            Self::Registry(_)
            | Self::DueEvents { .. }
            | Self::DueRetries { .. }
            | Self::BeginClaims(..)
            | Self::EndClaims(_)
            | Self::Finish(..)
            | Self::Keep { .. }
            | Self::ProbeNow
            | Self::Withdraw(_)
            | Self::Prune { .. }
            | Self::Bindings { .. }
            | Self::Unbound { .. } => "",
        }
    }

    /// How much there is to write, in bytes, each row counted as some.
    fn weight(&self) -> usize {
        ROW_WEIGHT
            + match self {
                Self::Settle(settled) => settled.bytes(),
                Self::Retried(retried) => retried.invocation.bytes(),
                Self::Bury(dead) => dead.delivery.body.len(),
                Self::Registry(RegistryChange::Deploy(deployment)) => deployment.wasm.len(),
                _ => 0,
            }
    }

    /// Where it brings effects.
    fn destinations(&self) -> impl Iterator<Item = String> {
        let invocations = match self {
            Self::Settle(Settled { fate: Fate::Planned(invocations), .. }) => invocations.as_slice(),
            Self::Retried(retried) => std::slice::from_ref(&retried.invocation),
            _ => &[],
        };
        let plans = invocations.iter().filter_map(|invocation| match &invocation.outcome {
            Outcome::Done(plan) => Some(plan),
            _ => None,
        });
        plans.flat_map(|plan| plan.effects.iter().map(|planned| planned.effect.destination()))
    }
}

/// What came of it.
pub(super) enum Written {
    Nothing,
    Verdict(Verdict),
    Events(Vec<DeferredEvent>),
    Retries(Vec<DueRetry>),
    Bindings(Vec<Binding>),
    Registry(Changed),
    Count(u64),
}

type Reply = oneshot::Sender<Result<Written, StoreError>>;
/// Where what is claimed goes, each with its slot: so never more than there are slots.
type Give = mpsc::UnboundedSender<Result<Given, StoreError>>;

/// Writes groups until nobody is left who could send any.
pub(super) async fn run(
    path: PathBuf,
    mut connection: Connection,
    mut writes: mpsc::Receiver<(Write, Reply)>,
    health: watch::Sender<Health>,
    mut checkpoints: Checkpoints,
) {
    let (mut come, mut queue, mut claims) = (Vec::with_capacity(GROUP_MAX), Queue::new(), Standing::<Give>::new());
    let (mut company, mut patience) = (Company::default(), Patience::default());
    loop {
        let receipts_wait = patience.until();
        if (queue.is_empty() || receipts_wait.is_some()) && !claims.is_ready() {
            let coming = writes.recv_many(&mut come, GROUP_MAX);
            let is_over = match receipts_wait.into_iter().chain(claims.look_again()).min() {
                None => coming.await == 0,
                Some(at) => tokio::time::timeout_at(at, coming).await.is_ok_and(|count| count == 0),
            };
            if is_over && queue.is_empty() {
                break;
            }
        }
        while let Ok(more) = writes.try_recv() {
            come.push(more);
        }
        for (write, reply) in come.drain(..) {
            match write {
                Write::BeginClaims(claimer, give) => {
                    claims.may_be_due(&claimer.destination);
                    claims.push(claimer, give);
                    drop(reply.send(Ok(Written::Nothing)));
                }
                Write::EndClaims(slots) => {
                    claims.end(&slots);
                    drop(reply.send(Ok(Written::Nothing)));
                }
                mut write => {
                    if let Write::Finish(_, slot) = &mut write {
                        drop(slot.take());
                    }
                    patience.saw(&write);
                    let (whose, weight) = (write.tenant().to_owned(), write.weight());
                    if !whose.is_empty() && !matches!(write, Write::Registry(_)) {
                        company.saw(&whose);
                    }
                    queue.push(&whose, weight, (write, reply));
                }
            }
        }
        let looks = claims.look_again().is_some_and(|at| at <= Instant::now());
        if patience.is_left() && !looks && !claims.is_ready() && !writes.is_closed() {
            continue;
        }
        let weight_max = if company.is_several() { SHARED_GROUP_WEIGHT_MAX } else { GROUP_WEIGHT_MAX };
        let group = queue.group(GROUP_MAX, weight_max);
        patience.end(queue.is_empty());
        if looks || group.iter().any(|(write, _)| matches!(write, Write::ProbeNow)) {
            claims.all_may_be_due();
        }
        // What the group brings is claimed in the same transaction.
        let new = group.iter().flat_map(|(write, _)| write.destinations()).collect();
        let mut tried = claims.ready(CLAIMS_MAX, &new);
        tried.retain(|tried| !tried.give.is_closed());
        if group.is_empty() && tried.is_empty() {
            continue;
        }
        let (group, replies): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        checkpoints.wrote(group.iter().map(Write::weight).sum());
        let wishes: Vec<_> = tried.iter().map(Tried::claim).collect();
        let is_unwanted = || replies.iter().all(Reply::is_closed) && tried.iter().all(|tried| tried.give.is_closed());
        let mut committed = Committed::default();
        while let Err(error) = commit(&mut connection, &group, &wishes, &mut committed) {
            // Which of several operations failed, the text does not say.
            let code = error.sqlite_extended_error_code();
            if is_unwanted() {
                tracing::error!(%error, code, "database unavailable, and nobody waits for these writes any more");
                break;
            }
            tracing::error!(%error, code, "database unavailable: nothing is acked until it takes writes again");
            health.send_replace(Health::Unavailable(error.to_string()));
            tokio::time::sleep(PAUSE).await;
            if let Ok(fresh) = sqlite::connect(&path) {
                connection = fresh;
            }
        }
        if *health.borrow() != Health::Ready {
            tracing::info!("database takes writes again");
            health.send_replace(Health::Ready);
        }
        // Whoever asked may have gone away; the write stands.
        replies.into_iter().zip(committed.written).for_each(|(reply, written)| drop(reply.send(written)));
        new.iter().chain(&committed.due).for_each(|destination| claims.may_be_due(destination));
        tried.into_iter().zip(committed.claimed).for_each(|(tried, claimed)| hand_over(tried, claimed, &mut claims));
    }
    if let Err((_, error)) = connection.close() {
        tracing::warn!(%error, "close database");
    }
}

/// How long receipts wait: hardly anybody waits for them, and a transaction of their own costs as much as one that they
/// share with the next event. So while events come, receipts alone wait for the next one, for a moment.
#[derive(Default)]
struct Patience {
    /// Until when what is there may wait; there is nothing, or something else, when there is none.
    until: Option<Instant>,
    /// Something else is there.
    is_over: bool,
    /// When the last event came.
    event: Option<Instant>,
}

impl Patience {
    fn saw(&mut self, write: &Write) {
        let now = Instant::now();
        if !matches!(write, Write::Finish(..)) {
            (self.until, self.is_over) = (None, true);
            if matches!(write, Write::Settle(_) | Write::Retried(_)) {
                self.event = Some(now);
            }
        } else if !self.is_over && self.until.is_none() && self.event.is_some_and(|event| now < event + EVENTS_COME) {
            self.until = Some(now + RECEIPTS_WAIT_MAX);
        } else if self.until.is_none() {
            self.is_over = true;
        }
    }

    const fn until(&self) -> Option<Instant> {
        self.until
    }

    fn is_left(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() < until)
    }

    /// A group is taken, of all that was there or of a part.
    const fn end(&mut self, of_all: bool) {
        (self.until, self.is_over) = (None, !of_all);
    }
}

/// Hands over what was claimed, each with its slot; the claim stands.
fn hand_over(tried: Tried<Give>, claimed: Result<Vec<Claimed>, StoreError>, claims: &mut Standing<Give>) {
    let Tried { claimer, mut slots, give, .. } = tried;
    // A claim that was refused is tried again in a second.
    let more_wait = claimed.as_ref().map_or(0, Vec::len) >= slots.num_permits();
    if !more_wait {
        claims.nothing_is_due(&claimer.destination);
    }
    // Whoever is gone, what was claimed for him lapses.
    match claimed {
        Err(error) => drop(give.send(Err(error))),
        Ok(all) => all.into_iter().zip(std::iter::repeat_with(|| slots.split(1))).for_each(|(claimed, slot)| {
            if let Some(slot) = slot {
                drop(give.send(Ok(Given { claimed, slot, more_wait })));
            }
        }),
    }
    claims.push(claimer, give);
}

/// What came of a group.
#[derive(Default)]
struct Committed {
    /// Of each write.
    written: Vec<Result<Written, StoreError>>,
    /// Of each claim.
    claimed: Vec<Result<Vec<Claimed>, StoreError>>,
    /// Where effects that were written before became due.
    due: BTreeSet<String>,
}

impl Committed {
    const fn is_empty(&self) -> bool {
        self.written.is_empty() && self.claimed.is_empty()
    }

    fn add(&mut self, applied: Applied) {
        self.written.extend(applied.written.into_iter().map(Ok));
        self.claimed.extend(applied.claimed.into_iter().map(Ok));
        self.due.extend(applied.due);
    }
}

/// Commits a group, or what is not committed of it yet. When the engine refuses it for what it contains, its members are
/// committed one by one, so that only the culprit fails.
fn commit(
    connection: &mut Connection,
    writes: &[Write],
    claims: &[Claim],
    committed: &mut Committed,
) -> Result<(), rusqlite::Error> {
    if committed.is_empty() {
        match sqlite::commit(connection, writes, claims) {
            Ok(applied) => {
                committed.add(applied);
                return Ok(());
            }
            Err(error) if !is_about_content(&error) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, writes = writes.len(), "database refuses a group: committing one by one");
            }
        }
    }
    for write in writes.chunks(1).skip(committed.written.len()) {
        match sqlite::commit(connection, write, &[]) {
            Ok(applied) => committed.add(applied),
            Err(error) if is_about_content(&error) => {
                committed.written.push(Err(StoreError::Rejected(error.to_string())));
            }
            Err(error) => return Err(error),
        }
    }
    for claim in claims.iter().skip(committed.claimed.len()) {
        // What was new is written by now.
        match sqlite::commit(connection, &[], &[Claim { only_new: false, ..claim.clone() }]) {
            Ok(applied) => committed.add(applied),
            Err(error) if is_about_content(&error) => {
                committed.claimed.push(Err(StoreError::Rejected(error.to_string())));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether the engine would refuse the same content for ever, rather than being in trouble itself.
fn is_about_content(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) => {
            matches!(failure.code, ErrorCode::TooBig | ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch)
        }
        rusqlite::Error::ToSqlConversionFailure(_)
        | rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::Utf8Error(..)
        | rusqlite::Error::IntegralValueOutOfRange(..) => true,
        _ => false,
    }
}

const GROUP_MAX: usize = 512;
/// A group of one tenant alone: the larger, the less each write costs.
const GROUP_WEIGHT_MAX: usize = 1 << 20;
/// A group where several tenants write: more would keep the others waiting for more than a few milliseconds.
const SHARED_GROUP_WEIGHT_MAX: usize = 96 << 10;
/// Claims in one group beside those of destinations where nothing is due but what the group brings.
const CLAIMS_MAX: usize = 64;
/// Events come when the last one is not longer ago.
const EVENTS_COME: Duration = Duration::from_millis(20);
const RECEIPTS_WAIT_MAX: Duration = Duration::from_millis(10);
const PAUSE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::rows::{Basis, Next};

    fn receipt() -> Write {
        let finished = Finished {
            seq: 1,
            owner: "me".into(),
            attempt: 1,
            destination: "email/smtp".into(),
            ended_ms: 1,
            outcome: "delivered",
            answer: String::new(),
            in_doubt: false,
            next: Next::Delivered,
        };
        Write::Finish(finished, None)
    }

    fn event() -> Write {
        Write::Settle(Settled {
            key: crate::effect::Hash::of_bytes(b""),
            tenant: "default".into(),
            status: "failed".into(),
            task_id: String::new(),
            run_id: None,
            delivery: Arc::default(),
            received_ms: 0,
            fate: Fate::Dead { reason: String::new() },
            basis: Basis::Delivery,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn while_events_come_receipts_alone_wait_for_the_next_one_but_not_for_long() {
        let mut patience = Patience::default();
        patience.saw(&receipt());
        assert!(!patience.is_left(), "nothing comes");
        patience.end(true);
        patience.saw(&event());
        patience.saw(&receipt());
        assert!(!patience.is_left(), "something else is there");
        patience.end(true);
        patience.saw(&receipt());
        let until = patience.until();
        tokio::time::advance(RECEIPTS_WAIT_MAX / 2).await;
        patience.saw(&receipt());
        assert!(patience.is_left() && patience.until() == until, "the first one's wait counts");
        tokio::time::advance(RECEIPTS_WAIT_MAX / 2).await;
        assert!(!patience.is_left());
        patience.saw(&Write::ProbeNow);
        assert_eq!(patience.until(), None, "the next one is there");
        patience.end(false);
        patience.saw(&receipt());
        assert!(!patience.is_left(), "a part of the others is there");
        patience.end(true);
        tokio::time::advance(EVENTS_COME).await;
        patience.saw(&receipt());
        assert!(!patience.is_left(), "no event has come for a while");
    }
}

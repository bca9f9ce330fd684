//! The one writer. Writes that wait while a transaction runs share the next one, so the busier it is, the larger the
//! group and the fewer the waits for the disk; a lone write waits for nobody.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sqlx::{Connection, SqliteConnection};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::time::Instant;

use super::checkpoint::Checkpoints;
use super::queue::Queue;
use super::rows::{
    Binding, Changed, Claim, Claimed, DeadDelivery, DeferredEvent, DueRetry, Fate, Finished, Invocation, Outcome,
    ROW_WEIGHT, RegistryChange, Retried, Room, Settled, Verdict, Withdrawn,
};
use super::standing::{self, Claimer, Standing, Tried};
use super::{Health, StoreError, sqlite};
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
    Claim(Claim),
    ClaimWhenDue(Claimer),
    /// Answers the claims that wait for something due there with nothing.
    EndClaims {
        destination: String,
    },
    /// With its slot, which is free as soon as this is here.
    Finish(Finished, Option<OwnedSemaphorePermit>),
    Renew {
        owner: String,
        effects: Vec<i64>,
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
            | Self::Claim(_)
            | Self::ClaimWhenDue(_)
            | Self::EndClaims { .. }
            | Self::Finish(..)
            | Self::Renew { .. }
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
                Self::Claim(claim) => claim.destinations.values().sum::<u32>() as usize * ROW_WEIGHT,
                _ => 0,
            }
    }

    /// Notes what couriers may find due once it is written.
    fn announce<R>(&self, claims: &mut Standing<R>) {
        match self {
            Self::Settle(Settled { fate: Fate::Planned(invocations), .. }) => {
                invocations.iter().for_each(|invocation| announce(invocation, claims));
            }
            Self::Retried(retried) => announce(&retried.invocation, claims),
            // The next one to the same recipient.
            Self::Finish(finished, _) => claims.may_be_due(&finished.destination),
            Self::ProbeNow => claims.all_may_be_due(),
            _ => {}
        }
    }
}

fn announce<R>(invocation: &Invocation, claims: &mut Standing<R>) {
    let Outcome::Done(plan) = &invocation.outcome else { return };
    plan.effects.iter().for_each(|planned| claims.may_be_due(&planned.effect.destination()));
}

/// What came of it.
pub(super) enum Written {
    Nothing,
    Verdict(Verdict),
    Events(Vec<DeferredEvent>),
    Retries(Vec<DueRetry>),
    Claimed(Vec<Claimed>),
    ClaimedInto(Vec<(Claimed, Option<OwnedSemaphorePermit>)>),
    Bindings(Vec<Binding>),
    Registry(Changed),
    Count(u64),
}

type Reply = oneshot::Sender<Result<Written, StoreError>>;

/// Writes groups until nobody is left who could send any.
pub(super) async fn run(
    path: PathBuf,
    mut connection: SqliteConnection,
    mut writes: mpsc::Receiver<(Write, Reply)>,
    health: watch::Sender<Health>,
    mut checkpoints: Checkpoints,
) {
    let (mut come, mut queue, mut claims) = (Vec::with_capacity(GROUP_MAX), Queue::new(), Standing::<Reply>::new());
    let mut company = Company::default();
    loop {
        if queue.is_empty() && !claims.is_ready() {
            let coming = writes.recv_many(&mut come, GROUP_MAX);
            let is_over = match claims.look_again() {
                None => coming.await == 0,
                Some(at) => tokio::time::timeout_at(at, coming).await.is_ok_and(|count| count == 0),
            };
            if is_over {
                break;
            }
        }
        while let Ok(more) = writes.try_recv() {
            come.push(more);
        }
        for (write, reply) in come.drain(..) {
            match write {
                Write::ClaimWhenDue(claimer) => claims.push(claimer, reply),
                Write::EndClaims { destination } => {
                    for reply in claims.end(&destination).into_iter().chain([reply]) {
                        drop(reply.send(Ok(Written::Nothing)));
                    }
                }
                mut write => {
                    if let Write::Finish(_, slot) = &mut write {
                        drop(slot.take());
                    }
                    let (whose, weight) = (write.tenant().to_owned(), write.weight());
                    if !whose.is_empty() && !matches!(write, Write::Registry(_)) {
                        company.saw(&whose);
                    }
                    queue.push(&whose, weight, (write, reply));
                }
            }
        }
        let weight_max = if company.is_several() { SHARED_GROUP_WEIGHT_MAX } else { GROUP_WEIGHT_MAX };
        let group = queue.group(GROUP_MAX, weight_max);
        group.iter().for_each(|(write, _)| write.announce(&mut claims));
        if claims.look_again().is_some_and(|at| at <= Instant::now()) {
            claims.all_may_be_due();
        }
        // What the group makes due is claimed in the same transaction.
        let mut tried = claims.ready(CLAIMS_MAX);
        tried.retain(|tried| !tried.reply.is_closed());
        if group.is_empty() && tried.is_empty() {
            continue;
        }
        let (mut group, replies): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        // Not what is claimed, which was written before.
        checkpoints.wrote(group.iter().map(Write::weight).sum());
        let mut claimants = Vec::new();
        while let Some((claim, tried)) = standing::of_one_owner(&mut tried) {
            group.push(Write::Claim(claim));
            claimants.push(tried);
        }
        let waiting = || replies.iter().chain(claimants.iter().flatten().map(|tried| &tried.reply));
        let written = loop {
            match commit(&mut connection, &group).await {
                Ok(written) => break written,
                Err(error) if waiting().all(Reply::is_closed) => {
                    tracing::error!(%error, "database unavailable, and nobody waits for these writes any more");
                    break Vec::new();
                }
                Err(error) => {
                    tracing::error!(%error, "database unavailable: nothing is acked until it takes writes again");
                    health.send_replace(Health::Unavailable(error.to_string()));
                    tokio::time::sleep(PAUSE).await;
                    if let Ok(fresh) = sqlite::connect(&path).await {
                        connection = fresh;
                    }
                }
            }
        };
        if *health.borrow() != Health::Ready {
            tracing::info!("database takes writes again");
            health.send_replace(Health::Ready);
        }
        let mut written = written.into_iter();
        // Whoever asked may have gone away; the write stands.
        replies.into_iter().zip(&mut written).for_each(|(reply, written)| drop(reply.send(written)));
        claimants.into_iter().zip(written).for_each(|(tried, written)| answer(tried, written, &mut claims));
    }
    if let Err(error) = connection.close().await {
        tracing::warn!(%error, "close database");
    }
}

/// Hands over what was claimed, each with its slot; a claim that found nothing waits on.
fn answer(tried: Vec<Tried<Reply>>, written: Result<Written, StoreError>, claims: &mut Standing<Reply>) {
    let mut claimed: HashMap<String, Vec<Claimed>> = HashMap::new();
    match written {
        Ok(Written::Claimed(all)) => {
            all.into_iter().for_each(|one| claimed.entry(one.effect.destination()).or_default().push(one));
        }
        Ok(_) => {}
        Err(error) => {
            let why = error.to_string();
            let refuse = |tried: Tried<Reply>| drop(tried.reply.send(Err(StoreError::Rejected(why.clone()))));
            return tried.into_iter().for_each(refuse);
        }
    }
    for Tried { claimer, mut slots, reply } in tried {
        let claimed = claimed.remove(&claimer.destination).unwrap_or_default();
        if claimed.len() < slots.num_permits() {
            claims.nothing_is_due(&claimer.destination);
        }
        if claimed.is_empty() {
            claims.push(claimer, reply);
            continue;
        }
        let with_slots = claimed.into_iter().map(|claimed| (claimed, slots.split(1))).collect();
        drop(reply.send(Ok(Written::ClaimedInto(with_slots))));
    }
}

/// Commits a group. When the engine refuses it for what it contains, its members are committed one by one, so that only
/// the culprit fails.
async fn commit(
    connection: &mut SqliteConnection,
    writes: &[Write],
) -> Result<Vec<Result<Written, StoreError>>, sqlx::Error> {
    match commit_all(connection, writes).await {
        Ok(written) => return Ok(written.into_iter().map(Ok).collect()),
        Err(error) if !is_about_content(&error) => return Err(error),
        Err(error) => tracing::warn!(%error, writes = writes.len(), "database refuses a group: committing one by one"),
    }
    let mut all = Vec::with_capacity(writes.len());
    for write in writes.chunks(1) {
        match commit_all(connection, write).await {
            Ok(written) => all.extend(written.into_iter().map(Ok)),
            Err(error) if is_about_content(&error) => all.push(Err(StoreError::Rejected(error.to_string()))),
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

async fn commit_all(connection: &mut SqliteConnection, writes: &[Write]) -> Result<Vec<Written>, sqlx::Error> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let written = sqlite::apply(&mut transaction, writes).await?;
    transaction.commit().await?;
    Ok(written)
}

/// Whether the engine would refuse the same content for ever, rather than being in trouble itself.
fn is_about_content(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => {
            // SQLite's primary result codes: TOOBIG, CONSTRAINT, MISMATCH.
            let code = error.code().and_then(|code| code.parse::<u32>().ok());
            code.is_some_and(|code| matches!(code & 0xff, 18..=20))
        }
        sqlx::Error::Encode(_) | sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => true,
        _ => false,
    }
}

const GROUP_MAX: usize = 512;
/// A group of one tenant alone: the larger, the less each write costs.
const GROUP_WEIGHT_MAX: usize = 1 << 20;
/// A group where several tenants write: more would keep the others waiting for more than a few milliseconds.
const SHARED_GROUP_WEIGHT_MAX: usize = 256 << 10;
/// Claims in one group.
const CLAIMS_MAX: usize = 64;
const PAUSE: Duration = Duration::from_millis(500);

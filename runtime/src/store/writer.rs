//! The one writer. Writes that wait while a transaction runs share the next one, so the busier it is, the larger the
//! group and the fewer the waits for the disk; a lone write waits for nobody.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sqlx::{Connection, SqliteConnection};
use tokio::sync::{mpsc, oneshot, watch};

use super::queue::Queue;
use super::rows::{
    Binding, Changed, Claim, Claimed, DeadDelivery, DeferredEvent, DueRetry, Finished, ROW_WEIGHT, RegistryChange,
    Retried, Room, Settled, Verdict, Withdrawn,
};
use super::{Health, StoreError, sqlite};

/// One thing to write.
pub(super) enum Write {
    Settle(Settled),
    Retried(Retried),
    Bury(DeadDelivery),
    DueEvents { room: Room },
    DueRetries { room: Room },
    Claim(Claim),
    Finish(Finished),
    Renew { owner: String, effects: Vec<i64> },
    ProbeNow,
    Registry(RegistryChange),
    Withdraw(Arc<Mutex<Withdrawn>>),
    Prune { before_ms: i64 },
    Bindings { queue: String, bindings: Vec<Binding> },
    Unbound { queue: String, binding: Binding },
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
            | Self::Finish(_)
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
                Self::Claim(claim) => claim.limit as usize * ROW_WEIGHT,
                _ => 0,
            }
    }

    /// Whether couriers should look again once it is committed.
    const fn may_make_an_effect_due(&self) -> bool {
        matches!(self, Self::Settle(_) | Self::Retried(_) | Self::Finish(_) | Self::ProbeNow)
    }
}

/// What came of it.
pub(super) enum Written {
    Nothing,
    Verdict(Verdict),
    Events(Vec<DeferredEvent>),
    Retries(Vec<DueRetry>),
    Claimed(Vec<Claimed>),
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
    effects_due: watch::Sender<()>,
) {
    let (mut come, mut queue) = (Vec::with_capacity(GROUP_MAX), Queue::new());
    loop {
        if queue.is_empty() && writes.recv_many(&mut come, GROUP_MAX).await == 0 {
            break;
        }
        while let Ok(more) = writes.try_recv() {
            come.push(more);
        }
        for (write, reply) in come.drain(..) {
            let (whose, weight) = (write.tenant().to_owned(), write.weight());
            queue.push(&whose, weight, (write, reply));
        }
        let group = queue.group(GROUP_MAX, GROUP_WEIGHT_MAX);
        let (writes, replies): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        let may_be_due = writes.iter().any(Write::may_make_an_effect_due);
        let written = loop {
            match commit(&mut connection, &writes).await {
                Ok(written) => break written,
                Err(error) if replies.iter().all(Reply::is_closed) => {
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
        for (reply, written) in replies.into_iter().zip(written) {
            // Whoever asked may have gone away; the write stands.
            drop(reply.send(written));
        }
        if may_be_due {
            effects_due.send_replace(());
        }
    }
    if let Err(error) = connection.close().await {
        tracing::warn!(%error, "close database");
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
/// A group of more than this would keep the others waiting for tens of milliseconds.
const GROUP_WEIGHT_MAX: usize = 1 << 20;
const PAUSE: Duration = Duration::from_millis(500);

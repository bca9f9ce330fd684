//! The statements, in SQLite's dialect. Each takes the transaction of its group.
//!
//! A bare parameter as a limit would have SQLite plan the statement anew at each execution, for the number it is bound
//! to; `0 + ?` keeps the plan. Rows are written many at once, in a few sizes (`push_rows`), so that statements are few and
//! stay prepared: each is a turn of the engine's thread, for which the processors' other users make it wait.

mod attempts;
mod bindings;
mod claims;
mod effects;
mod events;
pub(super) mod figures;
mod invocations;
mod quotas;
pub(super) mod records;
pub(super) mod registry;
mod withdrawn;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::query_builder::Separated;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteRow, SqliteSynchronous};
use sqlx::{ConnectOptions, QueryBuilder, Row, Sqlite, SqliteConnection};

use claims::GroupClaims;

use super::now_ms;
use super::rows::*;
use super::writer::{Write, Written};
use crate::effect::Hash;

type Result<T> = std::result::Result<T, sqlx::Error>;

/// What it is at this moment.
fn now<T: Clone>(changing: &Mutex<T>) -> T {
    changing.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

pub(super) fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(30))
        // A few seconds' worth of new pages stays in memory, and is copied from the log into the file once.
        .pragma("cache_size", "-65536")
        .pragma("wal_autocheckpoint", "8192")
        // What a statement would undo when a row of it fails: in memory, not in a file.
        .pragma("temp_store", "MEMORY")
        .statement_cache_capacity(256)
        // Rows handed over in one piece rather than each with a wake-up.
        .row_buffer_size(ROWS_BUFFERED)
}

pub(super) async fn connect(path: &Path) -> Result<SqliteConnection> {
    options(path).connect().await
}

/// Connects to a database that is there and up to date. Two processes that make it at the same time are in each other's
/// way, and one of them finds it made when it looks again.
pub(super) async fn open(path: &Path) -> Result<SqliteConnection> {
    let mut looks = 0;
    loop {
        match connect_and_migrate(path).await {
            Err(error) if looks < LOOKS_MAX && is_in_the_way(&error) => {
                looks += 1;
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            done => return done,
        }
    }
}

async fn connect_and_migrate(path: &Path) -> Result<SqliteConnection> {
    let mut connection = connect(path).await?;
    MIGRATIONS.run(&mut connection).await?;
    Ok(connection)
}

fn is_in_the_way(error: &sqlx::Error) -> bool {
    let said = error.to_string();
    ["locked", "already exists", "UNIQUE constraint failed: _sqlx_migrations"].iter().any(|way| said.contains(way))
}

/// What came of a transaction.
pub(super) struct Applied {
    /// Of each write.
    pub written: Vec<Written>,
    /// What each claim got.
    pub claimed: Vec<Vec<Claimed>>,
    /// Where effects that were written before became due.
    pub due: BTreeSet<String>,
}

/// The suspended destinations, and when each is probed next.
type Suspensions = HashMap<String, i64>;

/// Applies a group of writes in one transaction.
pub(super) async fn commit(connection: &mut SqliteConnection, writes: &[Write], claims: &[Claim]) -> Result<Applied> {
    let done = async {
        // Begun and looked into in one turn of the engine: each turn is two switches of threads.
        let begin = "BEGIN IMMEDIATE; SELECT destination, probe_ms FROM suspension";
        let suspended: Vec<(String, i64)> = sqlx::query_as(begin).fetch_all(&mut *connection).await?;
        let applied = apply(connection, writes, claims, suspended.into_iter().collect()).await?;
        sqlx::query("COMMIT").execute(&mut *connection).await?;
        Ok(applied)
    };
    let done = done.await;
    if done.is_err() {
        // Where none was begun, or the engine has taken it back already, there is nothing to take back.
        drop(sqlx::query("ROLLBACK").execute(connection).await);
    }
    done
}

/// In an order that lets claims see what the group brings.
async fn apply(
    connection: &mut SqliteConnection,
    writes: &[Write],
    claims: &[Claim],
    mut suspended: Suspensions,
) -> Result<Applied> {
    let mut written: Vec<Option<Written>> = writes.iter().map(|_| None).collect();
    let mut deliveries = Vec::new();
    let mut finished = Vec::new();
    let mut due = BTreeSet::new();
    for ((place, write), slot) in writes.iter().enumerate().zip(&mut written) {
        match write {
            Write::Settle(settled) if settled.basis == Basis::Delivery => deliveries.push((place, settled)),
            Write::Finish(ended, _) => {
                finished.push(ended);
                *slot = Some(Written::Nothing);
            }
            Write::Keep { owner, in_flight } => {
                due.extend(claims::keep(connection, owner, &now(in_flight)).await?);
                *slot = Some(Written::Nothing);
            }
            Write::ProbeNow => {
                sqlx::query("UPDATE suspension SET probe_ms = 0").execute(&mut *connection).await?;
                suspended.values_mut().for_each(|probe_ms| *probe_ms = 0);
                *slot = Some(Written::Nothing);
            }
            // Nothing is claimed there before what waits there is ended.
            Write::Withdraw(withdrawn) => due.extend(now(withdrawn).destinations.into_keys()),
            _ => {}
        }
    }
    due.extend(attempts::finish_all(connection, &finished, &mut suspended).await?);
    let mut claims = GroupClaims::new(claims, &due, suspended);
    for (place, verdict) in events::settle_deliveries(connection, deliveries, &mut claims).await? {
        if let Some(slot) = written.get_mut(place) {
            *slot = Some(Written::Verdict(verdict));
        }
    }
    for (write, slot) in writes.iter().zip(&mut written).filter(|(_, slot)| slot.is_none()) {
        *slot = Some(one(connection, write, &mut claims).await?);
    }
    let claimed = claims.end(connection).await?;
    Ok(Applied { written: written.into_iter().map(|slot| slot.unwrap_or(Written::Nothing)).collect(), claimed, due })
}

async fn one(connection: &mut SqliteConnection, write: &Write, claims: &mut GroupClaims<'_>) -> Result<Written> {
    Ok(match write {
        Write::Settle(settled) => Written::Verdict(events::settle_deferred(connection, settled, claims).await?),
        Write::Retried(retried) => Written::Verdict(invocations::settle_retry(connection, retried, claims).await?),
        Write::Bury(dead) => events::bury(connection, dead).await?,
        Write::DueEvents { room } => Written::Events(events::due_events(connection, now_ms(), room).await?),
        Write::DueRetries { room } => Written::Retries(invocations::due_retries(connection, now_ms(), room).await?),
        Write::Unbound { queue, binding } => bindings::unbound(connection, queue, binding).await?,
        Write::Registry(change) => Written::Registry(registry::apply(connection, change).await?),
        Write::Withdraw(withdrawn) => Written::Count(withdrawn::withdraw(connection, &now(withdrawn), now_ms()).await?),
        Write::Prune { before_ms } => {
            registry::prune(connection).await?;
            events::prune(connection, *before_ms).await?
        }
        Write::Bindings { queue, bindings } => {
            Written::Bindings(bindings::bindings(connection, queue, bindings).await?)
        }
        // Done before, or not written at all.
        Write::Finish(..) | Write::Keep { .. } | Write::ProbeNow | Write::BeginClaims(..) | Write::EndClaims(_) => {
            Written::Nothing
        }
    })
}

fn hash(row: &SqliteRow, column: &str) -> Result<Hash> {
    let bytes: Vec<u8> = row.try_get(column)?;
    Hash::from_slice(&bytes).ok_or_else(|| corrupt(column, format!("expected 32 bytes, found {}", bytes.len()).into()))
}

fn from_json<T: serde::de::DeserializeOwned>(row: &SqliteRow, column: &str) -> Result<T> {
    let bytes: Vec<u8> = row.try_get(column)?;
    serde_json::from_slice(&bytes).map_err(|error| corrupt(column, error.into()))
}

fn corrupt(column: &str, source: Box<dyn std::error::Error + Send + Sync>) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: column.to_owned(), source }
}

/// Our own types have string keys and finite numbers, so this does not fail; if it did, the row would say null.
fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_else(|_| b"null".to_vec())
}

fn list(texts: &[String]) -> Option<Vec<u8>> {
    (!texts.is_empty()).then(|| json(&texts))
}

/// The rows in pieces that one statement can take.
fn in_chunks<T>(rows: &[T]) -> impl Iterator<Item = &[T]> {
    rows.chunks(ROWS_MAX)
}

/// Appends `VALUES` with these rows, and with rows of nothing up to the next of a few sizes: so statements are few and
/// stay prepared. Whatever reads them takes no row whose first column is null.
fn push_rows<T>(
    query: &mut QueryBuilder<Sqlite>,
    rows: &[T],
    columns: usize,
    mut push: impl FnMut(&mut Separated<'_, Sqlite, &'static str>, &T),
) {
    let size = SIZES.into_iter().find(|size| *size >= rows.len()).unwrap_or(rows.len());
    let padded = rows.iter().map(Some).chain(std::iter::repeat_n(None, size - rows.len()));
    query.push_values(padded, |mut row, values| match values {
        Some(values) => push(&mut row, values),
        None => {
            for _ in 0..columns {
                row.push_bind(None::<i64>);
            }
        }
    });
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// How often to look again at a database that others are making, and after how long.
const LOOKS_MAX: u32 = 50;
const LOOK_AGAIN: Duration = Duration::from_millis(100);
static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("migrations/sqlite");

/// Rows in one statement.
const ROWS_MAX: usize = 128;
const SIZES: [usize; 6] = [1, 4, 12, 32, 64, ROWS_MAX];

const ROWS_BUFFERED: usize = 512;

//! The statements, in SQLite's dialect. Those that write take the transaction of their group, on the writer's own thread:
//! the engine is called there, and answers there, without a switch of threads for which the processors' other users would
//! make each statement wait.
//!
//! A bare parameter as a limit would have SQLite plan the statement anew at each execution, for the number it is bound
//! to; `0 + ?` keeps the plan.

mod attempts;
mod bindings;
mod claims;
mod effects;
mod events;
pub(super) mod figures;
mod invocations;
mod open;
mod quotas;
pub(super) mod records;
pub(super) mod registry;
mod withdrawn;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, Type, ValueRef};
use rusqlite::{Connection, ErrorCode, Result, Row, TransactionBehavior};

use claims::GroupClaims;
pub(super) use open::{BUSY_MAX, connect, connect_to_read, open};

use super::now_ms;
use super::rows::*;
use super::writer::{Write, Written};
use crate::effect::Hash;

/// What it is at this moment.
fn now<T: Clone>(changing: &Mutex<T>) -> T {
    changing.lock().unwrap_or_else(PoisonError::into_inner).clone()
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

/// Applies a group of writes in one transaction.
pub(super) fn commit(connection: &mut Connection, writes: &[Write], claims: &[Claim]) -> Result<Applied> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let applied = apply(&transaction, writes, claims)?;
    transaction.commit()?;
    Ok(applied)
}

/// The suspended destinations, and when each is probed next.
type Suspensions = HashMap<String, i64>;

fn suspensions(connection: &Connection) -> Result<Suspensions> {
    let mut select = connection.prepare_cached("SELECT destination, probe_ms FROM suspension")?;
    select.query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// In an order that lets claims see what the group brings.
fn apply(connection: &Connection, writes: &[Write], claims: &[Claim]) -> Result<Applied> {
    let mut suspended = suspensions(connection)?;
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
                due.extend(claims::keep(connection, owner, &now(in_flight))?);
                *slot = Some(Written::Nothing);
            }
            Write::ProbeNow => {
                connection.execute("UPDATE suspension SET probe_ms = 0", ())?;
                suspended.values_mut().for_each(|probe_ms| *probe_ms = 0);
                *slot = Some(Written::Nothing);
            }
            // Nothing is claimed there before what waits there is ended.
            Write::Withdraw(withdrawn) => due.extend(now(withdrawn).destinations.into_keys()),
            _ => {}
        }
    }
    due.extend(attempts::finish_all(connection, &finished, &mut suspended)?);
    let mut claims = GroupClaims::new(claims, &due, suspended);
    for (place, verdict) in events::settle_deliveries(connection, deliveries, &mut claims)? {
        if let Some(slot) = written.get_mut(place) {
            *slot = Some(Written::Verdict(verdict));
        }
    }
    for (write, slot) in writes.iter().zip(&mut written).filter(|(_, slot)| slot.is_none()) {
        *slot = Some(one(connection, write, &mut claims)?);
    }
    let claimed = claims.end(connection)?;
    Ok(Applied { written: written.into_iter().map(|slot| slot.unwrap_or(Written::Nothing)).collect(), claimed, due })
}

fn one(connection: &Connection, write: &Write, claims: &mut GroupClaims<'_>) -> Result<Written> {
    Ok(match write {
        Write::Settle(settled) => Written::Verdict(events::settle_deferred(connection, settled, claims)?),
        Write::Retried(retried) => Written::Verdict(invocations::settle_retry(connection, retried, claims)?),
        Write::Bury(dead) => {
            events::bury(connection, dead)?;
            Written::Nothing
        }
        Write::DueEvents { room } => Written::Events(events::due_events(connection, now_ms(), room)?),
        Write::DueRetries { room } => Written::Retries(invocations::due_retries(connection, now_ms(), room)?),
        Write::Unbound { queue, binding } => {
            bindings::unbound(connection, queue, binding)?;
            Written::Nothing
        }
        Write::Registry(change) => Written::Registry(registry::apply(connection, change)?),
        Write::Withdraw(withdrawn) => Written::Count(withdrawn::withdraw(connection, &now(withdrawn), now_ms())?),
        Write::Prune { before_ms } => {
            registry::prune(connection)?;
            events::prune(connection, *before_ms)?;
            Written::Nothing
        }
        Write::Bindings { queue, bindings } => Written::Bindings(bindings::bindings(connection, queue, bindings)?),
        // Done before, or not written at all.
        Write::Finish(..) | Write::Keep { .. } | Write::ProbeNow | Write::BeginClaims(..) | Write::EndClaims(_) => {
            Written::Nothing
        }
    })
}

/// Whether somebody else is in the way.
fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

impl ToSql for Hash {
    fn to_sql(&self) -> Result<ToSqlOutput<'_>> {
        Ok(self.as_bytes().as_slice().into())
    }
}

impl FromSql for Hash {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let bytes = value.as_blob()?;
        let wrong = FromSqlError::InvalidBlobSize { expected_size: 32, blob_size: bytes.len() };
        Self::from_slice(bytes).ok_or(wrong)
    }
}

/// A text that guests or tasks wrote, kept as bytes.
struct Text(String);

impl FromSql for Text {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Ok(Self(String::from_utf8_lossy(value.as_blob()?).into_owned()))
    }
}

fn text(row: &Row<'_>, column: &str) -> Result<Option<String>> {
    Ok(row.get::<_, Option<Text>>(column)?.map(|Text(text)| text))
}

fn bytes<'a>(row: &'a Row<'_>, column: &str) -> Result<&'a [u8]> {
    row.get_ref(column)?.as_blob().map_err(|error| corrupt(column, error.into()))
}

fn from_json<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: &str) -> Result<T> {
    serde_json::from_slice(bytes(row, column)?).map_err(|error| corrupt(column, error.into()))
}

fn corrupt(column: &str, why: Box<dyn std::error::Error + Send + Sync>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(NO_INDEX, Type::Blob, format!("{column}: {why}").into())
}

/// Our own types have string keys and finite numbers, so this does not fail; if it did, the row would say null.
fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_else(|_| b"null".to_vec())
}

fn list(texts: &[String]) -> Option<Vec<u8>> {
    (!texts.is_empty()).then(|| json(&texts))
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The error then speaks of its cause alone.
const NO_INDEX: usize = usize::MAX;

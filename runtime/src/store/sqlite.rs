//! The statements, in SQLite's dialect. Each takes the transaction of its group.
//!
//! A bare parameter as a limit would have SQLite plan the statement anew at each execution, for the number it is bound
//! to; `0 + ?` keeps the plan. Groups of rows are cut into a few sizes (`in_chunks`), so that their statements are few
//! and stay prepared.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqliteRow, SqliteSynchronous};
use sqlx::{ConnectOptions, QueryBuilder, Row, Sqlite, SqliteConnection};

use super::rows::*;
use super::writer::{Write, Written};
use super::{LEASE_MS, TAKEN_MS, now_ms};
use crate::effect::{EffectId, Hash, Planned};

type Result<T> = std::result::Result<T, sqlx::Error>;

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

pub(super) async fn migrate(connection: &mut SqliteConnection) -> Result<()> {
    Ok(MIGRATIONS.run(connection).await?)
}

/// Applies a group of writes, in an order that lets claims see what the group brings.
pub(super) async fn apply(connection: &mut SqliteConnection, writes: &[Write]) -> Result<Vec<Written>> {
    let mut written: Vec<Option<Written>> = writes.iter().map(|_| None).collect();
    let mut deliveries = Vec::new();
    let mut finished = Vec::new();
    for ((place, write), slot) in writes.iter().enumerate().zip(&mut written) {
        match write {
            Write::Settle(settled) if settled.basis == Basis::Delivery => deliveries.push((place, settled)),
            Write::Finish(ended) => {
                finished.push(ended);
                *slot = Some(Written::Nothing);
            }
            _ => {}
        }
    }
    for (place, verdict) in settle_deliveries(connection, deliveries).await? {
        if let Some(slot) = written.get_mut(place) {
            *slot = Some(Written::Verdict(verdict));
        }
    }
    finish_all(connection, &finished).await?;
    let is_claim = |write: &Write| matches!(write, Write::Claim(_));
    let (claims, others): (Vec<_>, Vec<_>) =
        writes.iter().zip(&mut written).filter(|(_, slot)| slot.is_none()).partition(|(write, _)| is_claim(write));
    for (write, slot) in others.into_iter().chain(claims) {
        *slot = Some(one(connection, write).await?);
    }
    Ok(written.into_iter().map(|slot| slot.unwrap_or(Written::Nothing)).collect())
}

async fn one(connection: &mut SqliteConnection, write: &Write) -> Result<Written> {
    Ok(match write {
        Write::Settle(settled) => Written::Verdict(settle_deferred(connection, settled).await?),
        Write::Retried(retried) => Written::Verdict(settle_retry(connection, retried).await?),
        Write::Bury(dead) => bury(connection, dead).await?,
        Write::DueEvents { limit } => Written::Events(due_events(connection, now_ms(), *limit).await?),
        Write::DueRetries { limit } => Written::Retries(due_retries(connection, now_ms(), *limit).await?),
        Write::Claim(claim) => Written::Claimed(self::claim(connection, claim).await?),
        Write::Finish(finished) => {
            finish_all(connection, &[finished]).await?;
            Written::Nothing
        }
        Write::Renew { owner, effects } => renew(connection, owner, effects, now_ms() + LEASE_MS).await?,
        Write::Unbound { queue, binding } => unbound(connection, queue, binding).await?,
        Write::ProbeNow => {
            sqlx::query("UPDATE suspension SET probe_ms = 0").execute(connection).await?;
            Written::Nothing
        }
        Write::Prune { before_ms } => prune(connection, *before_ms).await?,
        Write::Bindings { queue, bindings } => Written::Bindings(self::bindings(connection, queue, bindings).await?),
    })
}

/// Inserts new events; who comes second to a key loses and writes nothing.
async fn settle_deliveries(
    connection: &mut SqliteConnection,
    deliveries: Vec<(usize, &Settled)>,
) -> Result<Vec<(usize, Verdict)>> {
    let mut first: BTreeMap<Hash, (usize, &Settled)> = BTreeMap::new();
    let mut verdicts = Vec::with_capacity(deliveries.len());
    for (place, settled) in deliveries {
        match first.entry(settled.key) {
            std::collections::btree_map::Entry::Vacant(vacant) => _ = vacant.insert((place, settled)),
            std::collections::btree_map::Entry::Occupied(_) => verdicts.push((place, Verdict::Lost)),
        }
    }
    let rows: Vec<_> = first.values().map(|(_, settled)| *settled).collect();
    let mut ids = HashMap::new();
    for chunk in in_chunks(&rows) {
        ids.extend(insert_events(connection, chunk).await?);
    }
    let mut invocations = Vec::new();
    for (key, (place, settled)) in first {
        let won = ids.get(&key);
        verdicts.push((place, if won.is_some() { Verdict::Won } else { Verdict::Lost }));
        if let (Some(event_id), Fate::Planned(outcomes)) = (won, &settled.fate) {
            invocations.extend(outcomes.iter().map(|invocation| (*event_id, settled, invocation)));
        }
    }
    insert_invocations(connection, &invocations).await?;
    Ok(verdicts)
}

async fn insert_events(connection: &mut SqliteConnection, events: &[&Settled]) -> Result<HashMap<Hash, i64>> {
    let mut insert = QueryBuilder::<Sqlite>::new(
        "INSERT INTO event (key, tenant, status, task_id, run_id, delivery, received_ms, state, reason, due_ms, tries) ",
    );
    insert.push_values(events, |mut row, event| {
        let (state, reason, due_ms) = event_state(&event.fate);
        row.push_bind(event.key.as_bytes().to_vec())
            .push_bind(event.tenant.clone())
            .push_bind(event.status.clone())
            .push_bind(event.task_id.clone())
            .push_bind(event.run_id)
            .push_bind(json(&*event.delivery))
            .push_bind(event.received_ms)
            .push_bind(state)
            .push_bind(reason)
            .push_bind(due_ms)
            .push_bind(u32::from(due_ms.is_some()));
    });
    insert.push(" ON CONFLICT (key) DO NOTHING RETURNING id, key");
    let rows = insert.build().fetch_all(connection).await?;
    rows.iter().map(|row| Ok((hash(row, "key")?, row.try_get("id")?))).collect()
}

async fn insert_invocations(
    connection: &mut SqliteConnection,
    invocations: &[(i64, &Settled, &Invocation)],
) -> Result<()> {
    let mut effects = Vec::new();
    for chunk in in_chunks(invocations) {
        let mut insert = QueryBuilder::<Sqlite>::new(
            "INSERT INTO invocation (event_id, generation, identity, plugin, digest, state, reason, refusals, log, \
             cpu_us, memory_max, due_ms, tries) ",
        );
        insert.push_values(chunk, |mut row, (event_id, _, invocation)| {
            let (state, reason, due_ms) = invocation_state(&invocation.outcome);
            row.push_bind(*event_id)
                .push_bind(invocation.generation)
                .push_bind(invocation.identity.clone())
                .push_bind(invocation.plugin.clone())
                .push_bind(invocation.digest.as_bytes().to_vec())
                .push_bind(state)
                .push_bind(reason)
                .push_bind(list(&invocation.refusals))
                .push_bind(list(&invocation.log))
                .push_bind(signed(invocation.cpu_us))
                .push_bind(signed(invocation.memory_max))
                .push_bind(due_ms)
                .push_bind(1_u32);
        });
        insert.push(" RETURNING id, event_id, identity, plugin");
        let mut ids: HashMap<(i64, String, String), i64> = HashMap::new();
        for row in insert.build().fetch_all(&mut *connection).await? {
            let key = (row.try_get("event_id")?, row.try_get("identity")?, row.try_get("plugin")?);
            ids.insert(key, row.try_get("id")?);
        }
        for (event_id, settled, invocation) in chunk {
            let key = (*event_id, invocation.identity.clone(), invocation.plugin.clone());
            let Some(id) = ids.get(&key).copied() else { continue };
            effects.extend(rows_of_plan(id, &settled.tenant, invocation));
        }
    }
    insert_effects(connection, &effects).await
}

/// An effect with the invocation it belongs to and the effect it must wait for.
struct EffectRow<'a> {
    invocation_id: i64,
    after: Option<EffectId>,
    tenant: &'a str,
    plugin: &'a str,
    created_ms: i64,
    planned: &'a Planned,
}

/// The effects of a plan, each told which one to the same recipient comes before it.
fn rows_of_plan<'a>(invocation_id: i64, tenant: &'a str, invocation: &'a Invocation) -> Vec<EffectRow<'a>> {
    let created_ms = now_ms();
    let Outcome::Done(plan) = &invocation.outcome else { return Vec::new() };
    let mut last: HashMap<(&str, &str, &str), EffectId> = HashMap::new();
    let row = |planned: &'a Planned| {
        let to = (planned.effect.capability(), planned.effect.account(), planned.effect.recipient());
        let after = if planned.refused.is_none() { last.insert(to, planned.id) } else { None };
        EffectRow { invocation_id, after, tenant, plugin: &invocation.plugin, created_ms, planned }
    };
    plan.effects.iter().map(row).collect()
}

async fn insert_effects(connection: &mut SqliteConnection, effects: &[EffectRow<'_>]) -> Result<()> {
    for chunk in in_chunks(effects) {
        let mut insert = QueryBuilder::<Sqlite>::new(
            "INSERT INTO effect (id, invocation_id, after, call, tenant, plugin, destination, recipient, payload, \
             created_ms, state, reason, due_ms) ",
        );
        insert.push_values(chunk, |mut row, effect| {
            let planned = effect.planned;
            row.push_bind(planned.id.as_bytes().to_vec())
                .push_bind(effect.invocation_id)
                .push_bind(effect.after.map(|after| after.as_bytes().to_vec()))
                .push_bind(planned.call.as_bytes().to_vec())
                .push_bind(effect.tenant.to_owned())
                .push_bind(effect.plugin.to_owned())
                .push_bind(planned.effect.destination())
                .push_bind(planned.effect.recipient().as_bytes().to_vec())
                .push_bind(json(&planned.effect))
                .push_bind(effect.created_ms)
                .push_bind(if planned.refused.is_some() { "refused" } else { "pending" })
                .push_bind(planned.refused.as_ref().map(|reason| reason.clone().into_bytes()))
                .push_bind(effect.created_ms);
        });
        insert.build().execute(&mut *connection).await?;
    }
    Ok(())
}

async fn settle_deferred(connection: &mut SqliteConnection, settled: &Settled) -> Result<Verdict> {
    let Basis::Deferred { tries } = settled.basis else { return Ok(Verdict::Lost) };
    let (state, reason, due_ms) = event_state(&settled.fate);
    let event_id: Option<i64> = sqlx::query_scalar(
        "UPDATE event SET state = ?, reason = ?, due_ms = ?, tries = tries + 1 \
         WHERE key = ? AND state = 'deferred' AND tries = ? RETURNING id",
    )
    .bind(state)
    .bind(reason)
    .bind(due_ms)
    .bind(settled.key.as_bytes().to_vec())
    .bind(tries)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(event_id) = event_id else { return Ok(Verdict::Lost) };
    if let Fate::Planned(outcomes) = &settled.fate {
        let invocations: Vec<_> = outcomes.iter().map(|invocation| (event_id, settled, invocation)).collect();
        insert_invocations(connection, &invocations).await?;
    }
    Ok(Verdict::Won)
}

async fn settle_retry(connection: &mut SqliteConnection, retried: &Retried) -> Result<Verdict> {
    let invocation = &retried.invocation;
    let (state, reason, due_ms) = invocation_state(&invocation.outcome);
    let update = sqlx::query(
        "UPDATE invocation SET digest = ?, state = ?, reason = ?, refusals = ?, log = ?, cpu_us = ?, memory_max = ?, \
         due_ms = ?, tries = tries + 1 WHERE id = ? AND state = 'retry' AND tries = ?",
    )
    .bind(invocation.digest.as_bytes().to_vec())
    .bind(state)
    .bind(reason)
    .bind(list(&invocation.refusals))
    .bind(list(&invocation.log))
    .bind(signed(invocation.cpu_us))
    .bind(signed(invocation.memory_max))
    .bind(due_ms)
    .bind(retried.invocation_id)
    .bind(retried.tries);
    if update.execute(&mut *connection).await?.rows_affected() == 0 {
        return Ok(Verdict::Lost);
    }
    let effects = rows_of_plan(retried.invocation_id, &retried.tenant, invocation);
    insert_effects(connection, &effects).await?;
    Ok(Verdict::Won)
}

async fn bury(connection: &mut SqliteConnection, dead: &DeadDelivery) -> Result<Written> {
    let body = &dead.delivery.body;
    sqlx::query(
        "INSERT INTO dead_delivery (tenant, exchange, routing_key, reason, sha256, bytes, body, received_ms) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&dead.tenant)
    .bind(&dead.delivery.exchange)
    .bind(&dead.delivery.routing_key)
    .bind(dead.reason.as_bytes())
    .bind(Hash::of_bytes(body).as_bytes().to_vec())
    .bind(signed(body.len() as u64))
    .bind(body.get(..DEAD_BODY_BYTES_MAX).unwrap_or(body))
    .bind(dead.received_ms)
    .execute(connection)
    .await?;
    Ok(Written::Nothing)
}

async fn due_events(connection: &mut SqliteConnection, now_ms: i64, limit: u32) -> Result<Vec<DeferredEvent>> {
    let rows = sqlx::query(
        "UPDATE event SET due_ms = ? WHERE id IN (SELECT id FROM event WHERE state = 'deferred' AND due_ms <= ? \
         ORDER BY due_ms LIMIT 0 + ?) RETURNING id, tenant, delivery, received_ms, tries",
    )
    .bind(now_ms + TAKEN_MS)
    .bind(now_ms)
    .bind(limit)
    .fetch_all(&mut *connection)
    .await?;
    let mut events = Vec::with_capacity(rows.len());
    for row in &rows {
        match deferred_event(row) {
            Ok(event) => events.push(event),
            Err(error) => {
                tracing::error!(%error, "a deferred event cannot be read back and is dead");
                let dead = "UPDATE event SET state = 'dead', reason = ? WHERE id = ?";
                let id: i64 = row.try_get("id")?;
                sqlx::query(dead).bind(error.to_string().into_bytes()).bind(id).execute(&mut *connection).await?;
            }
        }
    }
    Ok(events)
}

fn deferred_event(row: &SqliteRow) -> Result<DeferredEvent> {
    Ok(DeferredEvent {
        tenant: row.try_get("tenant")?,
        delivery: Arc::new(from_json(row, "delivery")?),
        received_ms: row.try_get("received_ms")?,
        tries: row.try_get("tries")?,
    })
}

async fn due_retries(connection: &mut SqliteConnection, now_ms: i64, limit: u32) -> Result<Vec<DueRetry>> {
    let ids: Vec<i64> = sqlx::query_scalar(
        "UPDATE invocation SET due_ms = ? WHERE id IN (SELECT id FROM invocation WHERE state = 'retry' AND \
         due_ms <= ? ORDER BY due_ms LIMIT 0 + ?) RETURNING id",
    )
    .bind(now_ms + TAKEN_MS)
    .bind(now_ms)
    .bind(limit)
    .fetch_all(&mut *connection)
    .await?;
    let mut due = Vec::with_capacity(ids.len());
    for id in ids {
        let row = sqlx::query(
            "SELECT i.id, e.tenant, e.delivery, e.received_ms, i.generation, i.identity, i.plugin, i.tries \
             FROM invocation i JOIN event e ON e.id = i.event_id WHERE i.id = ?",
        )
        .bind(id)
        .fetch_one(&mut *connection)
        .await?;
        due.push(DueRetry {
            invocation_id: row.try_get("id")?,
            tenant: row.try_get("tenant")?,
            delivery: Arc::new(from_json(&row, "delivery")?),
            received_ms: row.try_get("received_ms")?,
            generation: row.try_get("generation")?,
            identity: row.try_get("identity")?,
            plugin: row.try_get("plugin")?,
            tries: row.try_get("tries")?,
        });
    }
    Ok(due)
}

/// Claims what is due and what others have claimed and let lapse. Of a suspended destination it claims nothing, or one
/// effect as a probe when that is due.
async fn claim(connection: &mut SqliteConnection, claim: &Claim) -> Result<Vec<Claimed>> {
    // The time of the commit, not of the wish: a lease that had lapsed while waiting would be taken over at once.
    let now_ms = now_ms();
    let limit = match suspension(connection, claim, now_ms).await? {
        None => claim.limit,
        Some(probe_ms) if probe_ms > now_ms => return Ok(Vec::new()),
        // One at a time: while any attempt is under way, its answer is what is waited for.
        Some(_) if is_attempted(connection, claim, now_ms).await? => return Ok(Vec::new()),
        Some(_) => claim.limit.min(1),
    };
    let in_flight = serde_json::Value::from_iter(claim.in_flight.iter().copied()).to_string();
    let rows = sqlx::query(
        "UPDATE effect SET in_doubt = in_doubt + (state = 'claimed'), state = 'claimed', owner = ?1, lease_ms = ?2, \
         attempt = attempt + 1 \
         WHERE seq IN (\
           SELECT seq FROM (SELECT seq FROM effect e \
             WHERE state = 'claimed' AND destination = ?3 AND lease_ms <= ?4 \
               AND seq NOT IN (SELECT value FROM json_each(?6)) ORDER BY lease_ms LIMIT 0 + ?5) \
           UNION ALL \
           SELECT seq FROM (SELECT seq FROM effect e \
             WHERE state = 'pending' AND destination = ?3 AND due_ms <= ?4 AND (after IS NULL OR NOT EXISTS (\
               SELECT 1 FROM effect before WHERE before.id = e.after AND before.state IN ('pending', 'claimed'))) \
             ORDER BY due_ms LIMIT 0 + ?5) \
           LIMIT 0 + ?5) \
         RETURNING seq, id, call, tenant, plugin, attempt, failures, in_doubt, created_ms, payload",
    )
    .bind(&claim.owner)
    .bind(now_ms + LEASE_MS)
    .bind(&claim.destination)
    .bind(now_ms)
    .bind(limit)
    .bind(in_flight)
    .fetch_all(&mut *connection)
    .await?;
    let mut claimed = Vec::with_capacity(rows.len());
    for row in &rows {
        match self::claimed(row) {
            Ok(readable) => claimed.push(readable),
            Err(error) => {
                tracing::error!(%error, "an effect cannot be read back and is dead");
                let dead = "UPDATE effect SET state = 'dead', reason = ? WHERE seq = ?";
                let seq: i64 = row.try_get("seq")?;
                sqlx::query(dead).bind(error.to_string().into_bytes()).bind(seq).execute(&mut *connection).await?;
            }
        }
    }
    record_attempts(connection, claim, &claimed, now_ms).await?;
    Ok(claimed)
}

async fn is_attempted(connection: &mut SqliteConnection, claim: &Claim, now_ms: i64) -> Result<bool> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM effect WHERE state = 'claimed' AND destination = ? AND lease_ms > ?)",
    )
    .bind(&claim.destination)
    .bind(now_ms)
    .fetch_one(connection)
    .await
}

/// When a suspended destination is probed next; taking the probe puts the next one off by a lease.
async fn suspension(connection: &mut SqliteConnection, claim: &Claim, now_ms: i64) -> Result<Option<i64>> {
    let probe_ms: Option<i64> = sqlx::query_scalar("SELECT probe_ms FROM suspension WHERE destination = ?")
        .bind(&claim.destination)
        .fetch_optional(&mut *connection)
        .await?;
    if probe_ms.is_some_and(|probe_ms| probe_ms <= now_ms) {
        sqlx::query("UPDATE suspension SET probe_ms = ? WHERE destination = ?")
            .bind(now_ms + LEASE_MS)
            .bind(&claim.destination)
            .execute(connection)
            .await?;
    }
    Ok(probe_ms)
}

async fn record_attempts(
    connection: &mut SqliteConnection,
    claim: &Claim,
    claimed: &[Claimed],
    now_ms: i64,
) -> Result<()> {
    for chunk in in_chunks(claimed) {
        let mut insert = QueryBuilder::<Sqlite>::new("INSERT INTO attempt (effect_seq, number, owner, started_ms) ");
        insert.push_values(chunk, |mut row, claimed| {
            row.push_bind(claimed.seq).push_bind(claimed.attempt).push_bind(claim.owner.clone()).push_bind(now_ms);
        });
        insert.build().execute(&mut *connection).await?;
    }
    Ok(())
}

/// Records how attempts ended, many at once.
async fn finish_all(connection: &mut SqliteConnection, finished: &[&Finished]) -> Result<()> {
    for chunk in in_chunks(finished) {
        end_attempts(connection, chunk).await?;
        move_effects(connection, chunk).await?;
    }
    // The last word on a destination counts; what is tried again says nothing about it.
    let speaks = |finished: &&&Finished| matches!(finished.next, Next::Suspended { .. } | Next::Delivered | Next::Dead);
    let words = finished.iter().filter(speaks);
    let last: BTreeMap<_, _> = words.map(|finished| (finished.destination.as_str(), *finished)).collect();
    for finished in last.into_values() {
        record_suspension(connection, finished).await?;
    }
    Ok(())
}

async fn end_attempts(connection: &mut SqliteConnection, finished: &[&Finished]) -> Result<()> {
    let mut update = QueryBuilder::<Sqlite>::new("WITH ended (seq, number, owner, ended_ms, outcome, answer) AS (");
    update.push_values(finished, |mut row, finished| {
        row.push_bind(finished.seq)
            .push_bind(finished.attempt)
            .push_bind(finished.owner.clone())
            .push_bind(finished.ended_ms)
            .push_bind(finished.outcome)
            .push_bind(finished.answer.clone().into_bytes());
    });
    update.push(
        ") UPDATE attempt SET ended_ms = ended.ended_ms, outcome = ended.outcome, answer = ended.answer FROM ended \
         WHERE attempt.effect_seq = ended.seq AND attempt.number = ended.number AND attempt.owner = ended.owner",
    );
    update.build().execute(connection).await.map(drop)
}

/// Only the attempt that holds the claim moves its effect on.
async fn move_effects(connection: &mut SqliteConnection, finished: &[&Finished]) -> Result<()> {
    let mut update =
        QueryBuilder::<Sqlite>::new("WITH ended (seq, number, owner, state, answer, due_ms, failures, in_doubt) AS (");
    update.push_values(finished, |mut row, finished| {
        let (due_ms, failures) = match finished.next {
            Next::Pending { due_ms } => (due_ms, 1_u32),
            Next::Suspended { .. } | Next::Delivered | Next::Dead | Next::Expired | Next::Refused => {
                (finished.ended_ms, 0)
            }
        };
        row.push_bind(finished.seq)
            .push_bind(finished.attempt)
            .push_bind(finished.owner.clone())
            .push_bind(finished.next.state())
            .push_bind(finished.answer.clone().into_bytes())
            .push_bind(due_ms)
            .push_bind(failures)
            .push_bind(u32::from(finished.in_doubt));
    });
    update.push(
        ") UPDATE effect SET state = ended.state, reason = ended.answer, due_ms = ended.due_ms, owner = NULL, \
         lease_ms = NULL, failures = effect.failures + ended.failures, in_doubt = effect.in_doubt + ended.in_doubt \
         FROM ended WHERE effect.seq = ended.seq AND effect.state = 'claimed' AND effect.attempt = ended.number \
         AND effect.owner = ended.owner",
    );
    update.build().execute(connection).await.map(drop)
}

/// A destination that answered as it should is suspended no longer.
async fn record_suspension(connection: &mut SqliteConnection, finished: &Finished) -> Result<()> {
    let query = match finished.next {
        Next::Suspended { probe_ms } => sqlx::query(
            "INSERT INTO suspension (destination, reason, since_ms, probe_ms, probes) VALUES (?1, ?2, ?3, ?4, 0) \
             ON CONFLICT (destination) DO UPDATE SET reason = ?2, probe_ms = ?4, probes = probes + 1",
        )
        .bind(&finished.destination)
        .bind(finished.answer.as_bytes())
        .bind(finished.ended_ms)
        .bind(probe_ms),
        Next::Delivered | Next::Dead => {
            sqlx::query("DELETE FROM suspension WHERE destination = ?").bind(&finished.destination)
        }
        Next::Pending { .. } | Next::Expired | Next::Refused => return Ok(()),
    };
    query.execute(connection).await.map(drop)
}

/// Counts by partial indexes, so that it takes no longer as the tables grow.
pub(super) async fn figures(reader: &SqlitePool, now_ms: i64) -> Result<Figures> {
    let count = |query: &'static str| sqlx::query_scalar::<_, i64>(query).fetch_one(reader);
    let mut effects = BTreeMap::from([
        ("pending".to_owned(), count("SELECT COUNT(*) FROM effect WHERE state = 'pending'").await?),
        ("claimed".to_owned(), count("SELECT COUNT(*) FROM effect WHERE state = 'claimed'").await?),
        ("dead".to_owned(), 0),
        ("expired".to_owned(), 0),
    ]);
    let lost = "SELECT state, COUNT(*) AS count FROM effect WHERE state IN ('dead', 'expired') GROUP BY state";
    for row in sqlx::query(lost).fetch_all(reader).await? {
        effects.insert(row.try_get("state")?, row.try_get("count")?);
    }
    // Rows lie in the order in which they were asked for. Without a hint the table is searched from its beginning.
    let oldest = "SELECT MIN(created_ms) FROM effect WHERE seq IN (\
                  (SELECT MIN(seq) FROM effect INDEXED BY effect_due WHERE state = 'pending'), \
                  (SELECT MIN(seq) FROM effect INDEXED BY effect_lease WHERE state = 'claimed'))";
    let oldest: Option<i64> = sqlx::query_scalar(oldest).fetch_one(reader).await?;
    Ok(Figures {
        effects,
        oldest_pending_ms: oldest.map_or(0, |oldest| now_ms - oldest),
        in_doubt: count("SELECT COUNT(*) FROM effect WHERE in_doubt > 0").await?,
        suspended: suspended(reader).await?,
    })
}

pub(super) async fn suspended(reader: &SqlitePool) -> Result<BTreeMap<String, String>> {
    let rows = sqlx::query("SELECT destination, reason FROM suspension").fetch_all(reader).await?;
    let suspended = |row: &SqliteRow| {
        let reason: Vec<u8> = row.try_get("reason")?;
        Ok((row.try_get("destination")?, String::from_utf8_lossy(&reason).into_owned()))
    };
    rows.iter().map(suspended).collect()
}

async fn renew(connection: &mut SqliteConnection, owner: &str, effects: &[i64], lease_ms: i64) -> Result<Written> {
    for chunk in in_chunks(effects) {
        let mut update = QueryBuilder::<Sqlite>::new("UPDATE effect SET lease_ms = ");
        update.push_bind(lease_ms).push(" WHERE state = 'claimed' AND owner = ").push_bind(owner.to_owned());
        update.push(" AND seq IN (");
        let mut rows = update.separated(", ");
        for seq in chunk {
            rows.push_bind(*seq);
        }
        update.push(")");
        update.build().execute(&mut *connection).await?;
    }
    Ok(Written::Nothing)
}

async fn prune(connection: &mut SqliteConnection, before_ms: i64) -> Result<Written> {
    sqlx::query(
        "DELETE FROM event WHERE id IN (SELECT e.id FROM event e WHERE e.received_ms < ? AND e.state <> 'deferred' \
         AND NOT EXISTS (SELECT 1 FROM invocation i WHERE i.event_id = e.id AND (i.state = 'retry' OR EXISTS (\
           SELECT 1 FROM effect f WHERE f.invocation_id = i.id AND f.state IN ('pending', 'claimed')))) LIMIT 1000)",
    )
    .bind(before_ms)
    .execute(&mut *connection)
    .await?;
    sqlx::query("DELETE FROM dead_delivery WHERE received_ms < ?").bind(before_ms).execute(connection).await?;
    Ok(Written::Nothing)
}

async fn bindings(connection: &mut SqliteConnection, queue: &str, wanted: &[Binding]) -> Result<Vec<Binding>> {
    for binding in wanted {
        sqlx::query("INSERT INTO binding (queue, exchange, routing_key) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
            .bind(queue)
            .bind(&binding.exchange)
            .bind(&binding.routing_key)
            .execute(&mut *connection)
            .await?;
    }
    let known = sqlx::query("SELECT exchange, routing_key FROM binding WHERE queue = ?").bind(queue);
    let known: Vec<Binding> = known
        .fetch_all(connection)
        .await?
        .iter()
        .map(|row| Ok(Binding { exchange: row.try_get("exchange")?, routing_key: row.try_get("routing_key")? }))
        .collect::<Result<_>>()?;
    let wanted: BTreeSet<_> = wanted.iter().collect();
    Ok(known.into_iter().filter(|binding| !wanted.contains(binding)).collect())
}

async fn unbound(connection: &mut SqliteConnection, queue: &str, binding: &Binding) -> Result<Written> {
    sqlx::query("DELETE FROM binding WHERE queue = ? AND exchange = ? AND routing_key = ?")
        .bind(queue)
        .bind(&binding.exchange)
        .bind(&binding.routing_key)
        .execute(connection)
        .await?;
    Ok(Written::Nothing)
}

fn event_state(fate: &Fate) -> (&'static str, Option<Vec<u8>>, Option<i64>) {
    match fate {
        Fate::Planned(_) => ("planned", None, None),
        Fate::Deferred { due_ms, reason } => ("deferred", Some(reason.clone().into_bytes()), Some(*due_ms)),
        Fate::Dead { reason } => ("dead", Some(reason.clone().into_bytes()), None),
    }
}

fn invocation_state(outcome: &Outcome) -> (&'static str, Option<Vec<u8>>, Option<i64>) {
    let (reason, due_ms) = match outcome {
        Outcome::Done(_) => (None, None),
        Outcome::Retry { due_ms, reason } => (Some(reason), Some(*due_ms)),
        Outcome::Failed(why) | Outcome::Faulted(why) | Outcome::Refused(why) | Outcome::Dead(why) => (Some(why), None),
    };
    (outcome.state(), reason.map(|reason| reason.clone().into_bytes()), due_ms)
}

fn claimed(row: &SqliteRow) -> Result<Claimed> {
    Ok(Claimed {
        seq: row.try_get("seq")?,
        id: hash(row, "id")?,
        call: hash(row, "call")?,
        tenant: row.try_get("tenant")?,
        plugin: row.try_get("plugin")?,
        attempt: row.try_get("attempt")?,
        failures: row.try_get("failures")?,
        in_doubt: row.try_get("in_doubt")?,
        created_ms: row.try_get("created_ms")?,
        effect: from_json(row, "payload")?,
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

/// The rows in pieces of few different sizes.
fn in_chunks<T>(mut rows: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let size = CHUNKS.into_iter().find(|size| *size <= rows.len()).unwrap_or(1);
        let (chunk, rest) = rows.split_at_checked(size)?;
        rows = rest;
        Some(chunk)
    })
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("migrations/sqlite");
/// Rows in one statement.
const CHUNKS: [usize; 4] = [128, 32, 8, 2];
const ROWS_BUFFERED: usize = 512;
const DEAD_BODY_BYTES_MAX: usize = 1 << 20;

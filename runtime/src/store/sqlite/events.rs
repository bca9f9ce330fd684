//! Events and what is no event: settled, deferred, due again, buried, forgotten.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};

use super::claims::GroupClaims;
use super::{Result, from_json, hash, in_chunks, invocations, json, push_rows, quotas, signed};
use crate::effect::Hash;
use crate::store::TAKEN_MS;
use crate::store::rows::{Basis, DeadDelivery, DeferredEvent, Fate, Room, Settled, Verdict};
use crate::store::writer::Written;

/// Inserts new events; who comes second to a key loses and writes nothing.
pub(super) async fn settle_deliveries(
    connection: &mut SqliteConnection,
    deliveries: Vec<(usize, &Settled)>,
    claims: &mut GroupClaims<'_>,
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
    invocations::insert_invocations(connection, &invocations, claims).await?;
    Ok(verdicts)
}

async fn insert_events(connection: &mut SqliteConnection, events: &[&Settled]) -> Result<HashMap<Hash, i64>> {
    let mut insert = QueryBuilder::<Sqlite>::new(
        "INSERT INTO event (key, tenant, status, task_id, run_id, delivery, received_ms, state, reason, due_ms, tries) \
         SELECT * FROM (",
    );
    push_rows(&mut insert, events, 11, |row, event| {
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
    insert.push(") WHERE column1 IS NOT NULL ON CONFLICT (key) DO NOTHING RETURNING id, key");
    let rows = insert.build().fetch_all(connection).await?;
    rows.iter().map(|row| Ok((hash(row, "key")?, row.try_get("id")?))).collect()
}

pub(super) async fn settle_deferred(
    connection: &mut SqliteConnection,
    settled: &Settled,
    claims: &mut GroupClaims<'_>,
) -> Result<Verdict> {
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
        invocations::insert_invocations(connection, &invocations, claims).await?;
    }
    Ok(Verdict::Won)
}

pub(super) async fn bury(connection: &mut SqliteConnection, dead: &DeadDelivery) -> Result<Written> {
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

/// Of each tenant its oldest, as many as there is room for.
pub(super) async fn due_events(
    connection: &mut SqliteConnection,
    now_ms: i64,
    room: &Room,
) -> Result<Vec<DeferredEvent>> {
    let rows = sqlx::query(
        "UPDATE event SET due_ms = ?1 WHERE id IN (SELECT e.id FROM json_each(?3) room CROSS JOIN event e ON \
         e.id IN (SELECT id FROM event WHERE state = 'deferred' AND tenant = room.value AND due_ms <= ?2 \
           ORDER BY due_ms LIMIT 0 + ?4)) RETURNING id, tenant, delivery, received_ms, tries",
    )
    .bind(now_ms + TAKEN_MS)
    .bind(now_ms)
    .bind(json(&room.tenants))
    .bind(room.each)
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

pub(super) async fn prune(connection: &mut SqliteConnection, before_ms: i64) -> Result<Written> {
    sqlx::query(
        "DELETE FROM event WHERE id IN (SELECT e.id FROM event e WHERE e.received_ms < ? AND e.state <> 'deferred' \
         AND NOT EXISTS (SELECT 1 FROM invocation i WHERE i.event_id = e.id AND (i.state = 'retry' OR EXISTS (\
           SELECT 1 FROM effect f WHERE f.invocation_id = i.id AND f.state IN ('pending', 'claimed')))) LIMIT 1000)",
    )
    .bind(before_ms)
    .execute(&mut *connection)
    .await?;
    sqlx::query("DELETE FROM dead_delivery WHERE received_ms < ?").bind(before_ms).execute(&mut *connection).await?;
    quotas::prune(connection).await?;
    Ok(Written::Nothing)
}

fn event_state(fate: &Fate) -> (&'static str, Option<Vec<u8>>, Option<i64>) {
    match fate {
        Fate::Planned(_) => ("planned", None, None),
        Fate::Deferred { due_ms, reason } => ("deferred", Some(reason.clone().into_bytes()), Some(*due_ms)),
        Fate::Dead { reason } => ("dead", Some(reason.clone().into_bytes()), None),
    }
}

const DEAD_BODY_BYTES_MAX: usize = 1 << 20;

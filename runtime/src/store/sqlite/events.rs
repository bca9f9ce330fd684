//! Events and what is no event: settled, deferred, due again, buried, forgotten.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Result, Row};

use super::claims::GroupClaims;
use super::{from_json, invocations, json, quotas, signed};
use crate::effect::Hash;
use crate::store::TAKEN_MS;
use crate::store::rows::{Basis, DeadDelivery, DeferredEvent, Fate, Room, Settled, Verdict};

/// Inserts new events, in the order of their keys; who comes second to a key loses and writes nothing.
pub(super) fn settle_deliveries(
    connection: &Connection,
    deliveries: Vec<(usize, &Settled)>,
    claims: &mut GroupClaims<'_>,
) -> Result<Vec<(usize, Verdict)>> {
    let mut first: BTreeMap<Hash, (usize, &Settled)> = BTreeMap::new();
    let mut verdicts = Vec::with_capacity(deliveries.len());
    for (place, settled) in deliveries {
        match first.entry(settled.key) {
            Entry::Vacant(vacant) => _ = vacant.insert((place, settled)),
            Entry::Occupied(_) => verdicts.push((place, Verdict::Lost)),
        }
    }
    let mut won = Vec::with_capacity(first.len());
    for (place, settled) in first.into_values() {
        match insert_event(connection, settled)? {
            Some(event_id) => {
                won.push((event_id, settled));
                verdicts.push((place, Verdict::Won));
            }
            None => verdicts.push((place, Verdict::Lost)),
        }
    }
    invocations::insert(connection, &won, claims)?;
    Ok(verdicts)
}

fn insert_event(connection: &Connection, event: &Settled) -> Result<Option<i64>> {
    let insert = "INSERT INTO event \
                  (key, tenant, status, task_id, run_id, delivery, received_ms, state, reason, due_ms, tries) \
                  VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING";
    let Settled { key, tenant, status, task_id, run_id, delivery, received_ms, .. } = event;
    let (state, reason, due_ms) = event_state(&event.fate);
    let tries = u32::from(due_ms.is_some());
    let values = (key, tenant, status, task_id, run_id, json(&**delivery), received_ms, state, reason, due_ms, tries);
    let inserted = connection.prepare_cached(insert)?.execute(values)?;
    Ok((inserted > 0).then(|| connection.last_insert_rowid()))
}

pub(super) fn settle_deferred(
    connection: &Connection,
    settled: &Settled,
    claims: &mut GroupClaims<'_>,
) -> Result<Verdict> {
    let Basis::Deferred { tries } = settled.basis else { return Ok(Verdict::Lost) };
    let (state, reason, due_ms) = event_state(&settled.fate);
    let update = "UPDATE event SET state = ?, reason = ?, due_ms = ?, tries = tries + 1 \
                  WHERE key = ? AND state = 'deferred' AND tries = ? RETURNING id";
    let mut update = connection.prepare_cached(update)?;
    let event_id = update.query_row((state, reason, due_ms, settled.key, tries), |row| row.get(0)).optional()?;
    let Some(event_id) = event_id else { return Ok(Verdict::Lost) };
    invocations::insert(connection, &[(event_id, settled)], claims)?;
    Ok(Verdict::Won)
}

pub(super) fn bury(connection: &Connection, dead: &DeadDelivery) -> Result<()> {
    let insert = "INSERT INTO dead_delivery \
                  (tenant, exchange, routing_key, reason, sha256, bytes, body, received_ms) \
                  VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
    let DeadDelivery { tenant, delivery, reason, received_ms } = dead;
    let body = &delivery.body;
    let kept = body.get(..DEAD_BODY_BYTES_MAX).unwrap_or(body);
    let (hash, bytes) = (Hash::of_bytes(body), signed(body.len() as u64));
    let (exchange, key) = (&delivery.exchange, &delivery.routing_key);
    let values = (tenant, exchange, key, reason.as_bytes(), hash, bytes, kept, received_ms);
    connection.prepare_cached(insert)?.execute(values).map(drop)
}

/// Of each tenant its oldest, as many as there is room for.
pub(super) fn due_events(connection: &Connection, now_ms: i64, room: &Room) -> Result<Vec<DeferredEvent>> {
    let take = "UPDATE event SET due_ms = ?1 WHERE id IN (SELECT e.id FROM json_each(?3) room CROSS JOIN event e ON \
                e.id IN (SELECT id FROM event WHERE state = 'deferred' AND tenant = room.value AND due_ms <= ?2 \
                ORDER BY due_ms LIMIT 0 + ?4)) RETURNING id, tenant, delivery, received_ms, tries";
    let mut take = connection.prepare_cached(take)?;
    let read = |row: &Row<'_>| Ok((row.get("id")?, deferred_event(row)));
    let taken = take.query_map((now_ms + TAKEN_MS, now_ms, json(&room.tenants), room.each), read)?;
    let taken: Vec<(i64, _)> = taken.collect::<Result<_>>()?;
    let mut events = Vec::with_capacity(taken.len());
    for (id, event) in taken {
        match event {
            Ok(event) => events.push(event),
            Err(error) => {
                tracing::error!(%error, "a deferred event cannot be read back and is dead");
                let dead = "UPDATE event SET state = 'dead', reason = ? WHERE id = ?";
                connection.execute(dead, (error.to_string().as_bytes(), id))?;
            }
        }
    }
    Ok(events)
}

fn deferred_event(row: &Row<'_>) -> Result<DeferredEvent> {
    Ok(DeferredEvent {
        tenant: row.get("tenant")?,
        delivery: Arc::new(from_json(row, "delivery")?),
        received_ms: row.get("received_ms")?,
        tries: row.get("tries")?,
    })
}

pub(super) fn prune(connection: &Connection, before_ms: i64) -> Result<()> {
    let events = "DELETE FROM event WHERE id IN (SELECT e.id FROM event e WHERE e.received_ms < ? \
                  AND e.state <> 'deferred' AND NOT EXISTS (SELECT 1 FROM invocation i WHERE i.event_id = e.id \
                  AND (i.state = 'retry' OR EXISTS (SELECT 1 FROM effect f WHERE f.invocation_id = i.id \
                  AND f.state IN ('pending', 'claimed')))) LIMIT 1000)";
    connection.execute(events, [before_ms])?;
    connection.execute("DELETE FROM dead_delivery WHERE received_ms < ?", [before_ms])?;
    quotas::prune(connection)
}

fn event_state(fate: &Fate) -> (&'static str, Option<&[u8]>, Option<i64>) {
    match fate {
        Fate::Planned(_) => ("planned", None, None),
        Fate::Deferred { due_ms, reason } => ("deferred", Some(reason.as_bytes()), Some(*due_ms)),
        Fate::Dead { reason } => ("dead", Some(reason.as_bytes()), None),
    }
}

const DEAD_BODY_BYTES_MAX: usize = 1 << 20;

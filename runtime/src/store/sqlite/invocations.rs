//! Invocations: recorded with their outcome, run again when they asked for it.

use std::sync::Arc;

use rusqlite::{Connection, Result};

use super::claims::GroupClaims;
use super::{effects, from_json, json, list, signed};
use crate::store::TAKEN_MS;
use crate::store::rows::{DueRetry, Fate, Invocation, Outcome, Retried, Room, Settled, Verdict};

/// Inserts what ran for new events, with what came of it.
pub(super) fn insert(connection: &Connection, events: &[(i64, &Settled)], claims: &mut GroupClaims<'_>) -> Result<()> {
    let insert = "INSERT INTO invocation (event_id, tenant, generation, identity, plugin, digest, state, reason, refusals, \
                  log, cpu_us, memory_max, due_ms, tries) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1)";
    let mut insert = connection.prepare_cached(insert)?;
    let mut effects = Vec::new();
    for (event_id, settled) in events {
        let Fate::Planned(invocations) = &settled.fate else { continue };
        for invocation in invocations {
            let Invocation { generation, identity, plugin, digest, refusals, log, cpu_us, memory_max, .. } = invocation;
            let (state, reason, due_ms) = invocation_state(&invocation.outcome);
            let (tenant, refusals, log) = (&settled.tenant, list(refusals), list(log));
            let (cpu_us, memory_max) = (signed(*cpu_us), signed(*memory_max));
            insert.execute((
                event_id, tenant, generation, identity, plugin, digest, state, reason, refusals, log, cpu_us,
                memory_max, due_ms,
            ))?;
            effects.extend(effects::rows_of_plan(connection.last_insert_rowid(), tenant, invocation));
        }
    }
    effects::insert(connection, effects, claims)
}

pub(super) fn settle_retry(
    connection: &Connection,
    retried: &Retried,
    claims: &mut GroupClaims<'_>,
) -> Result<Verdict> {
    let update = "UPDATE invocation SET digest = ?, state = ?, reason = ?, refusals = ?, log = ?, cpu_us = ?, \
                  memory_max = ?, due_ms = ?, tries = tries + 1 WHERE id = ? AND state = 'retry' AND tries = ?";
    let Retried { invocation_id, tries, invocation, tenant, .. } = retried;
    let Invocation { digest, refusals, log, cpu_us, memory_max, .. } = invocation;
    let (state, reason, due_ms) = invocation_state(&invocation.outcome);
    let (refusals, log, cpu_us, memory_max) = (list(refusals), list(log), signed(*cpu_us), signed(*memory_max));
    let values = (digest, state, reason, refusals, log, cpu_us, memory_max, due_ms, invocation_id, tries);
    if connection.prepare_cached(update)?.execute(values)? == 0 {
        return Ok(Verdict::Lost);
    }
    effects::insert(connection, effects::rows_of_plan(*invocation_id, tenant, invocation), claims)?;
    Ok(Verdict::Won)
}

/// Of each tenant its oldest, as many as there is room for.
pub(super) fn due_retries(connection: &Connection, now_ms: i64, room: &Room) -> Result<Vec<DueRetry>> {
    let take = "UPDATE invocation SET due_ms = ?1 WHERE id IN (SELECT i.id FROM json_each(?3) room \
                CROSS JOIN invocation i ON i.id IN (SELECT id FROM invocation WHERE state = 'retry' \
                AND tenant = room.value AND due_ms <= ?2 ORDER BY due_ms LIMIT 0 + ?4)) RETURNING id";
    let mut take = connection.prepare_cached(take)?;
    let values = (now_ms + TAKEN_MS, now_ms, json(&room.tenants), room.each);
    let ids: Vec<i64> = take.query_map(values, |row| row.get(0))?.collect::<Result<_>>()?;
    let select = "SELECT i.id, e.tenant, e.delivery, e.received_ms, i.generation, i.identity, i.plugin, i.tries \
                  FROM invocation i JOIN event e ON e.id = i.event_id WHERE i.id = ?";
    let mut select = connection.prepare_cached(select)?;
    let due = ids.into_iter().map(|id| {
        select.query_row([id], |row| {
            Ok(DueRetry {
                invocation_id: row.get("id")?,
                tenant: row.get("tenant")?,
                delivery: Arc::new(from_json(row, "delivery")?),
                received_ms: row.get("received_ms")?,
                generation: row.get("generation")?,
                identity: row.get("identity")?,
                plugin: row.get("plugin")?,
                tries: row.get("tries")?,
            })
        })
    });
    due.collect()
}

fn invocation_state(outcome: &Outcome) -> (&'static str, Option<&[u8]>, Option<i64>) {
    let (reason, due_ms) = match outcome {
        Outcome::Done(_) => (None, None),
        Outcome::Retry { due_ms, reason } => (Some(reason), Some(*due_ms)),
        Outcome::Failed(why) | Outcome::Faulted(why) | Outcome::Refused(why) | Outcome::Dead(why) => (Some(why), None),
    };
    (outcome.state(), reason.map(String::as_bytes), due_ms)
}

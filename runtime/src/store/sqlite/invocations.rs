//! Invocations: recorded with their outcome, run again when they asked for it.

use std::collections::HashMap;
use std::sync::Arc;

use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};

use super::claims::GroupClaims;
use super::{Result, effects, from_json, in_chunks, json, list, push_rows, signed};
use crate::store::TAKEN_MS;
use crate::store::rows::{DueRetry, Invocation, Outcome, Retried, Room, Settled, Verdict};

pub(super) async fn insert_invocations(
    connection: &mut SqliteConnection,
    invocations: &[(i64, &Settled, &Invocation)],
    claims: &mut GroupClaims<'_>,
) -> Result<()> {
    let mut effects = Vec::new();
    for chunk in in_chunks(invocations) {
        let mut insert = QueryBuilder::<Sqlite>::new(
            "INSERT INTO invocation (event_id, tenant, generation, identity, plugin, digest, state, reason, refusals, log, \
             cpu_us, memory_max, due_ms, tries) SELECT * FROM (",
        );
        push_rows(&mut insert, chunk, 14, |row, (event_id, settled, invocation)| {
            let (state, reason, due_ms) = invocation_state(&invocation.outcome);
            row.push_bind(*event_id)
                .push_bind(settled.tenant.clone())
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
        insert.push(") WHERE column1 IS NOT NULL RETURNING id, event_id, identity, plugin");
        let mut ids: HashMap<(i64, String, String), i64> = HashMap::new();
        for row in insert.build().fetch_all(&mut *connection).await? {
            let key = (row.try_get("event_id")?, row.try_get("identity")?, row.try_get("plugin")?);
            ids.insert(key, row.try_get("id")?);
        }
        for (event_id, settled, invocation) in chunk {
            let key = (*event_id, invocation.identity.clone(), invocation.plugin.clone());
            let Some(id) = ids.get(&key).copied() else { continue };
            effects.extend(effects::rows_of_plan(id, &settled.tenant, invocation));
        }
    }
    effects::insert_effects(connection, effects, claims).await
}

pub(super) async fn settle_retry(
    connection: &mut SqliteConnection,
    retried: &Retried,
    claims: &mut GroupClaims<'_>,
) -> Result<Verdict> {
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
    let effects = effects::rows_of_plan(retried.invocation_id, &retried.tenant, invocation);
    effects::insert_effects(connection, effects, claims).await?;
    Ok(Verdict::Won)
}

/// Of each tenant its oldest, as many as there is room for.
pub(super) async fn due_retries(connection: &mut SqliteConnection, now_ms: i64, room: &Room) -> Result<Vec<DueRetry>> {
    let ids: Vec<i64> = sqlx::query_scalar(
        "UPDATE invocation SET due_ms = ?1 WHERE id IN (SELECT i.id FROM json_each(?3) room CROSS JOIN invocation i ON \
         i.id IN (SELECT id FROM invocation WHERE state = 'retry' AND tenant = room.value AND due_ms <= ?2 \
           ORDER BY due_ms LIMIT 0 + ?4)) RETURNING id",
    )
    .bind(now_ms + TAKEN_MS)
    .bind(now_ms)
    .bind(json(&room.tenants))
    .bind(room.each)
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

fn invocation_state(outcome: &Outcome) -> (&'static str, Option<Vec<u8>>, Option<i64>) {
    let (reason, due_ms) = match outcome {
        Outcome::Done(_) => (None, None),
        Outcome::Retry { due_ms, reason } => (Some(reason), Some(*due_ms)),
        Outcome::Failed(why) | Outcome::Faulted(why) | Outcome::Refused(why) | Outcome::Dead(why) => (Some(why), None),
    };
    (outcome.state(), reason.map(|reason| reason.clone().into_bytes()), due_ms)
}

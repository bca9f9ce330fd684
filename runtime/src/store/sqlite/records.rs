//! What happened, for those who want to see it: by tenant, the latest first, page by page.

use std::collections::HashMap;

use futures_util::TryStreamExt;
use sqlx::sqlite::{SqlitePool, SqliteRow};
use sqlx::{QueryBuilder, Row, Sqlite};

use super::{Result, corrupt, effects, hash};
use crate::store::rows::{AttemptSeen, DeadDeliverySeen, EffectSeen, InvocationSeen, Wish};

pub(in crate::store) async fn invocations(reader: &SqlitePool, wish: &Wish) -> Result<Vec<InvocationSeen>> {
    let mut query = QueryBuilder::new(
        "SELECT i.id, e.status, e.task_id, e.run_id, e.received_ms, i.identity, i.plugin, i.digest, i.state, i.reason, \
         i.refusals, i.log, i.cpu_us, i.memory_max, i.tries, i.due_ms FROM invocation i \
         JOIN event e ON e.id = i.event_id WHERE i.tenant = ",
    );
    query.push_bind(wish.tenant.clone());
    narrow(&mut query, wish, "i");
    if wish.refused {
        query.push(" AND (i.refusals IS NOT NULL OR i.state = 'refused')");
    }
    finish(&mut query, wish, "i", "id");
    let mut rows = query.build().fetch(reader);
    let (mut seen, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.try_next().await? {
        bytes += size(&row, "log")? + size(&row, "refusals")?;
        seen.push(invocation(&row)?);
        if bytes > PAGE_BYTES_MAX {
            break;
        }
    }
    Ok(seen)
}

fn invocation(row: &SqliteRow) -> Result<InvocationSeen> {
    let list = |column| match row.try_get::<Option<Vec<u8>>, _>(column)? {
        Some(bytes) => serde_json::from_slice(&bytes).map_err(|error| corrupt(column, error.into())),
        None => Ok(Vec::new()),
    };
    Ok(InvocationSeen {
        id: row.try_get("id")?,
        status: row.try_get("status")?,
        task_id: row.try_get("task_id")?,
        run_id: row.try_get("run_id")?,
        received_ms: row.try_get("received_ms")?,
        identity: row.try_get("identity")?,
        plugin: row.try_get("plugin")?,
        digest: hash(row, "digest")?.to_string(),
        state: row.try_get("state")?,
        reason: text(row, "reason")?,
        refusals: list("refusals")?,
        log: list("log")?,
        cpu_us: row.try_get("cpu_us")?,
        memory_max: row.try_get("memory_max")?,
        tries: row.try_get("tries")?,
        due_ms: row.try_get("due_ms")?,
    })
}

pub(in crate::store) async fn effects(reader: &SqlitePool, wish: &Wish) -> Result<Vec<EffectSeen>> {
    let mut query = QueryBuilder::new(
        "SELECT f.seq, f.id, e.task_id, f.plugin, f.destination, f.recipient, f.content, f.created_ms, f.state, \
         f.reason, f.due_ms, f.in_doubt FROM whole_effect f JOIN invocation i ON i.id = f.invocation_id \
         JOIN event e ON e.id = i.event_id WHERE f.tenant = ",
    );
    query.push_bind(wish.tenant.clone());
    narrow(&mut query, wish, "f");
    finish(&mut query, wish, "f", "seq");
    let mut rows = query.build().fetch(reader);
    let (mut seen, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.try_next().await? {
        bytes += size(&row, "content")?;
        seen.push(effect_seen(&row)?);
        if bytes > PAGE_BYTES_MAX {
            break;
        }
    }
    drop(rows);
    let mut attempts = attempts(reader, &seen).await?;
    for effect in &mut seen {
        effect.attempts = attempts.remove(&effect.seq).unwrap_or_default();
    }
    Ok(seen)
}

fn effect_seen(row: &SqliteRow) -> Result<EffectSeen> {
    Ok(EffectSeen {
        seq: row.try_get("seq")?,
        id: hash(row, "id")?.to_string(),
        task_id: row.try_get("task_id")?,
        plugin: row.try_get("plugin")?,
        destination: row.try_get("destination")?,
        recipient: text(row, "recipient")?.unwrap_or_default(),
        effect: effects::effect(row)?,
        created_ms: row.try_get("created_ms")?,
        state: row.try_get("state")?,
        reason: text(row, "reason")?,
        due_ms: row.try_get("due_ms")?,
        in_doubt: row.try_get("in_doubt")?,
        attempts: Vec::new(),
    })
}

/// What was tried for these effects, by their rows.
async fn attempts(reader: &SqlitePool, effects: &[EffectSeen]) -> Result<HashMap<i64, Vec<AttemptSeen>>> {
    let mut all: HashMap<i64, Vec<AttemptSeen>> = HashMap::new();
    if effects.is_empty() {
        return Ok(all);
    }
    let mut query = QueryBuilder::<Sqlite>::new(
        "SELECT effect_seq, number, started_ms, ended_ms, outcome, answer FROM attempt WHERE effect_seq IN (",
    );
    let mut list = query.separated(", ");
    for effect in effects {
        list.push_bind(effect.seq);
    }
    query.push(") ORDER BY effect_seq, number");
    for row in query.build().fetch_all(reader).await? {
        let attempt = AttemptSeen {
            number: row.try_get("number")?,
            started_ms: row.try_get("started_ms")?,
            ended_ms: row.try_get("ended_ms")?,
            outcome: row.try_get("outcome")?,
            answer: text(&row, "answer")?,
        };
        all.entry(row.try_get("effect_seq")?).or_default().push(attempt);
    }
    Ok(all)
}

pub(in crate::store) async fn dead_deliveries(reader: &SqlitePool, wish: &Wish) -> Result<Vec<DeadDeliverySeen>> {
    let mut query = QueryBuilder::new(
        "SELECT id, exchange, routing_key, reason, sha256, bytes, SUBSTR(body, 1, 4096) AS body, received_ms \
         FROM dead_delivery d WHERE d.tenant = ",
    );
    query.push_bind(wish.tenant.clone());
    finish(&mut query, wish, "d", "id");
    let dead = |row: &SqliteRow| {
        Ok(DeadDeliverySeen {
            id: row.try_get("id")?,
            exchange: row.try_get("exchange")?,
            routing_key: row.try_get("routing_key")?,
            reason: text(row, "reason")?.unwrap_or_default(),
            sha256: hash(row, "sha256")?.to_string(),
            bytes: row.try_get("bytes")?,
            body: text(row, "body")?.unwrap_or_default(),
            received_ms: row.try_get("received_ms")?,
        })
    };
    query.build().fetch_all(reader).await?.iter().map(dead).collect()
}

/// Of one plugin, in one state.
fn narrow(query: &mut QueryBuilder<Sqlite>, wish: &Wish, table: &str) {
    for (column, value) in [("plugin", &wish.plugin), ("state", &wish.state)] {
        if let Some(value) = value {
            query.push(format!(" AND {table}.{column} = ")).push_bind(value.clone());
        }
    }
}

/// The page that is wished for, the latest first.
fn finish(query: &mut QueryBuilder<Sqlite>, wish: &Wish, table: &str, row: &str) {
    if let Some(before) = wish.before {
        query.push(format!(" AND {table}.{row} < ")).push_bind(before);
    }
    query.push(format!(" ORDER BY {table}.{row} DESC LIMIT 0 + ")).push_bind(wish.limit);
}

/// A text that guests or tasks wrote.
fn text(row: &SqliteRow, column: &str) -> Result<Option<String>> {
    let bytes: Option<Vec<u8>> = row.try_get(column)?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

fn size(row: &SqliteRow, column: &str) -> Result<usize> {
    Ok(row.try_get::<Option<&[u8]>, _>(column)?.map_or(0, <[u8]>::len))
}

/// A page ends after what passes this, however many rows were wished for.
const PAGE_BYTES_MAX: usize = 4 << 20;

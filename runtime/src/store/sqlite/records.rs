//! What happened, for those who want to see it: by tenant, the latest first, page by page.

use rusqlite::types::Value;
use rusqlite::{Connection, Result, Row, params_from_iter};

use super::{corrupt, effects, text};
use crate::effect::Hash;
use crate::store::rows::{AttemptSeen, DeadDeliverySeen, EffectSeen, Ended, InvocationSeen, Wish};

pub(in crate::store) fn invocations(connection: &Connection, wish: &Wish) -> Result<Vec<InvocationSeen>> {
    let mut query = Query::new(
        "SELECT i.id, e.status, e.task_id, e.run_id, e.received_ms, i.identity, i.plugin, i.digest, i.state, i.reason, \
         i.refusals, i.log, i.cpu_us, i.memory_max, i.tries, i.due_ms FROM invocation i \
         JOIN event e ON e.id = i.event_id WHERE i.tenant = ",
        wish,
    );
    query.narrow(wish, "i");
    if wish.refused {
        query.text.push_str(" AND (i.refusals IS NOT NULL OR i.state = 'refused')");
    }
    query.page(connection, wish, "i.id", |row| Ok((invocation(row)?, size(row, "log")? + size(row, "refusals")?)))
}

fn invocation(row: &Row<'_>) -> Result<InvocationSeen> {
    let list = |column| match row.get_ref(column)?.as_blob_or_null()? {
        Some(bytes) => serde_json::from_slice(bytes).map_err(|error| corrupt(column, error.into())),
        None => Ok(Vec::new()),
    };
    Ok(InvocationSeen {
        id: row.get("id")?,
        status: row.get("status")?,
        task_id: row.get("task_id")?,
        run_id: row.get("run_id")?,
        received_ms: row.get("received_ms")?,
        identity: row.get("identity")?,
        plugin: row.get("plugin")?,
        digest: row.get::<_, Hash>("digest")?.to_string(),
        state: row.get("state")?,
        reason: text(row, "reason")?,
        refusals: list("refusals")?,
        log: list("log")?,
        cpu_us: row.get("cpu_us")?,
        memory_max: row.get("memory_max")?,
        tries: row.get("tries")?,
        due_ms: row.get("due_ms")?,
    })
}

pub(in crate::store) fn effects(connection: &Connection, wish: &Wish) -> Result<Vec<EffectSeen>> {
    let mut query = Query::new(
        "SELECT f.seq, f.id, e.task_id, f.plugin, f.destination, f.recipient, f.content, f.created_ms, f.state, \
         f.reason, f.due_ms, f.in_doubt FROM whole_effect f JOIN invocation i ON i.id = f.invocation_id \
         JOIN event e ON e.id = i.event_id WHERE f.tenant = ",
        wish,
    );
    query.narrow(wish, "f");
    let effect = |row: &Row<'_>| Ok((effect_seen(row)?, size(row, "content")?));
    let mut seen = query.page(connection, wish, "f.seq", effect)?;
    for effect in &mut seen {
        effect.attempts = attempts(connection, effect.seq)?;
    }
    Ok(seen)
}

fn effect_seen(row: &Row<'_>) -> Result<EffectSeen> {
    Ok(EffectSeen {
        seq: row.get("seq")?,
        id: row.get::<_, Hash>("id")?.to_string(),
        task_id: row.get("task_id")?,
        plugin: row.get("plugin")?,
        destination: row.get("destination")?,
        recipient: text(row, "recipient")?.unwrap_or_default(),
        effect: effects::effect(row)?,
        created_ms: row.get("created_ms")?,
        state: row.get("state")?,
        reason: text(row, "reason")?,
        due_ms: row.get("due_ms")?,
        in_doubt: row.get("in_doubt")?,
        attempts: Vec::new(),
    })
}

/// What was tried for an effect.
fn attempts(connection: &Connection, effect_seq: i64) -> Result<Vec<AttemptSeen>> {
    let select =
        "SELECT number, started_ms, ended_ms, outcome, answer FROM attempt WHERE effect_seq = ? ORDER BY number";
    let attempt = |row: &Row<'_>| {
        Ok(AttemptSeen {
            number: row.get("number")?,
            started_ms: row.get("started_ms")?,
            ended_ms: row.get("ended_ms")?,
            outcome: row.get("outcome")?,
            answer: text(row, "answer")?,
        })
    };
    connection.prepare_cached(select)?.query_map([effect_seq], attempt)?.collect()
}

pub(in crate::store) fn dead_deliveries(connection: &Connection, wish: &Wish) -> Result<Vec<DeadDeliverySeen>> {
    let query = Query::new(
        "SELECT id, exchange, routing_key, reason, sha256, bytes, SUBSTR(body, 1, 4096) AS body, received_ms \
         FROM dead_delivery d WHERE d.tenant = ",
        wish,
    );
    let dead = |row: &Row<'_>| {
        let dead = DeadDeliverySeen {
            id: row.get("id")?,
            exchange: row.get("exchange")?,
            routing_key: row.get("routing_key")?,
            reason: text(row, "reason")?.unwrap_or_default(),
            sha256: row.get::<_, Hash>("sha256")?.to_string(),
            bytes: row.get("bytes")?,
            body: text(row, "body")?.unwrap_or_default(),
            received_ms: row.get("received_ms")?,
        };
        Ok((dead, size(row, "body")?))
    };
    query.page(connection, wish, "d.id", dead)
}

pub(in crate::store) fn ended(connection: &Connection) -> Result<Vec<Ended>> {
    let select = "SELECT f.id, f.tenant, f.plugin, e.task_id, e.status, f.state, f.reason, f.content, f.recipient \
                  FROM whole_effect f JOIN invocation i ON i.id = f.invocation_id JOIN event e ON e.id = i.event_id \
                  WHERE f.state NOT IN ('pending', 'claimed') ORDER BY e.received_ms, e.task_id, i.id, f.id";
    let ended = |row: &Row<'_>| {
        Ok(Ended {
            id: row.get("id")?,
            tenant: row.get("tenant")?,
            plugin: row.get("plugin")?,
            task_id: row.get("task_id")?,
            status: row.get("status")?,
            state: row.get("state")?,
            reason: text(row, "reason")?.unwrap_or_default(),
            effect: effects::effect(row)?,
        })
    };
    connection.prepare_cached(select)?.query_map((), ended)?.collect()
}

/// A query that grows with what is wished for.
struct Query {
    text: String,
    values: Vec<Value>,
}

impl Query {
    /// Of the tenant's rows; the text ends where its name belongs.
    fn new(text: &str, wish: &Wish) -> Self {
        Self { text: format!("{text}?"), values: vec![wish.tenant.clone().into()] }
    }

    fn push(&mut self, text: &str, value: impl Into<Value>) {
        self.text.push_str(text);
        self.values.push(value.into());
    }

    /// Of one plugin, in one state.
    fn narrow(&mut self, wish: &Wish, table: &str) {
        for (column, value) in [("plugin", &wish.plugin), ("state", &wish.state)] {
            if let Some(value) = value {
                self.push(&format!(" AND {table}.{column} = ?"), value.clone());
            }
        }
    }

    /// The page that is wished for, the latest first. `read` says how many bytes its row has too.
    fn page<T>(
        mut self,
        connection: &Connection,
        wish: &Wish,
        column: &str,
        read: impl Fn(&Row<'_>) -> Result<(T, usize)>,
    ) -> Result<Vec<T>> {
        if let Some(before) = wish.before {
            self.push(&format!(" AND {column} < ?"), before);
        }
        self.push(&format!(" ORDER BY {column} DESC LIMIT 0 + ?"), wish.limit);
        let mut select = connection.prepare_cached(&self.text)?;
        let mut rows = select.query(params_from_iter(self.values))?;
        let (mut page, mut bytes) = (Vec::new(), 0);
        while bytes <= PAGE_BYTES_MAX
            && let Some(row) = rows.next()?
        {
            let (read, size) = read(row)?;
            page.push(read);
            bytes += size;
        }
        Ok(page)
    }
}

fn size(row: &Row<'_>, column: &str) -> Result<usize> {
    Ok(row.get_ref(column)?.as_blob_or_null()?.map_or(0, <[u8]>::len))
}

/// A page ends after what passes this, however many rows were wished for.
const PAGE_BYTES_MAX: usize = 4 << 20;

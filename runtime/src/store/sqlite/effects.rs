//! Effects: planned with their invocation, claimed by couriers.

use std::collections::HashMap;

use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};

use super::{Result, attempts, corrupt, hash, in_chunks, json, quotas};
use crate::effect::{Effect, EffectId, Planned};
use crate::grant::quota::Quota;
use crate::store::rows::{Claim, Claimed, Invocation, Outcome};
use crate::store::writer::Written;
use crate::store::{LEASE_MS, now_ms};

/// An effect with the invocation it belongs to and the effect it must wait for.
pub(super) struct EffectRow<'a> {
    invocation_id: i64,
    after: Option<EffectId>,
    /// The first copy of the same mail, which has what they share.
    copy_of: Option<EffectId>,
    tenant: &'a str,
    plugin: &'a str,
    created_ms: i64,
    planned: &'a Planned,
    /// How many like it may be due in an hour.
    pub(super) quota: Option<Quota>,
    state: &'static str,
    reason: Option<Vec<u8>>,
    due_ms: i64,
}

impl<'a> EffectRow<'a> {
    pub(super) fn is_pending(&self) -> bool {
        self.state == PENDING
    }

    /// Whose quota it is charged to.
    pub(super) fn quota_key(&self) -> (&'a str, &'a str, &'static str) {
        (self.tenant, self.plugin, self.planned.effect.capability())
    }

    /// It is due later.
    pub(super) fn put_off(&mut self, due_ms: i64, why: String) {
        (self.due_ms, self.reason) = (due_ms, Some(why.into_bytes()));
    }

    /// It is never done.
    pub(super) fn end(&mut self, state: &'static str, why: String) {
        (self.state, self.reason) = (state, Some(why.into_bytes()));
    }
}

/// The effects of a plan, each told which one to the same recipient comes before it.
pub(super) fn rows_of_plan<'a>(invocation_id: i64, tenant: &'a str, invocation: &'a Invocation) -> Vec<EffectRow<'a>> {
    let created_ms = now_ms();
    let Outcome::Done(plan) = &invocation.outcome else { return Vec::new() };
    let mut last: HashMap<(&str, &str, &str), EffectId> = HashMap::new();
    let mut first: Option<&Planned> = None;
    let row = |planned: &'a Planned| {
        let copy_of = first.filter(|first| first.call == planned.call).map(|first| first.id);
        if copy_of.is_none() {
            first = Some(planned);
        }
        let to = (planned.effect.capability(), planned.effect.account(), planned.effect.recipient());
        let after = if planned.refused.is_none() { last.insert(to, planned.id) } else { None };
        let reason = planned.refused.as_ref().map(|reason| reason.clone().into_bytes());
        EffectRow {
            invocation_id,
            after,
            copy_of,
            tenant,
            plugin: &invocation.plugin,
            created_ms,
            planned,
            quota: invocation.quotas.get(planned.effect.capability()).copied(),
            state: if reason.is_some() { "refused" } else { PENDING },
            reason,
            due_ms: created_ms,
        }
    };
    plan.effects.iter().map(row).collect()
}

pub(super) async fn insert_effects(connection: &mut SqliteConnection, mut effects: Vec<EffectRow<'_>>) -> Result<()> {
    quotas::charge(connection, &mut effects).await?;
    for chunk in in_chunks(&effects) {
        let mut insert = QueryBuilder::<Sqlite>::new(
            "INSERT INTO effect (id, invocation_id, after, call, copy_of, tenant, plugin, destination, recipient, \
             payload, created_ms, state, reason, due_ms) ",
        );
        insert.push_values(chunk, |mut row, effect| {
            let planned = effect.planned;
            row.push_bind(planned.id.as_bytes().to_vec())
                .push_bind(effect.invocation_id)
                .push_bind(effect.after.map(|after| after.as_bytes().to_vec()))
                .push_bind(planned.call.as_bytes().to_vec())
                .push_bind(effect.copy_of.map(|first| first.as_bytes().to_vec()))
                .push_bind(effect.tenant.to_owned())
                .push_bind(effect.plugin.to_owned())
                .push_bind(planned.effect.destination())
                .push_bind(planned.effect.recipient().as_bytes().to_vec())
                .push_bind(effect.copy_of.is_none().then(|| json(&planned.effect)))
                .push_bind(effect.created_ms)
                .push_bind(effect.state)
                .push_bind(effect.reason.clone())
                .push_bind(effect.due_ms);
        });
        insert.build().execute(&mut *connection).await?;
    }
    Ok(())
}

/// Claims what is due and what others have claimed and let lapse. Of a suspended destination it claims nothing, or one
/// effect as a probe when that is due.
pub(super) async fn claim(connection: &mut SqliteConnection, claim: &Claim) -> Result<Vec<Claimed>> {
    // The time of the commit, not of the wish: a lease that had lapsed while waiting would be taken over at once.
    let now_ms = now_ms();
    let suspended = suspended(connection).await?;
    let mut wanted = Vec::with_capacity(claim.destinations.len());
    for (destination, limit) in &claim.destinations {
        let limit = match suspended.get(destination) {
            None => *limit,
            Some(probe_ms) => probes(connection, destination, *probe_ms, now_ms).await?.min(*limit),
        };
        wanted.push((destination.as_str(), limit));
    }
    wanted.retain(|(_, limit)| *limit > 0);
    let in_flight = serde_json::Value::from_iter(claim.in_flight.iter().copied()).to_string();
    let mut rows = Vec::new();
    for (destination, limit) in wanted {
        rows.extend(claim_due(connection, claim, (destination, limit), &in_flight, now_ms).await?);
    }
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
    attempts::record_attempts(connection, &claim.owner, &claimed, now_ms).await?;
    Ok(claimed)
}

/// Claims at most so many of a destination.
async fn claim_due(
    connection: &mut SqliteConnection,
    claim: &Claim,
    (destination, limit): (&str, u32),
    in_flight: &str,
    now_ms: i64,
) -> Result<Vec<SqliteRow>> {
    sqlx::query(
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
         RETURNING seq, id, call, tenant, plugin, attempt, failures, in_doubt, created_ms, recipient, \
           coalesce(payload, (SELECT payload FROM effect first WHERE first.id = effect.copy_of)) AS content",
    )
    .bind(&claim.owner)
    .bind(now_ms + LEASE_MS)
    .bind(destination)
    .bind(now_ms)
    .bind(limit)
    .bind(in_flight)
    .fetch_all(connection)
    .await
}

/// The destinations that are suspended, and when each is probed next.
async fn suspended(connection: &mut SqliteConnection) -> Result<HashMap<String, i64>> {
    let all = sqlx::query_as("SELECT destination, probe_ms FROM suspension").fetch_all(connection).await?;
    Ok(all.into_iter().collect())
}

/// How many probes of a suspended destination may begin now: one at a time, and while any attempt is under way, its
/// answer is what is waited for. Each puts the next one off by a lease.
async fn probes(connection: &mut SqliteConnection, destination: &str, probe_ms: i64, now_ms: i64) -> Result<u32> {
    if probe_ms > now_ms {
        return Ok(0);
    }
    sqlx::query("UPDATE suspension SET probe_ms = ? WHERE destination = ?")
        .bind(now_ms + LEASE_MS)
        .bind(destination)
        .execute(&mut *connection)
        .await?;
    let attempted = "SELECT EXISTS (SELECT 1 FROM effect WHERE state = 'claimed' AND destination = ? AND lease_ms > ?)";
    let is_attempted: bool = sqlx::query_scalar(attempted).bind(destination).bind(now_ms).fetch_one(connection).await?;
    Ok(u32::from(!is_attempted))
}

pub(super) async fn renew(
    connection: &mut SqliteConnection,
    owner: &str,
    effects: &[i64],
    lease_ms: i64,
) -> Result<Written> {
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

/// The effect of a row.
pub(in crate::store) fn effect(row: &SqliteRow) -> Result<Effect> {
    Effect::from_payload(row.try_get("content")?, row.try_get("recipient")?)
        .map_err(|error| corrupt("content", error.into()))
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
        effect: effect(row)?,
    })
}

/// The state of an effect that is to be done.
const PENDING: &str = "pending";

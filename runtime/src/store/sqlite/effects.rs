//! Effects: planned with their invocation.

use std::collections::HashMap;

use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};

use super::claims::GroupClaims;
use super::{Result, corrupt, hash, in_chunks, json, push_rows, quotas};
use crate::effect::{Effect, EffectId, Planned};
use crate::grant::quota::Quota;
use crate::store::rows::{Claimed, Invocation, Outcome};
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
    /// The claim it is taken by as it is written.
    claim: Option<usize>,
}

impl<'a> EffectRow<'a> {
    pub(super) fn is_pending(&self) -> bool {
        self.state == PENDING
    }

    /// Whose quota it is charged to.
    pub(super) fn quota_key(&self) -> (&'a str, &'a str, &'static str) {
        (self.tenant, self.plugin, self.planned.effect.capability())
    }

    /// Whether nothing keeps it from being performed.
    fn is_due(&self) -> bool {
        self.is_pending() && self.after.is_none() && self.due_ms <= self.created_ms
    }

    fn first_attempt(&self, seq: i64) -> Claimed {
        Claimed {
            seq,
            id: self.planned.id,
            call: self.planned.call,
            tenant: self.tenant.to_owned(),
            plugin: self.plugin.to_owned(),
            attempt: 1,
            failures: 0,
            in_doubt: 0,
            created_ms: self.created_ms,
            effect: self.planned.effect.clone(),
        }
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
            claim: None,
        }
    };
    plan.effects.iter().map(row).collect()
}

/// Writes effects, and claims as it writes them those that somebody waits for, each with the attempt that is about to be
/// made.
pub(super) async fn insert_effects(
    connection: &mut SqliteConnection,
    mut effects: Vec<EffectRow<'_>>,
    claims: &mut GroupClaims<'_>,
) -> Result<()> {
    quotas::charge(connection, &mut effects).await?;
    for effect in effects.iter_mut().filter(|effect| effect.is_due()) {
        if let Some(claim) = claims.of_new(&effect.planned.effect.destination()) {
            (effect.state, effect.claim) = (CLAIMED, Some(claim));
        }
    }
    let now_ms = now_ms();
    let lease_ms = now_ms + LEASE_MS;
    for chunk in in_chunks(&effects) {
        let mut insert = QueryBuilder::<Sqlite>::new(
            "INSERT INTO effect (id, invocation_id, after, call, copy_of, tenant, plugin, destination, recipient, \
             created_ms, state, reason, due_ms, owner, lease_ms, attempt) SELECT * FROM (",
        );
        push_rows(&mut insert, chunk, 16, |row, effect| {
            let (planned, owner) = (effect.planned, effect.claim.and_then(|claim| claims.owner(claim)));
            row.push_bind(planned.id.as_bytes().to_vec())
                .push_bind(effect.invocation_id)
                .push_bind(effect.after.map(|after| after.as_bytes().to_vec()))
                .push_bind(planned.call.as_bytes().to_vec())
                .push_bind(effect.copy_of.map(|first| first.as_bytes().to_vec()))
                .push_bind(effect.tenant.to_owned())
                .push_bind(effect.plugin.to_owned())
                .push_bind(planned.effect.destination())
                .push_bind(planned.effect.recipient().as_bytes().to_vec())
                .push_bind(effect.created_ms)
                .push_bind(effect.state)
                .push_bind(effect.reason.clone())
                .push_bind(effect.due_ms)
                .push_bind(owner.map(str::to_owned))
                .push_bind(owner.map(|_| lease_ms))
                .push_bind(u32::from(owner.is_some()));
        });
        // What they are about lies beside them; all of it takes one turn of the engine.
        insert.push(
            ") WHERE column1 IS NOT NULL RETURNING id, seq; \
             INSERT INTO payload (effect_seq, content) SELECT (SELECT seq FROM effect WHERE id = column1), column2 FROM (",
        );
        push_rows(&mut insert, chunk, 2, |row, effect| {
            let content = effect.copy_of.is_none().then(|| json(&effect.planned.effect));
            row.push_bind(effect.planned.id.as_bytes().to_vec()).push_bind(content);
        });
        insert.push(") WHERE column2 IS NOT NULL");
        if chunk.iter().any(|effect| effect.claim.is_some()) {
            insert.push(
                "; INSERT INTO attempt (effect_seq, number, owner, started_ms) \
                 SELECT (SELECT seq FROM effect WHERE id = column1), 1, column2, column3 FROM (",
            );
            push_rows(&mut insert, chunk, 3, |row, effect| {
                let owner = effect.claim.and_then(|claim| claims.owner(claim));
                let id = effect.planned.id.as_bytes().to_vec();
                row.push_bind(id).push_bind(owner.map(str::to_owned)).push_bind(now_ms);
            });
            insert.push(") WHERE column2 IS NOT NULL");
        }
        let rows = insert.build().fetch_all(&mut *connection).await?;
        let mut seqs = HashMap::with_capacity(rows.len());
        for row in &rows {
            seqs.insert(hash(row, "id")?, row.try_get("seq")?);
        }
        for effect in chunk {
            if let (Some(claim), Some(seq)) = (effect.claim, seqs.get(&effect.planned.id)) {
                claims.took(claim, effect.first_attempt(*seq));
            }
        }
    }
    Ok(())
}

/// The effect of a row.
pub(in crate::store) fn effect(row: &SqliteRow) -> Result<Effect> {
    Effect::from_payload(row.try_get("content")?, row.try_get("recipient")?)
        .map_err(|error| corrupt("content", error.into()))
}

/// The state of an effect that is to be done.
const PENDING: &str = "pending";
/// The state of an effect that a courier performs.
const CLAIMED: &str = "claimed";

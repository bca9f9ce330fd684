//! Effects: planned with their invocation.

use std::collections::HashMap;

use rusqlite::{Connection, Result, Row};

use super::claims::GroupClaims;
use super::{attempts, bytes, corrupt, json, quotas};
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
        }
    };
    plan.effects.iter().map(row).collect()
}

/// Writes effects, and claims as it writes them those that somebody waits for, each with the attempt that is about to be
/// made.
pub(super) fn insert(
    connection: &Connection,
    mut effects: Vec<EffectRow<'_>>,
    claims: &mut GroupClaims<'_>,
) -> Result<()> {
    quotas::charge(connection, &mut effects)?;
    let insert = "INSERT INTO effect (id, invocation_id, after, call, copy_of, tenant, plugin, destination, recipient, \
                  created_ms, state, reason, due_ms, owner, lease_ms, attempt) \
                  VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
    let mut insert = connection.prepare_cached(insert)?;
    // What they are about lies beside them.
    let mut insert_payload = connection.prepare_cached("INSERT INTO payload (effect_seq, content) VALUES (?, ?)")?;
    let now_ms = now_ms();
    for effect in &effects {
        let EffectRow { planned, tenant, plugin, created_ms, due_ms, .. } = effect;
        let destination = planned.effect.destination();
        let claim = if effect.is_due() { claims.of_new(&destination) } else { None };
        let owner = claim.and_then(|claim| claims.owner(claim));
        let state = if owner.is_some() { CLAIMED } else { effect.state };
        insert.execute((
            planned.id,
            effect.invocation_id,
            effect.after,
            planned.call,
            effect.copy_of,
            tenant,
            plugin,
            destination,
            planned.effect.recipient().as_bytes(),
            created_ms,
            state,
            &effect.reason,
            due_ms,
            owner,
            owner.map(|_| now_ms + LEASE_MS),
            u32::from(owner.is_some()),
        ))?;
        let seq = connection.last_insert_rowid();
        if effect.copy_of.is_none() {
            insert_payload.execute((seq, json(&planned.effect)))?;
        }
        if let (Some(claim), Some(owner)) = (claim, owner) {
            attempts::record(connection, seq, 1, owner, now_ms)?;
            claims.took(claim, effect.first_attempt(seq));
        }
    }
    Ok(())
}

/// The effect of a row.
pub(in crate::store) fn effect(row: &Row<'_>) -> Result<Effect> {
    Effect::from_payload(bytes(row, "content")?, bytes(row, "recipient")?)
        .map_err(|error| corrupt("content", error.into()))
}

/// The state of an effect that is to be done.
const PENDING: &str = "pending";
/// The state of an effect that a courier performs.
const CLAIMED: &str = "claimed";

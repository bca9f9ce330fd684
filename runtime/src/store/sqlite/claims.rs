//! Claims: which effects are a courier's to perform, each recorded with the attempt that is about to be made.
//!
//! Where a courier waits and nothing older is due, an effect is claimed as it is written, without being looked for or
//! read back.

use std::collections::{BTreeSet, HashMap, HashSet};

use rusqlite::{Connection, Result, Row};

use super::{Suspensions, attempts, effects};
use crate::store::rows::{Claim, Claimed};
use crate::store::{LEASE_MS, now_ms};

/// The claims of one transaction, and what they got.
pub(super) struct GroupClaims<'a> {
    claims: &'a [Claim],
    claimed: Vec<Vec<Claimed>>,
    /// Where new effects are claimed as they are written: by which claim, and how many more.
    of_new: HashMap<&'a str, (usize, u32)>,
    suspended: Suspensions,
}

impl<'a> GroupClaims<'a> {
    /// Nothing is claimed yet. `older` are destinations where effects that were written before became due.
    pub(super) fn new(claims: &'a [Claim], older: &BTreeSet<String>, suspended: Suspensions) -> Self {
        let of_new = claims.iter().enumerate().filter(|(_, claim)| {
            claim.only_new && !older.contains(&claim.destination) && !suspended.contains_key(&claim.destination)
        });
        let of_new = of_new.map(|(place, claim)| (claim.destination.as_str(), (place, claim.limit))).collect();
        let claimed = claims.iter().map(|_| Vec::new()).collect();
        Self { claims, claimed, of_new, suspended }
    }

    /// The claim that takes an effect of this destination as it is written.
    pub(super) fn of_new(&mut self, destination: &str) -> Option<usize> {
        let (claim, room) = self.of_new.get_mut(destination)?;
        *room = room.checked_sub(1)?;
        Some(*claim)
    }

    pub(super) fn owner(&self, claim: usize) -> Option<&'a str> {
        self.claims.get(claim).map(|claim| claim.owner.as_str())
    }

    pub(super) fn took(&mut self, claim: usize, claimed: Claimed) {
        if let Some(all) = self.claimed.get_mut(claim) {
            all.push(claimed);
        }
    }

    /// Claims the rest and records the attempts. What each claim got.
    pub(super) fn end(mut self, connection: &Connection) -> Result<Vec<Vec<Claimed>>> {
        // Later than what was just written became due.
        let now_ms = now_ms();
        for (claim, claimed) in self.claims.iter().zip(&mut self.claimed) {
            let probe_ms = self.suspended.get(&claim.destination);
            let limit = match probe_ms {
                _ if self.of_new.contains_key(claim.destination.as_str()) => continue,
                None => claim.limit,
                Some(probe_ms) => probes(connection, &claim.destination, *probe_ms, now_ms)?.min(claim.limit),
            };
            if limit > 0 {
                *claimed = claim_due(connection, claim, limit, probe_ms.is_some(), now_ms)?;
            }
        }
        Ok(self.claimed)
    }
}

/// Claims at most so many of what is due at a destination, and records the attempts. As probes, those that were attempted
/// least: what draws such an answer by its own content must not stand in the way of all others.
fn claim_due(connection: &Connection, claim: &Claim, limit: u32, is_probe: bool, now_ms: i64) -> Result<Vec<Claimed>> {
    let order = if is_probe { "attempt, due_ms" } else { "due_ms" };
    let take = format!(
        "UPDATE effect SET state = 'claimed', owner = ?1, lease_ms = ?2, attempt = attempt + 1 \
                WHERE seq IN (\
                  SELECT seq FROM effect e \
                  WHERE state = 'pending' AND destination = ?3 AND due_ms <= ?4 AND (after IS NULL OR NOT EXISTS (\
                    SELECT 1 FROM effect before WHERE before.id = e.after AND before.state IN ('pending', 'claimed'))) \
                  ORDER BY {order} LIMIT 0 + ?5) \
                RETURNING seq, id, call, tenant, plugin, attempt, failures, in_doubt, created_ms, recipient, \
                  (SELECT content FROM payload WHERE effect_seq = coalesce(\
                    (SELECT first.seq FROM effect first WHERE first.id = effect.copy_of), effect.seq)) AS content"
    );
    let mut take = connection.prepare_cached(&take)?;
    let values = (&claim.owner, now_ms + LEASE_MS, &claim.destination, now_ms, limit);
    let taken = take.query_map(values, |row| Ok((row.get("seq")?, claimed(row))))?;
    let taken: Vec<(i64, _)> = taken.collect::<Result<_>>()?;
    let mut all = Vec::with_capacity(taken.len());
    for (seq, claimed) in taken {
        match claimed {
            Ok(claimed) => {
                attempts::record(connection, seq, claimed.attempt, &claim.owner, now_ms)?;
                all.push(claimed);
            }
            Err(error) => {
                tracing::error!(%error, "an effect cannot be read back and is dead");
                let dead = "UPDATE effect SET state = 'dead', reason = ? WHERE seq = ?";
                connection.execute(dead, (error.to_string().as_bytes(), seq))?;
            }
        }
    }
    Ok(all)
}

fn claimed(row: &Row<'_>) -> Result<Claimed> {
    Ok(Claimed {
        seq: row.get("seq")?,
        id: row.get("id")?,
        call: row.get("call")?,
        tenant: row.get("tenant")?,
        plugin: row.get("plugin")?,
        attempt: row.get("attempt")?,
        failures: row.get("failures")?,
        in_doubt: row.get("in_doubt")?,
        created_ms: row.get("created_ms")?,
        effect: effects::effect(row)?,
    })
}

/// How many probes of a suspended destination may begin now: one at a time, and while any attempt is under way, its
/// answer is what is waited for. Each puts the next one off by a lease.
fn probes(connection: &Connection, destination: &str, probe_ms: i64, now_ms: i64) -> Result<u32> {
    if probe_ms > now_ms {
        return Ok(0);
    }
    let put_off = "UPDATE suspension SET probe_ms = ? WHERE destination = ?";
    connection.prepare_cached(put_off)?.execute((now_ms + LEASE_MS, destination))?;
    let attempted = "SELECT 1 FROM effect WHERE state = 'claimed' AND destination = ? AND lease_ms > ? LIMIT 1";
    let is_attempted = connection.prepare_cached(attempted)?.exists((destination, now_ms))?;
    Ok(u32::from(!is_attempted))
}

/// Extends the leases of what an owner is performing, and takes back, in doubt, what anybody has let lapse: of which
/// destinations.
pub(super) fn keep(connection: &Connection, owner: &str, in_flight: &HashSet<i64>) -> Result<Vec<String>> {
    let now_ms = now_ms();
    let extend = "UPDATE effect SET lease_ms = ? WHERE seq = ? AND state = 'claimed' AND owner = ?";
    let mut extend = connection.prepare_cached(extend)?;
    for seq in in_flight {
        extend.execute((now_ms + LEASE_MS, seq, owner))?;
    }
    let take_back = "UPDATE effect SET state = 'pending', in_doubt = in_doubt + 1, owner = NULL, lease_ms = NULL \
                     WHERE seq IN (SELECT seq FROM effect INDEXED BY effect_lease WHERE state = 'claimed' \
                     AND lease_ms <= ?) RETURNING destination";
    connection.prepare_cached(take_back)?.query_map([now_ms], |row| row.get(0))?.collect()
}

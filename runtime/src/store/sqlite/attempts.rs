//! Attempts: recorded before they begin, and how they ended.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, Result};

use super::Suspensions;
use crate::store::LEASE_MS;
use crate::store::rows::{Finished, Next};

/// Records the attempt of an owner that is about to be made.
pub(super) fn record(connection: &Connection, seq: i64, number: u32, owner: &str, now_ms: i64) -> Result<()> {
    let insert = "INSERT INTO attempt (effect_seq, number, owner, started_ms) VALUES (?, ?, ?, ?)";
    connection.prepare_cached(insert)?.execute((seq, number, owner, now_ms)).map(drop)
}

/// Records how attempts ended. Where effects may have become due by that: at destinations that are not suspended any more
/// or after all, and where one was to come after one of these, to the same recipient.
pub(super) fn finish_all(
    connection: &Connection,
    finished: &[&Finished],
    suspended: &mut Suspensions,
) -> Result<BTreeSet<String>> {
    let mut due = BTreeSet::new();
    for finished in finished {
        due.extend(finish(connection, finished, suspended.contains_key(&finished.destination))?);
    }
    // The last word on a destination counts; what is tried again says nothing about it.
    let speaks = |finished: &&&Finished| matches!(finished.next, Next::Suspended { .. } | Next::Delivered | Next::Dead);
    let words = finished.iter().filter(speaks);
    let last: BTreeMap<_, _> = words.map(|finished| (finished.destination.as_str(), *finished)).collect();
    let mut answered = Vec::new();
    for (destination, finished) in last {
        match finished.next {
            Next::Suspended { probe_ms } => {
                suspend(connection, finished, probe_ms)?;
                suspended.insert(destination.to_owned(), probe_ms);
            }
            _ => answered.push(destination),
        }
    }
    let put_back = finished.iter().filter(|finished| matches!(finished.next, Next::Suspended { .. }));
    let put_back = put_back.filter(|finished| answered.contains(&finished.destination.as_str()));
    due.extend(put_back.map(|finished| finished.destination.clone()));
    // Destinations that answered as they should are suspended no longer.
    for destination in answered {
        if let Some((destination, _)) = suspended.remove_entry(destination) {
            connection.execute("DELETE FROM suspension WHERE destination = ?", [&destination])?;
            due.insert(destination);
        }
    }
    Ok(due)
}

/// Ends an attempt and moves on its effect, if it holds the claim. Where others follow it. At a suspended destination it was
/// a probe: it is there for the next one, for there may be no other.
fn finish(connection: &Connection, finished: &Finished, is_probe: bool) -> Result<Vec<String>> {
    let Finished { seq, owner, attempt, ended_ms, outcome, answer, in_doubt, next, destination: _ } = finished;
    let end =
        "UPDATE attempt SET ended_ms = ?, outcome = ?, answer = ? WHERE effect_seq = ? AND number = ? AND owner = ?";
    connection.prepare_cached(end)?.execute((ended_ms, outcome, answer.as_bytes(), seq, attempt, owner))?;
    let (due_ms, failures) = match next {
        Next::Pending { due_ms } if is_probe => ((*due_ms).min(ended_ms + LEASE_MS), 1_u32),
        Next::Pending { due_ms } => (*due_ms, 1),
        Next::Suspended { .. } | Next::Delivered | Next::Dead | Next::Expired | Next::Refused => (*ended_ms, 0),
    };
    let move_on = "UPDATE effect SET state = ?, reason = ?, due_ms = ?, owner = NULL, lease_ms = NULL, \
                   failures = failures + ?, in_doubt = in_doubt + ? \
                   WHERE seq = ? AND state = 'claimed' AND attempt = ? AND owner = ?";
    let mut move_on = connection.prepare_cached(move_on)?;
    move_on.execute((next.state(), answer.as_bytes(), due_ms, failures, in_doubt, seq, attempt, owner))?;
    let follow = "SELECT DISTINCT destination FROM effect WHERE after IS NOT NULL AND state = 'pending' \
                  AND invocation_id = (SELECT invocation_id FROM effect WHERE seq = ?)";
    connection.prepare_cached(follow)?.query_map([seq], |row| row.get(0))?.collect()
}

fn suspend(connection: &Connection, finished: &Finished, probe_ms: i64) -> Result<()> {
    let suspend = "INSERT INTO suspension (destination, reason, since_ms, probe_ms, probes) VALUES (?1, ?2, ?3, ?4, 0) \
                   ON CONFLICT (destination) DO UPDATE SET reason = ?2, probe_ms = ?4, probes = probes + 1";
    let Finished { destination, answer, ended_ms, .. } = finished;
    connection.execute(suspend, (destination, answer.as_bytes(), ended_ms, probe_ms)).map(drop)
}

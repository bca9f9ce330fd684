//! Attempts: recorded before they begin, and how they ended.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::{Result, Suspensions, in_chunks, push_rows};
use crate::store::rows::{Claimed, Finished, Next};

/// Records the attempts of their owners that are about to be made.
pub(super) async fn record_attempts(
    connection: &mut SqliteConnection,
    attempts: &[(&str, &Claimed)],
    now_ms: i64,
) -> Result<()> {
    for chunk in in_chunks(attempts) {
        let mut insert =
            QueryBuilder::<Sqlite>::new("INSERT INTO attempt (effect_seq, number, owner, started_ms) SELECT * FROM (");
        push_rows(&mut insert, chunk, 4, |row, (owner, claimed)| {
            row.push_bind(claimed.seq).push_bind(claimed.attempt).push_bind((*owner).to_owned()).push_bind(now_ms);
        });
        insert.push(") WHERE column1 IS NOT NULL");
        insert.build().execute(&mut *connection).await?;
    }
    Ok(())
}

/// Records how attempts ended, many at once. Where effects may have become due by that: at destinations that are not
/// suspended any more or after all, and where one was to come after one of these, to the same recipient.
pub(super) async fn finish_all(
    connection: &mut SqliteConnection,
    finished: &[&Finished],
    suspended: &mut Suspensions,
) -> Result<BTreeSet<String>> {
    let mut due = BTreeSet::new();
    for chunk in in_chunks(finished) {
        due.extend(finish(connection, chunk).await?);
    }
    // The last word on a destination counts; what is tried again says nothing about it.
    let speaks = |finished: &&&Finished| matches!(finished.next, Next::Suspended { .. } | Next::Delivered | Next::Dead);
    let words = finished.iter().filter(speaks);
    let last: BTreeMap<_, _> = words.map(|finished| (finished.destination.as_str(), *finished)).collect();
    let mut answered = Vec::new();
    for (destination, finished) in last {
        match finished.next {
            Next::Suspended { probe_ms } => {
                suspend(connection, finished, probe_ms).await?;
                suspended.insert(destination.to_owned(), probe_ms);
            }
            _ => answered.push(destination),
        }
    }
    let put_back = finished.iter().filter(|finished| matches!(finished.next, Next::Suspended { .. }));
    let put_back = put_back.filter(|finished| answered.contains(&finished.destination.as_str()));
    due.extend(put_back.map(|finished| finished.destination.clone()));
    // Destinations that answered as they should are suspended no longer.
    for destination in answered.into_iter().filter(|answered| suspended.contains_key(*answered)).collect::<Vec<_>>() {
        sqlx::query("DELETE FROM suspension WHERE destination = ?").bind(destination).execute(&mut *connection).await?;
        due.extend(suspended.remove_entry(destination).map(|(destination, _)| destination));
    }
    Ok(due)
}

/// Ends attempts and moves on the effects whose claim they hold, in one turn of the engine. Where others follow them.
async fn finish(connection: &mut SqliteConnection, finished: &[&Finished]) -> Result<Vec<String>> {
    let mut query = QueryBuilder::<Sqlite>::new("WITH ended (seq, number, owner, ended_ms, outcome, answer) AS (");
    push_rows(&mut query, finished, 6, |row, finished| {
        row.push_bind(finished.seq)
            .push_bind(finished.attempt)
            .push_bind(finished.owner.clone())
            .push_bind(finished.ended_ms)
            .push_bind(finished.outcome)
            .push_bind(finished.answer.clone().into_bytes());
    });
    query.push(
        ") UPDATE attempt SET ended_ms = ended.ended_ms, outcome = ended.outcome, answer = ended.answer FROM ended \
         WHERE attempt.effect_seq = ended.seq AND attempt.number = ended.number AND attempt.owner = ended.owner; \
         WITH ended (seq, number, owner, state, answer, due_ms, failures, in_doubt) AS (",
    );
    push_rows(&mut query, finished, 8, |row, finished| {
        let (due_ms, failures) = match finished.next {
            Next::Pending { due_ms } => (due_ms, 1_u32),
            Next::Suspended { .. } | Next::Delivered | Next::Dead | Next::Expired | Next::Refused => {
                (finished.ended_ms, 0)
            }
        };
        row.push_bind(finished.seq)
            .push_bind(finished.attempt)
            .push_bind(finished.owner.clone())
            .push_bind(finished.next.state())
            .push_bind(finished.answer.clone().into_bytes())
            .push_bind(due_ms)
            .push_bind(failures)
            .push_bind(u32::from(finished.in_doubt));
    });
    query.push(
        ") UPDATE effect SET state = ended.state, reason = ended.answer, due_ms = ended.due_ms, owner = NULL, \
         lease_ms = NULL, failures = effect.failures + ended.failures, in_doubt = effect.in_doubt + ended.in_doubt \
         FROM ended WHERE effect.seq = ended.seq AND effect.state = 'claimed' AND effect.attempt = ended.number \
         AND effect.owner = ended.owner; \
         SELECT DISTINCT destination FROM effect WHERE after IS NOT NULL AND state = 'pending' \
         AND invocation_id IN (SELECT invocation_id FROM effect WHERE seq IN (",
    );
    push_rows(&mut query, finished, 1, |row, finished| {
        row.push_bind(finished.seq);
    });
    query.push("))");
    query.build_query_scalar().fetch_all(connection).await
}

async fn suspend(connection: &mut SqliteConnection, finished: &Finished, probe_ms: i64) -> Result<()> {
    sqlx::query(
        "INSERT INTO suspension (destination, reason, since_ms, probe_ms, probes) VALUES (?1, ?2, ?3, ?4, 0) \
         ON CONFLICT (destination) DO UPDATE SET reason = ?2, probe_ms = ?4, probes = probes + 1",
    )
    .bind(&finished.destination)
    .bind(finished.answer.as_bytes())
    .bind(finished.ended_ms)
    .bind(probe_ms)
    .execute(connection)
    .await
    .map(drop)
}

//! What is counted, for those who look after it.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::Row;
use sqlx::sqlite::{SqlitePool, SqliteRow};

use super::Result;
use crate::store::rows::Figures;

/// Counts by partial indexes, so that it takes no longer as the tables grow.
pub(in crate::store) async fn figures(reader: &SqlitePool, now_ms: i64) -> Result<Figures> {
    let count = |query: &'static str| sqlx::query_scalar::<_, i64>(query).fetch_one(reader);
    let mut effects = BTreeMap::from([
        ("pending".to_owned(), count("SELECT COUNT(*) FROM effect WHERE state = 'pending'").await?),
        ("claimed".to_owned(), count("SELECT COUNT(*) FROM effect WHERE state = 'claimed'").await?),
        ("dead".to_owned(), 0),
        ("expired".to_owned(), 0),
    ]);
    let lost = "SELECT state, COUNT(*) AS count FROM effect WHERE state IN ('dead', 'expired') GROUP BY state";
    for row in sqlx::query(lost).fetch_all(reader).await? {
        effects.insert(row.try_get("state")?, row.try_get("count")?);
    }
    // Rows lie in the order in which they were asked for. Without a hint the table is searched from its beginning.
    let oldest = "SELECT MIN(created_ms) FROM effect WHERE seq IN (\
                  (SELECT MIN(seq) FROM effect INDEXED BY effect_due WHERE state = 'pending'), \
                  (SELECT MIN(seq) FROM effect INDEXED BY effect_lease WHERE state = 'claimed'))";
    let oldest: Option<i64> = sqlx::query_scalar(oldest).fetch_one(reader).await?;
    Ok(Figures {
        effects,
        oldest_pending_ms: oldest.map_or(0, |oldest| now_ms - oldest),
        in_doubt: count("SELECT COUNT(*) FROM effect WHERE in_doubt > 0").await?,
        suspended: suspended(reader).await?,
    })
}

pub(in crate::store) async fn suspended(reader: &SqlitePool) -> Result<BTreeMap<String, String>> {
    let rows = sqlx::query("SELECT destination, reason FROM suspension").fetch_all(reader).await?;
    let suspended = |row: &SqliteRow| {
        let reason: Vec<u8> = row.try_get("reason")?;
        Ok((row.try_get("destination")?, String::from_utf8_lossy(&reason).into_owned()))
    };
    rows.iter().map(suspended).collect()
}

/// The destinations of effects that are not at their end, and the tenants of events and invocations that wait.
pub(in crate::store) async fn waited_for(reader: &SqlitePool) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
    let texts = |query: &'static str| sqlx::query_scalar::<_, String>(query).fetch_all(reader);
    let destinations = texts(
        "SELECT DISTINCT destination FROM effect INDEXED BY effect_due WHERE state = 'pending' UNION \
         SELECT DISTINCT destination FROM effect INDEXED BY effect_lease WHERE state = 'claimed' UNION \
         SELECT destination FROM suspension",
    );
    let tenants = texts(
        "SELECT tenant FROM event WHERE state = 'deferred' UNION \
         SELECT e.tenant FROM invocation i JOIN event e ON e.id = i.event_id WHERE i.state = 'retry'",
    );
    Ok((destinations.await?.into_iter().collect(), tenants.await?.into_iter().collect()))
}

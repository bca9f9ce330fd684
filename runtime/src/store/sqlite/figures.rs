//! What is counted, for those who look after it.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, Result, Row};

use super::Text;
use crate::store::rows::Figures;

/// Counts by partial indexes, so that it takes no longer as the tables grow.
pub(in crate::store) fn figures(connection: &Connection, now_ms: i64) -> Result<Figures> {
    let count = |query: &str| connection.prepare_cached(query)?.query_row((), |row| row.get(0));
    let mut effects = BTreeMap::from([
        ("pending".to_owned(), count("SELECT COUNT(*) FROM effect WHERE state = 'pending'")?),
        ("claimed".to_owned(), count("SELECT COUNT(*) FROM effect WHERE state = 'claimed'")?),
        ("dead".to_owned(), 0),
        ("expired".to_owned(), 0),
    ]);
    let lost = "SELECT state, COUNT(*) FROM effect WHERE state IN ('dead', 'expired') GROUP BY state";
    for row in connection.prepare_cached(lost)?.query_map((), |row| Ok((row.get(0)?, row.get(1)?)))? {
        effects.extend([row?]);
    }
    // Rows lie in the order in which they were asked for. Without a hint the table is searched from its beginning.
    let oldest = "SELECT MIN(created_ms) FROM effect WHERE seq IN (\
                  (SELECT MIN(seq) FROM effect INDEXED BY effect_due WHERE state = 'pending'), \
                  (SELECT MIN(seq) FROM effect INDEXED BY effect_lease WHERE state = 'claimed'))";
    let oldest: Option<i64> = connection.prepare_cached(oldest)?.query_row((), |row| row.get(0))?;
    Ok(Figures {
        effects,
        oldest_pending_ms: oldest.map_or(0, |oldest| now_ms - oldest),
        in_doubt: count("SELECT COUNT(*) FROM effect WHERE in_doubt > 0")?,
        suspended: suspended(connection)?,
    })
}

/// How many events, invocations and effects are not at their end.
pub(in crate::store) fn unfinished(connection: &Connection) -> Result<i64> {
    let count = "SELECT (SELECT COUNT(*) FROM event WHERE state = 'deferred') \
                 + (SELECT COUNT(*) FROM invocation WHERE state = 'retry') \
                 + (SELECT COUNT(*) FROM effect WHERE state IN ('pending', 'claimed'))";
    connection.prepare_cached(count)?.query_row((), |row| row.get(0))
}

pub(in crate::store) fn suspended(connection: &Connection) -> Result<BTreeMap<String, String>> {
    let suspended = |row: &Row<'_>| {
        let Text(reason) = row.get(1)?;
        Ok((row.get(0)?, reason))
    };
    connection.prepare_cached("SELECT destination, reason FROM suspension")?.query_map((), suspended)?.collect()
}

/// The destinations of effects that are not at their end, and the tenants of events and invocations that wait.
pub(in crate::store) fn waited_for(connection: &Connection) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
    let texts = |query: &str| {
        connection.prepare_cached(query)?.query_map((), |row| row.get::<_, String>(0))?.collect::<Result<_>>()
    };
    let destinations = "SELECT DISTINCT destination FROM effect INDEXED BY effect_due WHERE state = 'pending' UNION \
                        SELECT DISTINCT destination FROM effect INDEXED BY effect_lease WHERE state = 'claimed' UNION \
                        SELECT destination FROM suspension";
    let tenants = "SELECT tenant FROM event WHERE state = 'deferred' UNION \
                   SELECT e.tenant FROM invocation i JOIN event e ON e.id = i.event_id WHERE i.state = 'retry' \
                   UNION SELECT tenant FROM token WHERE tenant IS NOT NULL";
    Ok((texts(destinations)?, texts(tenants)?))
}

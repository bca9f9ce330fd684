//! What waits for nobody any more: its destination or its tenant is gone.

use rusqlite::{Connection, Result};

use crate::store::rows::Withdrawn;

/// Ends what waits; what is being attempted is left to whoever attempts it, as long as that one lives.
pub(super) fn withdraw(connection: &Connection, withdrawn: &Withdrawn, now_ms: i64) -> Result<u64> {
    let mut ended = 0;
    for (destination, reason) in &withdrawn.destinations {
        let refuse = "UPDATE effect SET state = 'refused', reason = ? WHERE state = 'pending' AND destination = ?";
        ended += connection.prepare_cached(refuse)?.execute((reason.as_bytes(), destination))?;
        let refuse = "UPDATE effect SET state = 'refused', reason = ?, in_doubt = in_doubt + 1, owner = NULL, \
                      lease_ms = NULL WHERE state = 'claimed' AND destination = ? AND lease_ms <= ?";
        ended += connection.prepare_cached(refuse)?.execute((reason.as_bytes(), destination, now_ms))?;
        connection.prepare_cached("DELETE FROM suspension WHERE destination = ?")?.execute([destination])?;
    }
    for (tenant, reason) in &withdrawn.tenants {
        let end = [
            "UPDATE event SET state = 'dead', reason = ?, due_ms = NULL WHERE state = 'deferred' AND tenant = ?",
            "UPDATE invocation SET state = 'refused', reason = ?, due_ms = NULL WHERE state = 'retry' AND \
             (SELECT tenant FROM event WHERE event.id = invocation.event_id) = ?",
        ];
        for end in end {
            ended += connection.prepare_cached(end)?.execute((reason.as_bytes(), tenant))?;
        }
        // Whoever has that name one day is somebody else.
        connection.prepare_cached("DELETE FROM token WHERE tenant = ?")?.execute([tenant])?;
    }
    Ok(ended as u64)
}

//! What waits for nobody any more: its destination or its tenant is gone.

use sqlx::SqliteConnection;

use super::Result;
use crate::store::rows::Withdrawn;

/// Ends what waits; what is being attempted is left to whoever attempts it, as long as that one lives.
pub(super) async fn withdraw(connection: &mut SqliteConnection, withdrawn: &Withdrawn, now_ms: i64) -> Result<u64> {
    let mut ended = 0;
    for (destination, reason) in &withdrawn.destinations {
        let refuse = [
            "UPDATE effect SET state = 'refused', reason = ?1 WHERE state = 'pending' AND destination = ?2 AND ?3 > 0",
            "UPDATE effect SET state = 'refused', reason = ?1, in_doubt = in_doubt + 1, owner = NULL, lease_ms = NULL \
             WHERE state = 'claimed' AND destination = ?2 AND lease_ms <= ?3",
        ];
        for refuse in refuse {
            let refuse = sqlx::query(refuse).bind(reason.as_bytes()).bind(destination).bind(now_ms);
            ended += refuse.execute(&mut *connection).await?.rows_affected();
        }
        let forget = sqlx::query("DELETE FROM suspension WHERE destination = ?").bind(destination);
        forget.execute(&mut *connection).await?;
    }
    for (tenant, reason) in &withdrawn.tenants {
        let end = [
            "UPDATE event SET state = 'dead', reason = ?1, due_ms = NULL WHERE state = 'deferred' AND tenant = ?2",
            "UPDATE invocation SET state = 'refused', reason = ?1, due_ms = NULL WHERE state = 'retry' AND \
             (SELECT tenant FROM event WHERE event.id = invocation.event_id) = ?2",
        ];
        for end in end {
            let end = sqlx::query(end).bind(reason.as_bytes()).bind(tenant);
            ended += end.execute(&mut *connection).await?.rows_affected();
        }
    }
    Ok(ended)
}

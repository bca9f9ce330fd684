//! The bindings this service made.

use std::collections::BTreeSet;

use sqlx::{Row, SqliteConnection};

use super::Result;
use crate::store::rows::Binding;
use crate::store::writer::Written;

pub(super) async fn bindings(
    connection: &mut SqliteConnection,
    queue: &str,
    wanted: &[Binding],
) -> Result<Vec<Binding>> {
    for binding in wanted {
        sqlx::query("INSERT INTO binding (queue, exchange, routing_key) VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
            .bind(queue)
            .bind(&binding.exchange)
            .bind(&binding.routing_key)
            .execute(&mut *connection)
            .await?;
    }
    let known = sqlx::query("SELECT exchange, routing_key FROM binding WHERE queue = ?").bind(queue);
    let known: Vec<Binding> = known
        .fetch_all(connection)
        .await?
        .iter()
        .map(|row| Ok(Binding { exchange: row.try_get("exchange")?, routing_key: row.try_get("routing_key")? }))
        .collect::<Result<_>>()?;
    let wanted: BTreeSet<_> = wanted.iter().collect();
    Ok(known.into_iter().filter(|binding| !wanted.contains(binding)).collect())
}

pub(super) async fn unbound(connection: &mut SqliteConnection, queue: &str, binding: &Binding) -> Result<Written> {
    sqlx::query("DELETE FROM binding WHERE queue = ? AND exchange = ? AND routing_key = ?")
        .bind(queue)
        .bind(&binding.exchange)
        .bind(&binding.routing_key)
        .execute(connection)
        .await?;
    Ok(Written::Nothing)
}

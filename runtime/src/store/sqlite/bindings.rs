//! The bindings this service made.

use std::collections::BTreeSet;

use rusqlite::{Connection, Result};

use crate::store::rows::Binding;

pub(super) fn bindings(connection: &Connection, queue: &str, wanted: &[Binding]) -> Result<Vec<Binding>> {
    let insert = "INSERT INTO binding (queue, exchange, routing_key) VALUES (?, ?, ?) ON CONFLICT DO NOTHING";
    let mut insert = connection.prepare_cached(insert)?;
    for Binding { exchange, routing_key } in wanted {
        insert.execute((queue, exchange, routing_key))?;
    }
    let mut select = connection.prepare_cached("SELECT exchange, routing_key FROM binding WHERE queue = ?")?;
    let known = select.query_map([queue], |row| Ok(Binding { exchange: row.get(0)?, routing_key: row.get(1)? }))?;
    let wanted: BTreeSet<_> = wanted.iter().collect();
    known.filter(|known| known.as_ref().map_or(true, |binding| !wanted.contains(binding))).collect()
}

pub(super) fn unbound(connection: &Connection, queue: &str, binding: &Binding) -> Result<()> {
    let delete = "DELETE FROM binding WHERE queue = ? AND exchange = ? AND routing_key = ?";
    connection.prepare_cached(delete)?.execute((queue, &binding.exchange, &binding.routing_key)).map(drop)
}

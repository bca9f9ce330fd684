//! A database as the tests look at it.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use rusqlite::types::FromSql;
use rusqlite::{Connection, OpenFlags};

/// The file of a service, which may not be there before the first question.
pub struct Database {
    path: PathBuf,
    reading: Mutex<Option<Connection>>,
}

impl Database {
    /// The one in this file.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), reading: Mutex::default() }
    }

    /// A connection of one's own, which may write.
    pub fn connect(&self) -> Result<Connection> {
        let connection = Connection::open_with_flags(&self.path, OpenFlags::SQLITE_OPEN_READ_WRITE);
        let connection = connection.with_context(|| self.path.display().to_string())?;
        connection.busy_timeout(BUSY_MAX)?;
        Ok(connection)
    }

    /// Statements that change it.
    pub fn change(&self, statements: &str) -> Result<()> {
        self.connect()?.execute_batch(statements).with_context(|| statements.to_owned())
    }

    /// The one number a query answers with; 0 where there is none.
    pub fn count(&self, query: &str) -> Result<i64> {
        Ok(self.value::<Option<i64>>(query)?.unwrap_or_default())
    }

    /// The rows of a query as texts, columns joined by a space; empty ones where a part of them is not there yet.
    pub fn rows(&self, query: &str) -> Result<Vec<String>> {
        Ok(self.column::<Option<String>>(query)?.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// The first column of each row that a query answers with.
    pub fn column<T: FromSql>(&self, query: &str) -> Result<Vec<T>> {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let connection = match &mut *reading {
            Some(connection) => connection,
            none => {
                let connection = Connection::open_with_flags(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
                connection.busy_timeout(BUSY_MAX)?;
                none.insert(connection)
            }
        };
        let mut select = connection.prepare_cached(query).with_context(|| query.to_owned())?;
        let rows = select.query_map((), |row| row.get(0))?.collect::<rusqlite::Result<_>>();
        rows.with_context(|| query.to_owned())
    }

    /// The one value that a query answers with.
    pub fn value<T: FromSql>(&self, query: &str) -> Result<T> {
        self.column(query)?.into_iter().next().with_context(|| format!("{query}: no row"))
    }
}

const BUSY_MAX: Duration = Duration::from_secs(30);

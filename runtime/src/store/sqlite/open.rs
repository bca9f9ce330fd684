//! Opens the database, and makes it or brings it up to date.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, Result, TransactionBehavior};

use super::is_busy;
use crate::store::StoreError;

/// A connection that may write. The file is there.
pub(in crate::store) fn connect(path: &Path) -> Result<Connection> {
    let connection = with(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // A few seconds' worth of new pages stays in memory, and is copied from the log into the file once.
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA cache_size = -65536; \
         PRAGMA wal_autocheckpoint = 8192",
    )?;
    Ok(connection)
}

/// A connection for those who look and change nothing.
pub(in crate::store) fn connect_to_read(path: &Path) -> Result<Connection> {
    with(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
}

fn with(path: &Path, access: OpenFlags) -> Result<Connection> {
    // The engine need not lock what one thread at a time uses.
    let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_MAX)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    // What a statement sorts, or would undo when a row of it fails, holds mails: not in a file.
    connection.execute_batch("PRAGMA temp_store = MEMORY")?;
    Ok(connection)
}

/// Connects to a database that is there and up to date, whoever else makes it at the same time.
pub(in crate::store) fn open(path: &Path) -> std::result::Result<Connection, StoreError> {
    let failed = |cause| StoreError::Open { path: path.to_owned(), cause };
    let began = Instant::now();
    let mut connection = loop {
        match connect(path) {
            // Who makes it write ahead is in the way of the others, and the engine lets none of them wait.
            Err(error) if is_busy(&error) && began.elapsed() < BUSY_MAX => std::thread::sleep(LOOK_AGAIN),
            done => break done.map_err(failed)?,
        }
    };
    let version = migrate(&mut connection).map_err(failed)?;
    if version > MIGRATIONS.len() {
        return Err(StoreError::Newer { path: path.to_owned(), version, known: MIGRATIONS.len() });
    }
    Ok(connection)
}

/// Makes the migrations that were not made yet, all or none. Their transaction looks at the version again: of those who
/// come at the same time, one makes them. The version from then on.
fn migrate(connection: &mut Connection) -> Result<usize> {
    let seen = version(connection)?;
    if seen >= MIGRATIONS.len() {
        return Ok(seen);
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let before = match version(&transaction)? {
        0 => adopt(&transaction)?,
        before => before,
    };
    for migration in MIGRATIONS.iter().skip(before) {
        transaction.execute_batch(migration)?;
    }
    let version = before.max(MIGRATIONS.len());
    transaction.pragma_update(None, "user_version", i64::try_from(version).unwrap_or(i64::MAX))?;
    transaction.commit()?;
    Ok(version)
}

/// How many migrations were made.
fn version(connection: &Connection) -> Result<usize> {
    let version: i64 = connection.query_row("PRAGMA user_version", (), |row| row.get(0))?;
    Ok(usize::try_from(version).unwrap_or(usize::MAX))
}

/// The first versions of this program counted their migrations in a table. They refuse the database once it is gone.
fn adopt(connection: &Connection) -> Result<usize> {
    let count = |query| connection.query_row(query, (), |row| row.get::<_, u32>(0));
    if count("SELECT COUNT(*) FROM sqlite_schema WHERE name = '_sqlx_migrations'")? == 0 {
        return Ok(0);
    }
    let made = count("SELECT COUNT(*) FROM _sqlx_migrations WHERE success")?;
    connection.execute_batch("DROP TABLE _sqlx_migrations")?;
    Ok(made as usize)
}

/// In their order; one that was once released does not change.
const MIGRATIONS: [&str; 3] = [
    include_str!("../../../migrations/sqlite/0001_first.sql"),
    include_str!("../../../migrations/sqlite/0002_followers.sql"),
    include_str!("../../../migrations/sqlite/0003_payloads.sql"),
];
/// For how long one waits for others who use it.
pub(in crate::store) const BUSY_MAX: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// As many statements as there are stay prepared.
const STATEMENTS_MAX: usize = 128;

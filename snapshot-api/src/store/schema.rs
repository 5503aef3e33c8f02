//! The schema, and how a file gets to it.
//!
//! Migrations are append-only; `user_version` is how many of them a file has had.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::StoreError;

const MIGRATIONS: &[&str] = &[include_str!("migrations/0001_catalogue.sql")];

/// How long a statement waits for another process's lock. Only tools such as a backup ever hold one.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn open_writer(path: &Path) -> Result<Connection, StoreError> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.set_prepared_statement_cache_capacity(64);
    migrate(&connection)?;
    let epoch = uuid::Uuid::new_v4().simple().to_string();
    connection.execute("INSERT OR IGNORE INTO catalogue (id, epoch) VALUES (1, ?1)", [&epoch[..8]])?;
    Ok(connection)
}

pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

fn migrate(connection: &Connection) -> Result<(), StoreError> {
    let known = u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX);
    let found: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if found > known {
        return Err(StoreError::TooNew { found, known });
    }
    for (number, migration) in (found + 1..).zip(&MIGRATIONS[found as usize..]) {
        connection.execute_batch(&format!("BEGIN IMMEDIATE; {migration}; PRAGMA user_version = {number}; COMMIT"))?;
        tracing::info!(number, "the catalogue has a new schema");
    }
    Ok(())
}

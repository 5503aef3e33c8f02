//! The schema, and how a file gets to it.
//!
//! Migrations are append-only; `user_version` is how many of them a file has had. Before a file is opened for writing it is
//! looked at by a connection that cannot write: one that is damaged, no catalogue, or of a newer version is left as it is.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};

use super::{StoreError, audit};

pub(super) const MIGRATIONS: &[&str] = &[
    include_str!("migrations/0001_catalogue.sql"),
    include_str!("migrations/0002_service_time.sql"),
    include_str!("migrations/0003_audit_and_quotas.sql"),
    include_str!("migrations/0004_predicted_pause.sql"),
    include_str!("migrations/0005_notes.sql"),
    include_str!("migrations/0006_elsewhere.sql"),
];

/// How long a statement waits for another process's lock. Only tools such as a backup ever hold one.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// What the log of uncommitted pages is cut down to after it had to grow.
const WAL_BYTES: i64 = 64 << 20;
/// How many of the last events of the audit trail are verified at the start: a moment's work.
const EVENTS_VERIFIED: i64 = 1000;

/// The newest schema that this version knows.
fn known() -> u32 {
    u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX)
}

pub(super) fn open_writer(path: &Path) -> Result<Connection, StoreError> {
    check(path)?;
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "journal_size_limit", WAL_BYTES)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.set_prepared_statement_cache_capacity(64);
    let found = migrate(&connection)?;
    connection.execute("INSERT OR IGNORE INTO catalogue (id, epoch) VALUES (1, ?1)", [new_epoch()])?;
    let why = if found == 0 { "a new catalogue" } else { "a catalogue from before there was an audit trail" };
    audit::begin_trail(&connection, why)?;
    if let Err(error) = audit::check_end(&connection, EVENTS_VERIFIED) {
        // The service goes on: who wrote into the file must not be able to stop it by that as well.
        tracing::error!(%error, "the end of the audit trail is not as it was written; verify all of it");
    }
    Ok(connection)
}

pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(64);
    #[cfg(test)]
    let connection = super::tests::statements::listened_to(connection)?;
    Ok(connection)
}

/// A name for a catalogue file that no other has.
pub(super) fn new_epoch() -> String {
    let mut epoch = uuid::Uuid::new_v4().simple().to_string();
    epoch.truncate(8);
    epoch
}

/// Looks whether a file is a catalogue of ours and whole, and changes nothing. One that does not exist, or has no byte yet, is
/// about to become one.
pub(super) fn check(path: &Path) -> Result<(), StoreError> {
    let length = match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(error) => return Err(StoreError::Unreadable { path: path.to_owned(), cause: error.to_string() }),
        Ok(metadata) => metadata.len(),
    };
    if length == 0 {
        tracing::warn!(path = %path.display(), "there is no catalogue yet: a new one is made, and filled from the hosts");
        return Ok(());
    }
    let damaged = |cause: String| StoreError::Damaged { path: path.to_owned(), cause };
    let faulty = |error: rusqlite::Error| match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => damaged(error.to_string()),
        _ => StoreError::Unreadable { path: path.to_owned(), cause: error.to_string() },
    };
    let begun = Instant::now();
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(faulty)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(faulty)?;
    let found: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(faulty)?;
    if found > known() {
        return Err(StoreError::TooNew { path: path.to_owned(), found, known: known() });
    }
    let sql = "SELECT count(*), count(*) FILTER (WHERE name = 'catalogue') FROM sqlite_schema WHERE type = 'table'";
    let tables: (i64, i64) = connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).map_err(faulty)?;
    if (found == 0 && tables.0 > 0) || (found > 0 && tables.1 == 0) {
        return Err(damaged("it is a database, and not one of this service".to_owned()));
    }
    check_pages(&connection).map_err(faulty)?.map_or(Ok(()), |fault| Err(damaged(fault)))?;
    tracing::info!(bytes = length, millis = begun.elapsed().as_millis(), "the catalogue is whole");
    Ok(())
}

/// For a doctor: whether a file is a catalogue that this version can use, and which; `None` where there is none yet.
pub fn examine(path: &Path) -> Result<Option<String>, StoreError> {
    check(path)?;
    if std::fs::metadata(path).map_or(0, |metadata| metadata.len()) == 0 {
        return Ok(None);
    }
    let connection = open_reader(path)?;
    let found: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let known = known();
    let older = if found < known { ", which the service will bring up to date" } else { "" };
    Ok(Some(format!("whole, of schema {found} of {known}{older}")))
}

/// Reads every page and holds every index against its table; the first fault, if there is one.
pub(super) fn check_pages(connection: &Connection) -> Result<Option<String>, rusqlite::Error> {
    let found: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if found != "ok" {
        return Ok(Some(found));
    }
    let orphans: Option<String> = {
        let mut statement = connection.prepare("PRAGMA foreign_key_check")?;
        let mut rows = statement.query([])?;
        rows.next()?.map(|row| row.get(0)).transpose()?
    };
    Ok(orphans.map(|table| format!("{table} has a row whose parent is missing")))
}

/// Brings the schema up to date; returns what it was.
fn migrate(connection: &Connection) -> Result<u32, StoreError> {
    let found: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    for (number, migration) in (1..).zip(MIGRATIONS).skip(found as usize) {
        connection.execute_batch(&format!("BEGIN IMMEDIATE; {migration}; PRAGMA user_version = {number}; COMMIT"))?;
        tracing::info!(number, "the catalogue has a new schema");
    }
    Ok(found)
}

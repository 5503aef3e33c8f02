//! The catalogue: machines, snapshots and operations in one SQLite file. The only module that knows SQL.
//!
//! One thread writes. It takes every job that waits, gives each a savepoint, and commits them together, so that one
//! `fsync` serves many callers; a caller hears of success only after the commit. Readers have connections of their own
//! (WAL), so reading never waits for writing. Intents and outcomes are synced to the disk (`synchronous=FULL`); what a
//! host tells again by itself is not, unless it shares a commit with one of them.
//!
//! Every job that changes a row stamps it with a new *revision*. Whoever watches remembers the last revision seen and
//! asks for what is newer: a notification may be lost or merged, a change never is.

mod hosts;
mod inventory;
mod marks;
mod operations;
mod readers;
mod rows;
mod schema;
mod snapshots;
mod vms;
mod writer;

use std::path::Path;
use std::sync::Arc;

use snapshot_core::ids::{HostId, VmId};
use snapshot_core::{Error, Reason};
use tokio::sync::broadcast;

pub use operations::{Begun, Ending, NewOperation, OperationFilter, Progress, operation_not_found};
use readers::Readers;
pub use rows::{OperationRow, RemovedSnapshot, SnapshotRow, VmRow};
pub use snapshots::News;
pub use vms::VmFilter;
use writer::Writer;

/// How many changes may wait for a slow watcher before it has to read everything that is newer at once.
const CHANGE_BACKLOG: usize = 1024;

/// Why the catalogue could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A refusal that the caller is to see.
    #[error(transparent)]
    Refused(#[from] Error),
    /// SQLite failed.
    #[error("the catalogue failed: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A row holds what this version cannot read.
    #[error("the catalogue has a row that cannot be read: {0}")]
    Corrupt(String),
    /// The file was written by a newer version.
    #[error("the catalogue has schema {found}, this version knows {known}: use a newer version of the service")]
    TooNew {
        /// The file's schema.
        found: u32,
        /// The newest that this version can read.
        known: u32,
    },
    /// The writer has stopped.
    #[error("the catalogue is closed")]
    Closed,
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Refused(error) => error,
            StoreError::Sqlite(cause) => {
                tracing::error!(%cause, "the catalogue failed");
                Error::new(Reason::CatalogueUnavailable, "the catalogue cannot be used now")
            }
            StoreError::Corrupt(cause) => {
                tracing::error!(cause, "the catalogue has a row that cannot be read");
                Error::new(Reason::Internal, "the catalogue has a row that cannot be read")
            }
            StoreError::TooNew { .. } => Error::new(Reason::Internal, error.to_string()),
            StoreError::Closed => Error::new(Reason::ShuttingDown, "the service is stopping"),
        }
    }
}

/// Something changed: read what is newer than the last revision seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A machine, its snapshots, or an operation on it.
    Vm(VmId),
    /// Whether a host can be reached.
    Host(HostId),
}

/// A handle of the catalogue; clones share it.
#[derive(Clone)]
pub struct Store {
    writer: Arc<Writer>,
    readers: Arc<Readers>,
    changes: broadcast::Sender<Change>,
    epoch: Arc<str>,
}

impl Store {
    /// Opens the catalogue at a path, making it where there is none and bringing an older schema up to date.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let (changes, _) = broadcast::channel(CHANGE_BACKLOG);
        let connection = schema::open_writer(path)?;
        let epoch: String = connection.query_row("SELECT epoch FROM catalogue", [], |row| row.get(0))?;
        let readers = Readers::open(path)?;
        let writer = Writer::start(connection, changes.clone())?;
        Ok(Self { writer: Arc::new(writer), readers: Arc::new(readers), changes, epoch: epoch.into() })
    }

    /// Tells of every later change.
    pub fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// Tells watchers of a change that is not in the catalogue: a host came or went.
    pub fn notify(&self, change: Change) {
        // Nobody watching is no failure.
        let _ = self.changes.send(change);
    }

    /// Names this file. Etags and resume tokens begin with it, so those of a lost catalogue do not fit the next.
    pub fn epoch(&self) -> &str {
        &self.epoch
    }

    /// Waits for what was given to the writer, and closes the file.
    pub fn close(&self) {
        self.writer.close();
    }
}

#[cfg(test)]
mod tests;

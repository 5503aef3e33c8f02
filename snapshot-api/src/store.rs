//! The catalogue: machines, snapshots and operations in one SQLite file. The only module that knows SQL.
//!
//! One thread writes. It takes every job that waits, gives each a savepoint, and commits them together, so that one
//! `fsync` serves many callers; a caller hears of success only after the commit. Readers have connections of their own
//! (WAL), so reading never waits for writing. Intents and outcomes are synced to the disk (`synchronous=FULL`); what a
//! host tells again by itself is not, unless it shares a commit with one of them.
//!
//! Every job that changes a row stamps it with a new *revision*. Whoever watches remembers the last revision seen and
//! asks for what is newer: a notification may be lost or merged, a change never is.

mod audit;
mod backup;
mod connected;
mod elsewhere;
mod hosts;
mod inventory;
mod lock;
mod marks;
mod operations;
mod quotas;
mod readers;
mod retention;
mod rows;
mod schema;
mod snapshots;
mod vms;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use snapshot_core::ids::{HostId, VmId};
use snapshot_core::{Error, Reason};
use tokio::sync::broadcast;

pub use audit::{AuditFilter, AuditPage, AuditRow, Broken, Unverified, Verified, verify};
pub use backup::{BackupError, backup};
pub use connected::GRACE;
pub use elsewhere::conflict;
use lock::Lock;
pub use operations::{Begun, Ending, NewOperation, OperationFilter, Progress};
use readers::Readers;
pub use retention::{REPLAY, Retention};
pub use rows::{OperationRow, RemovedSnapshot, SnapshotRow, VmRow};
pub use schema::examine;
pub use snapshots::News;
pub use vms::VmFilter;
use writer::Writer;
pub use writer::{Beat, Committer};

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
    /// SQLite never takes what was to be written.
    #[error("the catalogue does not take it: {0}")]
    Unwritable(String),
    /// A row holds what this version cannot read.
    #[error("the catalogue has a row that cannot be read: {0}")]
    Corrupt(String),
    /// The file is damaged, or is none of ours.
    #[error(
        "the catalogue {path} cannot be used: {cause}. Put a backup in its place and remove {path}-wal and {path}-shm, or move all \
         of them away: an empty catalogue is filled from the hosts again, with all snapshots, and without past operations"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// The file cannot be read at all.
    #[error("the catalogue {path} cannot be opened: {cause}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// The file was written by a newer version.
    #[error(
        "the catalogue {path} has schema {found}, and this version knows {known}: use a newer version of the service, or a \
         backup from before. The file was left as it is"
    )]
    TooNew {
        /// The file.
        path: PathBuf,
        /// The file's schema.
        found: u32,
        /// The newest that this version can read.
        known: u32,
    },
    /// Another process writes to it.
    #[error(
        "the catalogue {path} is in use by {holder}: only one snapshot-api may serve a catalogue. Stop that one, or give this one a \
         `database.path` of its own ({lock} is locked)"
    )]
    InUse {
        /// The file.
        path: PathBuf,
        /// The file whose lock is taken.
        lock: PathBuf,
        /// Who has the lock, as they wrote it down.
        holder: String,
    },
    /// The writer has stopped.
    #[error("the catalogue is closed")]
    Closed,
    /// The job met a fault of the service's own, and was rolled back.
    #[error("the change met a fault in the service")]
    Panicked,
}

impl StoreError {
    /// Whether a failure of SQLite may pass by itself or by what an administrator does.
    pub(crate) fn passes(error: &rusqlite::Error) -> bool {
        use rusqlite::ErrorCode::{
            CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull, FileLockingProtocolFailed, OutOfMemory, ReadOnly,
            SystemIoFailure,
        };
        let passing = [
            CannotOpen,
            DatabaseBusy,
            DatabaseLocked,
            DiskFull,
            FileLockingProtocolFailed,
            OutOfMemory,
            ReadOnly,
            SystemIoFailure,
        ];
        error.sqlite_error_code().is_some_and(|code| passing.contains(&code))
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Refused(error) => error,
            StoreError::Sqlite(cause) => {
                tracing::error!(%cause, "the catalogue failed");
                Error::new(Reason::CatalogueUnavailable, "the catalogue cannot be used now")
            }
            StoreError::Unwritable(cause) => {
                tracing::error!(cause, "the catalogue does not take something");
                Error::new(Reason::Internal, "the catalogue does not take it")
            }
            StoreError::Corrupt(cause) => {
                tracing::error!(cause, "the catalogue has a row that cannot be read");
                Error::new(Reason::Internal, "the catalogue has a row that cannot be read")
            }
            StoreError::TooNew { .. }
            | StoreError::Damaged { .. }
            | StoreError::Unreadable { .. }
            | StoreError::InUse { .. } => Error::new(Reason::Internal, error.to_string()),
            StoreError::Panicked => {
                Error::new(Reason::Internal, "the change met a fault in the service and was not made; its log has more")
            }
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
    connected: connected::Connected,
}

impl Store {
    /// Opens the catalogue at a path, making it where there is none and bringing an older schema up to date. One that is
    /// damaged or of a newer version, or that another process serves, is refused and left as it is.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let (store, committer) = Self::open_detached(path)?;
        store.writer.serve(committer)?;
        Ok(store)
    }

    /// As [`Store::open`], for who drives the writer in a time of its own: nothing is written but by the [`Committer`].
    pub fn open_detached(path: &Path) -> Result<(Self, Committer), StoreError> {
        let (changes, _) = broadcast::channel(CHANGE_BACKLOG);
        // Before anything looks at the file: another process may be about to bring its schema up to date.
        let lock = Lock::take(path)?;
        let connection = schema::open_writer(path)?;
        let epoch: String = connection.query_row("SELECT epoch FROM catalogue", [], |row| row.get(0))?;
        let readers = Readers::open(path)?;
        let (writer, committer) = Writer::new(connection, lock, changes.clone());
        let (writer, readers, connected) = (Arc::new(writer), Arc::new(readers), connected::Connected::default());
        Ok((Self { writer, readers, changes, epoch: epoch.into(), connected }, committer))
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
pub(crate) mod tests;

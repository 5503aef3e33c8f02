//! A copy of the catalogue, made while the service writes.
//!
//! 1. `VACUUM INTO` a file of another name beside the one wanted: it reads one state of the catalogue, in one transaction that
//!    holds up nobody (WAL), and writes each page once. SQLite's backup interface begins anew whenever another process writes.
//! 2. Give the copy an epoch of its own. What was handed out after the copy, an etag or a resume token, must not fit a catalogue
//!    that is put back later and counts on from an earlier revision.
//! 3. Check it, sync it, give it its name, sync the folder. Until then nothing has the name that was asked for.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use super::{StoreError, schema};

/// Why there is no copy.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The catalogue cannot be read, or the copy is not whole.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is a file of that name, which is not overwritten unless that is asked for.
    #[error("{0} exists; name another file, or overwrite it with --force")]
    Exists(PathBuf),
    /// The copy cannot be written.
    #[error("{path}: {cause}")]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
}

/// Copies the catalogue at `from` into the file `to`, mode 0600. When this returns the copy is whole and survives a power cut.
pub fn backup(from: &Path, to: &Path, overwrite: bool) -> Result<(), BackupError> {
    // `VACUUM INTO` would make a catalogue of nothing from a file that does not exist.
    let written = |cause| BackupError::Write { path: to.to_owned(), cause };
    if !overwrite && to.symlink_metadata().is_ok() {
        return Err(BackupError::Exists(to.to_owned()));
    }
    let folder = match to.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let part = Part(folder.join(format!(".catalogue-{}.part", uuid::Uuid::new_v4().simple())));
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part.0).map_err(written)?;
    copy(from, &part.0)?;
    File::open(&part.0).and_then(|file| file.sync_all()).map_err(written)?;
    let named = if overwrite { std::fs::rename(&part.0, to) } else { std::fs::hard_link(&part.0, to) };
    named.map_err(|cause| match cause.kind() {
        io::ErrorKind::AlreadyExists => BackupError::Exists(to.to_owned()),
        _ => written(cause),
    })?;
    drop(part);
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(written)
}

fn copy(from: &Path, part: &Path) -> Result<(), StoreError> {
    let unreadable = |cause: String| StoreError::Unreadable { path: from.to_owned(), cause };
    let source = Connection::open_with_flags(from, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .map_err(|error| unreadable(error.to_string()))?;
    // SQLite takes names as text: another name must not be made of one that is none.
    let name = part.to_str().ok_or_else(|| unreadable(format!("{} is not UTF-8", part.display())))?;
    source.execute("VACUUM INTO ?1", [name]).map_err(|error| unreadable(error.to_string()))?;
    let copy = Connection::open_with_flags(part, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    copy.pragma_update(None, "journal_mode", "DELETE")?;
    copy.execute("UPDATE catalogue SET epoch = ?1", [schema::new_epoch()])?;
    match schema::check_pages(&copy)? {
        None => Ok(()),
        Some(cause) => Err(StoreError::Damaged { path: from.to_owned(), cause }),
    }
}

/// The copy while it has no name yet; removed with whatever SQLite put beside it.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        for suffix in ["", "-journal", "-wal", "-shm"] {
            let mut path = self.0.clone().into_os_string();
            path.push(suffix);
            // Most of them were never there.
            let _ = std::fs::remove_file(path);
        }
    }
}

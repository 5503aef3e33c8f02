//! One process alone serves a catalogue.
//!
//! SQLite lets two processes write in turn; each would follow the hosts, carry out its own operations on the same VMs, and wake
//! only its own watches. So whoever writes holds an exclusive `flock` on a file beside the catalogue. The kernel releases it when
//! the process ends, however it does. The file itself stays: removing it would let two processes lock two files of one name.
//! Commands that read (`backup`, `audit`, `doctor`) do not take it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::StoreError;

/// How much is read of what the holder wrote down.
const HOLDER_BYTES: u64 = 200;

/// The right to write a catalogue; dropped with its file.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of a catalogue, or says who has it.
    pub(super) fn take(catalogue: &Path) -> Result<Self, StoreError> {
        let path = beside(catalogue);
        let unusable = |cause: std::io::Error| StoreError::Unreadable {
            path: catalogue.to_owned(),
            cause: format!("{}: {cause}", path.display()),
        };
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = open.map_err(unusable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let holder = holder(&mut file);
                return Err(StoreError::InUse { path: catalogue.to_owned(), lock: path, holder });
            }
            Err(TryLockError::Error(cause)) => return Err(unusable(cause)),
        }
        if let Err(error) = sign(&mut file) {
            // On a full disk. The lock holds all the same.
            tracing::warn!(%error, path = %path.display(), "the holder of the catalogue's lock could not be written down");
        }
        Ok(Self { _file: file })
    }
}

/// `catalogue.db-lock` beside the file that SQLite opens, wherever links lead there from.
fn beside(catalogue: &Path) -> PathBuf {
    let real = std::fs::canonicalize(catalogue).unwrap_or_else(|_| catalogue.to_owned());
    let mut name = real.into_os_string();
    name.push("-lock");
    name.into()
}

/// In place, so that a full disk has room for it: the block is there from the time before.
fn sign(file: &mut File) -> std::io::Result<()> {
    let host = rustix::system::uname();
    let text = format!("process {} on {}\n", std::process::id(), host.nodename().to_string_lossy());
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.seek(SeekFrom::Start(0)).and_then(|_| file.take(HOLDER_BYTES).read_to_string(&mut text));
    let text = text.lines().next().unwrap_or_default().trim();
    if read.is_err() || text.is_empty() { "another process".to_owned() } else { text.to_owned() }
}

//! Directories of images that several hosts use.
//!
//! A VM that is off on another host uses its images, and nothing on this host shows it: no process, no lock, no definition. So on a
//! file system that hosts may share:
//!
//! 1. An administrator lists the directory in `shared_dirs` of each host that uses it. Until then external snapshots are neither taken nor
//!    deleted there, and nothing is removed: [`Standing::Unknown`].
//! 2. Each host writes a note beside the images that its VMs and their snapshots use ([`note`]).
//! 3. Before a file is removed or merged, the notes of the others are read. What they list is kept ([`SharedStorage::used_elsewhere`]); where one
//!    cannot be read, nothing is removed. Reverts of a VM whose image a VM of another host uses are refused ([`SharedStorage::other_users`]).
//!
//! 4. A host whose agent does not say now what it uses may use anything: nothing is removed or merged ([`renewal`]).
//!
//! A note stays when its host is away or gone, because its VMs may not be: an administrator removes it.

mod memory;
pub(crate) mod note;
pub(crate) mod renewal;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use rustix::fs::FsWord;
use snapshot_core::ids::HostId;
use snapshot_core::{Error, Reason};
use uuid::Uuid;

use self::memory::Memory;
use self::note::{Images, Note};
use crate::bounded::files::{self, resolved};

/// The directory of the notes, in each directory of images.
const NOTES: &str = ".ravada-snapshots";

/// The largest note that is read, in bytes.
const LARGEST: u64 = 16 << 20;

/// The most notes of one directory.
const MOST: usize = 4096;

/// File systems that one host alone mounts, by the numbers in linux/magic.h and of OpenZFS and bcachefs: ext, XFS, Btrfs, F2FS, ZFS,
/// bcachefs, JFS, tmpfs, overlay, VFAT, exFAT and NTFS. Any other may be one that hosts share.
const LOCAL: [FsWord; 12] = [
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0xf2f5_2010,
    0x2fc1_2fc1,
    0xca45_1a4e,
    0x3153_464a,
    0x0102_1994,
    0x794c_7630,
    0x4d44,
    0x2011_bab0,
    0x7366_746e,
];

/// What is known of the directories that this host shares with others.
#[derive(Debug)]
pub struct SharedStorage {
    host: HostId,
    memory: Memory,
    /// Without links.
    directories: Vec<PathBuf>,
    /// Notes of others, as they were last read.
    read: Mutex<BTreeMap<PathBuf, (Stamp, Arc<Note>)>>,
    /// Directories in which this host's note could not be written, and why.
    unwritten: Mutex<BTreeMap<PathBuf, String>>,
    /// Shared directories in which this host cannot say that its notes are complete, and why.
    unrenewed: Mutex<BTreeMap<PathBuf, String>>,
    /// By the directory of notes and the host: when that last renewed its file, and since when that is known.
    renewals: Mutex<BTreeMap<PathBuf, (Option<SystemTime>, Instant)>>,
}

/// Which version of a note this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp(u64, u64, Option<SystemTime>);

/// What is to be done about a note.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) path: PathBuf,
    /// What it is to hold; `None` where it is to be removed.
    pub(crate) bytes: Option<Vec<u8>>,
}

/// How a directory is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// By this host alone.
    Local,
    /// By the hosts that have notes there.
    Shared,
    /// By this host, and nobody has said by whom else.
    Unknown,
}

/// A VM of another host that uses a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OtherUser {
    pub(crate) host: HostId,
    pub(crate) vm: Option<Uuid>,
    pub(crate) name: String,
}

impl SharedStorage {
    /// For this host, and the directories that it shares, as they are configured. What has to be remembered is in `state_dir`.
    pub fn open(host: HostId, state_dir: &Path, directories: &[PathBuf]) -> io::Result<Self> {
        Ok(Self::with(host, Memory::open(state_dir, !directories.is_empty())?, directories))
    }

    /// The same to look at alone: nothing is remembered.
    pub(crate) fn to_examine(host: HostId, state_dir: &Path, directories: &[PathBuf]) -> io::Result<Self> {
        Ok(Self::with(host, Memory::open(state_dir, false)?, directories))
    }

    fn with(host: HostId, memory: Memory, directories: &[PathBuf]) -> Self {
        let directories = directories.iter().map(|directory| resolved(directory)).collect();
        let (read, unwritten, unrenewed, renewals) = Default::default();
        Self { host, memory, directories, read, unwritten, unrenewed, renewals }
    }

    /// The other hosts that have a note in a directory.
    pub(crate) fn others(&self, directory: &Path) -> Result<BTreeSet<HostId>, Error> {
        Ok(self.notes(directory)?.into_iter().map(|note| note.host.clone()).collect())
    }

    /// How a directory is used. One that is not there is nobody's.
    pub(crate) fn standing(&self, directory: &Path) -> io::Result<Standing> {
        if directory.starts_with("/dev") {
            return Ok(Standing::Local);
        }
        if self.is_shared(directory) {
            return Ok(Standing::Shared);
        }
        match files::file_system(directory) {
            Ok(found) if LOCAL.contains(&found) => Ok(Standing::Local),
            Ok(_) => Ok(Standing::Unknown),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Standing::Local),
            Err(error) => Err(error),
        }
    }

    /// Whether any directory is shared.
    pub(crate) fn is_any(&self) -> bool {
        !self.directories.is_empty()
    }

    /// Whether it is in one of the directories that are configured so.
    pub(crate) fn is_shared(&self, directory: &Path) -> bool {
        self.directories.iter().any(|shared| directory.starts_with(shared))
    }

    /// Directories in which there may be a note of this host.
    pub(crate) fn noted(&self) -> BTreeSet<PathBuf> {
        let mut noted = self.memory.noted();
        noted.retain(|directory| self.is_shared(directory));
        noted
    }

    /// The note of this host in a directory as it is to be written; `None` where nothing is to be done. What the host said before is kept
    /// where it is not `complete`: known of every VM what it uses.
    pub(crate) fn draft(&self, directory: &Path, images: &Images, complete: bool) -> io::Result<Option<Draft>> {
        let path = directory.join(NOTES).join(Note::file_name(&self.host));
        let known = self.note(&path)?;
        if known.as_ref().is_some_and(|known| known.instance != Some(self.memory.instance)) {
            let host = &self.host;
            return Err(io::Error::other(format!("{} was written by another agent of a host {host}", path.display())));
        }
        let mut images = images.clone();
        for (image, vms) in known.iter().flat_map(|known| &known.images).filter(|_| !complete) {
            images.entry(image.clone()).or_default().extend(vms.clone());
        }
        let is_so = known.as_ref().map_or(images.is_empty(), |known| known.images == images);
        let note = (!images.is_empty()).then(|| Note::new(self.host.clone(), self.memory.instance, images));
        match note {
            _ if is_so => Ok(None),
            Some(note) => Ok(Some(Draft { path, bytes: Some(note.encode()?) })),
            None => Ok(Some(Draft { path, bytes: None })),
        }
    }

    /// There is a note of this host in a directory from now on, or none any more.
    pub(crate) fn remember(&self, directory: &Path, is_noted: bool) -> io::Result<()> {
        self.memory.note(directory, is_noted)
    }

    /// This came of writing the note in a directory.
    pub(crate) fn wrote(&self, directory: &Path, written: Result<(), io::Error>) {
        if let Some(why) = new_problem(&self.unwritten, directory, written) {
            tracing::warn!(path = %directory.display(), %why, "the note for other hosts cannot be written");
        }
    }

    /// Why this host's note in a directory could not be written; `None` where it was, or need not be.
    pub(crate) fn unwritten(&self, directory: &Path) -> Option<String> {
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner).get(directory).cloned()
    }

    /// Whether a note of this host in a directory or below it could not be written.
    fn is_unwritten_below(&self, root: &Path) -> bool {
        let unwritten = self.unwritten.lock().unwrap_or_else(PoisonError::into_inner);
        unwritten.keys().any(|directory| directory.starts_with(root))
    }

    /// The files of these directories that VMs of other hosts use. An error where that is not known: nothing may be removed then.
    pub(crate) fn used_elsewhere(&self, directories: &BTreeSet<PathBuf>) -> Result<BTreeSet<String>, Error> {
        let mut used = BTreeSet::new();
        for directory in directories {
            match self.standing(directory).map_err(|error| unreadable(directory, &error))? {
                Standing::Local => {}
                Standing::Unknown => return Err(unknown(directory)),
                Standing::Shared => {
                    let notes = self.notes(directory)?;
                    let names = notes.iter().flat_map(|note| note.images.keys());
                    used.extend(names.map(|name| directory.join(name).to_string_lossy().into_owned()));
                }
            }
        }
        Ok(used)
    }

    /// The VMs of other hosts that use a file.
    pub(crate) fn other_users(&self, path: &Path) -> Result<Vec<OtherUser>, Error> {
        let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
            return Ok(Vec::new());
        };
        if !self.is_shared(directory) {
            return Ok(Vec::new());
        }
        let mut users = Vec::new();
        for note in self.notes(directory)? {
            let Some(vms) = note.images.get(name) else { continue };
            let user = |vm, name: &str| OtherUser { host: note.host.clone(), vm, name: name.to_owned() };
            match vms.is_empty() {
                true => users.push(user(None, "that it does not name")),
                false => users.extend(vms.iter().map(|(vm, name)| user(Some(*vm), name))),
            }
        }
        Ok(users)
    }

    /// The notes of other hosts in a directory.
    fn notes(&self, directory: &Path) -> Result<Vec<Arc<Note>>, Error> {
        let beside = directory.join(NOTES);
        let entries = match files::read_dir(&beside) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(unreadable(&beside, &error)),
        };
        let mut notes = Vec::new();
        for entry in entries {
            let path = entry.map_err(|error| unreadable(&beside, &error))?.path();
            if path.extension().is_none_or(|last| last != note::EXTENSION) {
                continue;
            }
            if notes.len() == MOST {
                return Err(unreadable(&beside, &io::Error::other(format!("there are more than {MOST} notes"))));
            }
            if let Some(note) = self.note(&path).map_err(|error| unreadable(&path, &error))?
                && note.instance != Some(self.memory.instance)
            {
                notes.push(note);
            }
        }
        Ok(notes)
    }

    /// A note; `None` where it was removed just now.
    fn note(&self, path: &Path) -> io::Result<Option<Arc<Note>>> {
        let file = match files::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let stamp = Stamp::of(&file)?;
        let known = || self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((read, note)) = known().get(path)
            && *read == stamp
        {
            return Ok(Some(Arc::clone(note)));
        }
        let note = Arc::new(Note::read(file, LARGEST)?);
        let name = path.file_stem().and_then(|name| name.to_str());
        if name != Some(note.host.as_str()) {
            return Err(io::Error::other(format!("it is of host {}", note.host)));
        }
        known().insert(path.to_owned(), (stamp, Arc::clone(&note)));
        Ok(Some(note))
    }
}

impl Stamp {
    fn of(file: &std::fs::File) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt as _;
        let found = file.metadata()?;
        Ok(Self(found.ino(), found.len(), found.modified().ok()))
    }
}

/// Keeps what came of writing something in a directory. Returns why it cannot be written, where that is not known yet.
fn new_problem(
    problems: &Mutex<BTreeMap<PathBuf, String>>,
    directory: &Path,
    written: Result<(), io::Error>,
) -> Option<String> {
    let mut problems = problems.lock().unwrap_or_else(PoisonError::into_inner);
    match written.map_err(|error| error.to_string()) {
        Ok(()) => {
            problems.remove(directory);
            None
        }
        Err(why) => (problems.insert(directory.to_owned(), why.clone()).as_ref() != Some(&why)).then_some(why),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Error {
    let message = format!(
        "{} cannot be read ({error}), so it is not known which images other hosts use; nothing was removed; make it readable, or remove \
         it if that host will never be used again",
        path.display()
    );
    Error::new(Reason::ImageUnavailable, message).with("path", path.display().to_string())
}

/// The refusal of what needs to know who uses a directory.
pub(crate) fn unknown(directory: &Path) -> Error {
    let message = format!(
        "{} is on a file system that other hosts may use, and is not in shared_dirs of the host's agent: list it there on every host that \
         uses it",
        directory.display()
    );
    let error = Error::new(Reason::ImageOutOfReach, message).with("path", directory.display().to_string());
    error.with("folder", directory.display().to_string()).with("key", "shared_dirs")
}

#[cfg(test)]
mod tests;

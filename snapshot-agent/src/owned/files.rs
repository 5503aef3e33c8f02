//! The files that this service has made for a machine: overlays and running states of external snapshots, and the overlays
//! that libvirt lays when it is told to go back to one.
//!
//! A name proves nothing: anybody may call a file so, and the content of ours may be replaced. So of each file it is
//! remembered, too, which inode it is and when that was made (what is copied, restored or moved in from elsewhere has
//! another), and what it lies on. The number of the device is left out: it changes from boot to boot.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Metadata;
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use snapshot_core::ids::SnapshotId;
use snapshot_core::layers::{is_memory_of, is_overlay_of, is_reverted_from};

use super::Record;
use super::spare::needed;
use crate::bounded::files::{self, resolved};
use crate::hypervisor::{GUARDED, Observed};
use crate::qcow2::{self, ImageError};

/// How a running state begins, whether it was written to its end or not (`virQEMUSaveHeader`).
const RUNNING_STATE: [&[u8; 16]; 2] = [b"LibvirtQemudSave", b"LibvirtQemudPart"];

/// The files of a machine, by path.
pub type Files = BTreeMap<PathBuf, Made>;

/// A file that this service has made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The snapshot it was made for, or that was gone back to.
    pub snapshot: SnapshotId,
    /// What it is.
    pub kind: Kind,
    /// Which file it is; `None` until it was seen.
    pub identity: Option<Identity>,
    /// What it lies on.
    pub backing: Option<PathBuf>,
    /// What would be lost with it. An older agent did not write it down: then it may be a state.
    #[serde(default = "Holds::unknown")]
    pub holds: Holds,
}

/// What would be lost with a file that nothing needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Holds {
    /// Nothing that is known: it was never seen as the active file of a disk, nor as a disk in a snapshot.
    Nothing,
    /// A state of a disk or of the memory, which the VM or a snapshot is on.
    State,
    /// A state of a disk that was detached, or that got another image. It is not removed until somebody asks for that.
    Orphaned,
    /// A state that somebody has asked to be removed.
    Discarded,
}

impl Holds {
    fn unknown() -> Self {
        Self::State
    }

    /// Whether nobody has asked for it to be removed.
    pub(super) fn is_wanted(self) -> bool {
        matches!(self, Self::State | Self::Orphaned)
    }
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An overlay of a snapshot.
    Overlay,
    /// The running state in a snapshot.
    Memory,
    /// The overlay of a revert, which libvirt has named.
    Reverted,
}

/// Which file it is, wherever it is moved to on its file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    inode: u64,
    /// When it was made, in nanoseconds of the Unix epoch, where the file system knows.
    born: Option<u64>,
}

/// How a file is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// As it was made.
    Ours,
    /// It is not there.
    Gone,
    /// Something else is in its place, or in it.
    Other,
    /// Its folder is not there: maybe a file system that is not mounted.
    Away,
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        let born = metadata.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
        Self { inode: metadata.ino(), born: born.and_then(|born| u64::try_from(born.as_nanos()).ok()) }
    }

    fn is_same(self, other: Self) -> bool {
        self.inode == other.inode && (self.born.is_none() || other.born.is_none() || self.born == other.born)
    }
}

impl Made {
    /// Whether what has this name is the file, and holds nothing but what somebody has asked to be removed.
    pub(crate) fn is_there(&self, path: &Path) -> bool {
        let found = files::symlink_metadata(path).map(|found| Identity::of(&found));
        let is_it = found.is_ok_and(|found| self.identity.is_some_and(|identity| identity.is_same(found)));
        is_it && (self.holds == Holds::Discarded || self.kind == Kind::Memory || !has_data(path))
    }

    /// Whether this is the file by its name and its inode.
    pub(super) fn looks(&self, path: &Path) -> io::Result<Standing> {
        let found = match files::symlink_metadata(path) {
            Ok(found) => found,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                let has_folder = path.parent().is_some_and(files::is_dir);
                return Ok(if has_folder { Standing::Gone } else { Standing::Away });
            }
            Err(error) => return Err(error),
        };
        let is_it = self.identity.is_none_or(|identity| identity.is_same(Identity::of(&found)));
        Ok(if found.is_file() && is_it && self.is_named(path) { Standing::Ours } else { Standing::Other })
    }

    /// Whether it has one of the names that only this service or libvirt gives.
    fn is_named(&self, path: &Path) -> bool {
        let path = path.to_string_lossy();
        let path = path.strip_suffix(GUARDED).unwrap_or(&path);
        match self.kind {
            Kind::Overlay => is_overlay_of(path, &self.snapshot),
            Kind::Memory => is_memory_of(path, &self.snapshot),
            // What it was laid on may have been merged since; the seconds in its name stay.
            Kind::Reverted => is_reverted_from(path, path),
        }
    }

    /// Whether this is the file, and its content of the kind that was made.
    pub(super) fn standing(&self, path: &Path) -> io::Result<Standing> {
        let looks = self.looks(path)?;
        if looks != Standing::Ours {
            return Ok(looks);
        }
        let is_ours = match self.kind {
            Kind::Memory => is_running_state(path)?,
            Kind::Overlay | Kind::Reverted => match backing(path) {
                Ok(backing) => backing == self.backing,
                Err(ImageError::Format(_)) => false,
                Err(ImageError::Io(error)) => return Err(error),
                Err(ImageError::Unsteady) => return Err(io::Error::other("it changes while it is read")),
            },
        };
        Ok(if is_ours { Standing::Ours } else { Standing::Other })
    }
}

/// The second name that a file has while libvirt goes back to a snapshot.
pub(super) fn guarded(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(GUARDED);
    PathBuf::from(name)
}

/// Whether anything was ever written to an image since it was created; one that cannot be read may have something.
pub(super) fn has_data(path: &Path) -> bool {
    match qcow2::is_empty(path) {
        Ok(is_empty) => !is_empty,
        Err(ImageError::Io(error)) if error.kind() == ErrorKind::NotFound => false,
        Err(_) => true,
    }
}

pub(super) fn is_running_state(path: &Path) -> io::Result<bool> {
    let mut start = [0; 16];
    match files::with(path, || qcow2::open(path)?.read_exact(&mut start)) {
        Ok(()) => Ok(RUNNING_STATE.contains(&&start)),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// What an image lies on, by its one true path.
pub(super) fn backing(path: &Path) -> Result<Option<PathBuf>, ImageError> {
    let name = qcow2::backing_file(path)?;
    let Some(below) = name.and_then(|name| Some(path.parent()?.join(name))) else { return Ok(None) };
    match files::canonicalize(&below) {
        // It is not known now; under another name the file would be taken for another one.
        Err(error) if error.kind() == ErrorKind::TimedOut => Err(error.into()),
        _ => Ok(Some(resolved(&below))),
    }
}

/// What holds a state that somebody may want: the active files of the disks, and the files of snapshots that are not deleted.
pub(super) fn states(seen: &Observed) -> BTreeSet<String> {
    let staying = seen.layers.snapshots.values().filter(|parts| !parts.deleted);
    let of_snapshots = staying.flat_map(|parts| parts.frozen.values().chain(&parts.memory_file));
    seen.layers.live.values().chain(&seen.layers.kept).chain(of_snapshots).cloned().collect()
}

/// The files after a look at the machine.
pub(super) fn after(previous: Option<&Record>, seen: &Observed) -> Files {
    let mut files = previous.map(|record| record.files.clone()).unwrap_or_default();
    files.retain(|path, made| match made.looks(path) {
        Ok(Standing::Gone) => files::may_exist(&guarded(path)),
        Ok(Standing::Other) => {
            tracing::warn!(path = %path.display(), "a file of a snapshot was replaced: it is no longer taken for ours");
            false
        }
        Ok(Standing::Ours | Standing::Away) | Err(_) => true,
    });
    for (path, made) in &mut files {
        // It was merged into, or what it lies on was.
        if seen.layers.files.contains_key(&*path.to_string_lossy())
            && made.kind != Kind::Memory
            && seen.layers.unreadable.is_none()
            && matches!(made.looks(path), Ok(Standing::Ours))
        {
            made.backing = below(path, seen);
        }
    }
    for (id, parts) in seen.layers.snapshots.iter().filter(|(id, _)| id.is_ours()) {
        let overlays = parts.overlays.values().filter(|path| is_overlay_of(path, id));
        overlays.for_each(|path| see(&mut files, path, id, Kind::Overlay, seen));
        let memory = parts.memory_file.iter().filter(|path| is_memory_of(path, id));
        memory.for_each(|path| see(&mut files, path, id, Kind::Memory, seen));
    }
    hold(files, previous, seen)
}

/// Notes which of them hold a state now, and which do so though nothing uses it any more. Those of a snapshot whose metadata libvirt has
/// lost remain that snapshot's.
fn hold(mut files: Files, previous: Option<&Record>, seen: &Observed) -> Files {
    let is_lost = |id: &SnapshotId| previous.is_some_and(|record| record.has_lost(seen, id));
    let (states, needed) = (states(seen), needed(seen));
    for (path, made) in &mut files {
        let path = path.to_string_lossy();
        if states.contains(&*path) {
            made.holds = Holds::State;
        } else if made.holds == Holds::State && !needed.contains(&*path) && !is_lost(&made.snapshot) {
            tracing::warn!(%path, vm = %seen.vm.id, "the VM no longer uses an image that holds a state of a disk: it is kept as an orphan");
            made.holds = Holds::Orphaned;
        }
    }
    files
}

/// The files after a revert to this snapshot: the machine is on overlays that libvirt has just laid.
pub(super) fn after_revert(previous: Option<&Record>, seen: &Observed, id: &SnapshotId) -> Files {
    let mut files = after(previous, seen);
    let Some(parts) = seen.layers.snapshots.get(id) else { return files };
    for (target, frozen) in &parts.frozen {
        let Some(live) = seen.layers.live.get(target) else { continue };
        let lies_on = seen.layers.files.get(live).and_then(|layer| layer.backing.as_ref());
        if lies_on == Some(frozen) && is_reverted_from(live, frozen) {
            see(&mut files, live, id, Kind::Reverted, seen);
        }
    }
    hold(files, previous, seen)
}

/// The files after a call that was to take the machine back to this snapshot, whatever came of it: libvirt lays overlays in
/// seconds from `since` on, and may have gone on to the next without ever using them.
pub(super) fn after_laying(previous: &Files, seen: &Observed, id: &SnapshotId, since: i64) -> Files {
    let mut files = previous.clone();
    let Some(parts) = seen.layers.snapshots.get(id) else { return files };
    for frozen in parts.frozen.values() {
        let laid = Path::new(frozen).parent().and_then(|folder| files::read_dir(folder).ok()).into_iter().flatten();
        for path in laid.flatten().map(|entry| entry.path()) {
            let name = path.to_string_lossy();
            let second = path.extension().and_then(|last| last.to_str()?.parse::<i64>().ok());
            let is_laid = is_reverted_from(&name, frozen) && second.is_some_and(|second| second >= since);
            let below = backing(&path).ok().flatten();
            if !is_laid || files.contains_key(&path) || below.as_deref() != Some(Path::new(frozen)) {
                continue;
            }
            if let Ok(found) = files::symlink_metadata(&path).map(|found| Identity::of(&found)) {
                let (snapshot, kind, holds) = (id.clone(), Kind::Reverted, Holds::Nothing);
                files.insert(path, Made { snapshot, kind, identity: Some(found), backing: below, holds });
            }
        }
    }
    files
}

/// What a file lies on. Where a VM uses it in another format than its own, only its header tells.
fn below(path: &Path, seen: &Observed) -> Option<PathBuf> {
    let told = seen.layers.files.get(&*path.to_string_lossy()).and_then(|layer| layer.backing.as_ref());
    told.map(PathBuf::from).or_else(|| backing(path).ok().flatten())
}

/// A file that libvirt has for a snapshot of ours.
fn see(files: &mut Files, path: &str, id: &SnapshotId, kind: Kind, seen: &Observed) {
    let Ok(found) = files::symlink_metadata(Path::new(path)) else { return };
    if found.is_file() {
        let backing = below(Path::new(path), seen);
        let holds = files.get(Path::new(path)).map_or(Holds::Nothing, |made| made.holds);
        let made = Made { snapshot: id.clone(), kind, identity: Some(Identity::of(&found)), backing, holds };
        files.insert(PathBuf::from(path), made);
    }
}

/// Adds a file that is about to be made on top of another. One that is there already is somebody else's.
pub(super) fn expect(files: &mut Files, path: &str, id: &SnapshotId, kind: Kind, below: Option<&str>) {
    let path = resolved(Path::new(path));
    if matches!(files::symlink_metadata(&path), Err(error) if error.kind() == ErrorKind::NotFound) {
        let backing = below.map(|below| resolved(Path::new(below)));
        files.insert(path, Made { snapshot: id.clone(), kind, identity: None, backing, holds: Holds::Nothing });
    }
}

#[cfg(test)]
mod tests;

//! Removing the files that a machine which is gone has left. The machine's present lies in the topmost of them: who asks for
//! this wants the machine to be gone.
//!
//! 1. If a machine of this UUID is defined again, nothing is removed. What others on the host reach is in use; if that cannot
//!    be found out, nothing is removed either.
//! 2. Each file of the record is looked at: one that is gone is struck out, and so is one that is no longer what was made.
//! 3. One that somebody has open is in use. QEMU locks its images, also towards other hosts; those who lock nothing are
//!    found by a lease, which the kernel gives only on a file that nobody else on this host has open. Looking through what
//!    processes have open would take the right to look into any process, and does not see into containers.
//! 4. An image with a snapshot inside that another tool took is kept as an orphan: nobody has asked for that to be removed.
//! 5. The images in the same directories, and in those of the host, are read for what they lie on ([`super::strangers`]). What is in use keeps all that is below it, and so does
//!    an image that we did not make (`snapshot_core::layers::abandoned`).
//! 6. The rest is removed, each before what it lies on, and struck out. Ended anywhere, the same is done again for what is
//!    left.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, fcntl_lock};
use rustix::io::Errno;
use snapshot_core::ids::{SnapshotId, VmId};
use snapshot_core::layers::abandoned;
use snapshot_core::{Error, Reason};

use super::Owned;
use super::files::{Files, Holds, Kind, Standing, backing, guarded};
use super::lease;
use super::strangers::reached_by_strangers;
use crate::beneath::Beneath;
use crate::bounded::files::{self, resolved};
use crate::hypervisor::{Failure, Hypervisor};
use crate::qcow2::{self, HostFile, ImageError, Tag};

/// How long a file that is open is waited for: whoever only looks at it has it open for a moment.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same where nothing comes of it.
const A_MOMENT: Duration = Duration::from_millis(300);
const POLL: Duration = Duration::from_millis(50);
/// NFS, CIFS, SMB2, Ceph and 9p, by the numbers in linux/magic.h.
const NETWORKED: [rustix::fs::FsWord; 5] = [0x6969, 0xff53_4d42, 0xfe53_4d42, 0x00c3_6400, 0x0102_1997];

/// What has to be known of the host.
pub(super) struct Host<'a> {
    /// What its machines reach.
    pub(super) used: BTreeSet<String>,
    /// Whether there is a machine of this UUID again.
    pub(super) is_back: &'a dyn Fn() -> Result<bool, Failure>,
    pub(super) unlink: &'a dyn Fn(&[String]) -> Result<(), Failure>,
    pub(super) folders: &'a Beneath,
    /// Whether the internal snapshots of the VM go as well.
    pub(super) all_snapshots_go: bool,
}

/// Removes the files that the record of a machine names.
pub(super) fn clear(hypervisor: &dyn Hypervisor, owned: &Owned, vm: VmId) -> Result<(), Error> {
    let mut files = owned.files(vm);
    // A disk that was taken out of the machine before is not part of it.
    files.retain(|_, made| made.holds != Holds::Orphaned);
    if files.is_empty() {
        return Ok(());
    }
    let is_back = || Ok(hypervisor.vms()?.contains(&vm));
    let asking = |failure: Failure| failure.to_error(vm, None, "which files machines use could not be found out");
    if is_back().map_err(asking)? {
        return Ok(());
    }
    let used = hypervisor.elsewhere(vm).map_err(asking)?;
    let unlink = |paths: &[String]| hypervisor.unlink(paths);
    let host = Host { used, is_back: &is_back, unlink: &unlink, folders: hypervisor.folders(), all_snapshots_go: true };
    remove(owned, vm, &files, &host)
}

pub(super) fn remove(owned: &Owned, vm: VmId, files: &Files, host: &Host<'_>) -> Result<(), Error> {
    // Another path may lead to a file of ours: a link, or a folder that is mounted twice.
    let reached = numbers(&host.used).map_err(|(path, error)| failed(vm, Path::new(&path), &error))?;
    let (mut ours, mut used, mut on_top) = (BTreeMap::new(), host.used.clone(), BTreeMap::new());
    let mut is_open = None;
    for (path, made) in files {
        let failed = |error: io::Error| failed(vm, path, &error);
        let place = match made.standing(path).map_err(failed)? {
            Standing::Ours => path.clone(),
            // libvirt took it away while it went back to a snapshot, and it was not brought back.
            Standing::Gone if made.standing(&guarded(path)).map_err(failed)? == Standing::Ours => guarded(path),
            Standing::Away => {
                tracing::warn!(%vm, path = %path.display(), "the folder of a file is not there; it stays in the record");
                on_top.extend(made.backing.iter().map(|below| (text(path), text(&resolved(below)))));
                continue;
            }
            standing @ (Standing::Gone | Standing::Other) => {
                tracing::info!(%vm, path = %path.display(), ?standing, "a file that a machine left is not ours any more");
                owned.strike_file(vm, path);
                continue;
            }
        };
        let name = text(&resolved(path));
        if reached.contains(&number(&place).map_err(failed)?) {
            used.insert(name.clone());
        } else if !used.contains(&name) && stays_open(host.folders, &place).map_err(failed)? {
            used.insert(name.clone());
            is_open = is_open.or(Some(path));
        }
        match inside(owned, vm, made.kind, path, &place).map_err(failed)? {
            Inside::Nothing => {}
            Inside::Own if host.all_snapshots_go => {}
            Inside::Own => _ = used.insert(name.clone()),
            Inside::Others => {
                owned.orphan(vm, path);
                used.insert(name.clone());
            }
        }
        if let Some(below) = lies_on(&place).map_err(failed)? {
            on_top.insert(name.clone(), below);
        }
        ours.insert(name, (path, made));
    }
    let own = ours.keys().cloned().collect();
    used.extend(reached_by_strangers(vm, host.folders, ours.keys().map(String::as_str), &own)?);
    let found = abandoned(&ours.keys().cloned().collect(), &used, &on_top);
    for (path, made) in found.removable.iter().filter_map(|name| ours.get(name)) {
        // A machine can be defined at any moment, and what was decided is as old as the last file took.
        if (host.is_back)().map_err(|failure| failure.to_error(vm, None, "the machines cannot be listed"))? {
            tracing::warn!(%vm, "the machine is defined again: the rest of its files is left");
            return Ok(());
        }
        tracing::info!(%vm, path = %path.display(), "removing a file that a machine left behind");
        let mut names = vec![text(path)];
        let second = guarded(path);
        if made.standing(&second).is_ok_and(|it| it == Standing::Ours) {
            names.push(text(&second));
        }
        (host.unlink)(&names).map_err(|failure| failed(vm, path, &io::Error::other(failure)))?;
        owned.strike_file(vm, path);
    }
    if !found.needed.is_empty() {
        tracing::warn!(%vm, files = ?found.needed, "files that the machine left are in use, or images in use lie on them");
    }
    match is_open {
        Some(path) => Err(failed(vm, path, &io::Error::other("somebody has it open"))),
        None => Ok(()),
    }
}

fn failed(vm: VmId, path: &Path, error: &io::Error) -> Error {
    tracing::warn!(%vm, path = %path.display(), %error, "a file that a machine left could not be removed");
    let message = "a file that snapshots of the machine are made of could not be removed";
    Error::new(Reason::HypervisorFailed, message)
        .with("vm", proto::names::vm(vm))
        .with("path", path.display().to_string())
        .with("cause", error.to_string())
}

pub(super) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Whose snapshots are inside an image.
enum Inside {
    Nothing,
    /// Those of the VM that are on record, and no others.
    Own,
    Others,
}

/// Whose snapshots are inside the image on record as `path`, which is at `place`. A table that cannot be read has somebody's.
fn inside(owned: &Owned, vm: VmId, kind: Kind, path: &Path, place: &Path) -> io::Result<Inside> {
    if kind == Kind::Memory {
        return Ok(Inside::Nothing);
    }
    let tags = match qcow2::read(place) {
        Ok(image) => image.tags,
        Err(ImageError::Format(_)) => return Ok(Inside::Others),
        Err(ImageError::Io(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(Inside::Nothing),
        Err(ImageError::Io(error)) => return Err(error),
        Err(ImageError::Unsteady) => return Err(io::Error::other("it changes while it is read")),
    };
    if tags.is_empty() {
        return Ok(Inside::Nothing);
    }
    let ours = owned.get(vm).and_then(|record| record.images.get(path).cloned()).unwrap_or_default();
    let is_own = |tag: &Tag| {
        let taken = tag.name.parse::<SnapshotId>().ok().and_then(|id| ours.get(&id).copied());
        taken.is_some_and(|taken| taken.is_none_or(|taken| taken == tag.stamp))
    };
    Ok(if tags.iter().all(is_own) { Inside::Own } else { Inside::Others })
}

/// What an image lies on; `None` for what is no image.
fn lies_on(path: &Path) -> io::Result<Option<String>> {
    match backing(path) {
        Ok(below) => Ok(below.as_deref().map(text)),
        Err(ImageError::Format(_)) => Ok(None),
        Err(ImageError::Io(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(ImageError::Io(error)) => Err(error),
        Err(ImageError::Unsteady) => Err(io::Error::other("it changes while it is read")),
    }
}

/// Which files these are. One that is not there is none; one whose storage does not respond may be any.
pub(super) fn numbers(paths: &BTreeSet<String>) -> Result<BTreeSet<(u64, u64)>, (String, io::Error)> {
    let mut numbers = BTreeSet::new();
    for path in paths {
        match number(Path::new(path)) {
            Ok(number) => _ = numbers.insert(number),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err((path.clone(), error)),
            Err(_) => {}
        }
    }
    Ok(numbers)
}

/// Which file this is, whatever leads to it.
fn number(path: &Path) -> io::Result<(u64, u64)> {
    let found = files::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

/// Whether somebody has a file open, and not only for a moment.
pub(super) fn stays_open(folders: &Beneath, path: &Path) -> io::Result<bool> {
    stays_so(PATIENCE, || Ok(is_locked(folders, path)? || is_open(folders, path)?))
}

fn stays_so(patience: Duration, is_so: impl Fn() -> io::Result<bool>) -> io::Result<bool> {
    let start = Instant::now();
    while is_so()? {
        if start.elapsed() > patience {
            return Ok(true);
        }
        std::thread::sleep(POLL);
    }
    Ok(false)
}

/// Whether a process has a file open or locked, and not only for a moment. Nothing is locked for it, which would be in the way of a QEMU
/// that starts.
pub(crate) fn is_in_use(folders: &Beneath, path: &Path) -> io::Result<bool> {
    let is_locked = || Ok::<_, io::Error>(HostFile::of(&folders.file(path, OFlags::RDONLY)?)?.locked);
    stays_so(A_MOMENT, || Ok(is_locked()? || is_open(folders, path)?))
}

/// Whether somebody has a lock on it: whoever opens an image with QEMU has one on some of its bytes.
fn is_locked(folders: &Beneath, path: &Path) -> io::Result<bool> {
    let file = folders.file(path, OFlags::RDWR)?;
    match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(false),
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Whether anybody on this host has it open. Network file systems know no leases, or only of what is theirs to give: there
/// the locks have to do.
fn is_open(folders: &Beneath, path: &Path) -> io::Result<bool> {
    let file = folders.file(path, OFlags::RDONLY)?;
    match lease::is_open_elsewhere(&file) {
        Ok(is_open) => Ok(is_open && !NETWORKED.contains(&rustix::fs::fstatfs(&file)?.f_type)),
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "the file system does not tell who has a file open");
            Ok(false)
        }
    }
}

#[cfg(test)]
mod inside_tests;
#[cfg(test)]
mod tests;

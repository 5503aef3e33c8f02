//! Removing what a machine that is gone has left: the files of external snapshots ([`super::abandoned`]), then what is in
//! images.
//!
//! 1. What the VMs of the host reach, by their disks and their snapshots, and what other hosts say that they use, is in use. An image in
//!    use is left alone, and stays in the record. If it cannot be found out, nothing is removed.
//! 2. Each image of the record is read: what it does not hold is struck out, and so is an image that is not there.
//! 3. `qemu-img` deletes what is left, one snapshot at a time, and is not believed: the image is read again. QEMU's own
//!    lock on images keeps it away from one that a machine of another host has open.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use snapshot_core::ids::{SnapshotId, VmId};
use snapshot_core::vm::DiskFacts;
use snapshot_core::{Error, Reason};

use super::files::{Standing, guarded};
use super::strangers::used_by_other_hosts;
use super::{Owned, abandoned};
use crate::beneath::out_of_reach;
use crate::bounded::files;
use crate::hypervisor::{Failure, Hypervisor, Reread};
use crate::qcow2::{self, ImageError, Stamp};
use crate::qemu_img::snapshots;

/// The most images in a chain; QEMU itself opens no more than 200.
const LONGEST_CHAIN: usize = 256;

/// Removes what the record of a machine has, as far as no machine of this host uses it.
pub(crate) fn clear(hypervisor: &dyn Hypervisor, owned: &Owned, vm: VmId) -> Result<(), Error> {
    // What stands in the way of one does not keep the other. A safety tag would be another tool's snapshot to what follows.
    let safety = owned.clear_safety(hypervisor, vm);
    let files = abandoned::clear(hypervisor, owned, vm);
    let safety =
        safety.map_err(|failure| failure.to_error(vm, None, "the safety tags of a revert could not be removed"));
    clear_images(hypervisor, owned, vm).and(files).and(safety)
}

/// Fails where it cannot be found out whether other VMs use the images that a machine's record names: then nothing could be removed from them.
pub(crate) fn check_images(hypervisor: &dyn Hypervisor, owned: &Owned, vm: VmId) -> Result<(), Error> {
    match owned.get(vm).filter(|record| !record.images.is_empty()) {
        Some(record) => in_use(hypervisor, vm, record.images.keys()).map(drop),
        None => Ok(()),
    }
}

/// The images that are in use here, and those beside these that are on other hosts.
fn in_use<'a>(
    hypervisor: &dyn Hypervisor,
    vm: VmId,
    images: impl Iterator<Item = &'a PathBuf>,
) -> Result<BTreeSet<PathBuf>, Error> {
    let mut used = used(hypervisor, vm).map_err(|failure| {
        tracing::warn!(%failure, "which images are in use cannot be found out");
        failure.to_error(vm, None, "which images other VMs use could not be found out")
    })?;
    let images: Vec<String> = images.map(|image| image.to_string_lossy().into_owned()).collect();
    let elsewhere = used_by_other_hosts(hypervisor.folders(), images.iter().map(String::as_str))
        .map_err(|error| error.with("vm", proto::names::vm(vm)))?;
    used.extend(elsewhere.into_iter().map(PathBuf::from));
    Ok(used)
}

fn clear_images(hypervisor: &dyn Hypervisor, owned: &Owned, vm: VmId) -> Result<(), Error> {
    let Some(record) = owned.get(vm) else { return Ok(()) };
    if record.images.is_empty() {
        return Ok(());
    }
    let used = in_use(hypervisor, vm, record.images.keys())?;
    for (image, ids) in record.images {
        let Some(canonical) = canonical(&image).map_err(|error| failed(vm, &image, &error))? else {
            owned.strike(vm, &image, |_| true);
            continue;
        };
        if used.contains(&canonical) {
            tracing::warn!(%vm, image = %image.display(), "a VM uses this image: the snapshots in it are left");
            continue;
        }
        let tags = tags(&image).map_err(|error| failed(vm, &image, &error))?;
        let is_ours = |id: &SnapshotId| is_as_taken(&tags, &ids, id);
        owned.strike(vm, &image, |id| !is_ours(id));
        for id in ids.keys().filter(|id| is_ours(id)) {
            tracing::info!(%vm, %id, image = %image.display(), "removing a snapshot that a machine left behind");
            snapshots::delete(hypervisor.folders(), &canonical, id.as_str())
                .map_err(|error| failed(vm, &image, &error))?;
        }
        let left = self::tags(&image).map_err(|error| failed(vm, &image, &error))?;
        owned.strike(vm, &image, |id| !left.contains_key(id.as_str()));
        if ids.keys().any(|id| is_ours(id) && left.contains_key(id.as_str())) {
            return Err(failed(vm, &image, &io::Error::other("qemu-img has deleted them, and they are there")));
        }
    }
    Ok(())
}

/// Whether an image with these snapshots in it holds this one as it was taken. What another tool took with the name of ours since is not
/// ours to remove.
fn is_as_taken(tags: &BTreeMap<String, Stamp>, taken: &BTreeMap<SnapshotId, Option<Stamp>>, id: &SnapshotId) -> bool {
    match (tags.get(id.as_str()), taken.get(id)) {
        (Some(found), Some(taken)) => taken.is_none_or(|taken| taken == *found),
        _ => false,
    }
}

/// Strikes out what is no longer there of machines that are gone: mostly their images are removed after them.
pub(crate) fn sweep(owned: &Owned) {
    for vm in owned.left_behind() {
        for image in owned.get(vm).into_iter().flat_map(|record| record.images.into_keys()) {
            // A folder that is not there may be a file system that is not mounted.
            if !image.parent().is_some_and(files::is_dir) {
                continue;
            }
            if let Ok(tags) = tags(&image) {
                owned.strike(vm, &image, |id| !tags.contains_key(id.as_str()));
            }
        }
        for (path, made) in owned.files(vm) {
            if matches!(made.standing(&path), Ok(Standing::Gone)) && !files::may_exist(&guarded(&path)) {
                owned.strike_file(vm, &path);
            }
        }
        owned.weigh(vm, None);
    }
}

fn failed(vm: VmId, image: &Path, error: &io::Error) -> Error {
    tracing::warn!(%vm, image = %image.display(), %error, "what a machine left in an image could not be removed");
    let message = "what is left in an image of the machine could not be removed";
    Error::new(Reason::HypervisorFailed, message).with("vm", proto::names::vm(vm)).with("cause", error.to_string())
}

/// Every image that a VM of this host has in use, with all that lies below: of the others, and of this one itself if it exists.
fn used(hypervisor: &dyn Hypervisor, vm: VmId) -> Result<BTreeSet<PathBuf>, Failure> {
    let mut used: BTreeSet<PathBuf> = hypervisor.elsewhere(vm)?.into_iter().map(PathBuf::from).collect();
    let seen = match hypervisor.observe(vm, Reread::New) {
        Err(Failure::VmGone) => return Ok(used),
        seen => seen?,
    };
    let is_unknown = |disk: &&DiskFacts| disk.path.is_empty() && seen.vm.is_unavailable(&disk.target);
    if let Some(disk) = seen.vm.disks.iter().find(is_unknown) {
        let message = format!("the image of disk {}, which may be the one in question, is unknown", disk.target);
        return Err(Failure::Unintelligible(message));
    }
    let disks = seen.vm.disks.iter().map(|disk| PathBuf::from(&disk.path));
    for top in disks.chain(seen.images.into_keys()).filter(|path: &PathBuf| path.is_absolute()) {
        below(&top, &mut used).map_err(|error| match hypervisor.folders().may_read(&top) {
            true => Failure::Unintelligible(format!("the images below {} cannot be read: {error}", top.display())),
            false => Failure::Precondition(out_of_reach(&top, "read_dirs")),
        })?;
    }
    Ok(used)
}

/// Adds an image and all below it.
fn below(top: &Path, used: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    let mut next = Some(top.to_owned());
    for _ in 0..LONGEST_CHAIN {
        let Some(image) = next.take() else { return Ok(()) };
        let Some(path) = canonical(&image)? else { return Ok(()) };
        next = match qcow2::backing_file(&path) {
            // Relative names are relative to the image.
            Ok(Some(name)) => path.parent().map(|folder| folder.join(name)),
            // Not a qcow2 image: nothing is below it that could be one of ours.
            Ok(None) | Err(ImageError::Format(_)) => None,
            Err(ImageError::Io(error)) => return Err(error),
            Err(ImageError::Unsteady) => return Err(io::Error::other("it changes while it is read")),
        };
        used.insert(path);
    }
    Err(io::Error::other("the chain has no end"))
}

/// The one true path of a file; `None` when there is none.
fn canonical(path: &Path) -> io::Result<Option<PathBuf>> {
    match files::canonicalize(path) {
        Ok(path) => Ok(Some(path)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The names of the snapshots in an image, and when they were taken; none where something else is in its place.
fn tags(image: &Path) -> io::Result<BTreeMap<String, Stamp>> {
    match qcow2::read(image) {
        Ok(image) => Ok(image.stamps()),
        Err(ImageError::Format(_)) => Ok(BTreeMap::new()),
        Err(ImageError::Io(error)) if error.kind() == ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(ImageError::Io(error)) => Err(error),
        Err(ImageError::Unsteady) => Err(io::Error::other("it changes while it is read")),
    }
}

#[cfg(test)]
mod tests;

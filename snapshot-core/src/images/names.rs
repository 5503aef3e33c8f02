//! Which snapshot in an image QEMU takes for a name.
//!
//! `bdrv_snapshot_goto`, which every revert ends in, looks through all *ids* before it looks through the names, and takes the first
//! that fits. Deletions look for the name alone, and take the first of two. libvirt knows names only.

use super::Entry;
use crate::error::Reason;
use crate::restriction::RestrictedOperation::{self, Delete};
use crate::restriction::Restriction;

/// A snapshot and what is in the images that operations on it touch.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotImages<'a> {
    /// libvirt's name of it.
    pub name: &'a str,
    /// By target: the snapshot table of each image that a revert touches, those of disks that it does not hold included.
    pub tables: &'a [(String, Vec<Entry>)],
    /// The targets of the disks in it.
    pub disks: &'a [String],
    /// The targets of the disks that the VM has.
    pub present: &'a [&'a str],
    /// Whether the VM is on.
    pub is_on: bool,
    /// Whether it has the memory of the VM: QEMU then gives its part of each disk the same time.
    pub has_memory: bool,
}

/// Seconds between the parts of one snapshot without memory, which are taken disk by disk, at most.
const LONGEST_CREATION: u32 = 600;

/// What makes operations on an internal snapshot unavailable.
pub fn of_snapshot(snapshot: SnapshotImages<'_>) -> Vec<Restriction> {
    let name = snapshot.name;
    let mut found = Vec::new();
    for (target, entries) in snapshot.tables {
        let other = entries.iter().find(|entry| entry.id == name && entry.name != name);
        if let Some(other) = other {
            let message = format!(
                "snapshot {name:?} cannot be reverted to: in the image of disk {target} this is the id of snapshot {:?}, which QEMU would take: delete one of the two",
                other.name
            );
            let restriction = Restriction::new(RestrictedOperation::REVERT, Reason::SnapshotNameAmbiguous, message);
            found.push(restriction.on_disk(target));
        }
        if entries.iter().filter(|entry| entry.name == name).count() > 1 {
            let message = format!(
                "the image of disk {target} has more than one snapshot with the name {name:?}: delete the other with qemu-img"
            );
            let operations = RestrictedOperation::REVERT.into_iter().chain([Delete]);
            found.push(Restriction::new(operations, Reason::SnapshotNameAmbiguous, message).on_disk(target));
        }
    }
    found.extend(parts_of_two(snapshot));
    let absent = snapshot.disks.iter().find(|disk| !snapshot.present.contains(&disk.as_str()));
    if let Some(absent) = absent.filter(|_| snapshot.is_on) {
        let message = format!(
            "the snapshot holds disk {absent}, which the VM no longer has, so it cannot be deleted while the VM is on: switch the machine off"
        );
        found.push(Restriction::new([Delete], Reason::VmStateUnsupported, message).on_disk(absent));
    }
    found
}

/// A part that was taken at another time than the others is of another snapshot with the same name.
fn parts_of_two(snapshot: SnapshotImages<'_>) -> Option<Restriction> {
    let parts = snapshot.tables.iter().filter_map(|(target, entries)| {
        Some((target, entries.iter().find(|entry| entry.name == snapshot.name)?.taken))
    });
    let (first, last) = (parts.clone().min_by_key(|(_, taken)| *taken)?, parts.max_by_key(|(_, taken)| *taken)?);
    let is_one = match snapshot.has_memory {
        true => first.1 == last.1,
        false => last.1.0 - first.1.0 <= LONGEST_CREATION,
    };
    let message = format!(
        "snapshot {:?} cannot be reverted to: its part of disk {} was taken {} s after that of disk {}, so it is of another snapshot with \
         the same name: delete it",
        snapshot.name,
        last.0,
        last.1.0 - first.1.0,
        first.0
    );
    (!is_one).then(|| Restriction::new(RestrictedOperation::REVERT, Reason::SnapshotBroken, message).on_disk(last.0))
}

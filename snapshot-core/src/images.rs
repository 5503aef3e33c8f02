//! What the images of a VM make unavailable: a closed list over the headers of its images and of their backing files, their
//! snapshot tables, and what the host says about the files.
//!
//! Measured with QEMU 10.0 and libvirt 11.3 (`snapshot-agent/tests/agent/images.rs` asks them again):
//!
//! | in the image of a disk | creates | reverts | deletes |
//! |---|---|---|---|
//! | an unknown incompatible feature | QEMU does not open it | the same | the same |
//! | marked as corrupt | not opened for writing | the same | the same |
//! | encrypted (AES, LUKS) | with memory QEMU aborts; external ones are clear text | no key | off: no key |
//! | persistent bitmaps | done | refused, after earlier disks were reverted | done |
//! | an external data file | internal ones are refused | refused | |
//! | a counter of n bits | refused above 2^n - 2 snapshots | refused above 2^n - 3, of which one is the present that is kept meanwhile | done |
//! | locked by another process, VM off | refused | refused, after earlier disks were reverted | the same |
//! | not locked, VM on: not the file that QEMU has open | refused, or in the other file | the same | the same |
//! | immutable, or on a read-only file system | refused | refused, after earlier disks were reverted | the same |
//! | a backing file that cannot be opened | running: done | refused, and a VM that ran is off | off: refused |
//! | dirty (lazy counters), zstd, extended L2, version 2 | done | done | done |
//!
//! A disk that cannot be reverted to its snapshot makes every disk's revert unavailable: libvirt goes from disk to disk. A
//! snapshot that could not be reverted to is not taken.

use crate::error::Reason;
use crate::restriction::RestrictedOperation::{self, CreateExternal, CreateLive, CreateOffline, Delete, Revert};
use crate::restriction::Restriction;

mod features;
mod names;
mod users;

pub use features::Features;
pub use names::{SnapshotImages, of_snapshot};
pub use users::{Dependent, Dependents, Users, Uses};

/// The most images in a chain that libvirt starts a VM with.
pub const MAX_CHAIN: usize = 200;

/// A snapshot in the table of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// QEMU's id of it, which may be any text.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was taken, in seconds and nanoseconds of the Unix epoch.
    pub taken: (u32, u32),
}

/// What is found where an image should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A qcow2 image.
    Qcow2 {
        /// What its header says.
        features: Features,
        /// The number of snapshots in it.
        snapshots: usize,
    },
    /// A file of which nothing but its existence is known: raw, or in a format that holds no snapshots.
    Plain,
    /// Nothing, or something else.
    Lost(String),
    /// It cannot be read now.
    Unreadable(String),
    /// It is on the network, or named in a way that is not understood.
    Remote,
    /// A qcow2 image whose format the image above does not name: libvirt does not start a VM on it.
    Untold,
}

/// An image of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFacts {
    /// Its path, or the name by which the image above refers to it.
    pub path: String,
    /// What is found there.
    pub content: Content,
    /// Whether it is marked as immutable, or its file system is mounted read-only.
    pub fixed: bool,
    /// Whether a process that has it open for writing is seen by its locks.
    pub lockable: bool,
    /// Whether another process has locked it against being opened for writing.
    pub locked: bool,
    /// Whether another process has locked it against being opened as a backing file.
    pub written: bool,
}

/// A disk with its chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskImages {
    /// The target, such as `vda`; `nvram` for UEFI variables.
    pub target: String,
    /// Whether the guest cannot write to it.
    pub read_only: bool,
    /// Whether the VM itself holds the locks on it.
    pub held: bool,
    /// The active image and its backing files, from the top down.
    pub chain: Vec<ImageFacts>,
}

/// What the images of a disk make unavailable, of a VM that is on or off.
pub fn restrictions(disk: &DiskImages, is_on: bool) -> Vec<Restriction> {
    let mut found = Vec::new();
    for (depth, image) in disk.chain.iter().enumerate() {
        let checker = Checker { disk, image, is_on, is_top: depth == 0 };
        checker.check(&mut found);
    }
    if disk.chain.len() > MAX_CHAIN {
        let message = format!(
            "disk {} has a backing chain of {} images, and libvirt starts no VM with more than {MAX_CHAIN}: merge some of them first",
            disk.target,
            disk.chain.len()
        );
        found.push(Restriction::new(reopening(is_on), Reason::FeatureUnsupported, message).on_disk(&disk.target));
    }
    found
}

/// What opens the images anew, and snapshots that only such a revert leads to.
fn reopening(is_on: bool) -> Vec<RestrictedOperation> {
    let mut operations = vec![CreateOffline, CreateLive, CreateExternal, Revert];
    if !is_on {
        operations.push(Delete);
    }
    operations
}

/// What writes the images of a VM that is off.
const OFFLINE: [RestrictedOperation; 4] = [CreateOffline, CreateExternal, Revert, Delete];

/// One image of a disk.
struct Checker<'a> {
    disk: &'a DiskImages,
    image: &'a ImageFacts,
    is_on: bool,
    is_top: bool,
}

impl Checker<'_> {
    fn check(&self, found: &mut Vec<Restriction>) {
        found.extend(self.content());
        if let Content::Qcow2 { features, snapshots } = &self.image.content {
            let role = features::Role { writable: self.is_top && !self.disk.read_only, is_on: self.is_on };
            let restrictions = features::restrictions(features, *snapshots, role);
            found.extend(
                restrictions.into_iter().map(|(operations, reason, what)| self.restriction(operations, reason, &what)),
            );
        }
        found.extend(self.host());
    }

    /// Whether it can be opened at all.
    fn content(&self) -> Option<Restriction> {
        let without_delete = || reopening(true);
        Some(match &self.image.content {
            Content::Qcow2 { .. } | Content::Plain => return None,
            // A snapshot that has lost its data can be deleted: libvirt is made to forget it.
            Content::Lost(why) if self.is_top && !self.disk.read_only => {
                let operations = RestrictedOperation::CREATE_AND_REVERT;
                self.restriction(operations, Reason::ImageUnavailable, &format!("{why}: restore the image first"))
            }
            Content::Unreadable(why) if self.is_top && !self.disk.read_only => {
                let what = format!("cannot be read ({why}): make it readable first");
                self.restriction(RestrictedOperation::ALL, Reason::ImageUnavailable, &what)
            }
            Content::Lost(why) => {
                let what = format!("{why}: restore the image first");
                self.restriction(reopening(self.is_on), Reason::ImageUnavailable, &what)
            }
            Content::Unreadable(why) => {
                let what = format!("cannot be read ({why}): make it readable first");
                self.restriction(reopening(self.is_on), Reason::ImageUnavailable, &what)
            }
            Content::Remote => {
                let what = "is no local file, so it cannot be checked before the images are opened again";
                self.restriction(without_delete(), Reason::FeatureUnsupported, what)
            }
            Content::Untold => {
                let what =
                    "is a qcow2 image whose format the image above does not name: name it with qemu-img rebase -u";
                self.restriction(without_delete(), Reason::FeatureUnsupported, what)
            }
        })
    }

    /// Whether the host lets it be opened as it has to be.
    fn host(&self) -> Option<Restriction> {
        let writable = self.is_top && !self.disk.read_only;
        if writable && self.image.fixed {
            let what = "cannot be written: it is marked as immutable, or its file system is mounted read-only";
            return Some(self.restriction(RestrictedOperation::ALL, Reason::ImageUnavailable, what));
        }
        if self.disk.held {
            let is_another = writable && self.image.lockable && !self.image.locked;
            let what = "is not the file that the VM has open, or the VM has been paused since its memory was saved: resume the VM; if the file \
                        was replaced or moved, put it back, or copy the disk with virsh blockcopy, before the VM is switched off";
            return is_another.then(|| self.restriction(RestrictedOperation::ALL, Reason::ImageUnavailable, what));
        }
        if writable && self.image.locked {
            let what = "is open in another process, which has locked it: ask again when that has ended";
            return Some(self.restriction(OFFLINE, Reason::ImageInUse, what));
        }
        if !writable && self.image.written {
            let what = "is written by another process or VM, which has locked it: ask again when that has ended";
            return Some(self.restriction(OFFLINE, Reason::ImageInUse, what));
        }
        None
    }

    fn restriction(
        &self,
        operations: impl IntoIterator<Item = RestrictedOperation>,
        reason: Reason,
        what: &str,
    ) -> Restriction {
        let (target, path) = (&self.disk.target, &self.image.path);
        let whose = if self.is_top { "image" } else { "backing file" };
        Restriction::new(operations, reason, format!("disk {target}: {whose} {path} {what}")).on_disk(target)
    }
}

#[cfg(test)]
mod tests;

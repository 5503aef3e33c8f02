//! The images behind a machine's disks: what is in them, and how much room there is for more.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use snapshot_core::Reason;
use snapshot_core::ids::SnapshotId;
use snapshot_core::snapshot::{Content, Origin, SnapshotFacts, Storage};
use snapshot_core::vm::DiskFacts;

use super::domain_xml::{Disk, Medium};
use super::image_facts::Chains;
use super::snapshot_xml::Recorded;
use crate::bounded::files;
use crate::qcow2::{self, Image, ImageError, Stamp, Tag};
use crate::safety;

/// The images that one look at a machine needs, each read once, however many snapshots are in it.
#[derive(Debug, Default)]
pub(super) struct Images {
    read: BTreeMap<PathBuf, Found>,
    pub(super) chains: Chains,
}

/// What came of reading an image.
#[derive(Debug)]
pub(super) enum Found {
    Image(Image),
    /// There is no such file, or something else in its place: as a user reads it.
    Gone(String),
    /// Not known: it cannot be read now, for this reason.
    Unknown(String),
}

impl Images {
    pub(super) fn read(&mut self, path: &Path) -> &Found {
        self.read.entry(path.to_owned()).or_insert_with(|| match qcow2::read(path) {
            Ok(image) => Found::Image(image),
            Err(error @ ImageError::Format(_)) => Found::Gone(format!("is {error}")),
            Err(ImageError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
                Found::Gone("does not exist".to_owned())
            }
            Err(error @ (ImageError::Io(_) | ImageError::Unsteady)) => Found::Unknown(error.to_string()),
        })
    }

    /// A disk with the facts of its image.
    pub(super) fn disk(&mut self, disk: Disk) -> DiskFacts {
        let mut facts = DiskFacts {
            path: disk.path.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
            free_bytes: None,
            target: disk.target,
            format: disk.format,
            read_only: disk.read_only,
            has_backing_file: false,
            capacity_bytes: 0,
            allocation_bytes: 0,
        };
        self.refresh(&mut facts);
        facts
    }

    /// Reads the facts of a disk's image anew.
    pub(super) fn refresh(&mut self, disk: &mut DiskFacts) {
        if disk.path.is_empty() {
            return;
        }
        let path = Path::new(&disk.path);
        disk.free_bytes = free_bytes(path);
        if disk.format != "qcow2" {
            (disk.capacity_bytes, disk.allocation_bytes) = sizes(path).unwrap_or_default();
        } else if let Found::Image(image) = self.read(path) {
            disk.has_backing_file = image.has_backing_file;
            disk.capacity_bytes = image.capacity_bytes;
            disk.allocation_bytes = image.allocation_bytes;
        }
    }

    /// A snapshot with the facts of its images.
    pub(super) fn snapshot(&mut self, recorded: Recorded, is_current: bool) -> SnapshotFacts {
        let (mut size_bytes, mut lost) = (0_u64, false);
        for path in recorded.images.values() {
            match self.read(path) {
                Found::Image(image) => match image.tags.iter().find(|tag| tag.name == recorded.name) {
                    Some(Tag { vm_state_bytes, l1_bytes, .. }) => size_bytes += vm_state_bytes + l1_bytes,
                    None => lost = true,
                },
                Found::Gone(_) => lost = true,
                Found::Unknown(_) => {}
            }
        }
        lost |= self.has_lost_files(&recorded);
        let starts = recorded.content == Content::DisksAndMemory;
        let broken = if lost {
            Some(Reason::SnapshotBroken)
        } else if starts && !recorded.disks_left_out.is_empty() {
            // libvirt reverts the running state and leaves the disk as it is: the guest would then write what it
            // remembers over what is there.
            Some(Reason::DisksDiffer)
        } else if starts && missing_medium(&recorded.media).is_some() {
            // libvirt finds out after it has killed the machine.
            Some(Reason::MediumMissing)
        } else {
            None
        };
        let id = SnapshotId::of_name(&recorded.name);
        SnapshotFacts {
            parent: recorded.parent.map(|parent| SnapshotId::of_name(&parent)),
            is_current,
            create_time: recorded.create_time,
            label: recorded.label,
            content: recorded.content,
            storage: recorded.storage,
            vm_state: recorded.state,
            consistency: recorded.consistency,
            disks: recorded.disks,
            size_bytes: match recorded.storage {
                Storage::Internal => size_bytes,
                // The saved running state. What the overlays hold is what was written after it.
                Storage::External => {
                    recorded.files.memory.as_deref().and_then(|path| sizes(path).ok()).unwrap_or_default().0
                }
            },
            origin: if id.is_ours() { Origin::Service } else { Origin::Foreign },
            broken,
            revert_denied: None,
            restrictions: recorded.restrictions,
            id,
        }
    }

    /// The size that a guest sees in an image, in bytes; `None` where it cannot be read.
    pub(super) fn capacity(&mut self, path: &Path, format: &str) -> Option<u64> {
        match format {
            "qcow2" => match self.read(path) {
                Found::Image(image) => Some(image.capacity_bytes),
                Found::Gone(_) | Found::Unknown(_) => None,
            },
            _ => sizes(path).ok().map(|(capacity, _)| capacity),
        }
    }

    /// The size that a guest saw in an image when a snapshot inside it was taken.
    pub(super) fn capacity_in(&mut self, path: &Path, snapshot: &str) -> Option<u64> {
        match self.read(path) {
            Found::Image(image) => image.tags.iter().find(|tag| tag.name == snapshot)?.capacity_bytes,
            Found::Gone(_) | Found::Unknown(_) => None,
        }
    }

    /// The ids of the snapshots that are in the images of these disks and whose names are not listed.
    pub(super) fn strays(&mut self, disks: &[DiskFacts], listed: &BTreeSet<String>) -> BTreeSet<String> {
        let mut strays = BTreeSet::new();
        for disk in disks.iter().filter(|disk| !disk.read_only && disk.format == "qcow2") {
            if let Found::Image(image) = self.read(Path::new(&disk.path)) {
                let is_unlisted = |name: &&String| !listed.contains(*name) && !safety::is_tag(name);
                let names = image.tags.iter().map(|tag| &tag.name).filter(is_unlisted);
                strays.extend(names.map(|name| SnapshotId::of_name(name).to_string()));
            }
        }
        strays
    }

    /// The names of the snapshots in each image that was read, and when they were taken; `None` for those that could not be.
    pub(super) fn contents(&self) -> BTreeMap<PathBuf, Option<BTreeMap<String, Stamp>>> {
        let names = |found: &Found| match found {
            Found::Image(image) => Some(image.stamps()),
            Found::Gone(_) | Found::Unknown(_) => None,
        };
        self.read.iter().map(|(path, found)| (path.clone(), names(found))).collect()
    }
}

/// The target of the first drive whose medium does not exist.
pub(super) fn missing_medium<'a>(media: impl IntoIterator<Item = &'a Medium>) -> Option<String> {
    let gone = |medium: &&Medium| matches!(files::try_exists(&medium.path), Ok(false));
    media.into_iter().find(gone).map(|medium| medium.target.clone())
}

/// Bytes free for an image: of the file system that its file is on; of a block device, what is behind the end of its data.
/// `None` where that is not known.
pub(super) fn free_bytes(path: &Path) -> Option<u64> {
    if is_block_device(path) {
        let free = files::with(path, || {
            let mut device = File::open(path)?;
            let size = device.seek(SeekFrom::End(0))?;
            Ok(size.saturating_sub(qcow2::end_of_data(&device)?))
        });
        return free.ok();
    }
    files::space(path.parent()?).ok().map(|(free, _)| free)
}

fn is_block_device(path: &Path) -> bool {
    files::metadata(path).map_or(path.starts_with("/dev"), |metadata| metadata.file_type().is_block_device())
}

/// The size and the allocation of a raw image or a block device.
fn sizes(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = files::metadata(path)?;
    if metadata.is_file() {
        return Ok((metadata.len(), metadata.blocks().saturating_mul(512)));
    }
    if !metadata.file_type().is_block_device() {
        return Ok((0, 0));
    }
    let size = files::with(path, || File::open(path)?.seek(SeekFrom::End(0)))?;
    Ok((size, size))
}

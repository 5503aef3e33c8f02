//! Reads what a qcow2 image says about itself: its size and the snapshots inside it.
//!
//! The file is read directly and never locked or written, so this works while QEMU has it open, and costs some
//! microseconds instead of a `qemu-img` process. Format: docs/interop/qcow2.rst in QEMU's source.
//!
//! 1. The header and its extensions give the size, the features, the backing file's name and format, and the place of the
//!    snapshot table ([`header`]).
//! 2. The table has the snapshots, each with an id and a name (libvirt's name of the snapshot, the "tag") ([`table`]).
//! 3. QEMU replaces the table and then the header. So the header is read again at the end; if it changed meanwhile, the
//!    reading starts over.
//!
//! Nothing in the file is believed: lengths and counts are held against bounds before they are used.

mod active;
mod backing;
mod end;
mod fields;
mod file;
mod header;
mod table;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use snapshot_core::images::Features;

pub use active::{held, is_empty};

pub use backing::{backing_file, local_path};
pub(crate) use end::end_of_data;
use header::Header;
#[cfg(test)]
use header::{HEADER_BYTES, MAGIC};
#[cfg(test)]
use table::{ENTRY_BYTES, parse_table};

pub use file::HostFile;

use crate::bounded::files;

/// How often a table that is being replaced is read again.
const MAX_READS: u32 = 5;

/// A snapshot inside an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// QEMU's id of it: mostly a number, but any text may stand there. QEMU looks for ids before it looks for names.
    pub id: String,
    /// Its name: libvirt's name of the snapshot.
    pub name: String,
    /// When it was taken.
    pub stamp: Stamp,
    /// Bytes of running state in this image; 0 on all disks but the first, and in snapshots of the disks alone.
    pub vm_state_bytes: u64,
    /// Bytes of the snapshot's own L1 table.
    pub l1_bytes: u64,
    /// The size that the guest saw then, in bytes; `None` in images of before QEMU wrote it down.
    pub capacity_bytes: Option<u64>,
}

/// When a snapshot inside an image was taken. Another that is taken with its name has another stamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stamp {
    /// Seconds of the Unix epoch.
    pub seconds: u32,
    /// Nanoseconds beside them.
    pub nanoseconds: u32,
    /// How long the guest had run, in nanoseconds; 0 where it did not run.
    pub vm_clock: u64,
}

/// What an image says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The size the guest sees, in bytes.
    pub capacity_bytes: u64,
    /// Bytes taken on the file system.
    pub allocation_bytes: u64,
    /// Whether it is a clone on top of another image.
    pub has_backing_file: bool,
    /// The image it lies on, as it is written there.
    pub backing: Option<Backing>,
    /// The snapshots in it, in the order of the table.
    pub tags: Vec<Tag>,
    /// What kind of image it is.
    pub features: Features,
    /// What the host says about the file.
    pub file: HostFile,
}

impl Image {
    /// The names of the snapshots in it, and when they were taken: of two with one name that of the first, which QEMU takes.
    pub fn stamps(&self) -> BTreeMap<String, Stamp> {
        self.tags.iter().rev().map(|tag| (tag.name.clone(), tag.stamp)).collect()
    }
}

/// What an image says of the one it lies on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// The name: a path, which may be relative to the image's own folder, or something else that QEMU understands.
    pub name: String,
    /// The format, where it is told.
    pub format: Option<String>,
}

/// Why an image could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Not a qcow2 image, or one that breaks its own format.
    #[error("not a sound qcow2 image: {0}")]
    Format(&'static str),
    /// It changed while it was read, every time.
    #[error("it changes faster than it can be read")]
    Unsteady,
}

/// Reads an image.
pub fn read(path: &Path) -> Result<Image, ImageError> {
    let _access = files::enter(path)?;
    let file = open(path)?;
    let host = HostFile::of(&file)?;
    for _ in 0..MAX_READS {
        let header = Header::read(&file)?;
        let (tags, backing) = (header.read_tags(&file), header.read_backing(&file));
        if Header::read(&file)? == header {
            return Ok(Image {
                capacity_bytes: header.capacity_bytes,
                allocation_bytes: host.allocation_bytes,
                has_backing_file: header.backing_offset != 0,
                backing: backing?,
                tags: tags?,
                features: header.features,
                file: host,
            });
        }
    }
    Err(ImageError::Unsteady)
}

/// Opens a file for reading. A path that names a pipe does not hold up the thread.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let nonblock = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    files::with(path, || OpenOptions::new().read(true).custom_flags(nonblock).open(path))
}

#[cfg(test)]
mod tests;

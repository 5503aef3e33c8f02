//! Reads what a qcow2 image says about itself: its size and the snapshots inside it.
//!
//! The file is read directly and never locked or written, so this works while QEMU has it open, and costs some
//! microseconds instead of a `qemu-img` process. Format: docs/interop/qcow2.rst in QEMU's source.
//!
//! 1. The header gives the size, the backing file's name and format, and the place of the snapshot table.
//! 2. The table is a run of entries of varying length, each with an id, a name (libvirt's name of the snapshot, the
//!    "tag"), the size of the saved running state and the size of the snapshot's own L1 table.
//! 3. QEMU replaces the table and then the header. So the header is read again at the end; if it changed meanwhile, the
//!    reading starts over.
//!
//! Nothing in the file is believed: lengths and counts are held against bounds before they are used.

mod active;
mod backing;
mod end;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

pub use active::held;
pub use backing::{backing_file, local_path};
pub(crate) use end::end_of_data;

const MAGIC: u32 = 0x5146_49fb;
/// The part of the header that version 2 and 3 share: all that is of interest here.
const HEADER_BYTES: usize = 72;
const ENTRY_BYTES: usize = 40;
/// QEMU's own limit for the name of a backing file.
const MAX_BACKING_NAME: u32 = 1023;
/// Where a header of version 3 tells how long it is.
const HEADER_LENGTH_OFFSET: u64 = 100;
/// The header extension with the backing file's format.
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Extensions lie in the first cluster, which has 64 KiB unless somebody wanted it otherwise.
const MAX_EXTENSIONS: u64 = 64 << 10;
/// QEMU's own limit.
const MAX_SNAPSHOTS: u32 = 65_536;
/// The most bytes of a snapshot table that are read; an entry of libvirt's making has about 140.
const MAX_TABLE_BYTES: u64 = 16 << 20;
/// How often a table that is being replaced is read again.
const MAX_READS: u32 = 5;

/// A snapshot inside an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// Its name: libvirt's name of the snapshot.
    pub name: String,
    /// When it was taken, in seconds of the Unix epoch.
    pub date: u32,
    /// Bytes of running state in this image; 0 on all disks but the first, and in snapshots of the disks alone.
    pub vm_state_bytes: u64,
    /// Bytes of the snapshot's own L1 table.
    pub l1_bytes: u64,
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
    let file = open(path)?;
    let allocation_bytes = file.metadata()?.blocks().saturating_mul(512);
    for _ in 0..MAX_READS {
        let header = Header::read(&file)?;
        let (tags, backing) = (header.read_tags(&file), header.read_backing(&file));
        if Header::read(&file)? == header {
            return Ok(Image {
                capacity_bytes: header.capacity_bytes,
                allocation_bytes,
                has_backing_file: header.backing_offset != 0,
                backing: backing?,
                tags: tags?,
            });
        }
    }
    Err(ImageError::Unsteady)
}

/// Opens a file for reading. A path that names a pipe does not hold up the thread.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let nonblock = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    OpenOptions::new().read(true).custom_flags(nonblock).open(path)
}

#[derive(Debug, PartialEq, Eq)]
struct Header {
    version: u32,
    capacity_bytes: u64,
    backing_offset: u64,
    backing_bytes: u32,
    snapshots: u32,
    snapshots_offset: u64,
}

impl Header {
    fn read(file: &File) -> Result<Self, ImageError> {
        let mut bytes = [0; HEADER_BYTES];
        read_exact_at(file, &mut bytes, 0)?;
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, ImageError> {
        let mut fields = Fields(bytes);
        let malformed = || ImageError::Format("the header is cut short");
        if fields.u32().ok_or_else(malformed)? != MAGIC {
            return Err(ImageError::Format("it has another magic number"));
        }
        let version = fields.u32().ok_or_else(malformed)?;
        if !matches!(version, 2 | 3) {
            return Err(ImageError::Format("it has another version"));
        }
        let backing_offset = fields.u64().ok_or_else(malformed)?;
        let backing_bytes = fields.u32().ok_or_else(malformed)?;
        fields.skip(4).ok_or_else(malformed)?;
        let capacity_bytes = fields.u64().ok_or_else(malformed)?;
        fields.skip(28).ok_or_else(malformed)?;
        let snapshots = fields.u32().ok_or_else(malformed)?;
        let snapshots_offset = fields.u64().ok_or_else(malformed)?;
        if snapshots > MAX_SNAPSHOTS {
            return Err(ImageError::Format("it claims too many snapshots"));
        }
        if backing_bytes > MAX_BACKING_NAME {
            return Err(ImageError::Format("the name of its backing file is too long"));
        }
        Ok(Self { version, capacity_bytes, backing_offset, backing_bytes, snapshots, snapshots_offset })
    }

    fn read_backing(&self, file: &File) -> Result<Option<Backing>, ImageError> {
        if self.backing_offset == 0 || self.backing_bytes == 0 {
            return Ok(None);
        }
        let name = read_up_to(file, self.backing_offset, self.backing_bytes.into())?;
        if name.len() < self.backing_bytes as usize {
            return Err(ImageError::Format("the name of its backing file is cut short"));
        }
        let name = String::from_utf8(name).map_err(|_| ImageError::Format("its backing file's name is no text"))?;
        let format = self.read_backing_format(file)?;
        Ok(Some(Backing { name, format }))
    }

    /// The header extensions follow the header; each is a type, a length and its data, padded to eight bytes.
    fn read_backing_format(&self, file: &File) -> Result<Option<String>, ImageError> {
        let start = if self.version == 2 {
            HEADER_BYTES as u64
        } else {
            let length = read_up_to(file, HEADER_LENGTH_OFFSET, 4)?;
            u64::from(Fields(&length).u32().unwrap_or_default())
        };
        let bytes = read_up_to(file, start, MAX_EXTENSIONS)?;
        let mut fields = Fields(&bytes);
        while let (Some(kind), Some(length)) = (fields.u32(), fields.u32()) {
            if kind == 0 {
                break;
            }
            let Some(data) = fields.take(length as usize) else { break };
            if kind == BACKING_FORMAT {
                return Ok(Some(String::from_utf8_lossy(data).into_owned()));
            }
            if fields.skip((length.wrapping_neg() % 8) as usize).is_none() {
                break;
            }
        }
        Ok(None)
    }

    fn read_tags(&self, file: &File) -> Result<Vec<Tag>, ImageError> {
        if self.snapshots == 0 {
            return Ok(Vec::new());
        }
        // The header does not tell the table's length: read generously, and more only when an entry is cut off.
        let mut length = u64::from(self.snapshots).saturating_mul(256).clamp(4096, MAX_TABLE_BYTES);
        loop {
            let table = read_up_to(file, self.snapshots_offset, length)?;
            let at_end = (table.len() as u64) < length;
            match parse_table(&table, self.snapshots) {
                Some(tags) => return Ok(tags),
                None if at_end || length == MAX_TABLE_BYTES => {
                    return Err(ImageError::Format("its snapshot table is cut short"));
                }
                None => length = length.saturating_mul(4).min(MAX_TABLE_BYTES),
            }
        }
    }
}

/// The entries of a table; `None` when it ends before the last of them.
fn parse_table(bytes: &[u8], snapshots: u32) -> Option<Vec<Tag>> {
    let mut fields = Fields(bytes);
    // The count was held against a bound, but a reservation is better held against what is there.
    let mut tags = Vec::with_capacity((snapshots as usize).min(bytes.len() / ENTRY_BYTES));
    for _ in 0..snapshots {
        let before = fields.0.len();
        fields.skip(8)?;
        let l1_entries = fields.u32()?;
        let (id_bytes, name_bytes) = (fields.u16()?, fields.u16()?);
        let date = fields.u32()?;
        fields.skip(12)?;
        let small_state = fields.u32()?;
        let extra_bytes = fields.u32()?;
        // The first extra field is the wide form of the state's size; older images have none.
        let mut extra = Fields(fields.take(extra_bytes as usize)?);
        let vm_state_bytes = extra.u64().unwrap_or_else(|| u64::from(small_state));
        fields.skip(usize::from(id_bytes))?;
        let name = String::from_utf8_lossy(fields.take(usize::from(name_bytes))?).into_owned();
        let padding = (before - fields.0.len()).wrapping_neg() % 8;
        // The padding after the last entry may lie beyond the end of the file.
        fields.skip(padding.min(fields.0.len()))?;
        tags.push(Tag { name, date, vm_state_bytes, l1_bytes: u64::from(l1_entries) * 8 });
    }
    Some(tags)
}

/// Big-endian fields, one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.take(count).map(drop)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }
}

fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> Result<(), ImageError> {
    file.read_exact_at(bytes, offset).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => ImageError::Format("it is shorter than a header"),
        _ => ImageError::Io(error),
    })
}

/// Reads `length` bytes, or as many as there are.
fn read_up_to(file: &File, offset: u64, length: u64) -> Result<Vec<u8>, ImageError> {
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // An offset beyond what the system can express is the image's fault.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => break,
            Err(error) => return Err(error.into()),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

#[cfg(test)]
mod tests;

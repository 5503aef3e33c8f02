//! The header and its extensions: what kind of image it is, and what is in it.
//!
//! An incompatible feature that is not known means that nothing else here can be believed, so its bit is told as it is
//! (`snapshot_core::images` decides). Unknown compatible and autoclear features, and unknown extensions, are what a program may
//! ignore by the format's own rules.

use std::fs::File;

use snapshot_core::images::Features;

use super::fields::{Fields, read_up_to};
use super::{Backing, ImageError};

pub(super) const MAGIC: u32 = 0x5146_49fb;
/// The part of the header that versions 2 and 3 share.
pub(super) const HEADER_BYTES: usize = 72;
/// QEMU's own limit for the name of a backing file.
const MAX_BACKING_NAME: u32 = 1023;
const LENGTH_OF_VERSION_3: u32 = 104;
/// Counters of 64 bits.
const MAX_REFCOUNT_ORDER: u32 = 6;
/// The longest header there is; QEMU's has 112 bytes.
const MAX_HEADER_LENGTH: u32 = 4096;
/// What is read at first: the header and, as QEMU writes them, all of its extensions.
const FIRST_BYTES: u64 = 4096;
/// Extensions are in the first cluster, which has 64 KiB unless somebody wanted it otherwise.
const MAX_EXTENSIONS: u64 = 64 << 10;
/// QEMU's own limit.
const MAX_SNAPSHOTS: u32 = 65_536;
/// The header extensions that matter; those with the names of features and with the key of an encrypted image do not.
const BACKING_FORMAT: u32 = 0xe279_2aca;
const BITMAPS: u32 = 0x2385_2875;
const DATA_FILE: u32 = 0x4441_5441;
/// The autoclear feature without which QEMU ignores the bitmaps: somebody has written the image who did not know of them.
const BITMAPS_VALID: u64 = 1;

/// What the header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) capacity_bytes: u64,
    pub(super) backing_offset: u64,
    backing_bytes: u32,
    pub(super) cluster_bits: u32,
    pub(super) snapshots: u32,
    pub(super) snapshots_offset: u64,
    length: u32,
    autoclear: u64,
    pub(super) features: Features,
    backing_format: Option<String>,
}

impl Header {
    pub(super) fn read(file: &File) -> Result<Self, ImageError> {
        let bytes = read_up_to(file, 0, FIRST_BYTES)?;
        let mut header = Self::parse(&bytes)?;
        let end = header.end_of_extensions();
        if header.extensions(bytes.get(..usize::try_from(end).unwrap_or(usize::MAX)).unwrap_or(&bytes)) {
            return Ok(header);
        }
        let more = read_up_to(file, 0, end.min(MAX_EXTENSIONS))?;
        let mut header = Self::parse(&more)?;
        header.features.unknown_extensions = !header.extensions(&more);
        Ok(header)
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        let mut fields = Fields(bytes);
        let cut = || ImageError::Format("it is shorter than a header");
        if bytes.len() < HEADER_BYTES {
            return Err(cut());
        }
        if fields.u32().ok_or_else(cut)? != MAGIC {
            return Err(ImageError::Format("it has another magic number"));
        }
        let version = fields.u32().ok_or_else(cut)?;
        if !matches!(version, 2 | 3) {
            return Err(ImageError::Format("it has another version"));
        }
        let backing_offset = fields.u64().ok_or_else(cut)?;
        let backing_bytes = fields.u32().ok_or_else(cut)?;
        let cluster_bits = fields.u32().ok_or_else(cut)?;
        let capacity_bytes = fields.u64().ok_or_else(cut)?;
        let crypt_method = fields.u32().ok_or_else(cut)?;
        fields.skip(24).ok_or_else(cut)?;
        let snapshots = fields.u32().ok_or_else(cut)?;
        let snapshots_offset = fields.u64().ok_or_else(cut)?;
        if snapshots > MAX_SNAPSHOTS {
            return Err(ImageError::Format("it claims too many snapshots"));
        }
        if backing_bytes > MAX_BACKING_NAME {
            return Err(ImageError::Format("the name of its backing file is too long"));
        }
        // 512 bytes to 2 MiB: QEMU's own limits.
        if !(9..=21).contains(&cluster_bits) {
            return Err(ImageError::Format("it has clusters of an impossible size"));
        }
        let mut header = Self {
            capacity_bytes,
            backing_offset,
            backing_bytes,
            cluster_bits,
            snapshots,
            snapshots_offset,
            length: HEADER_BYTES as u32,
            autoclear: 0,
            features: Features { version, crypt_method, ..Features::default() },
            backing_format: None,
        };
        if version == 3 {
            header.features.incompatible = fields.u64().ok_or_else(cut)?;
            fields.skip(8).ok_or_else(cut)?;
            header.autoclear = fields.u64().ok_or_else(cut)?;
            header.features.refcount_order = fields.u32().ok_or_else(cut)?;
            header.length = fields.u32().ok_or_else(cut)?;
            if header.length < LENGTH_OF_VERSION_3 || header.features.refcount_order > MAX_REFCOUNT_ORDER {
                return Err(ImageError::Format("its header has impossible numbers"));
            }
        }
        Ok(header)
    }

    /// Where the extensions end: where the backing file's name begins, which follows them, or with the first cluster.
    fn end_of_extensions(&self) -> u64 {
        match self.backing_offset {
            0 => 1_u64.checked_shl(self.cluster_bits).unwrap_or(MAX_EXTENSIONS),
            offset => offset,
        }
    }

    /// Reads the extensions out of the beginning of the file; `false` when they are not all in it. Each is a type, a length and
    /// its data, padded to eight bytes.
    fn extensions(&mut self, bytes: &[u8]) -> bool {
        let whole = bytes.len() as u64 == self.end_of_extensions();
        if self.length > MAX_HEADER_LENGTH {
            return false;
        }
        let Some(rest) = bytes.get(self.length as usize..) else { return whole };
        let mut fields = Fields(rest);
        while let (Some(kind), Some(length)) = (fields.u32(), fields.u32()) {
            if kind == 0 {
                return true;
            }
            let Some(data) = fields.take(length as usize) else { return false };
            match kind {
                BACKING_FORMAT => self.backing_format = Some(String::from_utf8_lossy(data).into_owned()),
                BITMAPS if self.autoclear & BITMAPS_VALID != 0 => {
                    let Some(count) = Fields(data).u32() else { return false };
                    self.features.bitmaps = count;
                }
                DATA_FILE => self.features.data_file = Some(String::from_utf8_lossy(data).into_owned()),
                _ => {}
            }
            let padding = length.wrapping_neg() % 8;
            fields.skip((padding as usize).min(fields.0.len()));
        }
        whole
    }

    pub(super) fn read_backing(&self, file: &File) -> Result<Option<Backing>, ImageError> {
        if self.backing_offset == 0 || self.backing_bytes == 0 {
            return Ok(None);
        }
        let name = read_up_to(file, self.backing_offset, self.backing_bytes.into())?;
        if name.len() < self.backing_bytes as usize {
            return Err(ImageError::Format("the name of its backing file is cut short"));
        }
        let name = String::from_utf8(name).map_err(|_| ImageError::Format("its backing file's name is no text"))?;
        Ok(Some(Backing { name, format: self.backing_format.clone() }))
    }
}

//! The snapshot table: a run of entries of varying length, each with an id, a name, the size of the saved running state and the
//! size of the snapshot's own L1 table.

use std::fs::File;

use super::fields::{Fields, read_up_to};
use super::{Header, ImageError, Stamp, Tag};

pub(super) const ENTRY_BYTES: usize = 40;
/// The most bytes of a snapshot table that are read; an entry of libvirt's making has about 140.
pub(super) const MAX_TABLE_BYTES: u64 = 16 << 20;

impl Header {
    pub(super) fn read_tags(&self, file: &File) -> Result<Vec<Tag>, ImageError> {
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

/// An entry of a table.
pub(super) struct Entry {
    pub(super) tag: Tag,
    /// Where the snapshot's L1 table is, in bytes from the beginning of the file.
    pub(super) l1_offset: u64,
    /// The number of entries in its L1 table.
    pub(super) l1_entries: u32,
}

/// The snapshots of a table; `None` when it ends before the last of them.
pub(super) fn parse_table(bytes: &[u8], snapshots: u32) -> Option<Vec<Tag>> {
    Some(parse_entries(bytes, snapshots)?.into_iter().map(|entry| entry.tag).collect())
}

/// The entries of a table; `None` when it ends before the last of them.
pub(super) fn parse_entries(bytes: &[u8], snapshots: u32) -> Option<Vec<Entry>> {
    let mut fields = Fields(bytes);
    // The count was held against a bound, but a reservation is better held against what is there.
    let mut entries = Vec::with_capacity((snapshots as usize).min(bytes.len() / ENTRY_BYTES));
    for _ in 0..snapshots {
        let before = fields.0.len();
        let (l1_offset, l1_entries) = (fields.u64()?, fields.u32()?);
        let (id_bytes, name_bytes) = (fields.u16()?, fields.u16()?);
        let stamp = Stamp { seconds: fields.u32()?, nanoseconds: fields.u32()?, vm_clock: fields.u64()? };
        let small_state = fields.u32()?;
        let extra_bytes = fields.u32()?;
        // The first extra field is the wide form of the state's size; older images have none.
        let mut extra = Fields(fields.take(extra_bytes as usize)?);
        let vm_state_bytes = extra.u64().unwrap_or_else(|| u64::from(small_state));
        let capacity_bytes = extra.u64();
        let id = String::from_utf8_lossy(fields.take(usize::from(id_bytes))?).into_owned();
        let name = String::from_utf8_lossy(fields.take(usize::from(name_bytes))?).into_owned();
        let padding = (before - fields.0.len()).wrapping_neg() % 8;
        // The padding after the last entry may lie beyond the end of the file.
        fields.skip(padding.min(fields.0.len()))?;
        let tag = Tag { id, name, stamp, vm_state_bytes, l1_bytes: u64::from(l1_entries) * 8, capacity_bytes };
        entries.push(Entry { tag, l1_offset, l1_entries });
    }
    Some(entries)
}

//! What the active state of an image is the same as.
//!
//! A state is an L1 table: which clusters have the tables of the guest's data. Taking a snapshot copies the table, and going back
//! to one copies it back; the first write of the guest after either gives the active state another one. So equal tables are equal
//! states, and the guest's data need not be read. The flags in an entry tell who shares a cluster and differ all the time.

use std::path::Path;

use super::fields::{Fields, read_up_to};
use super::header::HEADER_BYTES;
use super::table::{ENTRY_BYTES, MAX_TABLE_BYTES, parse_entries};
use super::{Header, ImageError, open};
use crate::safety::Held;

/// The bits of an entry that are an offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// QEMU's own limit.
const MAX_L1_BYTES: u64 = 32 << 20;
/// The incompatible feature by which an entry of an L2 table has 16 bytes instead of 8.
const EXTENDED_L2: u64 = 1 << 4;

struct State {
    name: String,
    l1: Vec<u64>,
}

/// Whether an image holds nothing of its own: all that a guest reads is in its backing file.
pub fn is_empty(path: &Path) -> Result<bool, ImageError> {
    let file = open(path)?;
    let bytes = read_up_to(&file, 0, HEADER_BYTES as u64)?;
    Header::read(&file)?;
    let mut fields = Fields(&bytes);
    let place = fields.skip(36).and_then(|()| Some((fields.u32()?, fields.u64()?)));
    let (entries, offset) = place.ok_or(ImageError::Format("the header is cut short"))?;
    let length = u64::from(entries).saturating_mul(8).min(MAX_L1_BYTES);
    Ok(read_up_to(&file, offset, length)?.iter().all(|byte| *byte == 0))
}

/// Which of two snapshots inside an image its active state is the same as.
pub fn held(path: &Path, current: &str, snapshot: &str) -> Result<Held, ImageError> {
    let file = open(path)?;
    let bytes = read_up_to(&file, 0, HEADER_BYTES as u64)?;
    let header = Header::read(&file)?;
    let cut = || ImageError::Format("the header is cut short");
    let mut fields = Fields(&bytes);
    fields.skip(36).ok_or_else(cut)?;
    let (entries, offset) = (fields.u32().ok_or_else(cut)?, fields.u64().ok_or_else(cut)?);
    // What is beyond the disk is the running state, which a snapshot may take along.
    let entry_bits = if header.features.incompatible & EXTENDED_L2 == 0 { 3 } else { 4 };
    let covered = 1_u64 << (2 * header.cluster_bits - entry_bits);
    let of_disk = usize::try_from(header.capacity_bytes.div_ceil(covered)).unwrap_or(usize::MAX);
    let table = |offset, entries: u32| -> Result<Vec<u64>, ImageError> {
        let length = u64::from(entries) * 8;
        if length > MAX_L1_BYTES {
            return Err(ImageError::Format("an L1 table is longer than it may be"));
        }
        let bytes = read_up_to(&file, offset, length)?;
        if (bytes.len() as u64) < length {
            return Err(ImageError::Format("an L1 table is cut short"));
        }
        let mut fields = Fields(&bytes);
        let mut table: Vec<u64> =
            std::iter::from_fn(|| fields.u64()).map(|entry| entry & OFFSET).take(of_disk).collect();
        // Entries that are not there are empty ones.
        while table.last() == Some(&0) {
            table.pop();
        }
        Ok(table)
    };
    let active = table(offset, entries)?;
    let places = read_up_to(&file, header.snapshots_offset, MAX_TABLE_BYTES.min(table_bytes(header.snapshots)))?;
    let listed =
        parse_entries(&places, header.snapshots).ok_or(ImageError::Format("its snapshot table is cut short"))?;
    let mut found = Vec::new();
    for entry in listed.into_iter().filter(|entry| entry.tag.name == current || entry.tag.name == snapshot) {
        let name = entry.tag.name;
        match table(entry.l1_offset, entry.l1_entries) {
            Ok(l1) => found.push(State { name, l1 }),
            // Nobody has gone back to a snapshot that is damaged.
            Err(ImageError::Format(_)) if name != current => {}
            Err(error) => return Err(error),
        }
    }
    let equals = |name: &str| found.iter().find(|state| state.name == name).map(|state| state.l1 == active);
    Ok(match (equals(current), equals(snapshot)) {
        (Some(true), Some(true)) => Held::Both,
        (Some(true), _) => Held::Current,
        (_, Some(true)) => Held::Snapshot,
        (None, _) => Held::Unknown,
        (Some(false), _) => Held::Other,
    })
}

/// The most bytes that a table of so many snapshots has, for names and ids of QEMU's own limits.
fn table_bytes(snapshots: u32) -> u64 {
    u64::from(snapshots) * (ENTRY_BYTES as u64 + 1024 + 2 * 65_536)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn run(dir: &Path, program: &str, args: &[&str]) {
        let output = Command::new(program).args(args).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn the_active_state_is_told_from_its_l1_table() {
        for options in ["compat=1.1", "compat=0.10", "cluster_size=512", "extended_l2=on", "cluster_size=2M"] {
            let dir = tempfile::tempdir().unwrap();
            let (dir, image) = (dir.path(), dir.path().join("a.qcow2"));
            run(dir, "qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, "a.qcow2", "64M"]);
            let write = |what: &str| run(dir, "qemu-io", &["-c", &format!("write -P {what} 0 64k"), "a.qcow2"]);
            let snapshot = |what: &str, name: &str| run(dir, "qemu-img", &["snapshot", what, name, "a.qcow2"]);
            let held = || held(&image, "now", "then").unwrap();
            write("1");
            snapshot("-c", "then");
            write("2");
            assert_eq!(held(), Held::Unknown, "{options}: it has no tag");
            snapshot("-c", "now");
            assert_eq!(held(), Held::Current, "{options}");
            snapshot("-a", "then");
            assert_eq!(held(), Held::Snapshot, "{options}");
            snapshot("-a", "now");
            assert_eq!(held(), Held::Current, "{options}");
            write("2");
            assert_eq!(held(), Held::Other, "{options}: written to, whatever was written");
            snapshot("-a", "then");
            snapshot("-d", "now");
            assert_eq!(held(), Held::Snapshot, "{options}");
            snapshot("-c", "now");
            assert_eq!(held(), Held::Both, "{options}");
        }
    }
}

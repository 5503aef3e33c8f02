//! Where the data in a qcow2 image ends: on a block device, what is behind it is free.
//!
//! The refcount table is read from its end to the last block that there is, and that block to its last cluster in use. Free
//! clusters before it are not counted.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The part of the header that is read.
const HEADER_BYTES: usize = 104;
const MAGIC: [u8; 4] = *b"QFI\xfb";
/// QEMU's own limit for the table.
const MAX_TABLE_BYTES: u64 = 8 << 20;

/// The end of the last cluster in use, in bytes.
pub(crate) fn end_of_data(file: &File) -> io::Result<u64> {
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0)?;
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let long = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at + 4));
    let (version, cluster_bits) = (word(4), word(20));
    let refcount_order = if version >= 3 { word(96) } else { 4 };
    if header[..4] != MAGIC || !(9..=21).contains(&cluster_bits) || refcount_order > 6 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a qcow2 image"));
    }
    let cluster = 1_u64 << cluster_bits;
    let (table_at, table_bytes) = (long(48), u64::from(word(56)) * cluster);
    if table_bytes > MAX_TABLE_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the refcount table is too long"));
    }
    let table = read(file, table_at, table_bytes)?;
    let blocks = table.chunks_exact(8).map(|entry| entry.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)));
    let in_block = (cluster * 8) >> refcount_order;
    for (place, block_at) in blocks.enumerate().filter(|(_, at)| *at != 0).collect::<Vec<_>>().into_iter().rev() {
        let block = read(file, block_at & !511, cluster)?;
        if let Some(last) = last_used(&block, refcount_order) {
            let end = (place as u64 * in_block + last + 1).saturating_mul(cluster);
            return Ok(end);
        }
    }
    Ok(0)
}

/// The last refcount of a block that is not zero.
fn last_used(block: &[u8], refcount_order: u32) -> Option<u64> {
    let byte = block.iter().rposition(|byte| *byte != 0)? as u64;
    let bits = 1_u64 << refcount_order;
    Some(match bits {
        // Several in a byte, the first in its lowest bits: the last that is not zero.
        1..8 => byte * (8 / bits) + u64::from(block[byte as usize].ilog2()) / bits,
        _ => byte * 8 / bits,
    })
}

fn read(file: &File, at: u64, bytes: u64) -> io::Result<Vec<u8>> {
    let length = usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut read = vec![0; length];
    file.read_exact_at(&mut read, at)?;
    Ok(read)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;

    fn run(dir: &Path, program: &str, args: &[&str]) -> String {
        let output = Command::new(program).args(args).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// qemu-img's own number, which it calls "Image end offset".
    fn told(dir: &Path) -> u64 {
        let told = run(dir, "qemu-img", &["check", "--output=json", "a.qcow2"]);
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        told["image-end-offset"].as_u64().unwrap()
    }

    #[test]
    fn it_is_where_qemu_says() {
        let dir = tempfile::tempdir().unwrap();
        for options in [
            "compat=1.1",
            "compat=0.10",
            "cluster_size=4k",
            "cluster_size=2M",
            "refcount_bits=1",
            "refcount_bits=2",
            "refcount_bits=8",
            "refcount_bits=64",
            "extended_l2=on,cluster_size=128k",
        ] {
            run(dir.path(), "qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, "a.qcow2", "300M"]);
            for write in ["write 0 100k", "write 37M 3M", "write 200M 21M", "discard 200M 21M"] {
                run(dir.path(), "qemu-io", &["-c", write, "a.qcow2"]);
                let file = File::open(dir.path().join("a.qcow2")).unwrap();
                let (found, told) = (end_of_data(&file).unwrap(), told(dir.path()));
                assert_eq!(found, told, "{options}, {write}");
            }
        }
        std::fs::write(dir.path().join("a.raw"), vec![0; 1000]).unwrap();
        assert!(end_of_data(&File::open(dir.path().join("a.raw")).unwrap()).is_err());
    }
}

//! The parser against images that `qemu-img` made, and against garbage.

use std::process::Command;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

fn qemu_img(dir: &TempDir, args: &[&str]) {
    let status = Command::new("qemu-img").args(args).current_dir(dir.path()).output().unwrap();
    assert!(status.status.success(), "qemu-img {args:?}: {}", String::from_utf8_lossy(&status.stderr));
}

#[test]
fn an_image_tells_its_size_its_backing_and_its_snapshots() {
    let dir = tempfile::tempdir().unwrap();
    qemu_img(&dir, &["create", "-q", "-f", "qcow2", "base.qcow2", "64M"]);
    qemu_img(&dir, &["create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "clone.qcow2"]);
    for tag in ["first", "zwölf 🎓", "snap-0191f7a0000070008000000000000001"] {
        qemu_img(&dir, &["snapshot", "-c", tag, "clone.qcow2"]);
    }
    qemu_img(&dir, &["snapshot", "-d", "first", "clone.qcow2"]);
    let base = read(&dir.path().join("base.qcow2")).unwrap();
    assert_eq!((base.capacity_bytes, base.has_backing_file, base.tags.len()), (64 << 20, false, 0));
    assert!(base.allocation_bytes > 0 && base.allocation_bytes < 1 << 20);
    let clone = read(&dir.path().join("clone.qcow2")).unwrap();
    assert!(clone.has_backing_file);
    let names: Vec<&str> = clone.tags.iter().map(|tag| tag.name.as_str()).collect();
    assert_eq!(names, ["zwölf 🎓", "snap-0191f7a0000070008000000000000001"]);
    for tag in &clone.tags {
        assert_eq!(tag.vm_state_bytes, 0);
        assert!(tag.l1_bytes >= 8 && tag.date > 1_600_000_000);
    }
}

#[test]
fn many_snapshots_are_all_read() {
    let dir = tempfile::tempdir().unwrap();
    qemu_img(&dir, &["create", "-q", "-f", "qcow2", "many.qcow2", "1M"]);
    let name = |n: usize| format!("{n:03}-{}", "x".repeat(200));
    for n in 0..40 {
        qemu_img(&dir, &["snapshot", "-c", &name(n), "many.qcow2"]);
    }
    let image = read(&dir.path().join("many.qcow2")).unwrap();
    assert_eq!(
        image.tags.iter().map(|tag| tag.name.clone()).collect::<Vec<_>>(),
        (0..40).map(name).collect::<Vec<_>>()
    );
}

#[test]
fn other_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in [("empty", vec![]), ("raw", vec![0; 4096]), ("text", b"QFI".to_vec())] {
        std::fs::write(dir.path().join(name), content).unwrap();
        assert!(matches!(read(&dir.path().join(name)), Err(ImageError::Format(_))), "{name}");
    }
    assert!(matches!(read(&dir.path().join("absent")), Err(ImageError::Io(_))));
    assert!(read(dir.path()).is_err());
}

fn image_with(snapshots: u32, offset: u64, table: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
    bytes[7] = 3;
    bytes[60..64].copy_from_slice(&snapshots.to_be_bytes());
    bytes[64..72].copy_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(table);
    bytes
}

proptest! {
    #[test]
    fn garbage_never_panics(
        snapshots in prop_oneof![0u32..20, any::<u32>()],
        offset in prop_oneof![Just(72u64), 0u64..200, any::<u64>()],
        table in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), image_with(snapshots, offset, &table)).unwrap();
        if let Ok(image) = read(file.path()) {
            prop_assert_eq!(image.tags.len(), snapshots as usize);
        }
    }

    #[test]
    fn a_table_that_is_cut_anywhere_never_panics(cut in 0usize..1000, flip in 0usize..1000, bits in any::<u8>()) {
        let mut entry = vec![0; ENTRY_BYTES];
        entry[11] = 4;
        entry[13] = 1;
        entry[15] = 5;
        entry[39] = 16;
        entry.extend_from_slice(&[0; 16]);
        entry.extend_from_slice(b"1hello\0\0");
        entry.resize(64, 0);
        let mut table = entry.repeat(3);
        prop_assert_eq!(parse_table(&table, 3).unwrap().len(), 3);
        let at = flip % table.len();
        table[at] ^= bits;
        table.truncate(cut);
        let _ = parse_table(&table, 3);
    }
}

#[test]
fn the_image_below_is_found_however_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    qemu_img(&dir, &["create", "-q", "-f", "qcow2", "base.qcow2", "1M"]);
    let path = dir.path().join("base.qcow2").display().to_string();
    let nested = format!(r#"json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{path}"}}}}"#);
    let flat = format!(r#"json:{{"driver":"qcow2","file.driver":"file","file.filename":"{path}"}}"#);
    for (name, expected) in [
        ("base.qcow2", "base.qcow2"),
        (path.as_str(), path.as_str()),
        (&format!("file:{path}"), path.as_str()),
        (&nested, path.as_str()),
        (&flat, path.as_str()),
    ] {
        qemu_img(&dir, &["create", "-q", "-f", "qcow2", "-b", name, "-F", "qcow2", "clone.qcow2"]);
        assert_eq!(backing_file(&dir.path().join("clone.qcow2")).unwrap().as_deref(), Some(expected), "{name}");
    }
    // Where no file is: it is not opened.
    let create = ["create", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "nbd://host/export", "clone.qcow2", "1M"];
    qemu_img(&dir, &create);
    assert_eq!(backing_file(&dir.path().join("clone.qcow2")).unwrap(), None);
    assert_eq!(backing_file(&dir.path().join("base.qcow2")).unwrap(), None);
    std::fs::write(dir.path().join("raw"), [0; 4096]).unwrap();
    assert!(matches!(backing_file(&dir.path().join("raw")), Err(ImageError::Format(_))));
}

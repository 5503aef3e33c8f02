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
        assert!(tag.l1_bytes >= 8 && tag.stamp.seconds > 1_600_000_000);
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
    // Version 2, clusters of 512 bytes.
    (bytes[7], bytes[23]) = (2, 9);
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

/// What `qemu-img` makes of an image, read back.
fn made(options: &str, then: &[&[&str]]) -> Features {
    let dir = tempfile::tempdir().unwrap();
    let mut create = vec!["create", "-q", "-f", "qcow2"];
    if !options.is_empty() {
        create.extend(["-o", options]);
    }
    create.extend(["i.qcow2", "4M"]);
    qemu_img(&dir, &create);
    then.iter().for_each(|args| qemu_img(&dir, args));
    read(&dir.path().join("i.qcow2")).unwrap().features
}

#[test]
fn the_header_tells_what_kind_of_image_it_is() {
    let plain = Features { version: 3, ..Features::default() };
    assert_eq!(made("", &[]), plain);
    assert_eq!(made("compat=0.10", &[]), Features::default());
    assert_eq!(made("preallocation=metadata,cluster_size=2M", &[]), plain);
    assert_eq!(made("lazy_refcounts=on", &[]), plain);
    assert_eq!(made("compression_type=zstd", &[]), Features { incompatible: 1 << 3, ..plain.clone() });
    assert_eq!(made("extended_l2=on", &[]), Features { incompatible: 1 << 4, ..plain.clone() });
    assert_eq!(made("refcount_bits=1", &[]), Features { refcount_order: 0, ..plain.clone() });
    assert_eq!(made("refcount_bits=64", &[]), Features { refcount_order: 6, ..plain.clone() });
    let data_file = Some("i.raw".to_owned());
    assert_eq!(made("data_file=i.raw", &[]), Features { incompatible: 1 << 2, data_file, ..plain.clone() });
    let add = |name| ["bitmap", "--add", "i.qcow2", name];
    assert_eq!(made("", &[&add("a"), &add("b")]), Features { bitmaps: 2, ..plain.clone() });
    assert_eq!(made("", &[&add("a"), &["bitmap", "--remove", "i.qcow2", "a"]]), plain);
    assert_eq!(made("cluster_size=512", &[&add("a")]).bitmaps, 1);
}

#[test]
fn encryption_is_told_by_its_method() {
    let dir = tempfile::tempdir().unwrap();
    let secret = ["--object", "secret,id=s,data=geheim"];
    for (format, method) in [("luks", 2), ("aes", 1)] {
        let name = format!("{format}.qcow2");
        let options = format!("encrypt.format={format},encrypt.key-secret=s");
        let create = ["create", "-q", "-f", "qcow2", "-o", &options, &name, "4M"];
        qemu_img(&dir, &[&create[..1], &secret, &create[1..]].concat());
        assert_eq!(read(&dir.path().join(&name)).unwrap().features.crypt_method, method, "{format}");
    }
}

/// A program that does not know of bitmaps has written the image: QEMU ignores them, and reverts it.
#[test]
fn bitmaps_that_are_not_valid_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("i.qcow2");
    qemu_img(&dir, &["create", "-q", "-f", "qcow2", "i.qcow2", "4M"]);
    qemu_img(&dir, &["snapshot", "-c", "s", "i.qcow2"]);
    qemu_img(&dir, &["bitmap", "--add", "i.qcow2", "b"]);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[95] &= !1;
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(read(&path).unwrap().features.bitmaps, 0);
    qemu_img(&dir, &["snapshot", "-a", "s", "i.qcow2"]);
}

#[test]
fn unknown_features_are_told_and_extensions_that_do_not_end_are_not_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("i.qcow2");
    qemu_img(&dir, &["create", "-q", "-f", "qcow2", "i.qcow2", "4M"]);
    let sound = std::fs::read(&path).unwrap();
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = sound.clone();
        change(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        read(&path).map(|image| image.features)
    };
    for bit in 5..64_u32 {
        let features = changed(&|bytes| bytes[79 - (bit / 8) as usize] |= 1 << (bit % 8)).unwrap();
        assert_eq!(features.incompatible, 1 << bit);
    }
    // Compatible and autoclear ones may be ignored.
    for byte in (80..88).chain(88..95) {
        assert_eq!(changed(&|bytes| bytes[byte] = 0xff).unwrap().incompatible, 0);
    }
    // An extension that is not known may be ignored, and one that leads out of the cluster may not.
    let table = 112;
    assert!(!changed(&|bytes| bytes[table..table + 4].copy_from_slice(&[1, 2, 3, 4])).unwrap().unknown_extensions);
    let beyond = |bytes: &mut Vec<u8>| bytes[table + 4..table + 8].copy_from_slice(&(1_u32 << 20).to_be_bytes());
    assert!(changed(&beyond).unwrap().unknown_extensions);
    for (place, value) in [(99, 7), (23, 8), (23, 22), (103, 72)] {
        assert!(matches!(changed(&|bytes| bytes[place] = value), Err(ImageError::Format(_))), "{place} {value}");
    }
}

#[test]
fn ids_are_read_with_names() {
    let dir = tempfile::tempdir().unwrap();
    qemu_img(&dir, &["create", "-q", "-f", "qcow2", "i.qcow2", "4M"]);
    for name in ["0", "1", "2"] {
        qemu_img(&dir, &["snapshot", "-c", name, "i.qcow2"]);
    }
    let tags = read(&dir.path().join("i.qcow2")).unwrap().tags;
    let both: Vec<(&str, &str)> = tags.iter().map(|tag| (tag.id.as_str(), tag.name.as_str())).collect();
    assert_eq!(both, [("1", "0"), ("2", "1"), ("3", "2")]);
}

/// Locks as QEMU takes them, and none by who merely has it open.
#[test]
fn who_has_locked_an_image_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("i.qcow2");
    qemu_img(&dir, &["create", "-q", "-f", "qcow2", "i.qcow2", "4M"]);
    let found = || read(&path).map(|image| (image.file.locked, image.file.written)).unwrap();
    let _open = File::open(&path).unwrap();
    assert_eq!(found(), (false, false));
    for (args, expected) in [(&["-r"][..], (true, false)), (&[], (true, true)), (&["-r", "-U"], (false, false))] {
        let mut command = Command::new("qemu-io");
        command.args(args).arg(&path).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut answer = [0; 1];
        // It answers once it has the image open.
        std::io::Write::write_all(process.stdin.as_mut().unwrap(), b"length\n").unwrap();
        std::io::Read::read_exact(process.stdout.as_mut().unwrap(), &mut answer).unwrap();
        let start = std::time::Instant::now();
        while found() != expected && start.elapsed().as_secs() < 20 {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert_eq!(found(), expected, "{args:?}");
        drop(process.stdin.take());
        process.wait().unwrap();
    }
    assert_eq!(found(), (false, false));
}

//! Chains of real images.

use std::fs;
use std::process::Command;

use super::super::snapshot_xml;
use super::super::xml_samples::SNAPSHOT_EXTERNAL;
use super::*;

fn image(dir: &Path, name: &str, backing: &[&str]) -> PathBuf {
    let mut command = Command::new("qemu-img");
    command.current_dir(dir).args(["create", "-q", "-f", "qcow2"]).args(backing).arg(name);
    if backing.is_empty() {
        command.arg("1M");
    }
    assert!(command.status().unwrap().success());
    dir.join(name)
}

#[test]
fn a_chain_is_followed_through_links_to_a_raw_base_that_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(dir.path()).unwrap();
    // What a guest wrote into a raw disk must not pass for an image.
    image(&dir, "base.raw", &[]);
    image(&dir, "a.1", &["-b", "base.raw", "-F", "raw"]);
    std::os::unix::fs::symlink(&dir, dir.join("link")).unwrap();
    let linked = text(&dir.join("link/a.1"));
    let top = image(&dir, "a.2", &["-b", &linked, "-F", "qcow2"]);
    let (mut images, mut layers) = (Images::default(), Layers::default());
    let first = images.follow(&mut layers, &top, "qcow2");
    let chain: Vec<_> = layers.chain(&first).map(|path| Path::new(path).file_name().unwrap().to_owned()).collect();
    assert_eq!(chain, ["a.2", "a.1", "base.raw"]);
    assert_eq!(layers.files[&text(&dir.join("a.1"))].spelled, linked);
    let base = &layers.files[&text(&dir.join("base.raw"))];
    assert_eq!((base.format.as_str(), base.backing.as_deref(), base.pinned), ("raw", None, false));
    assert!(layers.files.values().all(|layer| !layer.pinned) && layers.unreadable.is_none());
}

#[test]
fn what_is_not_understood_is_pinned() {
    let dir = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(dir.path()).unwrap();
    let image = image(&dir, "a", &["-u", "-b", "nbd://host/x", "-F", "raw", "-o", "size=1M"]);
    let (mut images, mut layers) = (Images::default(), Layers::default());
    images.follow(&mut layers, &image, "qcow2");
    assert!(layers.files[&text(&image)].pinned);
    assert_eq!(beside(Path::new("/i/a"), "json:{}"), None);
    assert_eq!(beside(Path::new("/i/a"), "b"), Some(PathBuf::from("/i/b")));
    assert_eq!(beside(Path::new("/i/a"), "file:/j/b"), Some(PathBuf::from("/j/b")));
    assert_eq!(beside(Path::new("/i/a"), "/j/b:c"), Some(PathBuf::from("/j/b:c")));
}

#[test]
fn a_running_state_that_was_cut_off_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    assert!(!is_complete(&path));
    for (content, complete) in [("LibvirtQemudPart....", false), ("LibvirtQemudSave....", true), ("Lib", false)] {
        fs::write(&path, content).unwrap();
        assert_eq!(is_complete(&path), complete, "{content}");
    }
}

#[test]
fn deleted_snapshots_are_not_listed() {
    let one = |name: &str, parent: Option<&str>, deleted| {
        let recorded = snapshot_xml::parse(SNAPSHOT_EXTERNAL).unwrap();
        (name.to_owned(), Recorded { name: name.to_owned(), parent: parent.map(str::to_owned), deleted, ..recorded })
    };
    let recorded = BTreeMap::from([
        one("a", None, false),
        one("b", Some("a"), true),
        one("c", Some("b"), true),
        one("d", Some("c"), false),
    ]);
    let (listed, current) = without_deleted(&recorded, Some("c".to_owned()));
    assert_eq!(current.as_deref(), Some("a"));
    let listed: Vec<_> = listed.iter().map(|one| (one.name.as_str(), one.parent.as_deref())).collect();
    assert_eq!(listed, [("a", None), ("d", Some("a"))]);
}

/// Nothing is merged into it, and it is merged into nothing.
#[test]
fn an_image_is_pinned_by_what_is_in_it_or_by_what_is_not_known_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(dir.path()).unwrap();
    let is_pinned = |path: &Path| {
        let mut layers = Layers::default();
        let name = Images::default().follow(&mut layers, path, "qcow2");
        layers.files[&name].pinned
    };
    let plain = image(&dir, "plain", &[]);
    assert!(!is_pinned(&plain));
    let above = image(&dir, "above", &["-b", "plain", "-F", "qcow2"]);
    assert!(!is_pinned(&above));
    for path in [&plain, &above] {
        assert!(Command::new("qemu-img").args(["snapshot", "-c", "mine"]).arg(path).status().unwrap().success());
    }
    assert!(is_pinned(&plain), "it has a snapshot inside");
    assert!(is_pinned(&above), "it has one, and what it lies on is known");
    assert!(is_pinned(&dir.join("none")), "it is gone");
    let unknown = image(&dir, "unknown", &["-b", "plain", "-F", "qcow2"]);
    forget_format(&unknown);
    assert!(is_pinned(&unknown), "nobody says in which format it reads the file below");
}

/// Takes the header extension with the format of the backing file out of an image, as older tools write it.
fn forget_format(image: &Path) {
    let mut bytes = fs::read(image).unwrap();
    let at = bytes.windows(4).position(|window| window == 0xe279_2aca_u32.to_be_bytes()).unwrap();
    // One of a kind that nobody knows is skipped.
    bytes[at..at + 4].copy_from_slice(&0x1234_5678_u32.to_be_bytes());
    fs::write(image, bytes).unwrap();
}

fn recorded(frozen: &[(&str, &Path)], overlays: &[(&str, &Path)], memory: Option<&Path>) -> Recorded {
    let mut recorded = snapshot_xml::parse(SNAPSHOT_EXTERNAL).unwrap();
    let format = "qcow2".to_owned();
    recorded.files.frozen =
        frozen.iter().map(|(target, path)| ((*target).to_owned(), (path.to_path_buf(), format.clone()))).collect();
    recorded.files.overlays =
        overlays.iter().map(|(target, path)| ((*target).to_owned(), path.to_path_buf())).collect();
    recorded.files.memory = memory.map(Path::to_path_buf);
    recorded
}

/// Nobody may go back to a snapshot of which a part is gone.
#[test]
fn a_snapshot_has_lost_files_where_one_of_its_chains_or_its_running_state_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(dir.path()).unwrap();
    let (base, state) = (image(&dir, "base", &[]), dir.join("state"));
    let top = image(&dir, "top", &["-b", "base", "-F", "qcow2"]);
    let other = image(&dir, "other", &[]);
    fs::write(&state, COMPLETE).unwrap();
    let has_lost = |memory: Option<&Path>| {
        let files = [("vda", other.as_path()), ("vdb", top.as_path())];
        Images::default().has_lost_files(&recorded(&files, &[], memory))
    };
    assert!(!has_lost(None) && !has_lost(Some(&state)));
    fs::write(&state, "LibvirtQemudPart").unwrap();
    assert!(has_lost(Some(&state)) && has_lost(Some(&dir.join("none"))));
    fs::remove_file(&base).unwrap();
    assert!(has_lost(None), "what it lies on is gone");
}

/// What is merged and removed is decided by this.
#[test]
fn the_files_of_a_vm_are_those_of_its_disks_of_its_next_start_and_of_its_external_snapshots() {
    let dir = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(dir.path()).unwrap();
    let (base, next) = (image(&dir, "base", &[]), image(&dir, "next", &[]));
    let top = image(&dir, "top", &["-b", "base", "-F", "qcow2"]);
    let gone = dir.join("gone");
    let external = Recorded {
        name: "a".to_owned(),
        parent: Some("b".to_owned()),
        deleted: true,
        ..recorded(&[("vda", &base)], &[("vda", &top), ("vdb", &gone)], Some(&dir.join("state")))
    };
    let internal = Recorded {
        name: "b".to_owned(),
        storage: snapshot_core::snapshot::Storage::Internal,
        ..recorded(&[("vda", &next)], &[], None)
    };
    let all = BTreeMap::from([("a".to_owned(), external), ("b".to_owned(), internal)]);
    let live = [("vda", top.to_str().unwrap(), "qcow2"), ("vdb", "pool/volume", "raw")];
    let starts = [(top.clone(), "qcow2".to_owned()), (next.clone(), "qcow2".to_owned())];
    let layers = layers(&mut Images::default(), live, starts, &all, Some("a"));
    assert_eq!(layers.live, BTreeMap::from([("vda".to_owned(), text(&top))]), "what is no path is no file");
    assert_eq!(layers.kept, [text(&next)].into(), "the next start uses it, and no disk does now");
    let parts = &layers.snapshots[&SnapshotId::of_name("a")];
    assert_eq!((layers.snapshots.len(), parts.is_current, parts.deleted), (1, true, true));
    assert_eq!(parts.parent, Some(SnapshotId::of_name("b")));
    assert_eq!(parts.frozen, BTreeMap::from([("vda".to_owned(), text(&base))]));
    let overlays = [("vda", &top), ("vdb", &gone)].map(|(target, path)| (target.to_owned(), text(path)));
    assert_eq!(parts.overlays, overlays.into());
    assert_eq!(parts.memory_file, Some(text(&dir.join("state"))));
    assert!(!layers.files.contains_key(&text(&gone)), "an overlay that is gone is no file");
    assert_eq!(layers.files[&text(&top)].backing, Some(text(&base)));
}

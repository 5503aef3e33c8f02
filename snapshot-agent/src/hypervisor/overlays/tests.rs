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

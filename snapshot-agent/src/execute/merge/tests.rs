use snapshot_core::layers::{Layer, Parts};
use snapshot_core::vm::VmState;

use super::*;
use crate::owned::tests::{id, seen};

/// A VM on `top`, which lies on `base`; the merge of the two was begun.
fn begun() -> (Merging, Observed) {
    let mut seen = seen(&[], &[]);
    let layer = |below: Option<&str>| Layer { backing: below.map(str::to_owned), ..Layer::default() };
    seen.layers.files = [("/none/base", None), ("/none/top", Some("/none/base")), ("/none/child", Some("/none/top"))]
        .map(|(path, below)| (path.to_owned(), layer(below)))
        .into();
    seen.layers.live.insert("vda".to_owned(), "/none/child".to_owned());
    let merge = Merge {
        disk: "vda".to_owned(),
        top: "/none/top".to_owned(),
        base: "/none/base".to_owned(),
        above: vec!["/none/top".to_owned()],
        bytes: 0,
    };
    (Merging { merge, child: Some("/none/child".to_owned()), copied: false }, seen)
}

/// What is above the base is removed by it.
#[test]
fn a_merge_is_done_only_where_there_is_evidence_of_it() {
    let (noted, seen) = begun();
    assert!(!is_copied(&noted, &seen));
    assert!(is_copied(&Merging { copied: true, ..noted.clone() }, &seen), "it was noted");
    let mut moved = seen.clone();
    moved.layers.files.get_mut("/none/child").unwrap().backing = Some("/none/base".to_owned());
    assert!(is_copied(&noted, &moved), "libvirt has moved what lay on the top");
    assert!(!is_copied(&Merging { child: None, ..noted.clone() }, &moved), "of others that says nothing");
    let mut pivoted = seen.clone();
    pivoted.layers.live.insert("vda".to_owned(), "/none/base".to_owned());
    assert!(!is_copied(&noted, &pivoted), "a VM that is off was redefined by somebody");
    pivoted.vm.state = VmState::Running;
    assert!(is_copied(&noted, &pivoted));
    // The disk was detached, or got another image.
    pivoted.layers.live.clear();
    assert!(!is_copied(&noted, &pivoted));
    let mut gone = seen;
    gone.layers.files.remove("/none/top");
    assert!(is_copied(&noted, &gone), "only what comes after the merge removes the top");
    let file = tempfile::NamedTempFile::new().unwrap();
    let merge = Merge { top: file.path().display().to_string(), ..noted.merge.clone() };
    assert!(!is_copied(&Merging { merge, ..noted }, &gone), "it is there, and is only not used");
}

#[test]
fn images_are_in_the_directories_of_disks_and_of_what_snapshots_hold() {
    let (_, mut seen) = begun();
    let parts = Parts { frozen: [("vda".to_owned(), "/other/base".to_owned())].into(), ..Parts::default() };
    seen.layers.snapshots.insert(id(1), parts);
    assert_eq!(homes(&seen.layers), BTreeSet::from([Path::new("/none"), Path::new("/other")]));
}

#[test]
fn what_was_merged_is_removed_where_neither_the_vm_nor_anybody_else_uses_it() {
    let (_, mut seen) = begun();
    let files = ["/none/top", "/none/gone", "/none/theirs"].map(str::to_owned);
    let elsewhere = BTreeSet::from(["/none/theirs".to_owned()]);
    assert_eq!(unused(&files, &seen.layers, &elsewhere), ["/none/gone"]);
    seen.layers.live.insert("vda".to_owned(), "/none/base".to_owned());
    assert_eq!(unused(&files, &seen.layers, &elsewhere), ["/none/top", "/none/gone"]);
}

/// These are removed after it.
#[test]
fn a_revert_leaves_the_active_files_of_the_disks_that_the_snapshot_holds() {
    let dir = tempfile::tempdir().unwrap();
    let image = |name: &str, inside: &[&str]| {
        let path = dir.path().join(name).display().to_string();
        let qemu_img = |arguments: &[&str]| {
            let done = std::process::Command::new("qemu-img").args(arguments).arg(&path).status();
            assert!(done.unwrap().success(), "{arguments:?}");
        };
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", "size=1M"]);
        inside.iter().for_each(|name| qemu_img(&["snapshot", "-c", name]));
        path
    };
    let by_target = |files: &[(&str, &String)]| {
        files.iter().map(|(target, path)| ((*target).to_owned(), (*path).clone())).collect::<BTreeMap<_, _>>()
    };
    let [left, same, inside, attached, base] =
        [("left", &[][..]), ("same", &[]), ("inside", &["mine"]), ("attached", &[]), ("base", &[])]
            .map(|(name, tags)| image(name, tags));
    let active = by_target(&[("vda", &left), ("vdb", &same), ("vdc", &inside), ("vdd", &attached)]);
    let mut layers = Layers { live: by_target(&[("vda", &base), ("vdb", &same), ("vdc", &base)]), ..Layers::default() };
    let frozen = by_target(&[("vda", &base), ("vdb", &base), ("vdc", &base)]);
    layers.snapshots.insert(id(1), Parts { frozen, ..Parts::default() });
    assert_eq!(left_by_revert(&layers, &id(1), &active), BTreeSet::from([left]));
    assert!(left_by_revert(&layers, &id(2), &active).is_empty(), "one inside images");
}

#[test]
fn where_an_image_cannot_be_read_nothing_is_removed() {
    let (_, mut seen) = begun();
    check_readable(&seen.layers).unwrap();
    seen.layers.unreadable = Some("/none/top".to_owned());
    assert_eq!(check_readable(&seen.layers).unwrap_err().metadata()["path"], "/none/top");
}

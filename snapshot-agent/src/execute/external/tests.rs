use std::collections::BTreeMap;
use std::process::Command;

use snapshot_core::layers::{Layer, Parts};

use super::*;
use crate::owned::tests::{id, seen};

/// A VM of two disks on the overlays of a snapshot.
fn on_overlays() -> Observed {
    let mut seen = seen(&[], &[]);
    let mut parts = Parts::default();
    for target in ["vda", "vdb"] {
        let (base, overlay) = (format!("/none/{target}"), format!("/none/{target}.1"));
        let layer = Layer { backing: Some(base.clone()), ..Layer::default() };
        seen.layers.files.extend([(base.clone(), Layer::default()), (overlay.clone(), layer)]);
        seen.layers.live.insert(target.to_owned(), overlay.clone());
        parts.frozen.insert(target.to_owned(), base);
        parts.overlays.insert(target.to_owned(), overlay);
    }
    seen.layers.snapshots.insert(id(1), parts);
    seen
}

#[test]
fn a_vm_is_on_a_snapshot_with_every_disk_or_it_is_not() {
    let mut seen = on_overlays();
    assert!(seen.is_on(&id(1)) && seen.lies_on(&id(1)));
    assert!(!seen.is_on(&id(2)) && seen.lies_on(&id(2)), "an internal one has no overlays, and freezes nothing");
    // A later snapshot of one disk.
    let later = Layer { backing: Some("/none/vdb.1".to_owned()), ..Layer::default() };
    seen.layers.files.insert("/none/vdb.2".to_owned(), later);
    seen.layers.live.insert("vdb".to_owned(), "/none/vdb.2".to_owned());
    assert!(seen.is_on(&id(1)) && !seen.lies_on(&id(1)));
    // The disk is on what the snapshot froze itself.
    seen.layers.live.insert("vdb".to_owned(), "/none/vdb".to_owned());
    assert!(!seen.is_on(&id(1)) && !seen.lies_on(&id(1)));
    seen.layers.live.remove("vdb");
    assert!(!seen.is_on(&id(1)) && !seen.lies_on(&id(1)));
}

/// An image with snapshots inside is not removed.
#[test]
fn what_cannot_be_read_may_hold_snapshots() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    assert!(!holds_snapshots(&image), "there is none");
    let qemu_img = |arguments: &[&str]| {
        assert!(Command::new("qemu-img").args(arguments).arg(&image).status().unwrap().success());
    };
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", "size=1M"]);
    assert!(!holds_snapshots(&image));
    qemu_img(&["snapshot", "-c", "mine"]);
    assert!(holds_snapshots(&image));
    std::fs::write(&image, "no image").unwrap();
    assert!(holds_snapshots(&image));
    assert!(holds_snapshots(&image.join("below")), "an error other than that it does not exist");
}

/// What libvirt may remove gets a second name, or what it holds is lost.
#[test]
fn files_are_endangered_but_for_those_that_are_given_up_or_out_of_reach() {
    let mut seen = on_overlays();
    let set = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect::<BTreeSet<_>>();
    let may_touch = |path: &String| !path.starts_with("/far");
    let endangered = |layers: &Layers, wanted: &[&str], given_up: &[&str]| {
        endangered(layers, &set(wanted), &set(given_up), may_touch).into_iter().collect::<BTreeSet<_>>()
    };
    assert_eq!(endangered(&seen.layers, &[], &["/none/vda.1"]), set(&["/none/vdb.1"]));
    // The disks are on other images than the overlays of the snapshot.
    seen.layers.live = [("vda", "/none/a"), ("vdb", "/none/b"), ("vdc", "/far/c")]
        .map(|(target, path)| (target.to_owned(), path.to_owned()))
        .into();
    let all = endangered(&seen.layers, &["/none/old", "/far/old"], &["/none/b", "/none/vdb.1"]);
    assert_eq!(all, set(&["/none/a", "/none/old", "/none/vda.1"]));
    let without = Layers { snapshots: BTreeMap::new(), live: BTreeMap::new(), ..seen.layers };
    assert_eq!(endangered(&without, &["/none/old", "/none/other"], &["/none/old"]), set(&["/none/other"]));
}

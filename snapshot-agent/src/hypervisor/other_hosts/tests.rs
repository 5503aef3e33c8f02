use std::fs;

use snapshot_core::ids::HostId;

use super::*;
use crate::owned::tests::{id, seen};

/// A VM with an image in a directory that hosts share, and two snapshots.
fn scene() -> (tempfile::TempDir, SharedStorage, Observed) {
    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().canonicalize().unwrap().join("images");
    fs::create_dir_all(images.join(".ravada-snapshots")).unwrap();
    let host: HostId = "alpha".parse().unwrap();
    let shared = SharedStorage::open(host, &dir.path().join("state"), std::slice::from_ref(&images)).unwrap();
    let mut seen = seen(&[id(1), id(2)], &[]);
    seen.snapshots[0].storage = Storage::External;
    let image = images.join("desk.qcow2").display().to_string();
    seen.layers.files.insert(image.clone(), snapshot_core::layers::Layer::default());
    seen.uses.changed.insert(image.clone(), "vda".to_owned());
    seen.uses.changed_by.insert(id(2), BTreeMap::from([(image, "vda".to_owned())]));
    (dir, shared, seen)
}

fn note(dir: &tempfile::TempDir, text: &str) {
    fs::write(dir.path().join("images/.ravada-snapshots/beta.json"), text).unwrap();
}

fn reasons(restrictions: &[Restriction]) -> Vec<Reason> {
    restrictions.iter().map(|one| one.reason).collect()
}

#[test]
fn an_image_that_a_vm_of_another_host_uses_makes_reverts_unavailable() {
    let (dir, shared, before) = scene();
    let restricted = || {
        let mut seen = before.clone();
        restrict(&shared, &mut seen);
        seen
    };
    assert_eq!(restricted(), before);
    let own = before.vm.id.as_uuid();
    note(&dir, &format!(r#"{{"format": 1, "host": "beta", "images": {{"desk.qcow2": {{"{own}": "desk"}}}}}}"#));
    assert_eq!(restricted(), before, "the same VM on another host is no other");
    note(&dir, r#"{"format": 1, "host": "beta", "images": {"desk.qcow2": {}, "other.qcow2": {}}}"#);
    let seen = restricted();
    assert_eq!(reasons(&seen.vm.restrictions), [Reason::ImageInUse]);
    assert!(seen.vm.restrictions[0].operations.iter().all(|it| RestrictedOperation::REVERT.contains(it)));
    assert!(seen.snapshots[0].restrictions.is_empty(), "a revert to it does not change the image");
    assert_eq!(reasons(&seen.snapshots[1].restrictions), [Reason::ImageInUse]);
    note(&dir, "{");
    assert_eq!(reasons(&restricted().vm.restrictions), [Reason::ImageUnavailable]);
}

#[test]
fn a_note_that_cannot_be_written_makes_external_snapshots_unavailable() {
    let (_dir, shared, before) = scene();
    let directory = PathBuf::from(before.layers.files.keys().next().unwrap()).parent().unwrap().to_owned();
    shared.wrote(&directory, Err(std::io::Error::other("read-only")));
    let mut seen = before.clone();
    restrict(&shared, &mut seen);
    assert_eq!(reasons(&seen.vm.restrictions), [Reason::ImageUnavailable]);
    assert_eq!(seen.vm.restrictions[0].operations, EXTERNAL);
    assert_eq!(seen.snapshots[0].restrictions[0].operations, [RestrictedOperation::Delete]);
    assert!(seen.snapshots[1].restrictions.is_empty(), "one inside an image needs no other files");
}

#[test]
fn a_file_system_that_hosts_may_share_makes_external_snapshots_unavailable() {
    let (_dir, shared, mut seen) = scene();
    seen.layers.files = BTreeMap::from([("/proc/self/image".to_owned(), snapshot_core::layers::Layer::default())]);
    restrict(&shared, &mut seen);
    assert_eq!(reasons(&seen.vm.restrictions), [Reason::ImageOutOfReach]);
}

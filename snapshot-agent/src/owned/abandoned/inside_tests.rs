//! Images on record with snapshots inside, and storage that does not respond.

use super::super::orphans::tests::Scene;
use super::super::tests::{id, qemu_img, vm};
use super::*;
use crate::hypervisor::Observed;

/// A VM whose second disk was detached and given up, with a snapshot of ours inside the overlay of that.
fn scene() -> (Scene, Observed) {
    let mut scene = Scene::new();
    scene.detach();
    let overlay = scene.overlay();
    qemu_img(&["snapshot", "-c", id(3).as_str(), overlay.to_str().unwrap()]);
    let mut seen = scene.seen.clone();
    let listed = super::super::tests::seen(&[id(3)], &[]).snapshots;
    seen.snapshots.extend(listed);
    seen.images.insert(overlay.clone(), Some(crate::qcow2::read(&overlay).unwrap().stamps()));
    scene.fixture.owned.saw(&seen);
    scene.fixture.owned.discard(&seen, &BTreeSet::from([text(&overlay)]));
    assert_eq!(scene.fixture.owned.discarded(vm()).len(), 1);
    (scene, seen)
}

fn remove_all(scene: &Scene, all_snapshots_go: bool, used: &[&str]) -> Result<(), Error> {
    let owned = &scene.fixture.owned;
    let mut files = owned.files(vm());
    files.retain(|_, made| made.holds == Holds::Discarded);
    let unlink = |paths: &[String]| {
        let mut there = paths.iter().filter(|path| std::fs::symlink_metadata(path).is_ok());
        there.try_for_each(std::fs::remove_file).map_err(Failure::from)
    };
    let used = used.iter().map(|path| (*path).to_owned()).collect();
    let folders = Beneath::anywhere();
    remove(owned, vm(), &files, &Host { used, is_back: &|| Ok(false), unlink: &unlink, folders, all_snapshots_go })
}

#[test]
fn an_image_with_snapshots_of_ours_goes_only_with_all_of_them() {
    let (scene, _) = scene();
    remove_all(&scene, false, &[]).unwrap();
    assert!(scene.overlay().exists() && scene.fixture.owned.discarded(vm()).len() == 1);
    remove_all(&scene, true, &[]).unwrap();
    assert!(!scene.overlay().exists() && scene.fixture.owned.discarded(vm()).is_empty());
}

#[test]
fn an_image_with_a_snapshot_that_was_taken_again_by_somebody_is_an_orphan() {
    let (scene, _) = scene();
    let overlay = scene.overlay();
    for how in ["-d", "-c"] {
        qemu_img(&["snapshot", how, id(3).as_str(), overlay.to_str().unwrap()]);
    }
    remove_all(&scene, true, &[]).unwrap();
    assert!(overlay.exists() && scene.fixture.owned.discarded(vm()).is_empty());
    assert_eq!(scene.fixture.owned.orphans().len(), 1);
}

#[test]
fn where_storage_of_a_file_in_use_does_not_respond_nothing_is_removed() {
    let (scene, _) = scene();
    let elsewhere = tempfile::tempdir().unwrap();
    let other = elsewhere.path().join("other");
    std::fs::write(&other, "").unwrap();
    let held = files::enter(&other).unwrap();
    while !files::hanging().contains(&other) {
        std::thread::sleep(POLL);
    }
    // It may be another name of the file.
    remove_all(&scene, true, &[&text(&other)]).unwrap_err();
    assert!(scene.overlay().exists());
    drop(held);
    std::fs::remove_file(&other).unwrap();
    remove_all(&scene, true, &[&text(&other)]).unwrap();
    assert!(!scene.overlay().exists());
}

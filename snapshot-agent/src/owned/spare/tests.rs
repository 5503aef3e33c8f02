use std::collections::BTreeMap;
use std::fs;

use super::super::orphans::tests::{Scene, overlay};
use super::super::tests::{disk, id, label, qemu_img, vm};
use super::*;

impl Scene {
    fn text(&self, target: &str) -> String {
        self.path(&format!("{target}.{}", id(1))).display().to_string()
    }

    /// Gives up the second disk.
    fn discard(&self) {
        self.fixture.owned.discard(&self.seen, &BTreeSet::from([self.text("vdb")]));
    }

    /// The overlay of a revert that was interrupted: laid on the first disk, and never used.
    fn lay(&self) -> PathBuf {
        let laid = self.path("vda.1700000005");
        overlay(&laid, &self.path("vda.qcow2"));
        self.fixture.owned.laid(&self.seen, &id(1), 1_700_000_000);
        laid
    }
}

/// The files that are there and hold nothing which anybody may want.
fn unwanted(owned: &Owned) -> BTreeSet<PathBuf> {
    let files = owned.unwanted_files().into_iter().filter(|(path, made)| made.is_there(path));
    files.map(|(path, _)| path).collect()
}

#[test]
fn only_what_was_given_up_and_is_no_longer_used_has_no_use() {
    let mut scene = Scene::new();
    let both = BTreeSet::from(["vda", "vdb"].map(|target| scene.text(target)));
    // It is the active file still, so it is not given up.
    scene.discard();
    assert_eq!((scene.fixture.owned.overlays(vm()), scene.fixture.owned.wanted(vm())), (both.clone(), both.clone()));
    assert!(scene.fixture.owned.discarded(vm()).is_empty() && !scene.fixture.owned.has_spare(&scene.seen));
    scene.detach();
    assert_eq!(scene.fixture.owned.wanted(vm()), both, "an orphan is wanted");
    assert!(!scene.fixture.owned.has_spare(&scene.seen) && unwanted(&scene.fixture.owned).is_empty());
    scene.fixture.owned.discard(&scene.seen, &BTreeSet::new());
    assert_eq!(scene.fixture.owned.wanted(vm()), both, "of another file nothing was said");
    scene.discard();
    let given_up = BTreeSet::from([scene.text("vdb")]);
    for owned in [&scene.fixture.owned, &scene.fixture.reopened()] {
        assert_eq!((owned.discarded(vm()), owned.wanted(vm())), (given_up.clone(), [scene.text("vda")].into()));
        assert!(owned.has_spare(&scene.seen));
        assert_eq!(unwanted(owned), BTreeSet::from([scene.overlay()]));
    }
    // Only under its second name: a revert was interrupted.
    let second = scene.text("vdb") + ".kept";
    fs::rename(scene.overlay(), &second).unwrap();
    assert_eq!(unwanted(&scene.fixture.owned), BTreeSet::from([PathBuf::from(&second)]));
    assert!(scene.fixture.owned.has_spare(&scene.seen));
    fs::remove_file(&second).unwrap();
    assert!(!scene.fixture.owned.has_spare(&scene.seen), "it is gone");
}

#[test]
fn what_was_given_up_is_kept_where_the_vm_may_need_it() {
    let mut scene = Scene::new();
    scene.detach();
    scene.discard();
    let keeps = |seen: &Observed| !scene.fixture.owned.has_spare(seen);
    assert!(!keeps(&scene.seen));
    let mut attached = scene.seen.clone();
    attached.layers.live.insert("vdb".to_owned(), scene.text("vdb"));
    assert!(keeps(&attached));
    let mut unreadable = scene.seen.clone();
    unreadable.layers.unreadable = Some("/images/other.qcow2".to_owned());
    assert!(keeps(&unreadable), "it may depend on it");
    let mut lost = scene.seen.clone();
    lost.layers.snapshots.clear();
    assert!(keeps(&lost), "libvirt has lost the metadata of the snapshot");
    scene.fixture.owned.deleted(vm(), &id(1));
    assert!(!keeps(&lost), "it was deleted");
    // Another file in its place is nobody's to remove.
    fs::copy(scene.overlay(), scene.path("copy")).unwrap();
    fs::rename(scene.path("copy"), scene.overlay()).unwrap();
    assert!(unwanted(&scene.fixture.owned).is_empty());
    assert_eq!(scene.fixture.owned.overlays(vm()), BTreeSet::from([scene.text("vda")]));
}

#[test]
fn an_overlay_that_was_never_seen_in_use_goes_only_if_nothing_was_written_to_it() {
    let scene = Scene::new();
    assert!(!scene.fixture.owned.has_spare(&scene.seen));
    let laid = scene.lay();
    assert!(scene.fixture.owned.has_spare(&scene.seen));
    assert!(unwanted(&scene.fixture.owned).contains(&laid));
    let write = std::process::Command::new("qemu-io").args(["-f", "qcow2", "-c", "write 0 512"]).arg(&laid).output();
    assert!(write.unwrap().status.success());
    assert!(!unwanted(&scene.fixture.owned).contains(&laid), "a guest may want it");
    assert!(!scene.fixture.owned.has_spare(&scene.seen));
    // A running state of which no snapshot came is none.
    let (scene, memory) = (Scene::new(), format!("vda.{}.mem", id(2)));
    let memory = scene.path(&memory);
    let mut seen = scene.seen.clone();
    seen.vm.disks = vec![disk(&scene.path("vda.qcow2"))];
    let text = memory.display().to_string();
    scene.fixture.owned.expect_files(&seen, &id(2), &label(), &BTreeMap::new(), Some(&text));
    scene.fixture.owned.deleted(vm(), &id(2));
    fs::write(&memory, "LibvirtQemudPart and more").unwrap();
    assert!(scene.fixture.owned.has_spare(&scene.seen));
    assert_eq!(scene.fixture.owned.overlays(vm()).len(), 2, "it is no overlay");
    assert_eq!(scene.fixture.owned.wanted(vm()).len(), 2);
}

#[test]
fn what_is_below_the_overlays_of_lost_snapshots_is_known() {
    let scene = Scene::new();
    let owned = &scene.fixture.owned;
    assert!(owned.lost_states(&scene.seen).is_empty());
    let mut lost = scene.seen.clone();
    lost.layers.snapshots.clear();
    let bases = ["vda.qcow2", "vdb.qcow2"].map(|name| scene.path(name).display().to_string());
    assert_eq!(owned.lost_states(&lost), BTreeSet::from(bases));
    owned.deleted(vm(), &id(1));
    assert!(owned.lost_states(&lost).is_empty(), "it was deleted");
}

#[test]
fn a_running_state_is_one_by_the_record_or_of_another_tool_by_its_content() {
    let scene = Scene::new();
    let memory = scene.path(&format!("vda.{}.mem", id(1)));
    let text = memory.display().to_string();
    let is_memory = |id: &SnapshotId, path: &str| scene.fixture.owned.is_memory(vm(), id, path);
    assert!(!is_memory(&id(1), &text), "it is not on record");
    scene.fixture.owned.expect_files(&scene.seen, &id(1), &label(), &BTreeMap::new(), Some(&text));
    assert!(is_memory(&id(1), &text), "it is gone already");
    fs::write(&memory, "LibvirtQemudSave and more").unwrap();
    assert!(is_memory(&id(1), &text));
    assert!(!is_memory(&id(1), &scene.text("vda")), "it is a disk");
    let foreign: SnapshotId = "by-virsh".parse().unwrap();
    assert!(is_memory(&foreign, &text) && !is_memory(&foreign, &scene.text("vda")));
    fs::write(&memory, "what somebody has put in its place").unwrap();
    assert!(!is_memory(&id(1), &text) && !is_memory(&foreign, &text));
}

#[test]
fn an_image_that_is_kept_after_all_is_an_orphan() {
    let mut scene = Scene::new();
    scene.detach();
    scene.discard();
    scene.fixture.owned.orphan(vm(), &scene.overlay());
    for owned in [&scene.fixture.owned, &scene.fixture.reopened()] {
        assert!(owned.discarded(vm()).is_empty() && !owned.has_spare(&scene.seen));
        assert_eq!(owned.get(vm()).unwrap().files[&scene.overlay()].holds, Holds::Orphaned);
    }
}

#[test]
fn files_of_a_snapshot_that_was_never_whole_are_forgotten_and_no_others() {
    let scene = Scene::new();
    let laid = scene.lay();
    scene.fixture.owned.give_up(vm(), &id(2));
    assert_eq!(scene.fixture.owned.overlays(vm()).len(), 3);
    scene.fixture.owned.give_up(vm(), &id(1));
    assert!(scene.fixture.owned.get(vm()).is_none() && laid.exists());
}

#[test]
fn an_overlay_of_a_revert_is_ours_only_above_what_the_snapshot_holds_and_from_then_on() {
    let scene = Scene::new();
    let before = scene.fixture.owned.overlays(vm()).len();
    overlay(&scene.path("vda.1600000000"), &scene.path("vda.qcow2"));
    overlay(&scene.path("vda.1700000001"), &scene.path("vdb.qcow2"));
    overlay(&scene.path("vda.mine"), &scene.path("vda.qcow2"));
    qemu_img(&["create", "-q", "-f", "qcow2", scene.path("vda.1700000002").to_str().unwrap(), "1M"]);
    scene.fixture.owned.laid(&scene.seen, &id(1), 1_700_000_000);
    assert_eq!(scene.fixture.owned.overlays(vm()).len(), before);
    overlay(&scene.path("vda.1700000000"), &scene.path("vda.qcow2"));
    scene.fixture.owned.laid(&scene.seen, &id(1), 1_700_000_000);
    assert_eq!(scene.fixture.owned.overlays(vm()).len(), before + 1);
}

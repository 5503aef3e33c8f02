use std::collections::BTreeMap;
use std::process::Command;

use snapshot_core::layers::{Layer, Parts};
use snapshot_core::{Error, Reason};

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

/// Of one that is not whole, what it froze is written to, and what the guest has written since must not be lost.
#[test]
fn a_snapshot_is_taken_only_where_every_sign_says_so() {
    let mut now = on_overlays();
    now.snapshots = seen(&[id(1)], &[]).snapshots;
    let refused = || Err(Failure::Refused { code: 1, message: "so".to_owned() });
    assert!(is_taken(&Ok(()), &now, &id(1)) && is_taken(&refused(), &now, &id(1)), "it is there, whatever was said");
    let lost = Err(Failure::FreezeLost(Error::new(Reason::HypervisorFailed, "thawed")));
    assert!(!is_taken(&lost, &now, &id(1)), "the guest wrote while it was taken");
    let without = |change: fn(&mut Observed)| {
        let mut now = now.clone();
        change(&mut now);
        is_taken(&Ok(()), &now, &id(1))
    };
    assert!(!without(|now| now.snapshots.clear()), "libvirt does not list it");
    assert!(!without(|now| now.snapshots[0].broken = Some(Reason::SnapshotBroken)), "a part of it is gone");
    let back = |now: &mut Observed| drop(now.layers.live.insert("vdb".to_owned(), "/none/vdb".to_owned()));
    assert!(!without(back), "one disk is not on it");
}

#[test]
fn disks_are_as_consistent_as_the_guest_was_still() {
    assert_eq!(consistency(true, false, true), Some(Consistency::FileSystem));
    assert_eq!(consistency(true, false, false), Some(Consistency::Crash));
    for (is_active, memory) in [(true, true), (false, false), (false, true)] {
        assert_eq!(consistency(is_active, memory, false), None);
    }
}

#[test]
fn a_guest_is_asked_to_thaw_until_it_had_its_time() {
    assert!(!is_given_up(Duration::ZERO) && !is_given_up(THAWS_WITHIN));
    assert!(is_given_up(THAWS_WITHIN + Duration::from_nanos(1)));
}

/// What was written to an overlay is merged only where nothing else can have run on what that lies on.
#[test]
fn a_vm_may_have_run_elsewhere_only_while_the_agent_was_away() {
    let all = [After::Failure, After::Loss, After::Restart];
    assert_eq!(all.map(After::may_have_run), [false, false, true]);
    assert_eq!(all.map(After::was_interrupted), [false, true, true]);
}

#[test]
fn files_of_a_snapshot_that_is_taken_back_are_removed_but_for_those_that_are_reached() {
    let mut seen = seen(&[], &[(Path::new("/none/a.qcow2"), None)]);
    let [overlay, memory] = ["", ".mem"].map(|end| format!("/none/a.{}{end}", id(1)));
    assert_eq!(unreached_files(&seen, &id(1)), [overlay.clone(), memory.clone()]);
    // The VM is on a later overlay that lies on this one.
    seen.layers.live.insert("vda".to_owned(), "/none/top".to_owned());
    let top = Layer { backing: Some(overlay.clone()), ..Layer::default() };
    seen.layers.files.extend([("/none/top".to_owned(), top), (overlay.clone(), Layer::default())]);
    assert_eq!(unreached_files(&seen, &id(1)), [memory.as_str()]);
    // Another snapshot has it as its disk.
    seen.layers.live.clear();
    let other = Parts { frozen: [("vda".to_owned(), overlay.clone())].into(), ..Parts::default() };
    seen.layers.snapshots.insert(id(2), other.clone());
    assert_eq!(unreached_files(&seen, &id(1)), [memory.as_str()]);
    seen.layers.snapshots = [(id(1), other)].into();
    assert_eq!(unreached_files(&seen, &id(1)), [overlay, memory]);
}

#[test]
fn a_snapshot_is_left_where_libvirt_has_it_or_a_disk_is_on_it() {
    let mut there = on_overlays();
    assert!(is_left(&there.layers, &id(1)) && is_known_to_libvirt(&there, &id(1)), "marked as deleted");
    assert!(!is_left(&there.layers, &id(2)) && !is_known_to_libvirt(&there, &id(2)));
    there.layers.snapshots.clear();
    assert!(!is_left(&there.layers, &id(1)) && !is_known_to_libvirt(&there, &id(1)));
    there.layers.live.insert("vda".to_owned(), format!("/none/vda.{}", id(1)));
    assert!(is_left(&there.layers, &id(1)) && !is_left(&there.layers, &id(2)), "QEMU alone knows of it");
    there.snapshots = seen(&[id(1)], &[]).snapshots;
    assert!(is_known_to_libvirt(&there, &id(1)) && !is_known_to_libvirt(&there, &id(2)));
}

/// While libvirt is at a revert it removes files, whose second names keep what they hold.
#[test]
fn files_stay_guarded_until_a_revert_is_over() {
    assert!(!has_ended(&Err(Halt::LeftOff)));
    assert!(has_ended(&Ok(())) && has_ended(&Err(Halt::Cancelled)));
    assert!(has_ended(&Err(Halt::Failed(Error::new(Reason::HypervisorFailed, "so")))));
}

#[test]
fn overlays_of_the_second_before_a_revert_may_be_of_it() {
    assert_eq!(laid_since(1000), 999);
}

/// Data that libvirt removes in a revert is lost.
#[test]
fn a_revert_removes_what_snapshots_created_and_what_holds_none() {
    let dir = tempfile::tempdir().unwrap();
    let image = |name: &str, tags: &[&str]| {
        let path = dir.path().join(name).display().to_string();
        let qemu_img = |arguments: &[&str]| {
            assert!(Command::new("qemu-img").args(arguments).arg(&path).status().unwrap().success());
        };
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", "size=1M"]);
        tags.iter().for_each(|tag| qemu_img(&["snapshot", "-c", tag]));
        path
    };
    let [ours, tagged, theirs, attached] =
        [("ours", &[][..]), ("tagged", &["mine"]), ("theirs", &[]), ("attached", &[])]
            .map(|(name, tags)| image(name, tags));
    let disks = [("vda", &ours), ("vdb", &tagged), ("vdc", &theirs), ("vdd", &attached)];
    let mut layers = Layers {
        live: disks.iter().map(|(target, path)| ((*target).to_owned(), (*path).clone())).collect(),
        ours: [&ours, &tagged, &attached].into_iter().cloned().collect(),
        ..Layers::default()
    };
    let frozen = ["vda", "vdb", "vdc"].map(|target| (target.to_owned(), "/none/base".to_owned())).into();
    layers.snapshots.insert(id(1), Parts { frozen, ..Parts::default() });
    assert_eq!(removable_by_revert(&layers, &id(1)), BTreeSet::from([ours]));
    assert!(removable_by_revert(&layers, &id(2)).is_empty());
}

#[test]
fn files_of_the_vm_on_record_and_from_before_are_brought_back() {
    let mut seen = on_overlays();
    seen.layers.files.remove("/none/vda.1");
    let before = BTreeMap::from([("vda".to_owned(), "/none/before".to_owned())]);
    let all = guardable(&seen.layers, BTreeSet::from(["/none/old".to_owned()]), &before);
    let expected = ["/none/before", "/none/old", "/none/vda", "/none/vda.1", "/none/vdb", "/none/vdb.1"];
    assert_eq!(all.into_iter().collect::<BTreeSet<_>>(), expected.map(str::to_owned).into());
}

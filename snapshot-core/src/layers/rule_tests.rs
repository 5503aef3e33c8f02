//! The rules about files one by one, where [`super::tests`] looks at what comes of all of them.

use uuid::Uuid;

use super::model::Model;
use super::*;

fn snapshot(n: u128) -> SnapshotId {
    SnapshotId::from_uuid(Uuid::from_u128(n))
}

/// A machine on the first of these files, each of which lies on the next one.
fn chain(paths: &[&str]) -> Layers {
    let mut layers = Layers::default();
    for (number, path) in paths.iter().enumerate() {
        let backing = paths.get(number + 1).map(|path| (*path).to_owned());
        layers.files.insert((*path).to_owned(), Layer { backing, ..Layer::default() });
    }
    layers.live.insert("vda".to_owned(), paths[0].to_owned());
    layers
}

fn merged(layers: &Layers) -> Vec<(String, String)> {
    let merges = layers.merges(&BTreeSet::new(), &BTreeSet::new());
    merges.into_iter().map(|merge| (merge.top, merge.base)).collect()
}

#[test]
fn only_a_file_on_record_is_merged_whatever_its_name() {
    let (top, base, own) = ("/i/desk.1700000000", "/i/desk.1600000000", "/i/desk.qcow2");
    for below in [base, own] {
        assert_eq!(merged(&chain(&[top, below])), [], "a user may give any name");
        let on_record = |top: &str| Layers { ours: BTreeSet::from([top.to_owned()]), ..chain(&[top, below]) };
        assert_eq!(merged(&on_record(top)), [(top.to_owned(), below.to_owned())]);
        for other in ["/i/other.1700000000", "/other/desk.1700000000"] {
            assert_eq!(merged(&on_record(other)), [], "{other} is no overlay of {below}");
        }
    }
}

#[test]
fn an_image_that_a_user_put_on_top_of_a_deleted_snapshot_is_not_merged() {
    let mut layers = chain(&["/i/clone.qcow2", "/i/desk.qcow2"]);
    let frozen = BTreeMap::from([("vda".to_owned(), "/i/desk.qcow2".to_owned())]);
    layers.snapshots.insert(snapshot(1), Parts { deleted: true, frozen, ..Parts::default() });
    assert_eq!(layers.merges(&layers.deleted(), &BTreeSet::new()), []);
    layers.ours.insert("/i/clone.qcow2".to_owned());
    assert_eq!(layers.merges(&layers.deleted(), &BTreeSet::new()).len(), 1);
    // A snapshot that virsh has created is on record with libvirt.
    layers.ours.clear();
    let overlays = BTreeMap::from([("vda".to_owned(), "/i/clone.qcow2".to_owned())]);
    layers.snapshots.insert(SnapshotId::of_name("by-virsh"), Parts { overlays, ..Parts::default() });
    assert_eq!(layers.merges(&layers.deleted(), &BTreeSet::new()).len(), 1);
}

#[test]
fn an_image_of_a_disk_that_was_detached_keeps_what_it_lies_on() {
    let mut model = Model::new();
    (0..2).for_each(|_| model.create());
    let (first, second) = (snapshot(1), snapshot(2));
    let detached = model.live();
    // The disk was detached, and is back on its own image of then, with an overlay of a new snapshot.
    model.layers.live.insert("vda".to_owned(), model.layers.snapshots[&first].frozen["vda"].clone());
    for id in [&first, &second] {
        model.mark(id, false);
    }
    assert_eq!(model.layers.merges(&model.layers.deleted(), &BTreeSet::new()), []);
    let remains = model.layers.remains(&BTreeSet::new(), &BTreeSet::new());
    assert_eq!((remains.files, remains.snapshots.len()), (vec![], 2), "{detached} has the state of the disk");
    // Given up, it goes with all that was below it alone.
    model.layers.discarded.insert(detached.clone());
    let remains = model.layers.remains(&BTreeSet::new(), &BTreeSet::new());
    assert_eq!(remains.files, [detached, format!("/images/desk.{first}")]);
}

#[test]
fn the_current_snapshot_with_a_branch_is_not_rewritten() {
    let mut model = Model::new();
    (0..3).for_each(|_| model.create());
    model.revert(&snapshot(2));
    model.mark(&snapshot(1), false);
    let merges = |model: &Model| model.layers.merges(&model.layers.deleted(), &BTreeSet::new());
    // The second is current, and the third lies on its overlay, where the machine is not.
    assert_eq!(merges(&model), []);
    model.revert(&snapshot(3));
    let found = merges(&model);
    assert_eq!(found.iter().map(|merge| merge.base.as_str()).collect::<Vec<_>>(), ["/images/desk.qcow2"]);
}

#[test]
fn what_is_removed_is_on_record_was_given_up_and_is_nobodys() {
    let mut layers = chain(&["/i/desk.qcow2"]);
    let files = ["/i/desk.frozen", "/i/desk.left", "/i/desk.img", "/i/desk.mem", "/i/desk.ours"].map(str::to_owned);
    files.iter().filter(|path| !path.ends_with("mem")).for_each(|path| {
        layers.files.insert(path.clone(), Layer::default());
    });
    let frozen = BTreeMap::from([("vda".to_owned(), files[0].clone()), ("vdb".to_owned(), files[2].clone())]);
    let overlays = BTreeMap::from([("vda".to_owned(), files[4].clone())]);
    let memory_file = Some(files[3].clone());
    let parts = Parts { deleted: true, frozen, overlays, memory_file, ..Parts::default() };
    layers.snapshots.insert(snapshot(1), parts);
    layers.ours.extend([0, 1, 4].map(|number: usize| files[number].clone()));
    // What is active was given up as well, and is nobody's image any more: one that is not on record stays.
    let left = BTreeSet::from([files[1].clone(), "/i/desk.qcow2".to_owned()]);
    let removed = |elsewhere: &[&String]| {
        let elsewhere = elsewhere.iter().map(|path| (*path).clone()).collect();
        layers.remains(&elsewhere, &left).files.into_iter().collect::<BTreeSet<_>>()
    };
    let set = |numbers: &[usize]| numbers.iter().map(|number| files[*number].clone()).collect::<BTreeSet<_>>();
    assert_eq!(removed(&[]), set(&[0, 1, 3]));
    assert_eq!(removed(&[&files[3]]), set(&[0, 1]));
    assert_eq!(removed(&[&files[0], &files[1]]), set(&[3]));
}

#[test]
fn the_paths_that_are_known_are_those_of_files_and_of_overlays_that_may_be_gone() {
    let mut layers = chain(&["/i/top", "/i/base"]);
    let overlays = BTreeMap::from([("vda".to_owned(), "/i/gone".to_owned()), ("vdb".to_owned(), "/i/top".to_owned())]);
    layers.snapshots.insert(snapshot(1), Parts { overlays, ..Parts::default() });
    assert_eq!(layers.paths(), BTreeSet::from(["/i/base", "/i/gone", "/i/top"]));
}

#[test]
fn the_names_of_files_tell_what_they_were_made_by() {
    let (one, two) = (snapshot(1), snapshot(2));
    let overlay = format!("/i/desk.{one}");
    assert!(is_overlay_of(&overlay, &one) && !is_overlay_of(&overlay, &two));
    assert!(!is_overlay_of(&format!("/i/desk-{one}"), &one) && !is_overlay_of(&format!("{overlay}.mem"), &one));
    let memory = memory_path("/i/desk.qcow2", &one);
    assert!(is_memory_of(&memory, &one) && !is_memory_of(&memory, &two) && !is_memory_of(&overlay, &one));
    for (path, expected) in [
        ("/i/desk.1700000000", true),
        ("/i/desk.17000000000", true),
        ("/i/desk.170000000000", false),
        ("/i/desk.17000x0000", false),
        ("/i/other.1700000000", false),
        ("/j/desk.1700000000", false),
        ("/i/desk.img", false),
        ("/i/desk", false),
    ] {
        assert_eq!(is_reverted_from(path, "/i/desk.qcow2"), expected, "{path}");
    }
}

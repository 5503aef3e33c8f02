use std::fs;

use snapshot_core::layers::{Layer, Layers, Parts};
use snapshot_core::snapshot::Storage;

use super::super::tests::{Fixture, disk, id, label, qemu_img, seen, vm};
use super::*;

/// A VM of two disks, each on the overlay of a snapshot.
pub(in crate::owned) struct Scene {
    pub(in crate::owned) fixture: Fixture,
    pub(in crate::owned) seen: Observed,
}

pub(in crate::owned) fn overlay(path: &Path, below: &Path) {
    let [path, below] = [path, below].map(|path| path.to_str().unwrap());
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below, path]);
}

impl Scene {
    pub(in crate::owned) fn new() -> Self {
        let fixture = Fixture::new();
        let dir = fixture.dir.path().canonicalize().unwrap();
        let (mut seen, mut layers) = (seen(&[id(1)], &[]), Layers::default());
        seen.snapshots[0].storage = Storage::External;
        let mut parts = Parts::default();
        seen.vm.disks.clear();
        for target in ["vda", "vdb"] {
            let (base, top) = (dir.join(format!("{target}.qcow2")), dir.join(format!("{target}.{}", id(1))));
            qemu_img(&["create", "-q", "-f", "qcow2", base.to_str().unwrap(), "1M"]);
            let overlays = BTreeMap::from([(target.to_owned(), text(&top))]);
            seen.vm.disks = vec![DiskOf(target).of(&base)];
            fixture.owned.expect_files(&seen, &id(1), &label(), &overlays, None);
            overlay(&top, &base);
            for (path, below) in [(&base, None), (&top, Some(&base))] {
                let backing = below.map(|below| text(below));
                layers.files.insert(text(path), Layer { format: "qcow2".into(), backing, ..Layer::default() });
            }
            layers.live.insert(target.to_owned(), text(&top));
            parts.frozen.insert(target.to_owned(), text(&base));
            parts.overlays.insert(target.to_owned(), text(&top));
        }
        layers.snapshots.insert(id(1), parts);
        seen.layers = layers;
        fixture.owned.saw(&seen);
        Self { fixture, seen }
    }

    pub(in crate::owned) fn path(&self, name: &str) -> PathBuf {
        self.fixture.dir.path().canonicalize().unwrap().join(name)
    }

    pub(in crate::owned) fn overlay(&self) -> PathBuf {
        self.path(&format!("vdb.{}", id(1)))
    }

    /// The disk is detached.
    pub(in crate::owned) fn detach(&mut self) {
        self.seen.layers.live.remove("vdb");
        self.fixture.owned.saw(&self.seen);
    }

    fn all(&self) -> Vec<OnRecord> {
        self.fixture.owned.orphans().into_values().collect()
    }

    fn examine(&self) -> Orphan {
        let all = self.all();
        let images = images_around(Beneath::anywhere(), &all);
        let user = |_: &str, _: (u64, u64)| None;
        let directories = Beneath::anywhere();
        let silent = silent_around(directories, &all);
        let around = Surroundings { directories, images: &images, silent: &silent, user: &user, is_open: is_in_use };
        examine(all[0].clone(), &around)
    }
}

struct DiskOf(&'static str);

impl DiskOf {
    fn of(&self, path: &Path) -> snapshot_core::vm::DiskFacts {
        snapshot_core::vm::DiskFacts { target: self.0.to_owned(), ..disk(path) }
    }
}

#[test]
fn a_detached_disk_is_an_orphan_until_it_is_used_again() {
    let mut scene = Scene::new();
    assert!(scene.all().is_empty());
    assert_eq!(scene.fixture.owned.orphan_summary(vm()), OrphanSummary::default());
    scene.detach();
    let all = scene.all();
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!((&all[0].path, all[0].vm, all[0].vm_exists), (&scene.overlay(), vm(), true));
    assert_eq!((all[0].snapshot(), all[0].snapshot_name.as_str()), (&id(1), "before exam"));
    let summary = scene.fixture.owned.orphan_summary(vm());
    assert!(summary.count == 1 && summary.allocation_bytes >= 1 << 16, "{summary:?}");
    let orphan = scene.examine();
    assert_eq!((orphan.state, orphan.refusal.clone(), orphan.capacity_bytes), (OrphanState::Ready, None, 1 << 20));
    assert_eq!(orphan.allocation_bytes, summary.allocation_bytes);
    let records = scene.fixture.dir.path().join("owned");
    assert_eq!(on_record_in(&records).unwrap(), (1, summary.allocation_bytes));
    assert_eq!(on_record_in(&records.join("none")).unwrap(), (0, 0));
    // Also for the next process, and when the VM is gone.
    assert_eq!(scene.fixture.reopened().orphans().len(), 1);
    scene.fixture.owned.vanished(vm());
    assert!(!scene.all()[0].vm_exists);
    scene.seen.layers.live.insert("vdb".to_owned(), text(&scene.overlay()));
    scene.fixture.owned.saw(&scene.seen);
    assert!(scene.all().is_empty());
    assert_eq!(scene.fixture.owned.orphan_summary(vm()), OrphanSummary::default());
}

#[test]
fn what_a_lost_snapshot_holds_is_an_orphan_where_the_vm_needs_it_no_more() {
    let mut scene = Scene::new();
    // The VM is reverted to the bases; then libvirt loses the metadata.
    for target in ["vda", "vdb"] {
        scene.seen.layers.live.insert(target.to_owned(), text(&scene.path(&format!("{target}.qcow2"))));
    }
    let branch = Parts {
        frozen: BTreeMap::from([("vda".to_owned(), text(&scene.path(&format!("vda.{}", id(1)))))]),
        ..Parts::default()
    };
    scene.seen.layers.snapshots.insert(id(2), branch);
    scene.fixture.owned.saw(&scene.seen);
    let before: Vec<PathBuf> = scene.all().into_iter().map(|orphan| orphan.path).collect();
    assert_eq!(before, [scene.overlay()], "the other is in the second snapshot");
    scene.seen.layers.snapshots.clear();
    scene.seen.snapshots.clear();
    scene.fixture.owned.saw(&scene.seen);
    assert_eq!(scene.all().len(), 2);
    assert_eq!(scene.fixture.owned.orphan_summary(vm()).count, 2);
}

#[test]
fn a_replaced_or_missing_file_and_one_below_another_image_cannot_be_deleted() {
    let mut scene = Scene::new();
    scene.detach();
    let etag = scene.examine().etag;
    overlay(&scene.path("clone.qcow2"), &scene.overlay());
    let refused = scene.examine().refusal.unwrap();
    assert_eq!(
        (refused.reason(), refused.metadata()["user"].clone()),
        (Reason::ImageInUse, text(&scene.path("clone.qcow2")))
    );
    fs::remove_file(scene.path("clone.qcow2")).unwrap();
    assert_eq!(scene.examine().refusal, None);
    let held = fs::File::open(scene.overlay()).unwrap();
    assert_eq!(scene.examine().refusal.unwrap().reason(), Reason::ImageInUse);
    drop(held);
    let other = scene.path("other");
    fs::copy(scene.overlay(), &other).unwrap();
    fs::rename(&other, scene.overlay()).unwrap();
    let replaced = scene.examine();
    assert_eq!((replaced.state, replaced.refusal.unwrap().reason()), (OrphanState::Replaced, Reason::OrphanNotFound));
    assert_ne!(replaced.etag, etag);
    fs::remove_file(scene.overlay()).unwrap();
    let missing = scene.examine();
    assert_eq!((missing.state, missing.refusal.unwrap().reason()), (OrphanState::Missing, Reason::OrphanNotFound));
    assert_eq!(missing.etag, "");
}

/// An orphan can be deleted, so a file of which it is not known is none.
#[test]
fn a_file_of_a_lost_snapshot_is_no_orphan_where_it_may_be_needed_or_never_held_a_state() {
    let mut scene = Scene::new();
    for target in ["vda", "vdb"] {
        scene.seen.layers.live.insert(target.to_owned(), text(&scene.path(&format!("{target}.qcow2"))));
    }
    let record = scene.fixture.owned.get(vm()).unwrap();
    scene.seen.layers.snapshots.clear();
    assert_eq!(record.orphans(Some(&scene.seen)).len(), 2);
    let mut unreadable = scene.seen.clone();
    unreadable.layers.unreadable = Some("/other".to_owned());
    assert!(record.orphans(Some(&unreadable)).is_empty() && record.orphans(None).is_empty());
    let mut given_up = record.clone();
    given_up.files.values_mut().for_each(|made| made.holds = Holds::Discarded);
    assert!(given_up.orphans(Some(&scene.seen)).is_empty());
    // One of them says nothing of the other.
    given_up.files.get_mut(&scene.overlay()).unwrap().holds = Holds::State;
    assert!(given_up.orphans(Some(&scene.seen)).into_iter().eq([scene.overlay()]));
}

use std::process::Command;

use snapshot_core::vm::DiskFacts;
use tempfile::TempDir;
use uuid::Uuid;

use super::*;

pub(super) fn vm() -> VmId {
    VmId::from_uuid(Uuid::from_u128(1))
}

pub(crate) fn id(n: u128) -> SnapshotId {
    SnapshotId::from_uuid(Uuid::from_u128(n))
}

pub(super) fn label() -> Label {
    Label::foreign("before exam", "")
}

/// A machine with these snapshots listed, and these names in its images.
pub(crate) fn seen(listed: &[SnapshotId], images: &[(&Path, Option<&[SnapshotId]>)]) -> Observed {
    let all = listed.iter().map(|id| (id.clone(), Kept { label: label(), create_time: 7 })).collect();
    let record = Record { snapshots: all, ..Record::empty(&crate::machines::tests::vm(1, "desk")) };
    let mut seen = record.recalled();
    seen.snapshots.iter_mut().for_each(|snapshot| snapshot.storage = Storage::Internal);
    let names = |ids: &[SnapshotId]| ids.iter().map(|id| (id.to_string(), Stamp::default())).collect();
    seen.images = images.iter().map(|(path, ids)| (path.to_path_buf(), ids.map(names))).collect();
    seen.vm.disks = images.iter().map(|(path, _)| disk(path)).collect();
    seen
}

pub(super) fn disk(path: &Path) -> DiskFacts {
    DiskFacts {
        target: "vda".into(),
        path: path.display().to_string(),
        format: "qcow2".into(),
        read_only: false,
        has_backing_file: false,
        capacity_bytes: 0,
        allocation_bytes: 0,
        free_bytes: None,
    }
}

pub(super) struct Fixture {
    pub(super) dir: TempDir,
    pub(super) owned: Owned,
}

impl Fixture {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let owned = Owned::open(&dir.path().join("owned")).unwrap();
        Self { dir, owned }
    }

    /// What the next process finds.
    pub(super) fn reopened(&self) -> Owned {
        Owned::open(&self.dir.path().join("owned")).unwrap()
    }

    fn image(&self, name: &str, tags: &[&str]) -> PathBuf {
        let path = self.dir.path().join(name);
        qemu_img(&["create", "-q", "-f", "qcow2", path.to_str().unwrap(), "1M"]);
        tags.iter().for_each(|tag| qemu_img(&["snapshot", "-c", tag, path.to_str().unwrap()]));
        path
    }
}

pub(super) fn qemu_img(args: &[&str]) {
    let output = Command::new("qemu-img").args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn held(owned: &Owned) -> BTreeMap<PathBuf, Vec<SnapshotId>> {
    let record = owned.get(vm());
    let images = record.into_iter().flat_map(|record| record.images);
    images.map(|(path, ids)| (path, ids.into_keys().collect())).collect()
}

#[test]
fn what_is_seen_is_remembered_by_the_next_process() {
    let fixture = Fixture::new();
    let (a, b) = (Path::new("/pool/a.qcow2"), Path::new("/pool/b.qcow2"));
    let (ours, other) = (id(1), "by-virsh".parse::<SnapshotId>().unwrap());
    // The stray has our form, and was never listed for this machine: the image may be a copy of another's.
    let inside = [ours.clone(), other.clone(), id(9)];
    fixture.owned.saw(&seen(&[ours.clone(), other], &[(a, Some(&inside)), (b, Some(&[]))]));
    for owned in [&fixture.owned, &fixture.reopened()] {
        assert_eq!(held(owned), [(a.to_owned(), vec![ours.clone()])].into());
        let record = owned.get(vm()).unwrap();
        assert_eq!((record.name.as_str(), record.vanished), ("desk", None));
        assert_eq!(record.snapshots[&ours], Kept { label: label(), create_time: 7 });
        assert!(owned.left_behind().is_empty() && owned.present() == [vm()]);
    }
    // It is no longer in the image.
    fixture.owned.saw(&seen(&[], &[(a, Some(&[]))]));
    assert!(fixture.owned.get(vm()).is_none() && fixture.reopened().get(vm()).is_none());
}

#[test]
fn what_cannot_be_seen_is_not_forgotten() {
    let fixture = Fixture::new();
    let (a, b) = (Path::new("/pool/a.qcow2"), Path::new("/pool/b.qcow2"));
    let both = [id(1), id(2)];
    fixture.owned.saw(&seen(&both, &[(a, Some(&both)), (b, Some(&both))]));
    // One image is away, the other was taken out of the machine, and the machine was defined anew without snapshots.
    fixture.owned.saw(&seen(&[], &[(a, None)]));
    let all: BTreeMap<_, _> = [(a.to_owned(), both.to_vec()), (b.to_owned(), both.to_vec())].into();
    assert_eq!(held(&fixture.owned), all);
    fixture.owned.saw(&seen(&[], &[(a, Some(&both[..1]))]));
    assert_eq!(held(&fixture.owned)[a], both[..1]);
    assert_eq!(held(&fixture.owned)[b], both);
}

#[test]
fn a_snapshot_is_remembered_before_it_is_taken() {
    let fixture = Fixture::new();
    let a = Path::new("/pool/a.qcow2");
    fixture.owned.expect(&seen(&[], &[(a, Some(&[]))]), &id(1), &label());
    assert_eq!(held(&fixture.reopened()), [(a.to_owned(), vec![id(1)])].into());
    // It came to nothing.
    fixture.owned.saw(&seen(&[], &[(a, Some(&[]))]));
    assert!(fixture.owned.get(vm()).is_none());
}

#[test]
fn a_machine_that_is_gone_is_told_of_until_it_is_back() {
    let fixture = Fixture::new();
    let a = Path::new("/pool/a.qcow2");
    fixture.owned.vanished(vm());
    assert!(fixture.owned.left_behind().is_empty(), "nothing of ours was in it");
    let machine = seen(&[id(1)], &[(a, Some(&[id(1)]))]);
    fixture.owned.saw(&machine);
    fixture.owned.vanished(vm());
    let since = fixture.owned.get(vm()).unwrap().vanished;
    assert!(since.is_some());
    fixture.owned.vanished(vm());
    for owned in [&fixture.owned, &fixture.reopened()] {
        assert_eq!(owned.get(vm()).unwrap().vanished, since);
        assert_eq!((owned.left_behind(), owned.present()), (vec![vm()], vec![]));
        let recalled = owned.get(vm()).unwrap().recalled();
        assert_eq!(recalled.snapshots.iter().map(|snapshot| snapshot.id.clone()).collect::<Vec<_>>(), [id(1)]);
    }
    fixture.owned.saw(&machine);
    assert!(fixture.owned.left_behind().is_empty() && fixture.owned.get(vm()).is_some());
}

#[test]
fn what_went_with_its_images_is_struck_out() {
    let fixture = Fixture::new();
    let (one, two) = (id(1), id(2));
    let kept = fixture.image("kept.qcow2", &[one.as_str(), two.as_str()]);
    let gone = fixture.dir.path().join("gone.qcow2");
    let unmounted = fixture.dir.path().join("pool/unmounted.qcow2");
    let both = [one.clone(), two.clone()];
    let images: Vec<(&Path, Option<&[SnapshotId]>)> =
        [&kept, &gone, &unmounted].map(|path| (path.as_path(), Some(&both[..]))).to_vec();
    fixture.owned.saw(&seen(&both, &images));
    sweep(&fixture.owned);
    assert_eq!(held(&fixture.owned).len(), 3, "of a machine that is there nothing is struck out");
    fixture.owned.vanished(vm());
    qemu_img(&["snapshot", "-d", two.as_str(), kept.to_str().unwrap()]);
    sweep(&fixture.owned);
    let left: BTreeMap<_, _> = [(kept.clone(), vec![one]), (unmounted.clone(), both.to_vec())].into();
    assert_eq!(held(&fixture.owned), left);
    std::fs::create_dir(unmounted.parent().unwrap()).unwrap();
    std::fs::remove_file(&kept).unwrap();
    sweep(&fixture.owned);
    assert!(fixture.owned.get(vm()).is_none());
}

#[test]
fn a_record_that_makes_no_sense_is_set_aside() {
    let fixture = Fixture::new();
    let file = fixture.dir.path().join(format!("owned/{}.json", vm()));
    fs::write(&file, "{").unwrap();
    assert!(fixture.reopened().get(vm()).is_none());
    assert!(!file.exists() && file.with_extension("unreadable").exists());
}

#[test]
fn what_an_older_agent_wrote_is_read() {
    let fixture = Fixture::new();
    let a = Path::new("/pool/a.qcow2");
    fixture.owned.saw(&seen(&[id(1)], &[(a, Some(&[id(1)]))]));
    let file = fixture.dir.path().join(format!("owned/{}.json", vm()));
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    record["images"][a.to_str().unwrap()] = serde_json::json!([id(1)]);
    record["files"]["/pool/a.snap"] = serde_json::json!({
        "snapshot": id(1), "kind": "overlay", "identity": null, "backing": null
    });
    fs::write(&file, record.to_string()).unwrap();
    let read = fixture.reopened().get(vm()).unwrap();
    assert_eq!(read.images[a], BTreeMap::from([(id(1), None)]));
    assert!(read.files[Path::new("/pool/a.snap")].holds.is_wanted(), "it may be all that is left of a disk");
}

#[test]
fn a_snapshot_that_was_taken_again_by_somebody_is_broken_and_not_removed() {
    let fixture = Fixture::new();
    let image = fixture.image("a.qcow2", &[id(1).as_str(), id(2).as_str()]);
    let look = || {
        let mut seen = seen(&[id(1), id(2)], &[(&image, None)]);
        seen.images.insert(image.clone(), Some(crate::qcow2::read(&image).unwrap().stamps()));
        seen
    };
    fixture.owned.saw(&look());
    for how in ["-d", "-c"] {
        qemu_img(&["snapshot", how, id(2).as_str(), image.to_str().unwrap()]);
    }
    let again = look();
    let mut snapshots = again.snapshots.clone();
    for owned in [&fixture.owned, &fixture.reopened()] {
        owned.saw(&again);
        owned.mark_replaced(&again, &mut snapshots);
        let broken: Vec<_> = snapshots.iter().map(|one| one.broken).collect();
        assert_eq!(broken, [None, Some(snapshot_core::Reason::SnapshotBroken)]);
    }
}

#[test]
fn what_an_operation_noted_outlives_a_look() {
    let fixture = Fixture::new();
    let a = Path::new("/pool/a.qcow2");
    let inside = [id(1), id(2)];
    fixture.owned.saw(&seen(&inside, &[(a, Some(&inside))]));
    fixture.owned.remains(vm(), &id(2));
    let images = BTreeMap::from([("vda".to_owned(), a.display().to_string())]);
    let safety = Safety { tag: "safety-1".to_owned(), images, definition: String::new(), current: None };
    fixture.owned.keep_safety(vm(), safety);
    fixture.owned.mix(vm(), Mixed { snapshot: id(1), disks: BTreeMap::new() });
    // It is in the image still, and libvirt lists it no more.
    fixture.owned.saw(&seen(&inside[..1], &[(a, Some(&inside))]));
    for owned in [&fixture.owned, &fixture.reopened()] {
        let record = owned.get(vm()).unwrap();
        assert_eq!((record.remains, record.safety.len(), record.mixed.is_some()), ([id(2)].into(), 1, true));
    }
    // It is gone from the image, and nothing but the safety tag is left.
    fixture.owned.saw(&seen(&[], &[(a, Some(&[]))]));
    let record = fixture.reopened().get(vm()).unwrap();
    assert!(record.remains.is_empty() && record.snapshots.is_empty() && record.safety.len() == 1, "{record:?}");
    fixture.owned.unmix(vm());
    assert!(fixture.reopened().get(vm()).is_some(), "the safety tag is to be removed");
}

/// A snapshot that libvirt lists again was no remains of one that failed.
#[test]
fn what_is_listed_is_not_removed_as_remains() {
    let fixture = Fixture::new();
    let a = Path::new("/pool/a.qcow2");
    let inside = [id(1)];
    fixture.owned.saw(&seen(&inside, &[(a, Some(&inside))]));
    fixture.owned.remains(vm(), &id(1));
    fixture.owned.saw(&seen(&inside, &[(a, Some(&inside))]));
    assert!(fixture.owned.get(vm()).unwrap().remains.is_empty());
}

#[test]
fn only_images_that_can_hold_a_snapshot_are_expected_to() {
    let fixture = Fixture::new();
    let mut seen = seen(&[], &[]);
    let image = |name: &str| disk(Path::new(name));
    let (mut raw, mut nameless) = (image("/pool/raw.img"), image(""));
    raw.format = "raw".to_owned();
    nameless.target = "vdc".to_owned();
    seen.vm.disks = vec![raw, nameless, image("/pool/a.qcow2")];
    fixture.owned.expect(&seen, &id(1), &label());
    assert_eq!(held(&fixture.owned), [(PathBuf::from("/pool/a.qcow2"), vec![id(1)])].into());
}

#[test]
fn a_file_of_a_vm_that_is_gone_is_struck_out_with_its_snapshot_when_it_is_gone() {
    let fixture = Fixture::new();
    let image = fixture.image("a.qcow2", &[id(1).as_str()]);
    let mut seen = seen(&[id(1)], &[(&image, Some(&[id(1)]))]);
    fixture.owned.saw(&seen);
    let overlay = fixture.dir.path().canonicalize().unwrap().join(format!("a.{}", id(2)));
    let overlays = BTreeMap::from([("vda".to_owned(), overlay.display().to_string())]);
    seen.snapshots.clear();
    fixture.owned.expect_files(&seen, &id(2), &label(), &overlays, None);
    let snapshots = |owned: &Owned| owned.get(vm()).map(|record| record.snapshots.into_keys().collect::<Vec<_>>());
    assert_eq!(snapshots(&fixture.owned), Some(vec![id(1), id(2)]));
    sweep(&fixture.owned);
    assert_eq!(snapshots(&fixture.owned), Some(vec![id(1), id(2)]), "a VM that is there is asked itself");
    fixture.owned.vanished(vm());
    // A revert that was interrupted has left it with its second name alone.
    let second = files::guarded(&overlay);
    fs::write(&second, "").unwrap();
    sweep(&fixture.owned);
    assert_eq!(snapshots(&fixture.reopened()), Some(vec![id(1), id(2)]));
    fs::remove_file(second).unwrap();
    sweep(&fixture.owned);
    assert_eq!(snapshots(&fixture.reopened()), Some(vec![id(1)]));
    fixture.owned.strike(vm(), &image, |other| *other == id(1));
    assert!(fixture.reopened().get(vm()).is_none());
}

/// Storage is read before it is written, which takes a while.
#[test]
fn a_record_that_was_changed_since_it_was_prepared_stays() {
    let fixture = Fixture::new();
    let a = Path::new("/pool/a.qcow2");
    let look = seen(&[id(1)], &[(a, Some(&[id(1)]))]);
    let prepared = fixture.owned.prepare(&look);
    fixture.owned.expect(&seen(&[], &[(a, Some(&[]))]), &id(2), &label());
    fixture.owned.saw_prepared(vm(), &prepared);
    assert_eq!(held(&fixture.reopened()), [(a.to_owned(), vec![id(2)])].into());
    let prepared = fixture.owned.prepare(&look);
    fixture.owned.saw_prepared(vm(), &prepared);
    assert_eq!(held(&fixture.reopened()), [(a.to_owned(), vec![id(1)])].into());
}

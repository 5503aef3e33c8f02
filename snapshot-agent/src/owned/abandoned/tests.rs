use std::cell::{Cell, RefCell};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use snapshot_core::ids::SnapshotId;
use snapshot_core::layers::{Layer, Layers, Parts};
use snapshot_core::snapshot::Storage;

use super::super::spare::needed;
use super::super::tests::{Fixture, disk, id, label, qemu_img, seen, vm};
use super::*;
use crate::hypervisor::Observed;

/// A machine with a chain of two external snapshots of ours, which was taken back to the first; and what is beside it.
struct Scene {
    fixture: Fixture,
    seen: Observed,
    made: Vec<PathBuf>,
}

/// As the hypervisor's: what is not there is gone already.
fn unlink(paths: &[String]) -> Result<(), Failure> {
    let mut there = paths.iter().filter(|path| fs::symlink_metadata(path).is_ok());
    there.try_for_each(fs::remove_file).map_err(Failure::from)
}

fn overlay(below: &Path, path: &Path) {
    let [below, path] = [below, path].map(|path| path.to_str().unwrap());
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below, path]);
}

impl Scene {
    fn new() -> Self {
        let fixture = Fixture::new();
        let at = |name: &str| fixture.dir.path().canonicalize().unwrap().join(name);
        qemu_img(&["create", "-q", "-f", "qcow2", at("vda.qcow2").to_str().unwrap(), "1M"]);
        let (first, second, memory) =
            (at(&format!("vda.{}", id(1))), at(&format!("vda.{}", id(2))), at(&format!("vda.{}.mem", id(2))));
        let reverted = at("vda.1700000000");
        let mut seen = seen(&[id(1), id(2)], &[]);
        seen.vm.disks = vec![disk(&at("vda.qcow2"))];
        seen.snapshots.iter_mut().for_each(|snapshot| snapshot.storage = Storage::External);
        let overlays = |path: &Path| BTreeMap::from([("vda".to_owned(), text(path))]);
        // The record comes before the files.
        fixture.owned.expect_files(
            &Observed { snapshots: vec![], ..seen.clone() },
            &id(1),
            &label(),
            &overlays(&first),
            None,
        );
        let expected = fixture.reopened().get(vm()).unwrap();
        assert_eq!((expected.files.len(), expected.snapshots.len()), (1, 1), "{expected:?}");
        overlay(&at("vda.qcow2"), &first);
        overlay(&first, &second);
        overlay(&at("vda.qcow2"), &reverted);
        fs::write(&memory, "LibvirtQemudSave and what the guest had").unwrap();
        let mut layers = Layers::default();
        let mut add = |path: &Path, below: Option<&Path>| {
            let layer =
                Layer { spelled: text(path), format: "qcow2".into(), backing: below.map(text), ..Layer::default() };
            layers.files.insert(text(path), layer);
        };
        add(&at("vda.qcow2"), None);
        add(&first, Some(&at("vda.qcow2")));
        add(&second, Some(&first));
        add(&reverted, Some(&at("vda.qcow2")));
        layers.live = overlays(&reverted);
        let parts = |frozen: &Path, over: &Path| Parts {
            frozen: overlays(frozen),
            overlays: overlays(over),
            ..Parts::default()
        };
        layers.snapshots.insert(id(1), parts(&at("vda.qcow2"), &first));
        layers.snapshots.insert(id(2), Parts { memory_file: Some(text(&memory)), ..parts(&first, &second) });
        seen.layers = layers;
        fixture.owned.saw(&seen);
        fixture.owned.reverted(&seen, &id(1));
        fixture.owned.vanished(vm());
        let made = vec![first, second, memory, reverted];
        assert!(fixture.reopened().get(vm()).unwrap().files.keys().eq(made.iter().collect::<BTreeSet<_>>()));
        Self { fixture, seen, made }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.fixture.dir.path().canonicalize().unwrap().join(name)
    }

    fn owned(&self) -> &Owned {
        &self.fixture.owned
    }

    fn there(&self) -> Vec<bool> {
        self.made.iter().map(|path| path.exists()).collect()
    }

    fn remove(&self, used: &[&Path]) -> Result<(), Error> {
        self.remove_with(used, &|| Ok(false), &unlink)
    }

    fn remove_with(
        &self,
        used: &[&Path],
        is_back: &dyn Fn() -> Result<bool, Failure>,
        unlink: &dyn Fn(&[String]) -> Result<(), Failure>,
    ) -> Result<(), Error> {
        let used = used.iter().map(|path| text(path)).collect();
        let files = self.owned().get(vm()).map(|record| record.files).unwrap_or_default();
        let folders = Beneath::anywhere();
        remove(self.owned(), vm(), &files, &Host { used, is_back, unlink, folders, all_snapshots_go: true })
    }
}

#[test]
fn what_was_made_goes_from_the_top_and_nothing_else() {
    let scene = Scene::new();
    let recalled = scene.owned().get(vm()).unwrap().recalled();
    let ids: Vec<SnapshotId> = recalled.snapshots.iter().map(|one| one.id.clone()).collect();
    assert_eq!(ids, [id(1), id(2)]);
    assert!(recalled.snapshots.iter().all(|one| one.storage == Storage::External && one.label == label()));
    // Files of our form that this machine never had.
    let strange = [format!("vda.{}", id(9)), format!("vda.{}.mem", id(9)), "vda.1700000001".to_owned()];
    strange.iter().for_each(|name| fs::write(scene.at(name), "somebody's").unwrap());
    let order = RefCell::new(Vec::new());
    let unlink = |paths: &[String]| {
        order.borrow_mut().extend(paths.to_vec());
        paths.iter().try_for_each(|path| fs::remove_file(path).map_err(Failure::from))
    };
    scene.remove_with(&[], &|| Ok(false), &unlink).unwrap();
    let place = |path: &Path| order.borrow().iter().position(|it| *it == text(path)).unwrap();
    assert!(place(&scene.made[1]) < place(&scene.made[0]), "{order:?}");
    assert_eq!(order.borrow().len(), 4);
    assert!(scene.owned().get(vm()).is_none() && scene.fixture.reopened().get(vm()).is_none());
    assert!(scene.at("vda.qcow2").exists() && strange.iter().all(|name| scene.at(name).exists()));
}

#[test]
fn an_end_anywhere_is_gone_on_with() {
    for struck in [false, true] {
        for call in 0.. {
            let scene = Scene::new();
            let calls = Cell::new(0);
            let unlink = |paths: &[String]| {
                calls.set(calls.get() + 1);
                if calls.get() > call {
                    if struck {
                        // It is done, and the process dies before it can write that down.
                        paths.iter().for_each(|path| fs::remove_file(path).unwrap());
                    }
                    return Err(Failure::Unreachable("as told".into()));
                }
                paths.iter().try_for_each(|path| fs::remove_file(path).map_err(Failure::from))
            };
            let done = scene.remove_with(&[], &|| Ok(false), &unlink);
            assert!(scene.at("vda.qcow2").exists());
            if done.is_ok() {
                assert_eq!(call, 4);
                break;
            }
            // A chain is whole as far as it is there.
            assert!(scene.made[0].exists() || !scene.made[1].exists());
            scene.remove(&[]).unwrap();
            assert_eq!(scene.there(), [false; 4], "ended at call {call}");
            assert!(scene.fixture.reopened().get(vm()).is_none());
        }
    }
}

#[test]
fn what_is_used_or_lies_below_what_stays_is_left() {
    let scene = Scene::new();
    scene.remove(&[&scene.made[1]]).unwrap();
    assert_eq!(scene.there(), [true, true, false, false]);
    assert_eq!(scene.owned().get(vm()).unwrap().files.len(), 2, "it stays in the record");
    // Somebody's own image lies on the first.
    let copy = scene.at("copy.qcow2");
    overlay(&scene.made[0], &copy);
    scene.remove(&[]).unwrap();
    assert_eq!(scene.there(), [true, false, false, false]);
    fs::remove_file(copy).unwrap();
    scene.remove(&[]).unwrap();
    assert!(scene.there() == [false; 4] && scene.owned().get(vm()).is_none());
}

#[test]
fn another_path_to_a_file_is_the_file() {
    let scene = Scene::new();
    let link = scene.at("link");
    fs::hard_link(&scene.made[1], &link).unwrap();
    scene.remove(&[&link]).unwrap();
    assert_eq!(scene.there(), [true, true, false, false]);
    // The folder is somewhere else by now, with a link in its old place.
    fs::remove_file(&link).unwrap();
    let (folder, moved) = (scene.at(""), scene.fixture.dir.path().with_extension("moved"));
    fs::rename(&folder, &moved).unwrap();
    std::os::unix::fs::symlink(&moved, folder.with_file_name(folder.file_name().unwrap())).unwrap();
    let second = moved.join(scene.made[1].file_name().unwrap());
    scene.remove(&[&second]).unwrap();
    assert!(second.exists() && scene.made[0].exists());
    fs::remove_file(scene.fixture.dir.path()).unwrap();
    fs::rename(&moved, scene.fixture.dir.path()).unwrap();
}

/// As a revert leaves them whose agent died: under a second name, or under that alone.
#[test]
fn what_was_guarded_goes_with_its_file() {
    for is_lost in [false, true] {
        let scene = Scene::new();
        let [first, second] = [0, 1].map(|index: usize| guarded(&scene.made[index]));
        fs::hard_link(&scene.made[0], &first).unwrap();
        fs::hard_link(&scene.made[1], &second).unwrap();
        if is_lost {
            fs::remove_file(&scene.made[1]).unwrap();
        }
        scene.remove(&[]).unwrap();
        assert!(scene.there() == [false; 4] && !first.exists() && !second.exists(), "{is_lost}");
        assert!(scene.owned().get(vm()).is_none() && scene.at("vda.qcow2").exists());
    }
}

#[test]
fn a_machine_that_is_back_keeps_the_rest() {
    let scene = Scene::new();
    let calls = Cell::new(0);
    let is_back = || Ok(calls.replace(calls.get() + 1) == 1);
    scene
        .remove_with(&[], &is_back, &|paths| {
            paths.iter().try_for_each(|path| fs::remove_file(path).map_err(Failure::from))
        })
        .unwrap();
    assert_eq!(scene.there().iter().filter(|there| **there).count(), 3);
    let asked = || Err(Failure::Unreachable("as told".into()));
    scene.remove_with(&[], &asked, &|_| panic!("it is not known")).unwrap_err();
}

#[test]
fn what_is_no_longer_what_was_made_is_not_ours() {
    let scene = Scene::new();
    // A copy put in its place, the same file with another content, and a link to somebody's file.
    let [first, second, memory, reverted] = &scene.made[..] else { unreachable!() };
    fs::copy(second, scene.at("copy")).unwrap();
    fs::rename(scene.at("copy"), second).unwrap();
    fs::write(memory, "notes").unwrap();
    fs::write(scene.at("theirs"), "theirs").unwrap();
    fs::remove_file(reverted).unwrap();
    std::os::unix::fs::symlink(scene.at("theirs"), reverted).unwrap();
    scene.remove(&[]).unwrap();
    assert_eq!(scene.there(), [true; 4], "the copy lies on the first");
    assert!(scene.owned().get(vm()).unwrap().files.keys().eq([first]));
    // Written anew without what it lay on: an image of its own.
    let scene = Scene::new();
    let flat = scene.at("flat");
    qemu_img(&["create", "-q", "-f", "qcow2", flat.to_str().unwrap(), "1M"]);
    fs::write(&scene.made[0], fs::read(flat).unwrap()).unwrap();
    scene.remove(&[]).unwrap();
    assert_eq!(scene.there(), [true, false, false, false]);
    assert!(scene.owned().get(vm()).is_none());
}

/// A process that has something open, and ends with the test.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_is_open_is_left_until_it_is_not() {
    let scene = Scene::new();
    let top = scene.made[1].to_str().unwrap();
    // QEMU waits for what it is to do.
    let mut command = Command::new("qemu-io");
    command.args(["-f", "qcow2", top]).stdin(Stdio::piped()).stdout(Stdio::null());
    let qemu = Holder(command.spawn().unwrap());
    let begun = Instant::now();
    // One after the other.
    while !scene.made[..2].iter().all(|image| is_locked(Beneath::anywhere(), image).unwrap()) {
        assert!(begun.elapsed() < Duration::from_secs(60), "QEMU does not lock its image, and what that lies on");
        std::thread::sleep(POLL);
    }
    scene.remove(&[]).unwrap_err();
    assert_eq!(scene.there(), [true, true, false, false]);
    drop(qemu);
    // Nobody locks a running state.
    let scene = Scene::new();
    let reader = fs::File::open(&scene.made[2]).unwrap();
    let sleeper = Holder(Command::new("sleep").arg("100").stdin(reader).spawn().unwrap());
    scene.remove(&[]).unwrap_err();
    assert_eq!(scene.there(), [false, false, true, false]);
    drop(sleeper);
    scene.remove(&[]).unwrap();
    assert!(scene.there() == [false; 4] && scene.owned().get(vm()).is_none());
}

#[test]
fn a_look_renews_the_record() {
    let scene = Scene::new();
    let files = || scene.fixture.reopened().get(vm()).map(|record| record.files).unwrap_or_default();
    // The machine is back, and the first snapshot was merged away below the second.
    let mut seen = scene.seen.clone();
    overlay(&scene.at("vda.qcow2"), &scene.at("moved"));
    qemu_img(&[
        "rebase",
        "-u",
        "-F",
        "qcow2",
        "-b",
        scene.at("vda.qcow2").to_str().unwrap(),
        scene.made[1].to_str().unwrap(),
    ]);
    fs::remove_file(&scene.made[0]).unwrap();
    seen.layers.snapshots.remove(&id(1));
    seen.snapshots.retain(|snapshot| snapshot.id == id(2));
    seen.layers.files.get_mut(&text(&scene.made[1])).unwrap().backing = Some(text(&scene.at("vda.qcow2")));
    scene.owned().saw(&seen);
    assert!(files().keys().eq([&scene.made[3], &scene.made[1], &scene.made[2]]));
    assert_eq!(files()[&scene.made[1]].backing, Some(scene.at("vda.qcow2")));
    // A snapshot that was deleted is not asked about again, whatever is left of its files.
    scene.owned().deleted(vm(), &id(2));
    seen.snapshots.clear();
    scene.owned().saw(&seen);
    let record = scene.owned().get(vm()).unwrap();
    assert!(record.recalled().snapshots.iter().all(|snapshot| snapshot.id != id(2)), "{record:?}");
    // A file that libvirt does not know any more is still ours, and one that was replaced is not.
    seen.layers.snapshots.clear();
    scene.owned().saw(&seen);
    assert_eq!(files().len(), 3);
    fs::rename(scene.at("moved"), &scene.made[1]).unwrap();
    scene.owned().saw(&seen);
    assert!(files().keys().eq([&scene.made[3], &scene.made[2]]));
}

#[test]
fn a_file_that_was_there_before_is_not_expected() {
    let fixture = Fixture::new();
    let at = |name: &str| fixture.dir.path().join(name);
    let (image, overlay) = (at("vda.qcow2"), at(&format!("vda.{}", id(1))));
    fs::write(&overlay, "somebody's").unwrap();
    let mut seen = seen(&[], &[]);
    seen.vm.disks = vec![disk(&image)];
    let overlays = BTreeMap::from([("vda".to_owned(), text(&overlay))]);
    fixture.owned.expect_files(&seen, &id(1), &label(), &overlays, None);
    assert!(fixture.owned.get(vm()).is_none());
}

#[test]
fn of_a_machine_that_is_there_only_what_it_has_no_use_for_goes() {
    let scene = Scene::new();
    // A revert that was interrupted: one overlay was laid on what the first snapshot froze, and never used.
    let (laid, earlier, strange) = (scene.at("vda.1700000005"), scene.at("vda.1600000000"), scene.at("vda.1700000006"));
    overlay(&scene.at("vda.qcow2"), &laid);
    overlay(&scene.at("vda.qcow2"), &earlier);
    fs::write(&strange, "somebody's").unwrap();
    scene.owned().saw(&scene.seen);
    scene.owned().laid(&scene.seen, &id(1), 1_700_000_001);
    assert!(scene.owned().has_spare(&scene.seen));
    let needed = needed(&scene.seen);
    let needed: Vec<&Path> = needed.iter().map(Path::new).collect();
    scene.remove(&needed).unwrap();
    // The overlay of the second snapshot is of a branch that was left.
    assert_eq!(scene.there(), [true, false, true, true]);
    assert_eq!([&laid, &earlier, &strange].map(|path| path.exists()), [false, true, true]);
    assert!(!scene.owned().has_spare(&scene.seen));
    // One that libvirt took away in the middle of a revert, and nobody brought back.
    let second = scene.at("vda.1700000007.kept");
    overlay(&scene.at("vda.qcow2"), &scene.at("vda.1700000007"));
    scene.owned().laid(&scene.seen, &id(1), 1_700_000_001);
    fs::rename(scene.at("vda.1700000007"), &second).unwrap();
    scene.owned().saw(&scene.seen);
    assert!(scene.owned().has_spare(&scene.seen));
    scene.remove(&needed).unwrap();
    assert!(!second.exists() && !scene.owned().has_spare(&scene.seen));
}

#[test]
fn what_may_hold_somebodys_work_is_nobodys_to_remove() {
    let scene = Scene::new();
    scene.owned().saw(&scene.seen);
    scene.owned().give_up(vm(), &id(2));
    assert!(!scene.owned().has_spare(&scene.seen));
    scene.remove(&[]).unwrap();
    assert_eq!(scene.there(), [true, true, true, false], "{:?}", scene.made);
}

//! What the rest of the agent relies on, asked of libvirt and of the fake alike: tests against the fake are worth as much
//! as it behaves like the real one.

mod external;
mod safety;

use std::any::Any;
use std::fs;
use std::sync::{Arc, Mutex};

use snapshot_agent::hypervisor::{Failure, Hypervisor, Load, Observed, PausedBy, Reread};
use snapshot_core::description::Label;
use snapshot_core::hardware::Comparison;
use snapshot_core::ids::{SnapshotId, VmId};
use snapshot_core::layers::Layers;
use snapshot_core::plan::{Freeze, PowerState};
use snapshot_core::snapshot::{Consistency, Content, RecordedState};
use snapshot_core::vm::VmState;
use uuid::Uuid;

use crate::fake::{Fake, World, lock, vm_facts};
use crate::guest::{Guest, HOST, run};

/// A machine with two disks, off, and somebody to use it.
trait Subject {
    fn hypervisor(&self) -> &dyn Hypervisor;
    fn vm(&self) -> VmId;
    /// Switches it on.
    fn start(&self);
    /// Has the guest write this to its disks.
    fn write(&self, marker: char);
    /// What the guest reads from them.
    fn read(&self) -> [char; 2];
    /// The files of its disks and its snapshots that there are.
    fn files(&self) -> Vec<String>;
    /// Another machine on the host, whose disk lies on this file, as long as it is kept.
    fn neighbour(&self, on: &str) -> Box<dyn Any>;
}

impl Subject for Guest {
    fn hypervisor(&self) -> &dyn Hypervisor {
        &*HOST.libvirt
    }

    fn vm(&self) -> VmId {
        self.vm
    }

    fn start(&self) {
        Guest::start(self);
    }

    fn write(&self, marker: char) {
        Guest::write(self, marker);
    }

    fn read(&self) -> [char; 2] {
        let report = self.report();
        [report.disk, report.second.unwrap()]
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.dir).unwrap().map(|entry| entry.unwrap().path().display().to_string());
        let mut files: Vec<String> =
            entries.filter(|path| !path.ends_with(".raw") && !path.ends_with("/serial")).collect();
        files.sort();
        files
    }

    fn neighbour(&self, on: &str) -> Box<dyn Any> {
        let other = Guest::new(1);
        run(&other.dir, "qemu-img", &["create", "-q", "-f", "qcow2", "-b", on, "-F", "qcow2", "vda.qcow2"]);
        Box::new(other)
    }
}

struct Imagined {
    world: Arc<Mutex<World>>,
    fake: Fake,
}

impl Subject for Imagined {
    fn hypervisor(&self) -> &dyn Hypervisor {
        &self.fake
    }

    fn vm(&self) -> VmId {
        vm_facts().id
    }

    fn start(&self) {
        lock(&self.world).start(vm_facts().id);
    }

    fn write(&self, marker: char) {
        lock(&self.world).machines.get_mut(&vm_facts().id).unwrap().disks = vec![marker; 2];
    }

    fn read(&self) -> [char; 2] {
        let world = lock(&self.world);
        let machine = &world.machines[&vm_facts().id];
        assert_eq!(machine.vm.state, VmState::Running);
        [machine.disks[0], machine.disks[1]]
    }

    fn files(&self) -> Vec<String> {
        lock(&self.world).files(vm_facts().id)
    }

    fn neighbour(&self, on: &str) -> Box<dyn Any> {
        lock(&self.world).add_machine_on(on);
        Box::new(())
    }
}

#[test]
fn the_fake_keeps_the_contract() {
    let world = World::with_machine(VmState::Shutoff);
    keeps(&Imagined { fake: Fake::new(&world, None), world });
}

#[test]
fn libvirt_keeps_the_contract() {
    keeps(&Guest::new(2));
}

struct Asker<'a>(&'a dyn Subject);

impl Asker<'_> {
    fn look(&self) -> Observed {
        self.0.hypervisor().observe(self.0.vm(), Reread::New).unwrap()
    }

    fn create(&self, id: &SnapshotId, memory: bool) -> Result<(), Failure> {
        self.0.hypervisor().create_internal(&self.look().vm, id, &Label::foreign("name", "text"), memory)
    }

    fn revert(&self, id: &SnapshotId, then: PowerState) {
        self.0.hypervisor().revert_internal(self.0.vm(), id, then).unwrap();
    }

    fn current(&self) -> Option<SnapshotId> {
        self.look().snapshots.into_iter().find(|snapshot| snapshot.is_current).map(|snapshot| snapshot.id)
    }

    fn parent(&self, id: &SnapshotId) -> Option<SnapshotId> {
        self.look().snapshot(id).unwrap().parent.clone()
    }
}

fn refused(result: Result<(), Failure>) {
    assert!(matches!(result, Err(Failure::Refused { .. })), "{result:?}");
}

fn keeps(subject: &dyn Subject) {
    let [a, b, c] = [1, 2, 3].map(|_| SnapshotId::from_uuid(Uuid::now_v7()));
    let (asker, hypervisor, vm) = (Asker(subject), subject.hypervisor(), subject.vm());
    subject.start();
    subject.write('A');
    hypervisor.power_off(vm).unwrap();
    hypervisor.power_off(vm).unwrap();
    taking(&asker, [&a, &b, &c]);
    going_back(&asker, [&a, &b, &c]);
    going_back_in_place(&asker, [&a, &b, &c]);
    deleting(&asker, [&a, &b, &c]);
    taking_live(&asker, [&a, &b]);
    safety::protecting(&asker, &c);
    let nobody = VmId::from_uuid(Uuid::new_v4());
    assert_eq!(hypervisor.observe(nobody, Reread::All), Err(Failure::VmGone));
    assert_eq!(hypervisor.power_off(nobody), Err(Failure::VmGone));
    assert!(hypervisor.vms().unwrap().contains(&vm));
}

fn taking(asker: &Asker<'_>, [a, b, c]: [&SnapshotId; 3]) {
    let subject = asker.0;
    asker.create(a, false).unwrap();
    assert!(asker.look().has_whole(a) && asker.current().as_ref() == Some(a) && asker.parent(a).is_none());
    refused(asker.create(a, false));
    assert!(asker.look().has_whole(a));
    refused(asker.create(b, true));
    subject.start();
    subject.write('B');
    refused(asker.create(b, false));
    let seen = asker.look();
    assert!(seen.snapshot(b).is_none() && seen.strays.is_empty() && seen.vm.state == VmState::Running);
    asker.create(b, true).unwrap();
    let seen = asker.look();
    assert_eq!((seen.vm.state, seen.paused_by), (VmState::Running, None));
    subject.write('C');
    asker.create(c, true).unwrap();
    let seen = asker.look();
    let told = |id| seen.snapshot(id).map(|snapshot| (snapshot.content, snapshot.vm_state, snapshot.parent.clone()));
    assert_eq!(told(a), Some((Content::Disks, RecordedState::Shutoff, None)));
    assert_eq!(told(b), Some((Content::DisksAndMemory, RecordedState::Running, Some(a.clone()))));
    assert_eq!(told(c), Some((Content::DisksAndMemory, RecordedState::Running, Some(b.clone()))));
    let outline = subject.hypervisor().outline(subject.vm()).unwrap();
    assert_eq!(outline.current.as_deref(), Some(c.as_str()));
    assert!(outline.snapshots.iter().map(String::as_str).eq([a, b, c].map(SnapshotId::as_str)));
    let label = Label::foreign("renamed <&>", "\u{e9}");
    subject.hypervisor().write_label(subject.vm(), &Layers::default(), b, &label).unwrap();
    assert_eq!(asker.look().snapshot(b).unwrap().label.display_name, label.display_name);
    assert_eq!((asker.current().as_ref(), asker.parent(b).as_ref()), (Some(c), Some(a)));
}

fn taking_live(asker: &Asker<'_>, [a, b]: [&SnapshotId; 2]) {
    let (subject, vm, before) = (asker.0, asker.0.vm(), asker.look());
    let take = |id: &SnapshotId| {
        let label = Label::foreign("name", "text");
        subject.hypervisor().create_live(&asker.look().vm, id, &label, Freeze::No).map(drop)
    };
    take(a).unwrap();
    refused(take(a));
    let seen = asker.look();
    assert_eq!((seen.vm.state, seen.instance), (VmState::Running, before.instance));
    assert!(seen.has_whole(a) && seen.strays.is_empty() && asker.current().as_ref() == Some(a));
    let one = seen.snapshot(a).unwrap();
    assert_eq!((one.content, one.vm_state), (Content::Disks, RecordedState::DiskOnly));
    assert_eq!((one.consistency, one.label.disks), (Some(Consistency::Crash), Some(Consistency::Crash)));
    subject.write('E');
    asker.revert(a, PowerState::Running);
    assert_eq!(subject.read(), ['C', 'C']);
    subject.hypervisor().power_off(vm).unwrap();
    refused(take(b));
    assert!(!asker.look().has_stray(b));
    subject.hypervisor().delete_internal(vm, a).unwrap();
    assert!(asker.look().snapshots.is_empty() && asker.look().strays.is_empty());
}

fn going_back(asker: &Asker<'_>, [a, b, c]: [&SnapshotId; 3]) {
    let (subject, vm) = (asker.0, asker.0.vm());
    let before = asker.look().instance;
    subject.write('D');
    asker.revert(b, PowerState::Running);
    let seen = asker.look();
    assert_eq!((seen.vm.state, asker.current().as_ref()), (VmState::Running, Some(b)));
    assert!(seen.instance.is_some() && seen.instance != before);
    assert_eq!(subject.read(), ['B', 'B']);
    asker.revert(a, PowerState::Off);
    let seen = asker.look();
    assert_eq!((seen.vm.state, seen.instance, asker.current().as_ref()), (VmState::Shutoff, None, Some(a)));
    subject.start();
    assert_eq!(subject.read(), ['A', 'A']);
    asker.revert(a, PowerState::Running);
    assert_eq!(asker.look().vm.state, VmState::Running);
    assert_eq!(subject.read(), ['A', 'A']);
    asker.revert(c, PowerState::Paused);
    let seen = asker.look();
    assert_eq!((seen.vm.state, seen.paused_by), (VmState::Paused, Some(PausedBy::Something)));
    subject.hypervisor().resume(vm).unwrap();
    assert_eq!(subject.read(), ['C', 'C']);
    let unknown = SnapshotId::from_uuid(Uuid::now_v7());
    assert_eq!(subject.hypervisor().revert_internal(vm, &unknown, PowerState::Off), Err(Failure::SnapshotGone));
    assert_eq!(asker.look().vm.state, VmState::Running);
}

fn going_back_in_place(asker: &Asker<'_>, [_, b, c]: [&SnapshotId; 3]) {
    let (subject, vm) = (asker.0, asker.0.vm());
    let hypervisor = subject.hypervisor();
    let before = asker.look().instance;
    for (id, marker) in [(b, 'B'), (c, 'C')] {
        subject.write('E');
        assert_eq!(hypervisor.hardware(vm, id), Ok(Comparison::Same));
        hypervisor.suspend(vm).unwrap();
        let seen = asker.look();
        assert_eq!((seen.vm.state, seen.paused_by), (VmState::Paused, Some(PausedBy::Somebody)));
        hypervisor.suspend(vm).unwrap();
        // What cannot be loaded is not begun.
        let unknown = SnapshotId::from_uuid(Uuid::now_v7());
        assert!(hypervisor.load(&seen.vm, &unknown, "job").is_err());
        assert_eq!(hypervisor.loaded(vm, "job"), Ok(Load::None));
        hypervisor.load(&seen.vm, id, "job").unwrap();
        assert_eq!((hypervisor.loaded(vm, "job"), hypervisor.loaded(vm, "other")), (Ok(Load::Done), Ok(Load::None)));
        hypervisor.load(&seen.vm, id, "job").unwrap();
        hypervisor.make_current(vm, id).unwrap();
        hypervisor.make_current(vm, id).unwrap();
        hypervisor.resume(vm).unwrap();
        let seen = asker.look();
        assert_eq!((seen.vm.state, seen.instance, asker.current().as_ref()), (VmState::Running, before, Some(id)));
        assert_eq!(subject.read(), [marker; 2]);
        hypervisor.forget_load(vm, "job").unwrap();
        hypervisor.forget_load(vm, "job").unwrap();
        assert_eq!(hypervisor.loaded(vm, "job"), Ok(Load::None));
    }
    assert_eq!(asker.parent(c).as_ref(), Some(b));
    let unknown = SnapshotId::from_uuid(Uuid::now_v7());
    assert_eq!(hypervisor.make_current(vm, &unknown), Err(Failure::SnapshotGone));
}

fn deleting(asker: &Asker<'_>, [a, b, c]: [&SnapshotId; 3]) {
    let (subject, vm) = (asker.0, asker.0.vm());
    let hypervisor = subject.hypervisor();
    hypervisor.delete_internal(vm, b).unwrap();
    assert_eq!((asker.parent(c).as_ref(), asker.current().as_ref()), (Some(a), Some(c)));
    assert!(asker.look().has_whole(c) && asker.look().strays.is_empty());
    assert_eq!(hypervisor.delete_internal(vm, b), Err(Failure::SnapshotGone));
    assert_eq!(hypervisor.write_label(vm, &Layers::default(), b, &Label::foreign("x", "")), Err(Failure::SnapshotGone));
    assert_eq!(hypervisor.forget(vm, b), Err(Failure::SnapshotGone));
    hypervisor.delete_internal(vm, c).unwrap();
    assert_eq!(asker.current().as_ref(), Some(a));
    hypervisor.forget(vm, a).unwrap();
    let seen = asker.look();
    assert!(seen.snapshots.is_empty() && seen.has_stray(a) && seen.strays.len() == 1);
    hypervisor.remove_stray(&seen.vm, a).unwrap();
    let seen = asker.look();
    assert!(seen.snapshots.is_empty() && seen.strays.is_empty() && seen.vm.state == VmState::Running);
    assert_eq!(subject.read(), ['C', 'C']);
}

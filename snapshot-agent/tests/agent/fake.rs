//! A host made of variables, whose calls fail, half-succeed, lie or die at a chosen moment.
//! What a guest would read from its disks is one letter a disk, so that "some old and some new" can be seen. A contract
//! test on real guests (`contract.rs`) asks the same of libvirt.

mod calls;
mod external;
mod facts;
mod fault;
mod in_place;
mod internal;
mod machine;
mod safety;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use snapshot_core::description::Label;
use snapshot_core::hardware::Comparison;
use snapshot_core::ids::{SnapshotId, VmId};
use snapshot_core::layers::{Layer, Layers, Merge};
use snapshot_core::plan::{Freeze, PowerState, RevertedDefinition};
use snapshot_core::snapshot::{Consistency, Content, Origin, RecordedState, SnapshotFacts, Storage};
use snapshot_core::vm::{VmFacts, VmState};
use snapshot_core::{Error, Reason};
use tokio::sync::Notify;

pub(crate) use self::facts::vm_facts;
pub(crate) use self::fault::Fault;
pub(crate) use self::machine::Machine;

use snapshot_agent::hypervisor::inbox::Inbox;
use snapshot_agent::hypervisor::{
    Failure, Hypervisor, Load, NewExternal, Observed, Outline, PausedBy, Reread, Versions, Watch,
};
use snapshot_agent::safety::{Held, Safety};

/// The host, which outlives a process.
#[derive(Debug, Default)]
pub(crate) struct World {
    /// Its machines.
    pub(crate) machines: BTreeMap<VmId, Machine>,
    /// Second names of files, with what is in them.
    guarded: BTreeMap<String, (VmId, Layer, char)>,
    runs: u32,
}

/// One process's way to the host.
#[derive(Debug)]
pub(crate) struct Fake {
    world: Arc<Mutex<World>>,
    state: Mutex<State>,
    go_on: Condvar,
    stalled: Notify,
    inbox: Inbox,
}

#[derive(Debug, Default)]
struct State {
    calls: usize,
    fault: Option<(usize, Fault)>,
    stall: Option<usize>,
    dead: bool,
    unreadable: Option<(VmId, Duration)>,
    free: VecDeque<u64>,
}

impl Fake {
    /// Reaches this host; the call with this number, from 0, goes wrong.
    pub(crate) fn new(world: &Arc<Mutex<World>>, fault: Option<(usize, Fault)>) -> Self {
        let state = Mutex::new(State { fault, ..State::default() });
        let inbox = Inbox::default();
        inbox.set_connected(true);
        Self { world: Arc::clone(world), state, go_on: Condvar::new(), stalled: Notify::new(), inbox }
    }

    /// Has the call with this number, from 0, wait until [`Fake::go_on`].
    pub(crate) fn stall_at(&self, call: usize) {
        lock(&self.state).stall = Some(call);
    }

    /// Has every look at this machine fail, after so long a wait.
    pub(crate) fn make_unreadable(&self, vm: VmId, after: Duration) {
        lock(&self.state).unreadable = Some((vm, after));
    }

    /// Waits until that call is made.
    pub(crate) async fn stalled(&self) {
        self.stalled.notified().await;
    }

    /// Lets it go on.
    pub(crate) fn go_on(&self) {
        lock(&self.state).stall = None;
        self.go_on.notify_all();
    }

    /// Whether the fault has happened.
    pub(crate) fn is_spent(&self) -> bool {
        lock(&self.state).fault.is_none()
    }
}

/// Locks; what panicked as it was told to has left nothing half written.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn machine(world: &mut World, vm: VmId) -> Result<&mut Machine, Failure> {
    world.machines.get_mut(&vm).ok_or(Failure::VmGone)
}

impl Hypervisor for Fake {
    fn vms(&self) -> Result<Vec<VmId>, Failure> {
        self.call(|world| Ok(world.machines.keys().copied().collect()), |_| {})
    }

    fn observe(&self, vm: VmId, _: Reread<'_>) -> Result<Observed, Failure> {
        // Not under the lock, which would make every other call wait as long.
        let unreadable = lock(&self.state).unreadable.filter(|(unreadable, _)| *unreadable == vm);
        if let Some((_, after)) = unreadable {
            std::thread::sleep(after);
            return Err(Failure::Refused { code: 68, message: "cannot acquire state change lock".to_owned() });
        }
        self.seen(vm)
    }

    fn observe_again(&self, before: &Observed) -> Result<Observed, Failure> {
        self.observe(before.vm.id, Reread::New)
    }

    fn outline(&self, vm: VmId) -> Result<Outline, Failure> {
        self.seen(vm)?;
        // As libvirt lists them: with those that are deleted for everybody else.
        let world = lock(&self.world);
        let snapshots = &world.machines[&vm].snapshots;
        Ok(Outline {
            current: snapshots.iter().find(|one| one.is_current).map(|one| one.id.to_string()),
            snapshots: snapshots.iter().map(|one| one.id.to_string()).collect::<BTreeSet<_>>(),
        })
    }

    fn create_internal(&self, vm: &VmFacts, id: &SnapshotId, label: &Label, memory: bool) -> Result<(), Failure> {
        let lost = lock(&self.state).fault.is_some_and(|(_, fault)| fault != Fault::RefusedHalfway);
        let halfway = |world: &mut World| {
            let Ok(machine) = machine(world, vm.id) else { return };
            let content = machine.disks[0];
            machine.images[0].insert(id.clone(), content);
            if machine.vm.state == VmState::Running {
                // Sometimes libvirt's daemon dies before it has written down why.
                let why = if lost { PausedBy::Somebody } else { PausedBy::Snapshot };
                (machine.vm.state, machine.paused_by) = (VmState::Paused, Some(why));
            }
        };
        self.call(|world| machine(world, vm.id)?.create(id, label, memory), halfway)
    }

    fn create_live(&self, vm: &VmFacts, id: &SnapshotId, label: &Label, _: Freeze) -> Result<Duration, Failure> {
        let halfway = |world: &mut World| _ = machine(world, vm.id).map(|machine| machine.transact(id));
        self.call(|world| machine(world, vm.id)?.create_live(id, label), halfway)
    }

    fn write_label(&self, vm: VmId, _: &Layers, id: &SnapshotId, label: &Label) -> Result<(), Failure> {
        let write = |world: &mut World| {
            let machine = machine(world, vm)?;
            machine.listed(id)?;
            let named = machine.snapshots.iter_mut().filter(|snapshot| snapshot.id == *id);
            named.for_each(|snapshot| snapshot.label = label.clone());
            Ok(())
        };
        self.call(write, |_| {})
    }

    fn revert_internal(&self, vm: VmId, id: &SnapshotId, then: PowerState) -> Result<(), Failure> {
        let halfway = |world: &mut World| {
            let Ok(machine) = machine(world, vm) else { return };
            machine.revert_halfway(id);
        };
        let revert = |world: &mut World| {
            world.runs += 1;
            let run = world.runs;
            machine(world, vm)?.revert(id, then, run)
        };
        self.call(revert, halfway)
    }

    fn check_revert(&self, vm: &VmFacts, _: &SnapshotId) -> Result<(), Failure> {
        // A look, which is not counted.
        match &machine(&mut lock(&self.world), vm.id)?.against_revert {
            Some(error) => Err(Failure::Precondition(error.clone())),
            None => Ok(()),
        }
    }

    fn before_revert(&self, vm: VmId, id: &SnapshotId, tag: String) -> Result<Safety, Failure> {
        machine(&mut lock(&self.world), vm)?.before_revert(id, tag)
    }

    fn set_safety_tag(&self, vm: VmId, safety: &Safety) -> Result<(), Failure> {
        let set = |world: &mut World, most| machine(world, vm)?.set_tags(safety, most);
        // Those who die in the middle leave it in some images, and those who do not in none.
        let dies = lock(&self.state).fault.is_some_and(|(_, fault)| fault == Fault::DiesHalfway);
        self.call(|world| set(world, usize::MAX), |world| _ = set(world, usize::from(dies)))
    }

    fn held(&self, vm: VmId, safety: &Safety, id: &SnapshotId) -> Result<BTreeMap<String, Held>, Failure> {
        Ok(machine(&mut lock(&self.world), vm)?.held(safety, id))
    }

    fn restore_disks(&self, vm: VmId, safety: &Safety) -> Result<(), Failure> {
        let restore = |world: &mut World, most| machine(world, vm)?.restore_disks(safety, most);
        self.call(|world| restore(world, usize::MAX), |world| _ = restore(world, 1))
    }

    fn restore_definition(&self, vm: VmId, safety: &Safety) -> Result<bool, Failure> {
        let mut changed = false;
        self.call(|world| machine(world, vm).map(|machine| changed = machine.restore_definition(safety)), |_| {})?;
        Ok(changed)
    }

    fn remove_safety_tag(&self, vm: VmId, safety: &Safety) -> Result<(), Failure> {
        let remove = |world: &mut World, most| machine(world, vm).map(|machine| machine.remove_tags(safety, most));
        self.call(|world| remove(world, usize::MAX), |world| _ = remove(world, 1))
    }

    fn list_safety_tag(&self, vm: VmId, safety: &Safety, label: &Label) -> Result<(), Failure> {
        self.call(|world| machine(world, vm).map(|machine| machine.list_tag(safety, label)), |_| {})
    }

    fn hardware(&self, vm: VmId, _: &SnapshotId) -> Result<Comparison, Failure> {
        // A look, which is not counted.
        Ok(machine(&mut lock(&self.world), vm)?.hardware.clone())
    }

    fn reverted_definition(&self, vm: VmId, _: &SnapshotFacts) -> Result<RevertedDefinition, Failure> {
        let changes = |machine: &mut Machine| machine.changes.clone();
        machine(&mut lock(&self.world), vm).map(changes).map(|changes| RevertedDefinition { changes, has_tpm: false })
    }

    fn load(&self, vm: &VmFacts, id: &SnapshotId, job: &str) -> Result<(), Failure> {
        let halfway = |world: &mut World| _ = machine(world, vm.id).map(|machine| machine.load_halfway(id, job));
        self.call(|world| machine(world, vm.id)?.load(id, job), halfway)
    }

    fn loaded(&self, vm: VmId, job: &str) -> Result<Load, Failure> {
        let look = |world: &mut World| Ok(machine(world, vm)?.loads.get(job).copied());
        self.call(look, |_| {}).map(|load| load.unwrap_or(Load::None))
    }

    fn forget_load(&self, vm: VmId, job: &str) -> Result<(), Failure> {
        self.call(|world| machine(world, vm).map(|machine| _ = machine.loads.remove(job)), |_| {})
    }

    fn make_current(&self, vm: VmId, id: &SnapshotId) -> Result<(), Failure> {
        self.call(|world| machine(world, vm)?.make_current(id), |_| {})
    }

    fn suspend(&self, vm: VmId) -> Result<(), Failure> {
        self.call(|world| machine(world, vm)?.suspend(), |_| {})
    }

    fn delete_internal(&self, vm: VmId, id: &SnapshotId) -> Result<(), Failure> {
        let halfway = |world: &mut World| {
            let Ok(machine) = machine(world, vm) else { return };
            machine.images[0].remove(id);
        };
        self.call(|world| machine(world, vm)?.delete(id, true), halfway)
    }

    fn forget(&self, vm: VmId, id: &SnapshotId) -> Result<(), Failure> {
        self.call(|world| machine(world, vm)?.delete(id, false), |_| {})
    }

    fn create_external(&self, vm: &VmFacts, new: &NewExternal<'_>, _: &dyn Watch) -> Result<(), Failure> {
        let lost = lock(&self.state).fault.is_some_and(|(_, fault)| fault != Fault::RefusedHalfway);
        let halfway = |world: &mut World| _ = machine(world, vm.id).map(|machine| machine.create_halfway(new, lost));
        self.call(|world| machine(world, vm.id)?.create_external(new, usize::MAX), halfway)
    }

    fn take_back(&self, vm: &VmFacts, _: &Layers, _: &SnapshotId, _: bool) -> Result<(), Failure> {
        self.call(|world| machine(world, vm.id).map(|machine| machine.ahead.clear()), |_| {})
    }

    fn revert_external(&self, vm: VmId, _: &Layers, id: &SnapshotId, then: PowerState) -> Result<(), Failure> {
        let revert = |world: &mut World, disks| {
            world.runs += 1;
            let run = world.runs;
            machine(world, vm)?.revert_external(id, then, run, disks)
        };
        self.call(|world| revert(world, usize::MAX), |world| _ = revert(world, 1))
    }

    fn mark_deleted(&self, vm: VmId, _: &Layers, id: &SnapshotId) -> Result<(), Failure> {
        self.call(|world| machine(world, vm)?.mark_deleted(id), |_| {})
    }

    fn commit(&self, vm: &VmFacts, _: &Layers, merge: &Merge, _: &dyn Watch) -> Result<(), Failure> {
        let halfway = |world: &mut World| {
            let machine = machine(world, vm.id).unwrap();
            machine.content.insert(merge.base.clone(), '?');
        };
        self.call(|world| machine(world, vm.id)?.commit(merge), halfway)
    }

    fn redirect(&self, vm: &VmFacts, _: &Layers, merge: &Merge) -> Result<(), Failure> {
        let redirect = |world: &mut World, most| machine(world, vm.id).map(|machine| machine.redirect(merge, most));
        self.call(|world| redirect(world, usize::MAX), |world| _ = redirect(world, 1))
    }

    fn elsewhere(&self, vm: VmId) -> Result<BTreeSet<String>, Failure> {
        let reach = |world: &mut World| {
            let others = world.machines.iter().filter(|(id, _)| **id != vm);
            Ok(others.flat_map(|(_, machine)| machine.reached()).collect())
        };
        self.call(reach, |_| {})
    }

    fn free_bytes(&self, _: &str) -> Option<u64> {
        lock(&self.state).free.pop_front().or(Some(u64::MAX))
    }

    fn guard(&self, files: &[String]) -> Result<(), Failure> {
        self.call(|world| world.guard(files), |_| {})
    }

    fn unguard(&self, files: &[String]) -> Result<(), Failure> {
        self.call(|world| world.unguard(files), |_| {})
    }

    fn unlink(&self, files: &[String]) -> Result<(), Failure> {
        let unlink = |world: &mut World, most| -> Result<(), Failure> {
            world
                .machines
                .values_mut()
                .for_each(|machine| files.iter().take(most).for_each(|path| machine.unlink(path)));
            Ok(())
        };
        self.call(|world| unlink(world, usize::MAX), |world| _ = unlink(world, 1))
    }

    fn thaw(&self, _: VmId) -> Result<(), Failure> {
        Ok(())
    }

    fn set_guest_clock(&self, vm: VmId) -> Result<(), Failure> {
        machine(&mut lock(&self.world), vm).map(drop)
    }

    fn is_busy(&self, _: VmId) -> Result<bool, Failure> {
        Ok(false)
    }

    fn remove_stray(&self, vm: &VmFacts, id: &SnapshotId) -> Result<(), Failure> {
        let remove = |world: &mut World| {
            machine(world, vm.id)?.images.iter_mut().for_each(|image| _ = image.remove(id));
            Ok(())
        };
        self.call(remove, |_| {})
    }

    fn start(&self, vm: VmId) -> Result<(), Failure> {
        let start = |world: &mut World| {
            world.runs += 1;
            let run = world.runs;
            machine(world, vm).map(|machine| machine.start(run))
        };
        self.call(start, |_| {})
    }

    fn power_off(&self, vm: VmId) -> Result<(), Failure> {
        let off = |world: &mut World| {
            let machine = machine(world, vm)?;
            machine.end_run();
            Ok(())
        };
        self.call(off, |_| {})
    }

    fn resume(&self, vm: VmId) -> Result<(), Failure> {
        let resume = |world: &mut World| {
            machine(world, vm)?.resume();
            Ok(())
        };
        self.call(resume, |_| {})
    }

    fn versions(&self) -> Result<Versions, Failure> {
        Ok(Versions { libvirt: "11.3.0".to_owned(), qemu: "10.0.2".to_owned() })
    }

    fn inbox(&self) -> &Inbox {
        &self.inbox
    }
}

//! Live snapshots: what QEMU and libvirt make of them.

use snapshot_agent::hypervisor::{Failure, Hypervisor, Observed, Reread};
use snapshot_core::description::Label;
use snapshot_core::ids::SnapshotId;
use snapshot_core::layers::Layers;
use snapshot_core::plan::{Freeze, PowerState};
use snapshot_core::snapshot::{Consistency, Content, RecordedState, Storage};
use snapshot_core::vm::VmState;
use uuid::Uuid;

use crate::guest::{Guest, HOST, run};

fn id() -> SnapshotId {
    SnapshotId::from_uuid(Uuid::now_v7())
}

fn look(guest: &Guest) -> Observed {
    HOST.libvirt.observe(guest.vm, Reread::All).unwrap()
}

fn take(guest: &Guest, id: &SnapshotId, quiesce: Freeze) -> Result<(), Failure> {
    HOST.libvirt.create_live(&look(guest).vm, id, &Label::foreign("live", ""), quiesce).map(drop)
}

fn on_disks(guest: &Guest) -> (char, Option<char>) {
    let report = guest.report();
    (report.disk, report.second)
}

#[test]
fn live_is_of_all_disks_while_the_guest_runs_on_and_goes_back_and_away() {
    for state in [VmState::Running, VmState::Paused] {
        let guest = Guest::new(2);
        let libvirt = &*HOST.libvirt;
        guest.start();
        guest.write('A');
        if state == VmState::Paused {
            guest.domain().suspend().map(drop).unwrap();
        }
        let before = look(&guest);
        let [first, second] = [id(), id()];
        take(&guest, &first, Freeze::No).unwrap();
        take(&guest, &second, Freeze::No).unwrap();
        let seen = look(&guest);
        assert_eq!((seen.vm.state, seen.instance), (state, before.instance));
        let paths = |seen: &Observed| seen.vm.disks.iter().map(|disk| disk.path.clone()).collect::<Vec<_>>();
        assert_eq!(paths(&seen), paths(&before));
        assert!(seen.has_whole(&first) && seen.has_whole(&second) && seen.strays.is_empty());
        let (one, other) = (seen.snapshot(&first).unwrap(), seen.snapshot(&second).unwrap());
        assert!(!one.is_current && other.is_current && one.parent.is_none());
        assert_eq!(other.parent.as_ref(), Some(&first));
        assert_eq!((one.content, one.storage), (Content::Disks, Storage::Internal));
        assert_eq!((one.vm_state, one.consistency), (RecordedState::DiskOnly, Some(Consistency::Crash)));
        assert_eq!(one.disks, ["vda", "vdb"]);
        assert!(one.create_time > 1_700_000_000);
        let label = Label { disks: one.label.disks, ..Label::foreign("renamed", "") };
        libvirt.write_label(guest.vm, &Layers::default(), &first, &label).unwrap();
        assert_eq!(look(&guest).snapshot(&first).unwrap().vm_state, RecordedState::DiskOnly);

        if state == VmState::Paused {
            libvirt.resume(guest.vm).unwrap();
        }
        guest.write('B');
        libvirt.revert_internal(guest.vm, &first, PowerState::Running).unwrap();
        assert_eq!(on_disks(&guest), ('A', Some('A')));
        let seen = look(&guest);
        assert!(seen.vm.state == VmState::Running && seen.instance != before.instance);
        assert!(seen.snapshot(&first).unwrap().is_current);
        guest.write('C');
        libvirt.revert_internal(guest.vm, &second, PowerState::Off).unwrap();
        assert_eq!(look(&guest).vm.state, VmState::Shutoff);
        guest.start();
        assert_eq!(on_disks(&guest), ('A', Some('A')));
        libvirt.delete_internal(guest.vm, &first).unwrap();
        libvirt.delete_internal(guest.vm, &second).unwrap();
        let seen = look(&guest);
        assert!(seen.snapshots.is_empty() && seen.strays.is_empty());
        libvirt.power_off(guest.vm).unwrap();
        for disk in ["vda.qcow2", "vdb.qcow2"] {
            run(&guest.dir, "qemu-img", &["check", "-q", disk]);
        }
    }
}

#[test]
fn live_is_of_all_disks_or_of_none() {
    let guest = Guest::new(2);
    let id = id();
    run(&guest.dir, "qemu-img", &["snapshot", "-c", id.as_str(), "vdb.qcow2"]);
    guest.start();
    guest.write('A');
    let refused = take(&guest, &id, Freeze::No);
    assert!(matches!(refused, Err(Failure::Refused { .. })), "{refused:?}");
    let seen = look(&guest);
    assert!(seen.snapshots.is_empty() && seen.vm.state == VmState::Running);
    let named: Vec<_> = seen.images.values().map(|names| names.as_ref().unwrap().contains_key(id.as_str())).collect();
    assert_eq!(named, [false, true], "the first disk was left without it");
    guest.write('B');
    HOST.libvirt.remove_stray(&seen.vm, &id).unwrap();
    assert!(look(&guest).strays.is_empty());
    assert_eq!(on_disks(&guest), ('B', Some('B')));
}

/// A guest without an agent: who insists on a freeze gets no snapshot, and who does not is told that there was none.
#[test]
fn live_tells_of_a_freeze_that_could_not_be() {
    let guest = Guest::new(1);
    guest.start();
    guest.write('A');
    let [insisted, allowed] = [id(), id()];
    let refused = take(&guest, &insisted, Freeze::Required);
    assert!(matches!(refused, Err(Failure::Precondition(_))), "{refused:?}");
    assert!(look(&guest).snapshots.is_empty() && look(&guest).strays.is_empty());
    take(&guest, &allowed, Freeze::IfPossible).unwrap();
    assert_eq!(look(&guest).snapshot(&allowed).unwrap().consistency, Some(Consistency::CrashNoAgent));
}

//! What libvirt does when it is asked for each of the steps.

use snapshot_agent::hypervisor::{Failure, Hypervisor, PausedBy, Reread};
use snapshot_core::description::Label;
use snapshot_core::ids::SnapshotId;
use snapshot_core::layers::Layers;
use snapshot_core::plan::PowerState;
use snapshot_core::snapshot::{Content, RecordedState};
use snapshot_core::text::{Description, DisplayName};
use snapshot_core::vm::VmState;
use uuid::Uuid;

use crate::guest::{Guest, HOST};

fn id() -> SnapshotId {
    SnapshotId::from_uuid(Uuid::now_v7())
}

fn label(name: &str) -> Label {
    Label {
        display_name: DisplayName::parse(name).unwrap(),
        description: Description::parse("with <b>, & and \"quotes\"").unwrap(),
        protected: false,
        actor: "ravada/alice".to_owned(),
        issuer: "ravada".to_owned(),
        disks: None,
    }
}

#[test]
fn the_story_off_and_running_and_paused() {
    for state in [VmState::Shutoff, VmState::Running, VmState::Paused] {
        let guest = Guest::new(2);
        let libvirt = &*HOST.libvirt;
        guest.start();
        guest.write('A');
        match state {
            VmState::Shutoff => guest.domain().destroy().unwrap(),
            VmState::Paused => guest.domain().suspend().map(drop).unwrap(),
            _ => {}
        }
        let memory = state != VmState::Shutoff;
        let before = libvirt.observe(guest.vm, Reread::New).unwrap();
        assert_eq!((before.vm.state, before.vm.disks.len()), (state, 2));
        assert_eq!(before.paused_by, (state == VmState::Paused).then_some(PausedBy::Somebody));
        assert!(before.vm.disks[0].capacity_bytes == 64 << 20 && before.vm.disks[0].free_bytes.is_some());
        let id = id();
        libvirt.create_internal(&before.vm, &id, &label("before <exam>"), memory).unwrap();
        let seen = libvirt.observe(guest.vm, Reread::New).unwrap();
        assert_eq!(seen.vm.state, state);
        let snapshot = seen.snapshot(&id).unwrap();
        assert!(seen.has_whole(&id) && snapshot.is_current && seen.strays.is_empty());
        assert_eq!(snapshot.label, label("before <exam>"));
        assert_eq!(snapshot.content, if memory { Content::DisksAndMemory } else { Content::Disks });
        assert_eq!(snapshot.disks, ["vda", "vdb"]);
        assert!(snapshot.size_bytes > if memory { 100_000 } else { 0 });
        let recorded = match state {
            VmState::Running => RecordedState::Running,
            VmState::Paused => RecordedState::Paused,
            _ => RecordedState::Shutoff,
        };
        assert_eq!(snapshot.vm_state, recorded);

        libvirt.write_label(guest.vm, &Layers::default(), &id, &label("renamed")).unwrap();
        let seen = libvirt.observe(guest.vm, Reread::New).unwrap();
        assert_eq!(seen.snapshot(&id).unwrap().label, label("renamed"));
        assert!(seen.snapshot(&id).unwrap().is_current);

        match state {
            VmState::Shutoff => guest.start(),
            VmState::Paused => libvirt.resume(guest.vm).unwrap(),
            _ => {}
        }
        guest.write('B');
        libvirt.revert_internal(guest.vm, &id, PowerState::Running).unwrap();
        let report = guest.report();
        assert_eq!((report.disk, report.second), ('A', Some('A')), "{state:?}");
        assert_eq!(report.ram, 'A', "{state:?}");
        assert_eq!(libvirt.observe(guest.vm, Reread::New).unwrap().vm.state, VmState::Running);
        libvirt.delete_internal(guest.vm, &id).unwrap();
        let seen = libvirt.observe(guest.vm, Reread::New).unwrap();
        assert!(seen.snapshots.is_empty() && seen.strays.is_empty());
        assert_eq!(libvirt.delete_internal(guest.vm, &id), Err(Failure::SnapshotGone));
        libvirt.power_off(guest.vm).unwrap();
        libvirt.power_off(guest.vm).unwrap();
    }
}

#[test]
fn a_stray_is_seen_and_removed_on_and_off() {
    let guest = Guest::new(2);
    let libvirt = &*HOST.libvirt;
    for running in [false, true] {
        let kept = id();
        let seen = libvirt.observe(guest.vm, Reread::New).unwrap();
        libvirt.create_internal(&seen.vm, &kept, &label("kept"), false).unwrap();
        let stray = id();
        let image = guest.dir.join("vdb.qcow2");
        let made = std::process::Command::new("qemu-img").args(["snapshot", "-c", stray.as_str()]).arg(image).status();
        assert!(made.unwrap().success());
        if running {
            guest.start();
        }
        let seen = libvirt.observe(guest.vm, Reread::New).unwrap();
        assert!(seen.has_stray(&stray) && seen.snapshot(&stray).is_none());
        libvirt.remove_stray(&seen.vm, &stray).unwrap();
        let seen = libvirt.observe(guest.vm, Reread::New).unwrap();
        assert!(seen.strays.is_empty() && seen.snapshot(&stray).is_none());
        assert!(seen.has_whole(&kept) && seen.snapshot(&kept).unwrap().is_current);
    }
}

#[test]
fn lost_data_is_seen() {
    let guest = Guest::new(2);
    let libvirt = &*HOST.libvirt;
    let vm = libvirt.observe(guest.vm, Reread::New).unwrap().vm;
    let id = id();
    libvirt.create_internal(&vm, &id, &label("x"), false).unwrap();
    let image = guest.dir.join("vdb.qcow2");
    let made = std::process::Command::new("qemu-img").args(["snapshot", "-d", id.as_str()]).arg(image).status();
    assert!(made.unwrap().success());
    let seen = libvirt.observe(guest.vm, Reread::New).unwrap();
    assert_eq!(seen.snapshot(&id).unwrap().broken, Some(snapshot_core::Reason::SnapshotBroken));
    libvirt.delete_internal(guest.vm, &id).unwrap();
    let seen = libvirt.observe(guest.vm, Reread::New).unwrap();
    assert!(seen.snapshots.is_empty() && seen.strays.is_empty());
}

#[test]
fn what_is_not_there_is_told_apart() {
    let guest = Guest::new(1);
    let libvirt = &*HOST.libvirt;
    assert_eq!(libvirt.revert_internal(guest.vm, &id(), PowerState::Off), Err(Failure::SnapshotGone));
    assert!(libvirt.vms().unwrap().contains(&guest.vm));
    let gone = guest.vm;
    drop(guest);
    assert_eq!(libvirt.observe(gone, Reread::New), Err(Failure::VmGone));
    assert_eq!(libvirt.delete_internal(gone, &id()), Err(Failure::VmGone));
    assert!(!libvirt.versions().unwrap().qemu.is_empty());
}

//! Safety tags: set in all images or in none, restored, told by what the disks hold, listed, and removed.

use snapshot_agent::safety::{Held, tag};
use snapshot_core::ids::OperationId;

use super::*;

/// Of a VM that is off and has no snapshots.
pub(super) fn protecting(asker: &Asker<'_>, a: &SnapshotId) {
    let (subject, vm) = (asker.0, asker.0.vm());
    let hypervisor = subject.hypervisor();
    asker.create(a, false).unwrap();
    subject.start();
    subject.write('G');
    hypervisor.power_off(vm).unwrap();
    let name = tag(OperationId::from_uuid(Uuid::now_v7()));
    let saved = SnapshotId::of_name(&name);
    let safety = hypervisor.before_revert(vm, a, name).unwrap();
    assert_eq!((safety.images.len(), safety.current.as_ref()), (2, Some(a)));
    let held = |expected: Held| {
        let held = hypervisor.held(vm, &safety, a).unwrap();
        assert!(held.len() == 2 && held.values().all(|held| *held == expected), "{held:?} is not {expected:?}");
    };
    hypervisor.check_revert(&asker.look().vm, a).unwrap();
    held(Held::Unknown);
    for _ in 0..2 {
        hypervisor.set_safety_tag(vm, &safety).unwrap();
        held(Held::Current);
        assert!(asker.look().strays.is_empty(), "nobody takes it for remains");
    }
    for _ in 0..2 {
        asker.revert(a, PowerState::Off);
        held(Held::Snapshot);
        hypervisor.restore_disks(vm, &safety).unwrap();
        hypervisor.restore_definition(vm, &safety).unwrap();
        assert_eq!(hypervisor.restore_definition(vm, &safety), Ok(false));
        held(Held::Current);
    }
    subject.start();
    assert_eq!(subject.read(), ['G', 'G']);
    hypervisor.restore_disks(vm, &safety).unwrap_err();
    // QEMU has them open now, and the guest is paused.
    hypervisor.suspend(vm).unwrap();
    hypervisor.set_safety_tag(vm, &safety).unwrap();
    held(Held::Current);
    hypervisor.resume(vm).unwrap();
    subject.write('H');
    held(Held::Other);
    for _ in 0..2 {
        hypervisor.remove_safety_tag(vm, &safety).unwrap();
        held(Held::Unknown);
    }
    hypervisor.power_off(vm).unwrap();
    hypervisor.set_safety_tag(vm, &safety).unwrap();
    hypervisor.list_safety_tag(vm, &safety, &Label::foreign("before", "")).unwrap();
    assert!(asker.look().has_whole(&saved) && asker.current().as_ref() == Some(a));
    asker.revert(a, PowerState::Off);
    asker.revert(&saved, PowerState::Running);
    assert_eq!(subject.read(), ['H', 'H']);
    hypervisor.power_off(vm).unwrap();
    hypervisor.delete_internal(vm, &saved).unwrap();
    hypervisor.delete_internal(vm, a).unwrap();
    assert!(asker.look().snapshots.is_empty() && asker.look().strays.is_empty());
}

//! Reverts in place: which disks they need, and how long the guest stands still.

use super::tests::vm;
use super::*;
use crate::hardware::Comparison;
use crate::operation::RunAfter;
use crate::snapshot::{Content, RecordedState, SnapshotFacts};
use crate::tree::tests::snapshot;
use crate::vm::VmState;

fn target() -> SnapshotFacts {
    SnapshotFacts {
        content: Content::DisksAndMemory,
        vm_state: RecordedState::Running,
        size_bytes: 500 << 20,
        disks: vec!["vda".to_owned(), "vdb".to_owned()],
        ..snapshot(1, None)
    }
}

fn planned(vm: &VmFacts, target: SnapshotFacts) -> Plan {
    let (id, tree) = (target.id.clone(), SnapshotTree::new([target]).unwrap());
    let situation = Situation { vm, tree: &tree, layers: &Layers::default(), policy: &HostPolicy::default() };
    let request = Request::Revert { snapshot: id, run_after: RunAfter::AsRecorded, save_current: None };
    let mut planned = plan(situation, &request).unwrap();
    assert_eq!(may_go_in_place(situation, &planned).is_some(), {
        go_in_place(situation, &mut planned, &Comparison::Same).unwrap();
        planned.method == Some(Method::InPlace)
    });
    planned
}

#[test]
fn every_disk_is_the_one_of_then_and_a_qcow2_image() {
    let method = |spoil: fn(&mut VmFacts)| {
        let mut vm = vm(VmState::Running);
        spoil(&mut vm);
        planned(&vm, target()).method
    };
    assert_eq!(method(|_| ()), Some(Method::InPlace));
    assert_eq!(method(|vm| vm.disks[1].format = "raw".to_owned()), Some(Method::Libvirt));
    assert_eq!(method(|vm| vm.disks[1].target = "vdc".to_owned()), Some(Method::Libvirt));
    // A disk that the guest cannot write to is in no snapshot.
    let read_only = |vm: &mut VmFacts| {
        let iso = crate::vm::DiskFacts { target: "sda".to_owned(), read_only: true, ..vm.disks[0].clone() };
        vm.disks.push(crate::vm::DiskFacts { format: "raw".to_owned(), ..iso });
    };
    assert_eq!(method(read_only), Some(Method::InPlace));
}

#[test]
fn the_pause_is_that_of_a_guest_that_runs_before_and_afterwards() {
    let pause =
        |state, recorded| planned(&vm(state), SnapshotFacts { vm_state: recorded, ..target() }).predicted_pause_ms;
    assert_eq!(pause(VmState::Running, RecordedState::Running), Some(1050));
    assert_eq!(pause(VmState::Running, RecordedState::Paused), None);
    assert_eq!(pause(VmState::Paused, RecordedState::Running), None);
}

#[test]
fn the_capability_of_reverts_is_the_best_that_some_snapshot_has() {
    let disks = SnapshotFacts { content: Content::Disks, vm_state: RecordedState::Shutoff, ..target() };
    let running = SnapshotFacts { id: "snap-2".parse().unwrap(), parent: Some(disks.id.clone()), ..target() };
    let method = |facts: &[&SnapshotFacts]| {
        let tree = SnapshotTree::new(facts.iter().map(|one| (*one).clone())).unwrap();
        let (vm, policy) = (vm(VmState::Running), HostPolicy::default());
        let situation = Situation { vm: &vm, tree: &tree, layers: &Layers::default(), policy: &policy };
        let found = capabilities(situation, true).into_iter().find(|one| one.kind == CapabilityKind::Revert).unwrap();
        found.outcome.unwrap().method
    };
    assert_eq!(method(&[&disks, &running]), Some(Method::InPlace));
    assert_eq!(method(&[&disks]), Some(Method::Libvirt));
}

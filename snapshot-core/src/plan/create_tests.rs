//! What a create checks: its id, its place in the limits, the space of every file system, and what can be frozen.

use super::tests::{create, vm};
use super::*;
use crate::error::Reason;
use crate::layers::Parts;
use crate::operation::Create;
use crate::snapshot::{Content, Storage};
use crate::tree::tests::snapshot;
use crate::vm::{Nvram, VmState};

fn free() -> HostPolicy {
    HostPolicy { stable_paths: false, ..HostPolicy::default() }
}

fn ask(vm: &VmFacts, policy: &HostPolicy, create: Create) -> Result<Plan, Error> {
    let situation = Situation { vm, tree: &SnapshotTree::default(), layers: &Layers::default(), policy };
    plan(situation, &Request::Create(create))
}

#[test]
fn the_id_of_another_snapshot_is_refused_be_that_deleted_or_not() {
    let (vm, policy, id) = (vm(VmState::Shutoff), free(), create(None).snapshot);
    let ask = |tree: &SnapshotTree, layers: &Layers| {
        let situation = Situation { vm: &vm, tree, layers, policy: &policy };
        plan(situation, &Request::Create(create(None))).map(drop).map_err(|error| error.reason())
    };
    let there = SnapshotTree::new([crate::snapshot::SnapshotFacts { id: id.clone(), ..snapshot(1, None) }]).unwrap();
    let with = |deleted| {
        let mut layers = Layers::default();
        layers.snapshots.insert(id.clone(), Parts { deleted, ..Parts::default() });
        layers
    };
    let (no_tree, no_layers) = (SnapshotTree::default(), Layers::default());
    assert_eq!(ask(&no_tree, &no_layers), Ok(()));
    assert_eq!(ask(&there, &no_layers), Err(Reason::InvalidField));
    assert_eq!(ask(&no_tree, &with(true)), Err(Reason::InvalidField));
    assert_eq!(ask(&there, &with(true)), Err(Reason::InvalidField));
}

#[test]
fn a_full_list_refuses_a_create_and_says_what_the_limit_is() {
    let tree = SnapshotTree::new((1..=3).map(|number| snapshot(number, None))).unwrap();
    let ask = |most| {
        let policy = HostPolicy { max_snapshots_per_vm: most, ..HostPolicy::default() };
        let vm = vm(VmState::Shutoff);
        let situation = Situation { vm: &vm, tree: &tree, layers: &Layers::default(), policy: &policy };
        plan(situation, &Request::Create(create(None)))
    };
    assert!(ask(4).is_ok());
    let refused = ask(3).unwrap_err();
    assert_eq!(refused.reason(), Reason::SnapshotLimit);
    assert_eq!(refused.message(), "the machine has 3 snapshots, the most is 3");
}

#[test]
fn file_systems_are_not_frozen_for_an_external_snapshot_with_memory() {
    let content = Some(Content::DisksAndMemory);
    let external = |quiesce, allow_crash_consistent| Create {
        storage: Some(Storage::External),
        quiesce,
        allow_crash_consistent,
        ..create(content)
    };
    let ask = |create| ask(&vm(VmState::Running), &free(), create).map(|plan| plan.steps[0].clone());
    assert_eq!(ask(external(true, false)).unwrap_err().reason(), Reason::QuiesceUnsupported);
    let unfrozen = Step::CreateExternal { snapshot: create(None).snapshot, memory: true, quiesce: false };
    assert_eq!(ask(external(true, true)).unwrap(), unfrozen);
}

/// What keeps a live snapshot from being taken has nothing to do with one that saves memory, or one of a VM that is off.
#[test]
fn an_external_snapshot_is_automatic_only_where_the_internal_one_of_this_kind_is_impossible() {
    let kind = |vm: &VmFacts, policy: &HostPolicy, content| ask(vm, policy, create(content)).unwrap().steps[0].kind();
    let no_live = HostPolicy { live_snapshots: false, ..free() };
    assert_eq!(kind(&vm(VmState::Running), &no_live, Some(Content::DisksAndMemory)), "CREATE_INTERNAL");
    assert_eq!(kind(&vm(VmState::Running), &no_live, Some(Content::Disks)), "CREATE_EXTERNAL");
    let off = VmFacts { nvram: Nvram::Qcow2, ..vm(VmState::Shutoff) };
    assert_eq!(kind(&off, &free(), None), "CREATE_INTERNAL");
}

#[test]
fn each_file_system_keeps_the_margin_and_the_first_takes_the_memory() {
    let margin = HostPolicy::default().space_margin_bytes;
    let ask = |free: [u64; 2]| {
        let mut vm = vm(VmState::Running);
        for ((disk, folder), free) in vm.disks.iter_mut().zip(["/first", "/second"]).zip(free) {
            (disk.path, disk.free_bytes) = (format!("{folder}/disk.qcow2"), Some(free));
        }
        let refused = ask(&vm, &HostPolicy::default(), create(Some(Content::DisksAndMemory))).err()?;
        Some((refused.reason(), refused.metadata()["disk"].clone()))
    };
    let memory = vm(VmState::Running).memory_bytes;
    assert_eq!(ask([memory + margin, margin]), None);
    assert_eq!(ask([memory + margin - 1, margin]), Some((Reason::SpaceLow, "vda".to_owned())));
    assert_eq!(ask([memory + margin, margin - 1]), Some((Reason::SpaceLow, "vdb".to_owned())));
}

#[test]
fn the_disk_with_the_least_space_of_a_file_system_is_named_the_first_of_equals() {
    let ask = |free: [Option<u64>; 2]| {
        let mut vm = vm(VmState::Shutoff);
        vm.disks.iter_mut().zip(free).for_each(|(disk, free)| disk.free_bytes = free);
        let refused = ask(&vm, &HostPolicy::default(), create(None)).unwrap_err();
        (refused.reason(), refused.metadata()["disk"].clone())
    };
    assert_eq!(ask([Some(7), Some(7)]), (Reason::SpaceLow, "vda".to_owned()));
    assert_eq!(ask([Some(7), Some(6)]), (Reason::SpaceLow, "vdb".to_owned()));
    assert_eq!(ask([Some(7), None]), (Reason::ImageUnavailable, "vdb".to_owned()));
}

#[test]
fn a_block_device_keeps_a_part_of_its_size_free_and_no_more_than_the_margin() {
    let policy = HostPolicy { space_margin_bytes: 256 << 20, ..HostPolicy::default() };
    let fits = |capacity_bytes, free| {
        let mut vm = vm(VmState::Shutoff);
        for disk in &mut vm.disks {
            (disk.path, disk.capacity_bytes) = (format!("/dev/vg/{}", disk.target), capacity_bytes);
            disk.free_bytes = Some(free);
        }
        ask(&vm, &policy, create(None)).is_ok()
    };
    assert!(fits(64 << 20, 4 << 20) && !fits(64 << 20, (4 << 20) - 1), "a sixteenth of the disk");
    assert!(fits(64 << 30, 256 << 20) && !fits(64 << 30, (256 << 20) - 1), "the margin of a file system");
}

#[test]
fn the_pause_is_predicted_by_the_memory_of_a_guest_that_runs() {
    let pause = |state, bytes| {
        let vm = VmFacts { memory_bytes: bytes, ..vm(state) };
        ask(&vm, &HostPolicy::default(), create(Some(Content::DisksAndMemory))).unwrap().predicted_pause_ms
    };
    assert_eq!(pause(VmState::Running, 350 << 20), Some(1000));
    assert_eq!(pause(VmState::Running, (350 << 20) + 1), Some(1001));
    assert_eq!(pause(VmState::Paused, 350 << 20), None);
}

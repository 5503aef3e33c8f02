//! Live snapshots: when there is one, and what there is instead.

use super::tests::{create, vm};
use super::*;
use crate::error::Reason;
use crate::operation::{Create, RunAfter};
use crate::snapshot::{Content, RecordedState, SnapshotFacts, Storage};
use crate::tree::tests::snapshot;
use crate::vm::{Nvram, VmState};

fn planned(vm: &VmFacts, policy: &HostPolicy, tree: &SnapshotTree, create: Create) -> Result<Plan, Reason> {
    let situation = Situation { vm, tree, layers: &Layers::default(), policy };
    plan(situation, &Request::Create(create)).map_err(|error| error.reason())
}

fn step(vm: &VmFacts, policy: &HostPolicy, create: Create) -> Result<Step, Reason> {
    planned(vm, policy, &SnapshotTree::default(), create).map(|plan| plan.steps[0].clone())
}

fn live(quiesce: Freeze) -> Result<Step, Reason> {
    Ok(Step::CreateLive { snapshot: create(None).snapshot, quiesce })
}

fn internal(memory: bool) -> Result<Step, Reason> {
    Ok(Step::CreateInternal { snapshot: create(None).snapshot, memory })
}

#[test]
fn live_is_what_a_running_machine_gets_and_nobody_stands_still_for_it() {
    let (running, policy) = (vm(VmState::Running), HostPolicy::default());
    let plan = planned(&running, &policy, &SnapshotTree::default(), create(None)).unwrap();
    assert_eq!(plan.steps, [live(Freeze::No).unwrap()]);
    assert_eq!((plan.method, plan.predicted_pause_ms, plan.bytes_written), (Some(Method::Live), None, 0));
    assert!(!plan.cancellable());
    assert_eq!(step(&vm(VmState::Paused), &policy, create(Some(Content::Disks))), live(Freeze::No));
    assert_eq!(step(&vm(VmState::Shutoff), &policy, create(None)), internal(false));
}

#[test]
fn live_falls_back_to_the_running_state_where_it_cannot_be() {
    let off = HostPolicy { live_snapshots: false, ..HostPolicy::default() };
    assert_eq!(step(&vm(VmState::Running), &off, create(None)), internal(true));
    assert_eq!(step(&vm(VmState::Running), &off, create(Some(Content::Disks))), Err(Reason::LiveDisksUnsupported));
    let policy = HostPolicy::default();
    let variables = VmFacts { nvram: Nvram::Qcow2, ..vm(VmState::Running) };
    assert_eq!(step(&variables, &policy, create(None)), internal(true));
    assert_eq!(step(&variables, &policy, create(Some(Content::Disks))), Err(Reason::LiveDisksUnsupported));
    let raw_variables = VmFacts { nvram: Nvram::Raw, ..vm(VmState::Running) };
    assert_eq!(step(&raw_variables, &policy, create(None)), live(Freeze::No));
    let mut network = vm(VmState::Running);
    network.disks[1].path = String::new();
    assert_eq!(step(&network, &policy, create(None)), internal(true));
    let mut raw = vm(VmState::Running);
    raw.disks[1].format = "raw".to_owned();
    assert_eq!(step(&raw, &policy, create(Some(Content::Disks))), Err(Reason::LiveDisksUnsupported));
    raw.disks[1].read_only = true;
    assert_eq!(step(&raw, &policy, create(None)), live(Freeze::No));
}

#[test]
fn live_is_preferred_to_overlays_unless_somebody_prefers_those() {
    let external = |memory| Ok(Step::CreateExternal { snapshot: create(None).snapshot, memory, quiesce: false });
    let free = HostPolicy { stable_paths: false, ..HostPolicy::default() };
    let short = HostPolicy { prefer_short_pauses: true, ..free.clone() };
    let (running, disks) = (vm(VmState::Running), || create(Some(Content::Disks)));
    assert_eq!(step(&running, &free, disks()), live(Freeze::No));
    assert_eq!(step(&running, &free, Create { storage: Some(Storage::External), ..disks() }), external(false));
    assert_eq!(step(&running, &short, disks()), external(false));
    assert_eq!(step(&running, &short, create(None)), external(true));
    let tree = SnapshotTree::new([SnapshotFacts { storage: Storage::External, ..snapshot(1, None) }]).unwrap();
    let beside = planned(&running, &free, &tree, create(None)).map(|plan| plan.steps[0].clone());
    assert_eq!(beside, external(true), "the two kinds are not mixed");
}

#[test]
fn live_freezes_as_strictly_as_it_was_asked_to() {
    let policy = HostPolicy::default();
    let ask = |state, quiesce, allow_crash_consistent| {
        step(&vm(state), &policy, Create { quiesce, allow_crash_consistent, ..create(None) })
    };
    assert_eq!(ask(VmState::Running, true, false), live(Freeze::Required));
    assert_eq!(ask(VmState::Running, true, true), live(Freeze::IfPossible));
    assert_eq!(ask(VmState::Running, false, true), live(Freeze::No));
    assert_eq!(ask(VmState::Shutoff, true, false), Err(Reason::QuiesceUnsupported));
    assert_eq!(ask(VmState::Shutoff, true, true), internal(false), "there is nothing to freeze");
}

/// Who goes back and keeps the present wants the programs that run in it back, too.
#[test]
fn live_is_not_how_the_present_is_kept_before_a_revert() {
    let taken = SnapshotFacts { vm_state: RecordedState::DiskOnly, ..snapshot(1, None) };
    let (vm, tree) = (vm(VmState::Running), SnapshotTree::new([taken.clone()]).unwrap());
    let policy = HostPolicy::default();
    let situation = Situation { vm: &vm, tree: &tree, layers: &Layers::default(), policy: &policy };
    let request =
        |run_after| Request::Revert { snapshot: taken.id.clone(), run_after, save_current: Some(create(None)) };
    let revert = |then| Step::RevertInternal { snapshot: taken.id.clone(), then };
    let steps = |run_after| plan(situation, &request(run_after)).unwrap().steps;
    assert_eq!(steps(RunAfter::AsRecorded), [internal(true).unwrap(), revert(PowerState::Running)]);
    assert_eq!(steps(RunAfter::Off), [internal(true).unwrap(), revert(PowerState::Off)]);
}

/// QEMU's transaction is of the disks: variables in a file of their own are not in it.
#[test]
fn live_has_no_uefi_variables() {
    for nvram in [Nvram::Qcow2, Nvram::Raw] {
        let vm = VmFacts { nvram, ..vm(VmState::Shutoff) };
        let taken = SnapshotFacts { vm_state: RecordedState::DiskOnly, ..snapshot(1, None) };
        let (tree, policy) = (SnapshotTree::new([taken.clone()]).unwrap(), HostPolicy::default());
        let situation = Situation { vm: &vm, tree: &tree, layers: &Layers::default(), policy: &policy };
        let request = Request::Revert { snapshot: taken.id, run_after: RunAfter::AsRecorded, save_current: None };
        assert!(plan(situation, &request).unwrap().losses.contains(&Loss::UefiVariables), "{nvram:?}");
    }
}

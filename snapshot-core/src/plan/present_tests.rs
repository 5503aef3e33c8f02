//! Saving the present before a revert: the default must be possible, and nothing may be lost without a word.

use super::tests::{create, vm};
use super::*;
use crate::error::Reason;
use crate::hardware::Comparison;
use crate::operation::{Create, RunAfter};
use crate::restriction::{RestrictedOperation, Restriction};
use crate::snapshot::{Content, SnapshotFacts};
use crate::tree::tests::snapshot;
use crate::vm::{Nvram, VmState};

fn planned(vm: &VmFacts, snapshots: u32, policy: &HostPolicy, save: Option<Create>) -> Result<Plan, Error> {
    let disks = vec!["vda".to_owned(), "vdb".to_owned()];
    let tree = SnapshotTree::new((1..=snapshots).map(|number| SnapshotFacts {
        disks: disks.clone(),
        ..snapshot(number, number.checked_sub(1).filter(|parent| *parent > 0))
    }));
    let tree = tree.unwrap();
    let situation = Situation { vm, tree: &tree, layers: &Layers::default(), policy };
    let snapshot = "snap-1".parse().unwrap();
    let mut planned =
        plan(situation, &Request::Revert { snapshot, run_after: RunAfter::AsRecorded, save_current: save })?;
    go_in_place(situation, &mut planned, &Comparison::Same)?;
    Ok(planned)
}

#[test]
fn where_the_memory_cannot_be_saved_the_disks_are_and_the_running_state_is_a_loss() {
    let policy = HostPolicy::default();
    let raw = |state| VmFacts { nvram: Nvram::Raw, ..vm(state) };
    for state in [VmState::Running, VmState::Paused] {
        let plan = planned(&raw(state), 1, &policy, Some(create(None))).unwrap();
        assert!(matches!(plan.steps[..], [Step::CreateLive { .. }, Step::RevertInternal { .. }]), "{plan:?}");
        assert!(plan.losses.contains(&Loss::RunningState), "{plan:?}");
        assert!(!plan.losses.iter().any(|loss| matches!(loss, Loss::ChangesSince(_))), "the disks are kept");
        assert_eq!(plan.method, Some(Method::Libvirt), "the revert's, whatever the disks are saved by");
        let told = plan.other_way.unwrap();
        assert!(told.starts_with("the running state is not saved: ") && told.contains("not in place"), "{told}");
    }
    let why = Restriction::new([RestrictedOperation::CreateWithMemory], Reason::FeatureUnsupported, "virtiofs");
    let device = VmFacts { restrictions: vec![why], ..vm(VmState::Running) };
    let plan = planned(&device, 1, &policy, Some(create(None))).unwrap();
    assert!(plan.losses.contains(&Loss::RunningState) && plan.other_way.unwrap().contains("virtiofs"));
    // What was asked for is done or refused.
    let asked = planned(&raw(VmState::Running), 1, &policy, Some(create(Some(Content::DisksAndMemory))));
    assert_eq!(asked.unwrap_err().reason(), Reason::NvramUnsupported);
    // Neither can be kept: the refusal is the first.
    let none = HostPolicy { live_snapshots: false, ..HostPolicy::default() };
    let refused = planned(&raw(VmState::Running), 1, &none, Some(create(None)));
    assert_eq!(refused.unwrap_err().reason(), Reason::NvramUnsupported);
}

#[test]
fn what_may_be_possible_later_is_not_left_out_of_the_saved_present() {
    let mut full = vm(VmState::Running);
    full.disks[0].free_bytes = Some(300 << 20);
    let refused = planned(&full, 1, &HostPolicy::default(), Some(create(None)));
    assert_eq!(refused.unwrap_err().reason(), Reason::SpaceLow);
}

#[test]
fn a_full_list_allows_one_saved_present() {
    let policy = HostPolicy { max_snapshots_per_vm: 3, ..HostPolicy::default() };
    for state in [VmState::Running, VmState::Shutoff] {
        let vm = vm(state);
        assert!(planned(&vm, 2, &policy, Some(create(None))).is_ok());
        assert!(planned(&vm, 3, &policy, Some(create(None))).is_ok());
        let refused = planned(&vm, 4, &policy, Some(create(None))).unwrap_err();
        assert_eq!(refused.reason(), Reason::SnapshotLimit);
        assert!(refused.message().ends_with("the most is 3, and one more that saves the present before a revert"));
        assert!(planned(&vm, 4, &policy, None).is_ok(), "without it there is no limit");
    }
}

//! Restrictions: each makes exactly its operations unavailable, and the capabilities say the same as the plan.

use super::tests::{create, vm};
use super::*;
use crate::error::Reason;
use crate::hardware::Comparison;
use crate::operation::{DeleteScope, RunAfter};
use crate::restriction::{RestrictedOperation, Restriction};
use crate::snapshot::{Content, Origin, RecordedState, SnapshotFacts, Storage};
use crate::tree::tests::snapshot;
use crate::vm::VmState;

fn restriction(operation: RestrictedOperation) -> Restriction {
    Restriction::new([operation], Reason::FeatureUnsupported, "device nvme0 cannot be saved").on_disk("vda")
}

fn target() -> SnapshotFacts {
    SnapshotFacts {
        content: Content::DisksAndMemory,
        vm_state: RecordedState::Running,
        origin: Origin::Service,
        disks: vec!["vda".to_owned(), "vdb".to_owned()],
        ..snapshot(1, None)
    }
}

/// The whole of planning, as an agent does it: the comparison of the hardware is what it finds.
fn planned(vm: &VmFacts, target: SnapshotFacts, request: &Request, hardware: &Comparison) -> Result<Plan, Error> {
    let (tree, layers) = (SnapshotTree::new([target]).unwrap(), Layers::default());
    let policy = HostPolicy { stable_paths: false, ..HostPolicy::default() };
    let situation = Situation { vm, tree: &tree, layers: &layers, policy: &policy };
    let mut plan = plan(situation, request)?;
    go_in_place(situation, &mut plan, hardware)?;
    Ok(plan)
}

fn delete() -> Request {
    Request::Delete { snapshot: target().id, scope: DeleteScope::Only, force: false }
}

fn revert() -> Request {
    Request::Revert { snapshot: target().id, run_after: RunAfter::AsRecorded, save_current: None }
}

/// A state of the VM, a request that leads to the operation there, and the step that does it.
fn requests() -> Vec<(RestrictedOperation, VmState, Request, &'static str)> {
    let content = |content| Request::Create(create(Some(content)));
    vec![
        (RestrictedOperation::CreateOffline, VmState::Shutoff, content(Content::Disks), "CREATE_INTERNAL"),
        (RestrictedOperation::CreateLive, VmState::Running, content(Content::Disks), "CREATE_LIVE"),
        (RestrictedOperation::CreateWithMemory, VmState::Running, content(Content::DisksAndMemory), "CREATE_INTERNAL"),
        (RestrictedOperation::Revert, VmState::Shutoff, revert(), "REVERT_INTERNAL"),
        (RestrictedOperation::Delete, VmState::Running, delete(), "DELETE_INTERNAL"),
    ]
}

#[test]
fn a_restriction_makes_exactly_its_operation_unavailable() {
    for (operation, state, request, step) in requests() {
        for restricted in RestrictedOperation::ALL {
            let of_vm = VmFacts { restrictions: vec![restriction(restricted)], ..vm(state) };
            match planned(&of_vm, target(), &request, &Comparison::Same) {
                Ok(plan) => {
                    assert_ne!(operation, restricted, "{plan:?}");
                    assert_eq!(plan.steps[0].kind(), step);
                }
                Err(error) => {
                    assert_eq!(operation, restricted, "{error:?}");
                    assert_eq!(error.reason(), Reason::FeatureUnsupported);
                    assert_eq!(error.message(), "device nvme0 cannot be saved");
                    assert_eq!(error.metadata().get("disk").map(String::as_str), Some("vda"));
                }
            }
        }
    }
}

#[test]
fn a_restriction_of_a_snapshot_is_for_operations_on_it_alone() {
    for (operation, state, request, _) in requests() {
        let of_snapshot = SnapshotFacts { restrictions: vec![restriction(operation)], ..target() };
        let refused = planned(&vm(state), of_snapshot, &request, &Comparison::Same).is_err();
        assert_eq!(refused, !matches!(request, Request::Create(_)), "{operation:?}");
    }
}

#[test]
fn a_create_without_a_wish_takes_what_is_not_restricted() {
    let ask = |restricted: &[RestrictedOperation]| {
        let restrictions = restricted.iter().map(|operation| restriction(*operation)).collect();
        let of_vm = VmFacts { restrictions, ..vm(VmState::Running) };
        let (tree, layers, policy) = (SnapshotTree::default(), Layers::default(), HostPolicy::default());
        let situation = Situation { vm: &of_vm, tree: &tree, layers: &layers, policy: &policy };
        plan(situation, &Request::Create(create(None))).map_err(|error| error.reason())
    };
    assert_eq!(ask(&[]).unwrap().steps[0].kind(), "CREATE_LIVE");
    let with_memory = ask(&[RestrictedOperation::CreateLive]).unwrap();
    assert_eq!(with_memory.steps[0].kind(), "CREATE_INTERNAL");
    assert_eq!(with_memory.other_way.as_deref(), Some("device nvme0 cannot be saved"));
    assert_eq!(ask(&[RestrictedOperation::CreateWithMemory]).unwrap().steps[0].kind(), "CREATE_LIVE");
    let neither = [RestrictedOperation::CreateLive, RestrictedOperation::CreateWithMemory];
    assert_eq!(ask(&neither), Err(Reason::FeatureUnsupported));
}

#[test]
fn a_revert_takes_the_way_that_is_not_restricted_and_falls_back_only_where_that_can_succeed() {
    let on = |restricted: &[RestrictedOperation]| VmFacts {
        restrictions: restricted.iter().map(|operation| restriction(*operation)).collect(),
        ..vm(VmState::Running)
    };
    let different = Comparison::Different("memory".to_owned());
    let step = |vm: &VmFacts, hardware| planned(vm, target(), &revert(), hardware).map(|plan| plan.steps[0].clone());
    let in_place = |fallback| Step::RevertInPlace { snapshot: target().id, then: PowerState::Running, fallback };
    let by_libvirt = Step::RevertInternal { snapshot: target().id, then: PowerState::Running };
    assert_eq!(step(&on(&[]), &Comparison::Same).unwrap(), in_place(true));
    assert_eq!(step(&on(&[RestrictedOperation::RevertInPlace]), &Comparison::Same).unwrap(), by_libvirt);
    let libvirt_cannot = on(&[RestrictedOperation::Revert]);
    assert_eq!(step(&libvirt_cannot, &Comparison::Same).unwrap(), in_place(false));
    assert_eq!(step(&libvirt_cannot, &different).unwrap_err().reason(), Reason::FeatureUnsupported);
    let neither = on(&RestrictedOperation::REVERT);
    assert_eq!(step(&neither, &Comparison::Same).unwrap_err().reason(), Reason::FeatureUnsupported);
}

#[test]
fn capabilities_say_what_a_plan_would() {
    for state in [VmState::Running, VmState::Paused, VmState::Shutoff] {
        for restricted in RestrictedOperation::ALL {
            let of_vm = VmFacts { restrictions: vec![restriction(restricted)], ..vm(state) };
            let (tree, layers) = (SnapshotTree::new([target()]).unwrap(), Layers::default());
            let policy = HostPolicy { stable_paths: false, ..HostPolicy::default() };
            let situation = Situation { vm: &of_vm, tree: &tree, layers: &layers, policy: &policy };
            for capability in capabilities(situation, true) {
                let request = match capability.kind {
                    CapabilityKind::CreateDisks => Request::Create(create(Some(Content::Disks))),
                    CapabilityKind::CreateDisksAndMemory => Request::Create(create(Some(Content::DisksAndMemory))),
                    CapabilityKind::Revert => revert(),
                    CapabilityKind::Delete => delete(),
                };
                let plan = planned(&of_vm, target(), &request, &Comparison::Same);
                let of = |outcome: &Result<Plan, Error>| {
                    outcome.as_ref().map(|plan| plan.steps[0].kind()).map_err(|error| error.reason())
                };
                assert_eq!(of(&capability.outcome), of(&plan), "{:?} {state:?} {restricted:?}", capability.kind);
            }
        }
    }
}

#[test]
fn an_external_snapshot_has_a_restriction_of_its_own() {
    let external = SnapshotFacts { storage: Storage::External, ..target() };
    let of_vm =
        VmFacts { restrictions: vec![restriction(RestrictedOperation::CreateExternal)], ..vm(VmState::Shutoff) };
    let request = Request::Create(create(Some(Content::Disks)));
    let refused = planned(&of_vm, external.clone(), &request, &Comparison::Same).unwrap_err();
    assert_eq!(refused.reason(), Reason::FeatureUnsupported);
    assert!(planned(&vm(VmState::Shutoff), external, &request, &Comparison::Same).is_ok());
}

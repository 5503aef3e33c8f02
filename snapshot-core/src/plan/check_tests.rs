//! Checks that several requests share, and what can be said of a plan as a whole.

use super::tests::{create, vm};
use super::*;
use crate::error::Reason;
use crate::operation::DeleteScope;
use crate::restriction::{RestrictedOperation, Restriction};
use crate::snapshot::SnapshotFacts;
use crate::tree::tests::snapshot;
use crate::vm::VmState;

fn update(snapshot: &SnapshotFacts) -> Request {
    Request::Update {
        snapshot: snapshot.id.clone(),
        display_name: create(None).display_name,
        description: create(None).description,
        protected: false,
    }
}

fn ask(vm: &VmFacts, tree: &SnapshotTree, request: &Request) -> Result<Plan, Error> {
    plan(Situation { vm, tree, layers: &Layers::default(), policy: &HostPolicy::default() }, request)
}

#[test]
fn an_update_writes_the_label_of_a_snapshot_that_there_is() {
    let (vm, target) = (vm(VmState::Running), snapshot(1, None));
    let tree = SnapshotTree::new([target.clone()]).unwrap();
    let planned = ask(&vm, &tree, &update(&target)).unwrap();
    assert_eq!(planned.steps, [Step::WriteLabel { snapshot: target.id.clone() }]);
    let refused = ask(&vm, &SnapshotTree::default(), &update(&target)).unwrap_err();
    assert_eq!(refused.reason(), Reason::SnapshotNotFound);
}

#[test]
fn where_everything_is_restricted_that_is_the_refusal_of_all_but_a_label() {
    let why = Restriction::new(RestrictedOperation::ALL, Reason::FeatureUnsupported, "an unknown type of domain");
    let unknown = VmFacts { restrictions: vec![why], ..vm(VmState::Unknown) };
    let target = snapshot(1, None);
    let tree = SnapshotTree::new([target.clone()]).unwrap();
    let snapshot = target.id.clone();
    for request in [
        Request::Create(create(None)),
        Request::Revert {
            snapshot: snapshot.clone(),
            run_after: crate::operation::RunAfter::AsRecorded,
            save_current: None,
        },
        Request::Delete { snapshot, scope: DeleteScope::Only, force: true },
        Request::Purge { force: true },
    ] {
        let refused = ask(&unknown, &tree, &request).unwrap_err();
        assert_eq!(refused.reason(), Reason::FeatureUnsupported, "{request:?}");
    }
    // Also where there is no snapshot that could be restricted.
    let refused = ask(&unknown, &SnapshotTree::default(), &Request::Purge { force: true }).unwrap_err();
    assert_eq!(refused.reason(), Reason::FeatureUnsupported);
    assert!(ask(&unknown, &tree, &update(&target)).is_ok());
    // One operation less, and the others are refused for their own reasons.
    let most = Restriction::new(RestrictedOperation::CREATE_AND_REVERT, Reason::FeatureUnsupported, "a bus");
    let unknown = VmFacts { restrictions: vec![most], ..unknown };
    assert_eq!(ask(&unknown, &tree, &Request::Create(create(None))).unwrap_err().reason(), Reason::VmStateUnsupported);
    assert!(ask(&unknown, &tree, &Request::Purge { force: true }).is_ok());
}

#[test]
fn a_plan_is_cancellable_where_every_step_leaves_what_somebody_asked_for() {
    let id = || snapshot(1, None).id;
    let external = |memory| Step::CreateExternal { snapshot: id(), memory, quiesce: false };
    let delete = || Step::DeleteInternal { snapshot: id() };
    let revert = || Step::RevertInternal { snapshot: id(), then: PowerState::Off };
    for (steps, expected) in [
        (vec![], false),
        (vec![delete()], false),
        (vec![delete(), delete()], true),
        (vec![Step::MarkDeleted { snapshot: id() }, Step::MergeLayers { disk: "vda".to_owned() }, Step::CleanUp], true),
        (vec![revert(), Step::CleanUp], false),
        (vec![external(true), revert()], false),
        (vec![Step::WriteLabel { snapshot: id() }], false),
        (vec![external(true)], true),
        (vec![external(false)], false),
    ] {
        assert_eq!(Plan { steps: steps.clone(), ..Plan::default() }.cancellable(), expected, "{steps:?}");
    }
}

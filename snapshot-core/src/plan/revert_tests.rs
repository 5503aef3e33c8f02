//! Reverts that are refused before anything is read of the hardware, and what a refusal says.

use super::tests::vm;
use super::*;
use crate::error::Reason;
use crate::operation::RunAfter;
use crate::restriction::{RestrictedOperation, Restriction};
use crate::snapshot::{Content, RecordedState, SnapshotFacts};
use crate::tree::tests::snapshot;
use crate::vm::VmState;

fn ask(vm: &VmFacts, target: SnapshotFacts) -> Result<Plan, Error> {
    let (id, tree) = (target.id.clone(), SnapshotTree::new([target]).unwrap());
    let situation = Situation { vm, tree: &tree, layers: &Layers::default(), policy: &HostPolicy::default() };
    plan(situation, &Request::Revert { snapshot: id, run_after: RunAfter::AsRecorded, save_current: None })
}

fn target() -> SnapshotFacts {
    SnapshotFacts {
        content: Content::DisksAndMemory,
        vm_state: RecordedState::Running,
        disks: vec!["vda".to_owned(), "vdb".to_owned()],
        ..snapshot(1, None)
    }
}

#[test]
fn a_revert_that_neither_libvirt_nor_qemu_can_do_is_not_planned() {
    let why = Restriction::new([RestrictedOperation::Revert], Reason::FeatureUnsupported, "a device");
    let restricted = |state| VmFacts { restrictions: vec![why.clone()], ..vm(state) };
    let reason = |vm: &VmFacts, target| ask(vm, target).map(drop).map_err(|error| error.reason());
    assert_eq!(reason(&restricted(VmState::Running), target()), Ok(()), "in place it may be possible");
    assert_eq!(reason(&restricted(VmState::Shutoff), target()), Err(Reason::FeatureUnsupported));
    let disks = SnapshotFacts { content: Content::Disks, vm_state: RecordedState::Shutoff, ..target() };
    assert_eq!(reason(&restricted(VmState::Running), disks), Err(Reason::FeatureUnsupported));
    assert_eq!(reason(&vm(VmState::Shutoff), target()), Ok(()));
}

#[test]
fn a_broken_snapshot_says_what_it_has_lost() {
    for (cause, told) in [
        (Reason::DisksDiffer, "not every disk"),
        (Reason::MediumMissing, "does not exist any more"),
        (Reason::SnapshotBroken, "has lost its part of it"),
    ] {
        let refused = ask(&vm(VmState::Shutoff), SnapshotFacts { broken: Some(cause), ..target() }).unwrap_err();
        assert_eq!((refused.reason(), refused.metadata()["cause"].as_str()), (Reason::SnapshotBroken, cause.as_str()));
        assert!(refused.message().contains(told), "{refused}");
    }
}

#[test]
fn a_step_names_its_snapshot_and_a_revert_of_an_older_journal_falls_back() {
    let snapshot = target().id;
    let (disk, then) = ("vda".to_owned(), PowerState::Off);
    for (step, named) in [
        (Step::CreateInternal { snapshot: snapshot.clone(), memory: true }, true),
        (Step::RevertExternal { snapshot: snapshot.clone(), then }, true),
        (Step::MarkDeleted { snapshot: snapshot.clone() }, true),
        (Step::MergeLayers { disk }, false),
        (Step::CleanUp, false),
    ] {
        assert_eq!(step.snapshot(), named.then_some(&snapshot), "{step:?}");
    }
    let recorded = format!(r#"{{"step":"revert_in_place","snapshot":"{snapshot}","then":"off"}}"#);
    let expected = Step::RevertInPlace { snapshot, then, fallback: true };
    assert_eq!(serde_json::from_str::<Step>(&recorded).unwrap(), expected);
}

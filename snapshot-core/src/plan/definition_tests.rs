//! What reverts do to definitions and TPMs, by policy and by who asks.

use super::tests::{create, vm};
use super::*;
use crate::definition_change::DefinitionChange;
use crate::error::Reason;
use crate::hardware::Comparison;
use crate::operation::RunAfter;
use crate::policy::DefinitionOnRevert;
use crate::snapshot::{Content, RecordedState, SnapshotFacts};
use crate::tree::tests::snapshot;
use crate::vm::VmState;

fn change(what: &str, from: Option<&str>, to: Option<&str>) -> DefinitionChange {
    DefinitionChange { what: what.to_owned(), from: from.map(str::to_owned), to: to.map(str::to_owned) }
}

fn memory() -> DefinitionChange {
    change("memory", Some("64 MiB"), Some("16 MiB"))
}

/// The plan of a revert as the agent makes it.
fn planned(
    vm: &VmFacts,
    target: &SnapshotFacts,
    policy: DefinitionOnRevert,
    reverted: &RevertedDefinition,
    is_administrator: bool,
) -> Result<Plan, Error> {
    let tree = SnapshotTree::new([target.clone()]).unwrap();
    let policy = HostPolicy { definition_on_revert: policy, ..HostPolicy::default() };
    let situation = Situation { vm, tree: &tree, layers: &Layers::default(), policy: &policy };
    let request = Request::Revert {
        snapshot: target.id.clone(),
        run_after: RunAfter::AsRecorded,
        save_current: Some(create(None)),
    };
    let mut planned = plan(situation, &request)?;
    go_in_place(situation, &mut planned, &Comparison::Same)?;
    revert_definition(situation, &mut planned, reverted, is_administrator)?;
    Ok(planned)
}

fn disks() -> SnapshotFacts {
    SnapshotFacts { disks: vec!["vda".to_owned(), "vdb".to_owned()], ..snapshot(1, None) }
}

fn running() -> SnapshotFacts {
    SnapshotFacts { content: Content::DisksAndMemory, vm_state: RecordedState::Running, ..disks() }
}

#[test]
fn changes_of_the_definition_are_losses() {
    let reverted = RevertedDefinition { changes: vec![memory()], has_tpm: false };
    let plan = planned(&vm(VmState::Shutoff), &disks(), DefinitionOnRevert::Restore, &reverted, false).unwrap();
    assert_eq!(plan.losses, [Loss::DefinitionChange(memory())]);
    assert_eq!(plan.losses[0].to_string(), "memory: 64 MiB \u{2192} 16 MiB");
}

#[test]
fn a_revert_in_place_changes_no_definition() {
    // Only the title differs then; anything that has weight rules it out.
    let reverted = RevertedDefinition { changes: vec![change("title", Some("A"), Some("B"))], has_tpm: false };
    for policy in [DefinitionOnRevert::Restore, DefinitionOnRevert::Deny] {
        let plan = planned(&vm(VmState::Running), &running(), policy, &reverted, false).unwrap();
        assert_eq!((plan.method, plan.losses.len()), (Some(Method::InPlace), 0));
    }
}

#[test]
fn a_policy_leaves_changes_to_administrators() {
    let reverted = RevertedDefinition { changes: vec![memory()], has_tpm: false };
    let off = vm(VmState::Shutoff);
    let error = planned(&off, &disks(), DefinitionOnRevert::Deny, &reverted, false).unwrap_err();
    assert_eq!(error.reason(), Reason::DefinitionChangeDenied);
    assert!(error.message().contains("memory: 64 MiB \u{2192} 16 MiB"), "{error}");
    let plan = planned(&off, &disks(), DefinitionOnRevert::Deny, &reverted, true).unwrap();
    assert_eq!(plan.losses, [Loss::DefinitionChange(memory())], "an administrator is told as well");
    let same = RevertedDefinition::default();
    assert!(planned(&off, &disks(), DefinitionOnRevert::Deny, &same, false).unwrap().losses.is_empty());
}

#[test]
fn a_definition_is_kept_where_it_fits() {
    let kept = |target: &SnapshotFacts, changes: Vec<DefinitionChange>, is_administrator: bool| {
        let reverted = RevertedDefinition { changes, has_tpm: false };
        planned(&vm(VmState::Shutoff), target, DefinitionOnRevert::Keep, &reverted, is_administrator)
    };
    let snapshot = disks().id;
    let to_off = Step::RevertInternal { snapshot: snapshot.clone(), then: PowerState::Off };
    let keep = |start| Step::KeepDefinition { snapshot: snapshot.clone(), start };
    let live = SnapshotFacts { vm_state: RecordedState::DiskOnly, ..disks() };
    let card = change("network card 52:54:00:00:00:01: link", Some("down"), Some("up"));
    for (target, start) in [(disks(), false), (live, true)] {
        let plan = kept(&target, vec![memory(), card.clone()], false).unwrap();
        assert_eq!((&plan.steps[1..], &plan.losses[..]), (&[to_off.clone(), keep(start)][..], &[][..]));
    }
    // The size is the image's.
    let shrinks = change("disk vda shrinks", Some("2 GiB"), Some("1 GiB"));
    let plan = kept(&disks(), vec![memory(), shrinks.clone()], false).unwrap();
    assert_eq!(
        (plan.steps[2].clone(), &plan.losses[..]),
        (keep(false), &[Loss::DefinitionChange(shrinks.clone())][..])
    );
    // Where nothing else differs there is nothing to keep.
    assert_eq!(kept(&disks(), vec![shrinks], false).unwrap().steps[1..], std::slice::from_ref(&to_off)[..]);
    assert_eq!(kept(&disks(), vec![memory()], true).unwrap().steps[1..], [to_off]);

    let paused = SnapshotFacts { content: Content::DisksAndMemory, vm_state: RecordedState::Paused, ..disks() };
    let others = [
        (paused, memory(), "hardware that it was saved with"),
        (running(), memory(), "hardware that it was saved with"),
        (disks(), change("disk vda: image", Some("/a"), Some("/b")), "does not fit the disks"),
        (disks(), change("disk vdc", None, Some("/c")), "does not fit the disks"),
        (disks(), change("os/nvram", Some("/a"), Some("/b")), "does not fit the disks"),
        (disks(), DefinitionChange::unknown("no answer"), "does not fit the disks"),
        (disks(), change("12 further settings", None, None), "does not fit the disks"),
    ];
    for (target, differs, why) in others {
        let error = kept(&target, vec![differs.clone()], false).unwrap_err();
        assert_eq!(error.reason(), Reason::DefinitionChangeDenied, "{differs}");
        assert!(error.message().contains(why), "{error}");
    }
    for stays in ["disk vda: boot order", "disk vda: iotune/total_bytes_sec", "CD drive sda: image"] {
        kept(&disks(), vec![change(stays, Some("1"), Some("2"))], false).unwrap();
    }
}

#[test]
fn only_a_running_state_holds_that_of_the_tpm() {
    let reverted = RevertedDefinition { changes: Vec::new(), has_tpm: true };
    let lost = |target: &SnapshotFacts| {
        let plan = planned(&vm(VmState::Shutoff), target, DefinitionOnRevert::Restore, &reverted, false).unwrap();
        plan.losses.contains(&Loss::TpmState)
    };
    assert!(lost(&disks()));
    assert!(!lost(&running()));
    assert!(!lost(&SnapshotFacts { vm_state: RecordedState::Paused, ..running() }));
}

#[test]
fn a_disk_that_leaves_is_told_once() {
    let target = SnapshotFacts { disks: vec!["vda".to_owned()], ..disks() };
    let removed = change("disk vdb", Some("/images/vdb.qcow2"), None);
    let reverted = RevertedDefinition { changes: vec![removed], has_tpm: false };
    let plan = planned(&vm(VmState::Shutoff), &target, DefinitionOnRevert::Restore, &reverted, false).unwrap();
    assert_eq!(plan.losses, [Loss::DiskDetached("vdb".to_owned())]);
}

#[test]
fn a_device_that_leaves_is_told_where_no_disk_of_that_name_does() {
    let removed = |what| change(what, Some("ich9"), None);
    let reverted = RevertedDefinition { changes: vec![removed("sound card"), removed("disk sda")], has_tpm: false };
    let plan = planned(&vm(VmState::Shutoff), &disks(), DefinitionOnRevert::Restore, &reverted, false).unwrap();
    assert_eq!(plan.losses, reverted.changes.into_iter().map(Loss::DefinitionChange).collect::<Vec<_>>());
}

#[test]
fn a_refusal_names_the_first_changes_and_counts_the_others() {
    let refused = |changes: usize| {
        let changes = (0..changes).map(|n| change(&format!("setting {n}"), Some("a"), Some("b"))).collect();
        let reverted = RevertedDefinition { changes, has_tpm: false };
        planned(&vm(VmState::Shutoff), &disks(), DefinitionOnRevert::Deny, &reverted, false).unwrap_err()
    };
    let five = refused(5);
    assert!(five.message().contains("setting 4: a \u{2192} b)"), "{five}");
    let seven = refused(7);
    assert!(seven.message().contains("setting 4: a \u{2192} b; and 2 more)"), "{seven}");
    assert!(seven.metadata()["changes"].ends_with("setting 6: a \u{2192} b"), "{seven:?}");
}

#[test]
fn users_are_told_of_a_revert_only_if_the_policy_leaves_one_to_them() {
    let told = |denied: &[bool], is_administrator| {
        let target = |(number, denied): (u32, &bool)| SnapshotFacts {
            revert_denied: denied.then(|| "the definition differs".to_owned()),
            disks: disks().disks,
            ..snapshot(number, None)
        };
        let tree = SnapshotTree::new((1..).zip(denied).map(target)).unwrap();
        let (vm, policy) = (vm(VmState::Shutoff), HostPolicy::default());
        let situation = Situation { vm: &vm, tree: &tree, layers: &Layers::default(), policy: &policy };
        let all = capabilities(situation, is_administrator);
        all.into_iter().find(|one| one.kind == CapabilityKind::Revert).unwrap().outcome
    };
    let refusal = told(&[true, true], false).unwrap_err();
    assert_eq!((refusal.reason(), refusal.message()), (Reason::DefinitionChangeDenied, "the definition differs"));
    assert!(told(&[true, false], false).is_ok(), "one is left to users");
    assert!(told(&[false], false).is_ok());
    assert!(told(&[true, true], true).is_ok(), "an administrator may");
}

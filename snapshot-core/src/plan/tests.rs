//! The planner against hand-made situations and generated trees.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::error::Reason;
use crate::operation::{Create, DeleteScope, RunAfter};
use crate::snapshot::{Content, RecordedState, SnapshotFacts, Storage};
use crate::text::{Description, DisplayName};
use crate::tree::tests::{any_tree, snapshot};
use crate::vm::{DiskFacts, Nvram, OrphanSummary, VmState};

fn disk(target: &str) -> DiskFacts {
    DiskFacts {
        target: target.to_owned(),
        path: format!("/images/{target}.qcow2"),
        format: "qcow2".to_owned(),
        read_only: false,
        has_backing_file: false,
        capacity_bytes: 64 << 20,
        allocation_bytes: 1 << 20,
        free_bytes: Some(64 << 30),
    }
}

pub(crate) fn vm(state: VmState) -> VmFacts {
    VmFacts {
        id: "0191f7a0-0000-7000-8000-00000000000a".parse().unwrap(),
        name: "desk".to_owned(),
        state,
        persistent: true,
        has_managed_save: false,
        block_job_disk: None,
        memory_bytes: 1 << 30,
        disks: vec![disk("vda"), disk("vdb")],
        nvram: Nvram::Absent,
        missing_medium: None,
        orphans: OrphanSummary::default(),
        restrictions: Vec::new(),
    }
}

pub(crate) fn create(content: Option<Content>) -> Create {
    Create {
        snapshot: "snap-new".parse().unwrap(),
        display_name: DisplayName::parse("before exam").unwrap(),
        description: Description::default(),
        protected: false,
        content,
        storage: None,
        quiesce: false,
        allow_crash_consistent: false,
    }
}

fn ask(vm: &VmFacts, tree: &SnapshotTree, request: Request) -> Result<Plan, Error> {
    plan(Situation { vm, tree, layers: &Layers::default(), policy: &HostPolicy::default() }, &request)
}

fn refusal(vm: &VmFacts, request: Request) -> Reason {
    ask(vm, &SnapshotTree::default(), request).unwrap_err().reason()
}

#[test]
fn content_follows_what_the_machine_does() {
    let tree = SnapshotTree::default();
    for (state, content, expected) in [
        (VmState::Shutoff, None, Ok(false)),
        (VmState::Shutoff, Some(Content::Disks), Ok(false)),
        (VmState::Shutoff, Some(Content::DisksAndMemory), Err(Reason::VmNotRunning)),
        (VmState::Running, None, Ok(false)),
        (VmState::Running, Some(Content::Disks), Ok(false)),
        (VmState::Running, Some(Content::DisksAndMemory), Ok(true)),
        (VmState::Paused, None, Ok(true)),
        (VmState::Paused, Some(Content::Disks), Ok(false)),
        (VmState::Paused, Some(Content::DisksAndMemory), Ok(true)),
        (VmState::Crashed, None, Err(Reason::VmStateUnsupported)),
        (VmState::Suspended, None, Err(Reason::VmStateUnsupported)),
    ] {
        let got = ask(&vm(state), &tree, Request::Create(create(content)))
            .map(|plan| matches!(plan.steps[..], [Step::CreateInternal { memory: true, .. }]))
            .map_err(|error| error.reason());
        assert_eq!(got, expected, "{state:?} {content:?}");
    }
}

type Spoil = fn(&mut VmFacts);

#[test]
fn every_danger_is_refused_with_its_reason() {
    let cases: Vec<(Reason, Spoil)> = vec![
        (Reason::VmTransient, |vm| vm.persistent = false),
        (Reason::VmHibernated, |vm| vm.has_managed_save = true),
        (Reason::BlockJobActive, |vm| vm.block_job_disk = Some("vda".to_owned())),
        (Reason::MediumMissing, |vm| vm.missing_medium = Some("sda".to_owned())),
        (Reason::DiskFormatUnsupported, |vm| vm.disks[1].format = "raw".to_owned()),
        (Reason::NvramUnsupported, |vm| (vm.nvram, vm.state) = (Nvram::Raw, VmState::Running)),
        (Reason::NoWritableDisk, |vm| vm.disks.iter_mut().for_each(|disk| disk.read_only = true)),
        (Reason::SpaceLow, |vm| vm.disks[1].free_bytes = Some(1 << 20)),
        (Reason::ImageUnavailable, |vm| vm.disks[1].free_bytes = None),
    ];
    for (reason, spoil) in cases {
        let mut vm = vm(VmState::Shutoff);
        spoil(&mut vm);
        let content = (vm.state == VmState::Running).then_some(Content::DisksAndMemory);
        assert_eq!(refusal(&vm, Request::Create(create(content))), reason);
    }
}

#[test]
fn a_read_only_raw_disk_does_not_matter() {
    let mut vm = vm(VmState::Shutoff);
    vm.disks[1].format = "raw".to_owned();
    vm.disks[1].read_only = true;
    assert!(ask(&vm, &SnapshotTree::default(), Request::Create(create(None))).is_ok());
}

#[test]
fn space_counts_the_running_state_on_the_first_disk() {
    let mut machine = vm(VmState::Running);
    machine.memory_bytes = 4 << 30;
    machine.disks[0].free_bytes = Some((4 << 30) - 1);
    let all = || Request::Create(create(Some(Content::DisksAndMemory)));
    assert_eq!(refusal(&machine, all()), Reason::SpaceLow);
    machine.disks[0].free_bytes = Some((4 << 30) + HostPolicy::default().space_margin_bytes);
    let plan = ask(&machine, &SnapshotTree::default(), all()).unwrap();
    assert_eq!(plan.bytes_written, 4 << 30);
    assert!(plan.predicted_pause_ms.unwrap() > 1000);
}

#[test]
fn a_revert_ends_as_recorded_or_as_asked() {
    use PowerState::{Off, Paused, Running};
    for (recorded, run_after, then, switched_off) in [
        (RecordedState::Shutoff, RunAfter::AsRecorded, Off, false),
        (RecordedState::Shutoff, RunAfter::Running, Running, false),
        (RecordedState::Shutoff, RunAfter::Off, Off, false),
        (RecordedState::Running, RunAfter::AsRecorded, Running, false),
        (RecordedState::Running, RunAfter::Off, Paused, true),
        (RecordedState::Paused, RunAfter::AsRecorded, Paused, false),
        (RecordedState::Paused, RunAfter::Running, Running, false),
        (RecordedState::DiskOnly, RunAfter::AsRecorded, Running, false),
    ] {
        let mut target = snapshot(1, None);
        target.vm_state = recorded;
        target.disks.push("vdb".to_owned());
        let tree = SnapshotTree::new([target.clone()]).unwrap();
        let request = Request::Revert { snapshot: target.id.clone(), run_after, save_current: None };
        let plan = ask(&vm(VmState::Running), &tree, request).unwrap();
        assert_eq!(plan.steps[0], Step::RevertInternal { snapshot: target.id, then }, "{recorded:?} {run_after:?}");
        assert_eq!(plan.steps.contains(&Step::PowerOff), switched_off, "{recorded:?} {run_after:?}");
        assert!(plan.losses.contains(&Loss::RunningState));
    }
}

#[test]
fn saving_the_present_comes_first_or_nothing_happens() {
    let mut target = snapshot(1, None);
    target.disks.push("vdb".to_owned());
    let tree = SnapshotTree::new([target.clone()]).unwrap();
    let request = Request::Revert {
        snapshot: target.id.clone(),
        run_after: RunAfter::AsRecorded,
        save_current: Some(create(None)),
    };
    let plan = ask(&vm(VmState::Running), &tree, request.clone()).unwrap();
    assert!(matches!(plan.steps[..], [Step::CreateInternal { memory: true, .. }, Step::RevertInternal { .. }]));
    assert_eq!(plan.losses, []);
    let mut full = vm(VmState::Running);
    full.disks[0].free_bytes = Some(0);
    assert_eq!(ask(&full, &tree, request).unwrap_err().reason(), Reason::SpaceLow);
}

#[test]
fn a_revert_names_the_disk_it_drops_and_refuses_broken_data() {
    let mut target = snapshot(1, None);
    let tree = SnapshotTree::new([target.clone()]).unwrap();
    let revert =
        || Request::Revert { snapshot: target.id.clone(), run_after: RunAfter::AsRecorded, save_current: None };
    let plan = ask(&vm(VmState::Shutoff), &tree, revert()).unwrap();
    assert!(plan.losses.contains(&Loss::DiskDetached("vdb".to_owned())));
    let request = revert();
    target.broken = Some(Reason::SnapshotBroken);
    let tree = SnapshotTree::new([target]).unwrap();
    assert_eq!(ask(&vm(VmState::Shutoff), &tree, request).unwrap_err().reason(), Reason::SnapshotBroken);
}

#[test]
fn a_revert_says_when_the_uefi_variables_stay_as_they_are() {
    let expected = |nvram, storage, state| match (nvram, storage, state) {
        (Nvram::Absent, _, _) | (_, _, RecordedState::Running) => false,
        (Nvram::Qcow2, Storage::Internal, _) => false,
        (Nvram::Qcow2 | Nvram::Raw, _, _) => true,
    };
    for nvram in [Nvram::Absent, Nvram::Qcow2, Nvram::Raw] {
        for storage in [Storage::Internal, Storage::External] {
            for state in [RecordedState::Running, RecordedState::Shutoff] {
                let target = SnapshotFacts { storage, vm_state: state, ..snapshot(1, None) };
                let id = target.id.clone();
                let tree = SnapshotTree::new([target]).unwrap();
                let request = Request::Revert { snapshot: id, run_after: RunAfter::AsRecorded, save_current: None };
                let vm = VmFacts { nvram, ..vm(VmState::Shutoff) };
                let policy = HostPolicy { stable_paths: false, ..HostPolicy::default() };
                let situation = Situation { vm: &vm, tree: &tree, layers: &Layers::default(), policy: &policy };
                let told = plan(situation, &request).unwrap().losses.contains(&Loss::UefiVariables);
                assert_eq!(told, expected(nvram, storage, state), "{nvram:?} {storage:?} {state:?}");
            }
        }
    }
}

#[test]
fn protection_holds_unless_forced() {
    let mut leaf = snapshot(2, Some(1));
    leaf.label.protected = true;
    let tree = SnapshotTree::new([snapshot(1, None), leaf]).unwrap();
    let root = snapshot(1, None).id;
    let delete =
        |scope, force| ask(&vm(VmState::Shutoff), &tree, Request::Delete { snapshot: root.clone(), scope, force });
    assert!(delete(DeleteScope::Only, false).is_ok());
    assert_eq!(delete(DeleteScope::Subtree, false).unwrap_err().reason(), Reason::SnapshotProtected);
    assert_eq!(delete(DeleteScope::Subtree, true).unwrap().steps.len(), 2);
    assert_eq!(
        ask(&vm(VmState::Shutoff), &tree, Request::Purge { force: false }).unwrap_err().reason(),
        Reason::SnapshotProtected
    );
}

fn any_scope() -> impl Strategy<Value = DeleteScope> {
    prop_oneof![Just(DeleteScope::Only), Just(DeleteScope::Subtree), Just(DeleteScope::Descendants)]
}

proptest! {
    #[test]
    fn a_deletion_takes_what_was_asked_and_nothing_else(
        tree in any_tree(), pick in any::<prop::sample::Index>(), scope in any_scope(),
    ) {
        prop_assume!(!tree.is_empty());
        let id = tree.iter().nth(pick.index(tree.len())).unwrap().id.clone();
        let plan = ask(&vm(VmState::Shutoff), &tree, Request::Delete { snapshot: id.clone(), scope, force: false });
        let deleted: Vec<SnapshotId> = plan.unwrap().deleted().cloned().collect();
        let below: BTreeSet<SnapshotId> = tree.descendants_leaf_first(&id).into_iter().collect();
        let mut asked = if scope == DeleteScope::Only { BTreeSet::new() } else { below };
        if scope != DeleteScope::Descendants { asked.insert(id); }
        prop_assert_eq!(deleted.iter().cloned().collect::<BTreeSet<_>>(), asked);
        // Leaf first: when a snapshot goes, nothing that was asked to go still hangs on it.
        let mut rest = tree.clone();
        for id in &deleted {
            if scope != DeleteScope::Only { prop_assert_eq!(rest.children(id).count(), 0); }
            rest.remove(id);
        }
    }

    #[test]
    fn only_a_deletion_deletes(
        tree in any_tree(), pick in any::<prop::sample::Index>(), running in any::<bool>(), save in any::<bool>(),
    ) {
        prop_assume!(!tree.is_empty());
        let id = tree.iter().nth(pick.index(tree.len())).unwrap().id.clone();
        let vm = vm(if running { VmState::Running } else { VmState::Shutoff });
        let save_current = save.then(|| create(None));
        let requests = [
            Request::Create(create(None)),
            Request::Revert { snapshot: id, run_after: RunAfter::AsRecorded, save_current },
        ];
        for request in requests {
            prop_assert_eq!(ask(&vm, &tree, request).unwrap().deleted().count(), 0);
        }
    }

    #[test]
    fn a_purge_leaves_nothing(tree in any_tree()) {
        let mut rest = tree.clone();
        for id in ask(&vm(VmState::Running), &tree, Request::Purge { force: false }).unwrap().deleted() {
            prop_assert_eq!(rest.children(id).count(), 0);
            rest.remove(id);
        }
        prop_assert!(rest.is_empty());
    }
}

#[test]
fn what_snapshots_may_take_in_bytes_is_the_hosts_policy() {
    let mut taken = snapshot(1, None);
    taken.size_bytes = 1 << 30;
    let tree = SnapshotTree::new([taken]).unwrap();
    let ask = |state, most: u64, snapshot: &str| {
        let policy = HostPolicy { max_snapshot_bytes_per_vm: most, ..HostPolicy::default() };
        let vm = vm(state);
        let content = (state == VmState::Running).then_some(Content::DisksAndMemory);
        let request = Request::Create(Create { snapshot: snapshot.parse().unwrap(), ..create(content) });
        let situation = Situation { vm: &vm, tree: &tree, layers: &Layers::default(), policy: &policy };
        plan(situation, &request).map(|_| ()).map_err(|error| error.metadata()["quota"].clone())
    };
    // A gigabyte is taken; one that saves a gigabyte of RAM needs another.
    assert_eq!(ask(VmState::Running, 0, "snap-new"), Ok(()), "no limit");
    assert_eq!(ask(VmState::Running, 2 << 30, "snap-new"), Ok(()));
    assert_eq!(ask(VmState::Running, (2 << 30) - 1, "snap-new"), Err("bytes_per_vm".to_owned()));
    assert_eq!(ask(VmState::Shutoff, 1 << 30, "snap-new"), Ok(()), "the disks alone take nothing of their own");
}

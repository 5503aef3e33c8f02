//! External snapshots: which kind a snapshot becomes, and what their deletion is made of.

use std::collections::BTreeMap;

use super::tests::{create, vm};
use super::*;
use crate::error::Reason;
use crate::layers::{Layer, Merge, Parts, overlay_paths};
use crate::operation::{Create, DeleteScope, RunAfter};
use crate::snapshot::{Content, RecordedState, SnapshotFacts, Storage};
use crate::tree::tests::snapshot;
use crate::vm::VmState;

fn free() -> HostPolicy {
    HostPolicy { stable_paths: false, ..HostPolicy::default() }
}

fn external(number: u32, parent: Option<u32>) -> SnapshotFacts {
    let disks = vec!["vda".to_owned(), "vdb".to_owned()];
    SnapshotFacts { storage: Storage::External, disks, ..snapshot(number, parent) }
}

/// A chain of external snapshots, each overlay with 1 MiB.
fn chain(length: u32) -> (SnapshotTree, Layers) {
    let mut layers = Layers::default();
    let mut live = BTreeMap::from(["vda", "vdb"].map(|disk| (disk.to_owned(), format!("/images/{disk}.qcow2"))));
    let file = |backing: Option<&String>| Layer { backing: backing.cloned(), bytes: 1 << 20, ..Layer::default() };
    live.values().for_each(|path| _ = layers.files.insert(path.clone(), file(None)));
    let mut facts = Vec::new();
    for number in 0..length {
        let mut snapshot = external(number, number.checked_sub(1));
        snapshot.is_current = number + 1 == length;
        let overlays = overlay_paths(live.iter().map(|(disk, path)| (disk.as_str(), path.as_str())), &snapshot.id);
        overlays.iter().for_each(|(disk, path)| _ = layers.files.insert(path.clone(), file(live.get(disk))));
        let (parent, is_current) = (snapshot.parent.clone(), snapshot.is_current);
        let parts = Parts { parent, is_current, frozen: live, overlays: overlays.clone(), ..Parts::default() };
        layers.snapshots.insert(snapshot.id.clone(), parts);
        live = overlays;
        facts.push(snapshot);
    }
    layers.live = live;
    (SnapshotTree::new(facts).unwrap(), layers)
}

fn ask(vm: &VmFacts, tree: &SnapshotTree, layers: &Layers, policy: &HostPolicy, r: Request) -> Result<Plan, Error> {
    plan(Situation { vm, tree, layers, policy }, &r)
}

#[test]
fn the_kind_follows_the_request_the_tree_the_disks_and_the_policy() {
    use Storage::{External, Internal};
    let none = || SnapshotTree::default();
    let of = |storage| move || SnapshotTree::new([SnapshotFacts { storage, ..snapshot(1, None) }]).unwrap();
    let (inside, outside) = (of(Internal), of(External));
    let both = || SnapshotTree::new([snapshot(1, None), external(2, None)]).unwrap();
    let open = free();
    let short = HostPolicy { prefer_short_pauses: true, ..free() };
    let fixed = HostPolicy { prefer_short_pauses: true, ..HostPolicy::default() };
    let (mixed, refused) = (Err(Reason::SnapshotStorageUnsupported), Err(Reason::ExternalUnsupported));
    type Trees<'a> = &'a dyn Fn() -> SnapshotTree;
    type Case<'a> = (Trees<'a>, &'a HostPolicy, Option<Storage>, bool, Result<Storage, Reason>);
    let cases: Vec<Case<'_>> = vec![
        (&none, &open, None, false, Ok(Internal)),
        (&none, &open, None, true, Ok(External)),
        (&none, &open, Some(Internal), true, Err(Reason::DiskFormatUnsupported)),
        (&none, &open, Some(External), false, Ok(External)),
        (&none, &short, None, false, Ok(External)),
        (&none, &short, Some(Internal), false, Ok(Internal)),
        (&none, &fixed, None, false, Ok(Internal)),
        (&none, &fixed, None, true, Err(Reason::DiskFormatUnsupported)),
        (&none, &fixed, Some(External), false, refused),
        (&inside, &short, None, false, Ok(Internal)),
        (&inside, &open, Some(External), false, mixed),
        (&outside, &open, None, false, Ok(External)),
        (&outside, &open, Some(Internal), false, mixed),
        (&outside, &fixed, None, false, mixed),
        (&both, &open, None, false, mixed),
    ];
    for (index, (tree, policy, storage, raw, expected)) in cases.into_iter().enumerate() {
        let mut vm = vm(VmState::Shutoff);
        if raw {
            vm.disks[1].format = "raw".to_owned();
        }
        let request = Request::Create(Create { storage, ..create(None) });
        let got = ask(&vm, &tree(), &Layers::default(), policy, request);
        let got = got.map(|plan| plan.steps[0].stores().unwrap()).map_err(|error| error.reason());
        assert_eq!(got, expected, "case {index}");
    }
}

#[test]
fn a_running_machine_has_its_disks_taken_alone_and_frozen_where_that_is_possible() {
    let ask = |state, content, quiesce, policy: &HostPolicy| {
        let request = Request::Create(Create { quiesce, ..create(content) });
        let plan = ask(&vm(state), &SnapshotTree::default(), &Layers::default(), policy, request);
        plan.map(|plan| plan.steps[0].clone()).map_err(|error| error.reason())
    };
    let taken = |memory, quiesce| Ok(Step::CreateExternal { snapshot: create(None).snapshot, memory, quiesce });
    let free = || HostPolicy { live_snapshots: false, ..free() };
    assert_eq!(ask(VmState::Running, Some(Content::Disks), false, &free()), taken(false, false));
    assert_eq!(ask(VmState::Running, Some(Content::Disks), true, &free()), taken(false, true));
    assert_eq!(ask(VmState::Running, None, true, &free()), Err(Reason::QuiesceUnsupported));
    assert_eq!(ask(VmState::Paused, Some(Content::Disks), true, &free()), Err(Reason::QuiesceUnsupported));
    assert_eq!(ask(VmState::Shutoff, None, true, &free()), Err(Reason::QuiesceUnsupported));
    let fixed = HostPolicy { live_snapshots: false, ..HostPolicy::default() };
    assert_eq!(ask(VmState::Running, Some(Content::Disks), true, &fixed), Err(Reason::LiveDisksUnsupported));
}

#[test]
fn the_number_of_layers_is_bounded_and_a_disk_has_to_be_a_file() {
    let policy = HostPolicy { max_layers: 4, ..free() };
    let reason = |layers: &Layers, vm: &VmFacts| {
        let request = Request::Create(Create { storage: Some(Storage::External), ..create(None) });
        ask(vm, &SnapshotTree::default(), layers, &policy, request).map_err(|error| error.reason())
    };
    assert!(reason(&chain(2).1, &vm(VmState::Shutoff)).is_ok());
    assert_eq!(reason(&chain(3).1, &vm(VmState::Shutoff)), Err(Reason::LayerLimit));
    for path in ["", "/dev/vg/desk"] {
        let mut vm = vm(VmState::Shutoff);
        vm.disks[1].path = path.to_owned();
        assert_eq!(reason(&Layers::default(), &vm), Err(Reason::ExternalUnsupported));
    }
}

#[test]
fn a_cascade_marks_all_merges_each_disk_once_and_cleans_up() {
    let (tree, layers) = chain(5);
    let ids: Vec<SnapshotId> = tree.iter().map(|snapshot| snapshot.id.clone()).collect();
    let request = Request::Delete { snapshot: ids[1].clone(), scope: DeleteScope::Descendants, force: false };
    let plan = ask(&vm(VmState::Running), &tree, &layers, &free(), request.clone()).unwrap();
    let kinds: Vec<_> = plan.steps.iter().map(Step::kind).collect();
    assert_eq!(kinds, ["MARK_DELETED", "MARK_DELETED", "MARK_DELETED", "MERGE_LAYERS", "MERGE_LAYERS", "CLEAN_UP"]);
    assert!(plan.deleted().eq([&ids[4], &ids[3], &ids[2]]));
    assert_eq!(plan.bytes_written, 6 << 20);
    assert!(plan.cancellable());
    let mut full = vm(VmState::Running);
    full.disks[1].free_bytes = Some(free().space_margin_bytes + (3 << 20) - 1);
    let refusal = |vm: &VmFacts, layers: &Layers, policy: &HostPolicy| {
        ask(vm, &tree, layers, policy, request.clone()).unwrap_err().reason()
    };
    assert_eq!(refusal(&full, &layers, &free()), Reason::SpaceLow);
    let asleep = VmFacts { has_managed_save: true, ..vm(VmState::Shutoff) };
    assert_eq!(refusal(&asleep, &layers, &free()), Reason::VmHibernated);
    let unreadable = Layers { unreadable: Some("/images/x".to_owned()), ..layers.clone() };
    assert_eq!(refusal(&vm(VmState::Shutoff), &unreadable, &free()), Reason::HypervisorFailed);
    assert_eq!(refusal(&vm(VmState::Shutoff), &layers, &HostPolicy::default()), Reason::SnapshotStorageUnsupported);
}

#[test]
fn a_purge_finishes_what_was_left() {
    let (_, mut layers) = chain(2);
    layers.snapshots.values_mut().for_each(|parts| parts.deleted = true);
    let none = SnapshotTree::default();
    let plan = ask(&vm(VmState::Shutoff), &none, &layers, &free(), Request::Purge { force: false }).unwrap();
    let kinds: Vec<_> = plan.steps.iter().map(Step::kind).collect();
    assert_eq!(kinds, ["MERGE_LAYERS", "MERGE_LAYERS", "CLEAN_UP"]);
    // Until then the machine's kind stays external.
    let storage = |storage| Request::Create(Create { storage, ..create(None) });
    let kind =
        |request| ask(&vm(VmState::Shutoff), &none, &layers, &free(), request).map(|plan| plan.steps[0].stores());
    assert_eq!(kind(storage(None)).unwrap(), Some(Storage::External));
    assert_eq!(kind(storage(Some(Storage::Internal))).unwrap_err().reason(), Reason::SnapshotStorageUnsupported);
}

#[test]
fn a_revert_cleans_up_and_two_kinds_are_not_touched() {
    let (tree, layers) = chain(2);
    let target = tree.iter().next().unwrap().clone();
    let revert = |target: &SnapshotFacts| Request::Revert {
        snapshot: target.id.clone(),
        run_after: RunAfter::Off,
        save_current: Some(create(None)),
    };
    let kinds = |tree: &SnapshotTree, target| {
        let plan = ask(&vm(VmState::Running), tree, &layers, &free(), revert(target));
        plan.map(|plan| plan.steps.iter().map(Step::kind).collect::<Vec<_>>()).map_err(|error| error.reason())
    };
    assert_eq!(kinds(&tree, &target).unwrap(), ["CREATE_EXTERNAL", "REVERT_EXTERNAL", "CLEAN_UP"]);
    let mut awake = target.clone();
    awake.vm_state = RecordedState::Running;
    let tree = SnapshotTree::new([awake.clone()]).unwrap();
    assert_eq!(kinds(&tree, &awake).unwrap(), ["CREATE_EXTERNAL", "REVERT_EXTERNAL", "POWER_OFF", "CLEAN_UP"]);
    let mixed = SnapshotTree::new([awake.clone(), snapshot(7, Some(0))]).unwrap();
    assert_eq!(kinds(&mixed, &awake), Err(Reason::SnapshotStorageUnsupported));
}

#[test]
fn what_a_machine_left_is_purged_under_any_policy_and_stays_protected() {
    let mut both = [snapshot(1, None), external(2, None)];
    for policy in [HostPolicy::default(), free()] {
        let (vm, layers) = (vm(VmState::Shutoff), Layers::default());
        let purge = |snapshots: &[SnapshotFacts], force| {
            let tree = SnapshotTree::new(snapshots.iter().cloned()).unwrap();
            purge_left_behind(Situation { vm: &vm, tree: &tree, layers: &layers, policy: &policy }, force)
        };
        let plan = purge(&both, false).unwrap();
        let ids: Vec<_> = plan.steps.iter().filter_map(Step::deletes).collect();
        assert_eq!((ids, plan.steps.len(), plan.losses.len()), (vec![&both[1].id, &both[0].id], 2, 2));
        both[1].label.protected = true;
        assert_eq!(purge(&both, false).unwrap_err().reason(), Reason::SnapshotProtected);
        assert_eq!(purge(&both, true).unwrap().steps.len(), 2);
        both[1].label.protected = false;
    }
}

#[test]
fn a_merge_begins_only_where_there_is_room_beside_the_margin() {
    let [disk, top, base] = ["vda", "/images/vda.top", "/images/vda.qcow2"].map(str::to_owned);
    let merge = Merge { disk, above: vec![top.clone()], top, base, bytes: 10 << 20 };
    let policy = HostPolicy { space_margin_bytes: 5 << 20, ..free() };
    for (free, fits) in [(None, true), (Some(15 << 20), true), (Some((15 << 20) - 1), false), (Some(0), false)] {
        let refused = check_merge(&merge, free, &policy).err().map(|error| error.reason());
        assert_eq!(refused, (!fits).then_some(Reason::SpaceLow), "{free:?}");
    }
}

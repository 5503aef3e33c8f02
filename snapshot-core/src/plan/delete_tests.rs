//! What a deletion does about files: nothing for internal snapshots, and space only on the disk that is merged.

use std::collections::BTreeMap;

use super::tests::vm;
use super::*;
use crate::error::Reason;
use crate::layers::{Layer, Parts};
use crate::operation::DeleteScope;
use crate::snapshot::{SnapshotFacts, Storage};
use crate::tree::tests::snapshot;
use crate::vm::VmState;

fn free() -> HostPolicy {
    HostPolicy { stable_paths: false, ..HostPolicy::default() }
}

/// An external snapshot of `vda` alone, whose overlay has a MiB.
fn on_vda(deleted: bool) -> (SnapshotFacts, Layers) {
    let facts = SnapshotFacts { storage: Storage::External, ..snapshot(1, None) };
    let disks = |path: &str| BTreeMap::from([("vda".to_owned(), path.to_owned())]);
    let (base, overlay) = ("/images/vda.qcow2", format!("/images/vda.{}", facts.id));
    let backing = Some(base.to_owned());
    let files = [(base, Layer::default()), (&overlay, Layer { backing, bytes: 1 << 20, ..Layer::default() })];
    let parts = Parts { frozen: disks(base), overlays: disks(&overlay), deleted, ..Parts::default() };
    let layers = Layers {
        files: files.map(|(path, layer)| (path.to_owned(), layer)).into(),
        live: disks(&overlay),
        snapshots: BTreeMap::from([(facts.id.clone(), parts)]),
        ..Layers::default()
    };
    (facts, layers)
}

fn ask(vm: &VmFacts, facts: &[SnapshotFacts], layers: &Layers, policy: &HostPolicy) -> Result<Plan, Error> {
    let tree = SnapshotTree::new(facts.iter().cloned()).unwrap();
    let request = match facts {
        [] => Request::Purge { force: false },
        [one, ..] => Request::Delete { snapshot: one.id.clone(), scope: DeleteScope::Only, force: false },
    };
    plan(Situation { vm, tree: &tree, layers, policy }, &request)
}

fn kinds(plan: &Plan) -> Vec<&'static str> {
    plan.steps.iter().map(Step::kind).collect()
}

#[test]
fn an_internal_snapshot_is_deleted_without_a_look_at_files() {
    let hibernated = VmFacts { has_managed_save: true, ..vm(VmState::Shutoff) };
    let plan = ask(&hibernated, &[snapshot(1, None)], &Layers::default(), &free()).unwrap();
    assert_eq!((kinds(&plan), plan.method), (vec!["DELETE_INTERNAL"], Some(Method::Libvirt)));
    // Where the paths of images have to stay, nothing that an earlier deletion left is merged.
    let plan = ask(&vm(VmState::Shutoff), &[], &on_vda(true).1, &HostPolicy::default()).unwrap();
    assert_eq!(plan.steps, []);
}

#[test]
fn a_merge_needs_space_on_its_own_disk() {
    let (facts, layers) = on_vda(false);
    let reason = |full: usize| {
        let mut vm = vm(VmState::Shutoff);
        vm.disks[full].free_bytes = Some(0);
        ask(&vm, std::slice::from_ref(&facts), &layers, &free())
            .map(|plan| kinds(&plan))
            .map_err(|error| error.reason())
    };
    assert_eq!(reason(0), Err(Reason::SpaceLow));
    assert_eq!(reason(1), Ok(vec!["MARK_DELETED", "MERGE_LAYERS", "CLEAN_UP"]));
}

#[test]
fn what_a_machine_left_is_deleted_by_libvirt_s_way_without_merges() {
    let (facts, layers) = on_vda(false);
    let (vm, policy, tree) = (vm(VmState::Shutoff), free(), SnapshotTree::new([facts]).unwrap());
    let situation = Situation { vm: &vm, tree: &tree, layers: &layers, policy: &policy };
    let plan = purge_left_behind(situation, false).unwrap();
    assert_eq!((kinds(&plan), plan.method), (vec!["MARK_DELETED"], Some(Method::Libvirt)));
}

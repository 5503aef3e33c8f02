//! What a revert does to a VM's hardware and definition, which is read from the host once a revert is planned.

use std::collections::BTreeMap;

use snapshot_core::definition_change::DefinitionChange;
use snapshot_core::hardware::Comparison;
use snapshot_core::ids::SnapshotId;
use snapshot_core::operation::{Request, RunAfter};
use snapshot_core::plan::{
    Plan, RevertedDefinition, Situation, go_in_place, may_go_in_place, plan, revert_definition, reverts_definition,
};
use snapshot_core::policy::{DefinitionOnRevert, HostPolicy};
use snapshot_core::snapshot::SnapshotFacts;
use snapshot_core::tree::SnapshotTree;
use snapshot_core::{Error, Reason};

use crate::hypervisor::{Failure, Hypervisor, Observed};

/// Has a plan revert in place where the hardware is the same, and tell what it does to the definition; or refuses it, by what the host
/// can do or by its policy. A plan without a revert stays as it is.
pub(crate) fn complete(
    hypervisor: &dyn Hypervisor,
    situation: Situation<'_>,
    plan: &mut Plan,
    is_administrator: bool,
) -> Result<(), Error> {
    // Where a revert in place is out of the question, the plan says so.
    let hardware = match may_go_in_place(situation, plan) {
        Some(target) => compare(hypervisor, situation, target)?,
        None => Comparison::Same,
    };
    go_in_place(situation, plan, &hardware)?;
    let Some(target) = reverts_definition(situation, plan) else { return Ok(()) };
    let reverted = hypervisor.reverted_definition(situation.vm.id, target).unwrap_or_else(|failure| {
        tracing::warn!(snapshot = %target.id, %failure, "definition of the VM could not be compared");
        let changes = vec![DefinitionChange::unknown("libvirt's answer could not be used")];
        RevertedDefinition { changes, has_tpm: false }
    });
    revert_definition(situation, plan, &reverted, is_administrator)
}

/// Compares the hardware of a VM that is on with that of a snapshot. What cannot be compared counts as different.
fn compare(hypervisor: &dyn Hypervisor, situation: Situation<'_>, target: &SnapshotFacts) -> Result<Comparison, Error> {
    let vm = situation.vm.id;
    match hypervisor.hardware(vm, &target.id) {
        Ok(hardware) => {
            if let Comparison::Different(what) = &hardware {
                tracing::info!(snapshot = %target.id, what, "a revert in place is not possible");
            }
            Ok(hardware)
        }
        // Nothing that libvirt could do either.
        Err(Failure::Precondition(error)) => Err(error.with("vm", proto::names::vm(vm))),
        Err(failure) => {
            tracing::warn!(%failure, "the hardware of the VM cannot be compared");
            Ok(Comparison::Different("its hardware cannot be compared".to_owned()))
        }
    }
}

/// The snapshots of a VM to which the host's policy lets nobody but administrators revert it now, each with the reason.
pub(crate) fn denied(
    hypervisor: &dyn Hypervisor,
    policy: &HostPolicy,
    seen: &Observed,
) -> BTreeMap<SnapshotId, String> {
    if policy.definition_on_revert == DefinitionOnRevert::Restore {
        return BTreeMap::new();
    }
    let Ok(tree) = SnapshotTree::new(seen.snapshots.clone()) else { return BTreeMap::new() };
    let situation = Situation { vm: &seen.vm, tree: &tree, layers: &seen.layers, policy };
    let refusal = |snapshot: &SnapshotFacts| {
        let (id, run_after) = (snapshot.id.clone(), RunAfter::AsRecorded);
        let mut plan = plan(situation, &Request::Revert { snapshot: id, run_after, save_current: None }).ok()?;
        let error = complete(hypervisor, situation, &mut plan, false).err()?;
        (error.reason() == Reason::DefinitionChangeDenied).then(|| error.message().to_owned())
    };
    tree.iter().filter_map(|snapshot| Some((snapshot.id.clone(), refusal(snapshot)?))).collect()
}

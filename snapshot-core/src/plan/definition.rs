//! What a revert does to the VM's definition and to its TPM.
//!
//! libvirt's revert restores the definition of the snapshot; a revert in place changes none of it. So this is decided once the
//! way is known ([`super::go_in_place`]), and only then the two definitions are read, which a look at a VM has no need of.

use super::{Loss, Plan, Situation, Step};
use crate::definition_change::DefinitionChange;
use crate::error::{Error, Reason};
use crate::policy::DefinitionOnRevert;
use crate::snapshot::{RecordedState, SnapshotFacts};

/// The most changes that a refusal names.
const NAMED: usize = 5;

/// What a revert by libvirt would do, by what the host has of the snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RevertedDefinition {
    /// What becomes of the definition.
    pub changes: Vec<DefinitionChange>,
    /// Whether the VM has an emulated TPM, now or afterwards.
    pub has_tpm: bool,
}

/// The snapshot whose definition this plan restores.
pub fn reverts_definition<'a>(situation: Situation<'a>, plan: &Plan) -> Option<&'a SnapshotFacts> {
    plan.steps.iter().find_map(|step| match step {
        Step::RevertInternal { snapshot, .. } | Step::RevertExternal { snapshot, .. } => situation.tree.get(snapshot),
        _ => None,
    })
}

/// Adds to the plan what it does to the definition and the TPM, or refuses it where the host's policy has the definition stay.
/// An administrator's revert may change it in any case.
pub fn revert_definition(
    situation: Situation<'_>,
    plan: &mut Plan,
    reverted: &RevertedDefinition,
    is_administrator: bool,
) -> Result<(), Error> {
    let Some(target) = reverts_definition(situation, plan) else { return Ok(()) };
    if !reverted.changes.is_empty()
        && situation.policy.definition_on_revert == DefinitionOnRevert::Deny
        && !is_administrator
    {
        return Err(denied(situation, target, &reverted.changes));
    }
    // The running state holds that of the TPM; nothing else does (measured with swtpm).
    let has_memory = matches!(target.vm_state, RecordedState::Running | RecordedState::Paused);
    if reverted.has_tpm && !has_memory {
        plan.losses.push(Loss::TpmState);
    }
    let told = |change: &&DefinitionChange| {
        let detached = |loss: &Loss| matches!(loss, Loss::DiskDetached(disk) if change.what == format!("disk {disk}"));
        change.to.is_some() || !plan.losses.iter().any(detached)
    };
    let changes: Vec<Loss> = reverted.changes.iter().filter(told).cloned().map(Loss::DefinitionChange).collect();
    plan.losses.extend(changes);
    Ok(())
}

fn denied(situation: Situation<'_>, target: &SnapshotFacts, changes: &[DefinitionChange]) -> Error {
    let named = changes.iter().take(NAMED).map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let more = changes.len().saturating_sub(NAMED);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    let message = format!(
        "a revert to snapshot {} would change the VM's definition ({named}{more}), which this host's policy leaves to \
         administrators: nothing was changed; ask an administrator to revert it",
        target.id
    );
    situation
        .refuse(Reason::DefinitionChangeDenied, message)
        .with("snapshot", format!("vms/{}/snapshots/{}", situation.vm.id, target.id))
        .with("changes", changes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
}

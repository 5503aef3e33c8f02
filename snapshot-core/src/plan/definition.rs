//! What a revert does to the VM's definition and to its TPM.
//!
//! libvirt's revert restores the definition of the snapshot; a revert in place changes none of it. So this is decided once the
//! way is known ([`super::go_in_place`]), and only then the two definitions are read, which a look at a VM has no need of.
//!
//! A definition is kept by reverting to off, restoring it, and starting the VM. A running state is not loaded into other hardware, and
//! a definition does not fit disks that are others than it names: then there is nothing to keep it by.

use super::{Loss, Plan, PowerState, Situation, Step, in_place};
use crate::definition_change::DefinitionChange;
use crate::error::{Error, Reason};
use crate::policy::DefinitionOnRevert;
use crate::snapshot::{Content, RecordedState, SnapshotFacts, Storage};

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

/// Adds to the plan what it does to the definition and the TPM. Where the host's policy has the definition stay, the plan restores it
/// after the revert, or is refused. An administrator's revert may change it in any case.
pub fn revert_definition(
    situation: Situation<'_>,
    plan: &mut Plan,
    reverted: &RevertedDefinition,
    is_administrator: bool,
) -> Result<(), Error> {
    let Some(target) = reverts_definition(situation, plan) else { return Ok(()) };
    let all = &reverted.changes;
    let changes = match situation.policy.definition_on_revert {
        _ if all.is_empty() || is_administrator => all.clone(),
        DefinitionOnRevert::Restore => all.clone(),
        DefinitionOnRevert::Deny => return Err(denied(situation, target, all, None)),
        DefinitionOnRevert::Keep => keep(situation, plan, target, all)?,
    };
    // The running state holds that of the TPM; nothing else does (measured with swtpm).
    let has_memory = matches!(target.vm_state, RecordedState::Running | RecordedState::Paused);
    if reverted.has_tpm && !has_memory {
        plan.losses.push(Loss::TpmState);
    }
    let told = |change: &&DefinitionChange| {
        let detached = |loss: &Loss| matches!(loss, Loss::DiskDetached(disk) if change.what == format!("disk {disk}"));
        change.to.is_some() || !plan.losses.iter().any(detached)
    };
    let losses: Vec<Loss> = changes.iter().filter(told).cloned().map(Loss::DefinitionChange).collect();
    plan.losses.extend(losses);
    Ok(())
}

/// Has the plan restore the definition after the revert. Returns the changes that happen all the same: those of the images.
fn keep(
    situation: Situation<'_>,
    plan: &mut Plan,
    target: &SnapshotFacts,
    changes: &[DefinitionChange],
) -> Result<Vec<DefinitionChange>, Error> {
    let (of_images, of_definition): (Vec<_>, Vec<_>) = changes.iter().cloned().partition(DefinitionChange::is_of_image);
    if of_definition.is_empty() {
        return Ok(of_images);
    }
    if let Some(why) = against_keeping(target, &of_definition) {
        return Err(denied(situation, target, &of_definition, Some(&why)));
    }
    if let Some((place, snapshot, then)) = in_place::revert(plan) {
        let (snapshot, start) = (snapshot.clone(), then == PowerState::Running);
        plan.steps[place] = Step::RevertInternal { snapshot: snapshot.clone(), then: PowerState::Off };
        plan.steps.insert(place + 1, Step::KeepDefinition { snapshot, start });
    }
    Ok(of_images)
}

/// Why a revert to a snapshot cannot leave the definition as it is.
fn against_keeping(target: &SnapshotFacts, changes: &[DefinitionChange]) -> Option<String> {
    if target.content == Content::DisksAndMemory {
        return Some("the running state of the snapshot needs the hardware that it was saved with".to_owned());
    }
    if target.storage == Storage::External {
        return Some("the snapshot is external, and its files are part of the definition".to_owned());
    }
    let differs = changes.iter().find(|change| !change.can_stay())?;
    Some(format!("the present definition does not fit the disks of the snapshot ({differs})"))
}

fn denied(
    situation: Situation<'_>,
    target: &SnapshotFacts,
    changes: &[DefinitionChange],
    not_kept: Option<&str>,
) -> Error {
    let named = changes.iter().take(NAMED).map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let more = changes.len().saturating_sub(NAMED);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    let message = format!(
        "a revert to snapshot {} would change the VM's definition ({named}{more}), which this host's policy leaves to \
         administrators{}: nothing was changed; ask an administrator to revert it",
        target.id,
        not_kept.map_or(String::new(), |why| format!(", and the definition cannot be kept because {why}"))
    );
    situation
        .refuse(Reason::DefinitionChangeDenied, message)
        .with("snapshot", format!("vms/{}/snapshots/{}", situation.vm.id, target.id))
        .with("changes", changes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
}

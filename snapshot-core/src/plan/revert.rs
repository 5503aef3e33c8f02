//! Going back to a snapshot.

use super::{Loss, Plan, PowerState, Situation, Step, create, in_place};
use crate::error::{Error, Reason};
use crate::ids::SnapshotId;
use crate::operation::{Create, Method, RunAfter};
use crate::restriction::RestrictedOperation;
use crate::snapshot::{RecordedState, SnapshotFacts, Storage};
use crate::vm::{Nvram, VmState};

pub(super) fn plan(
    situation: Situation<'_>,
    id: &SnapshotId,
    run_after: RunAfter,
    save_current: Option<&Create>,
) -> Result<Plan, Error> {
    let target = situation.snapshot(id)?;
    situation.check_changeable()?;
    situation.check_handled(target)?;
    if let Some(reason) = target.broken {
        let why = match reason {
            Reason::DisksDiffer => "it holds the running state and not every disk",
            Reason::MediumMissing => "the medium that was in a drive then does not exist any more",
            _ => "a disk or its running state has lost its part of it, or has another one in its place",
        };
        return Err(situation
            .refuse(Reason::SnapshotBroken, format!("snapshot {id} cannot be reverted to: {why}"))
            .with("cause", reason.as_str()));
    }
    situation.check_name_for_revert(target)?;
    check_some_way(situation, target, run_after)?;
    if situation.vm.state == VmState::Unknown {
        return Err(situation.refuse(Reason::VmStateUnsupported, "the state of the machine is not known"));
    }
    let mut plan = match save_current {
        // The present is a snapshot before anything is overwritten, or nothing happens.
        Some(save) => create::plan_present(situation, save)?,
        None => Plan { losses: present(situation), ..Plan::default() },
    };
    plan.method = Some(Method::Libvirt);
    plan.losses.extend(detached_disks(situation, target));
    plan.losses.extend(stale_variables(situation, target));
    plan.steps.extend(steps(target, run_after));
    Ok(plan)
}

/// Refuses a revert that neither libvirt nor QEMU in place can do. Which of the two it is, is decided once the hardware is
/// compared ([`super::go_in_place`]).
fn check_some_way(situation: Situation<'_>, target: &SnapshotFacts, run_after: RunAfter) -> Result<(), Error> {
    let by_libvirt = situation.check_restrictions(RestrictedOperation::Revert, Some(target));
    if by_libvirt.is_err() && in_place::against(situation, target, power_state(target, run_after)).is_none() {
        return Ok(());
    }
    by_libvirt
}

fn power_state(target: &SnapshotFacts, run_after: RunAfter) -> PowerState {
    match (run_after, target.vm_state) {
        // libvirt resumes what the snapshot recorded; "off" is reached by loading it paused, so that the guest does
        // not run on and change its disks, and by switching it off then.
        (RunAfter::Off, _) if has_memory(target) => PowerState::Paused,
        (RunAfter::Off, _) | (RunAfter::AsRecorded, RecordedState::Shutoff) => PowerState::Off,
        (RunAfter::AsRecorded, RecordedState::Paused) => PowerState::Paused,
        (RunAfter::AsRecorded, RecordedState::Running | RecordedState::DiskOnly) | (RunAfter::Running, _) => {
            PowerState::Running
        }
    }
}

fn steps(target: &SnapshotFacts, run_after: RunAfter) -> Vec<Step> {
    let has_memory = has_memory(target);
    let then = power_state(target, run_after);
    let snapshot = target.id.clone();
    let mut steps = vec![match target.storage {
        Storage::Internal => Step::RevertInternal { snapshot, then },
        Storage::External => Step::RevertExternal { snapshot, then },
    }];
    if run_after == RunAfter::Off && has_memory {
        steps.push(Step::PowerOff);
    }
    if target.storage == Storage::External {
        // The overlay that the machine was on, and what could not be deleted as long as it was on it.
        steps.push(Step::CleanUp);
    }
    steps
}

/// Measured with libvirt 11.3 and a guest that reads them: the running state holds the UEFI variables, because QEMU keeps
/// them in memory too, and so does an internal snapshot where they are in a qcow2 file. Nothing else does.
fn stale_variables(situation: Situation<'_>, target: &SnapshotFacts) -> Option<Loss> {
    let are_in_it = match situation.vm.nvram {
        Nvram::Absent => true,
        Nvram::Qcow2 => {
            has_memory(target) || (target.storage == Storage::Internal && target.vm_state == RecordedState::Shutoff)
        }
        Nvram::Raw => has_memory(target),
    };
    (!are_in_it).then_some(Loss::UefiVariables)
}

fn has_memory(target: &SnapshotFacts) -> bool {
    matches!(target.vm_state, RecordedState::Running | RecordedState::Paused)
}

fn present(situation: Situation<'_>) -> Vec<Loss> {
    let mut losses = vec![Loss::ChangesSince(situation.tree.current().cloned().map(Box::new))];
    if situation.vm.is_active() {
        losses.push(Loss::RunningState);
    }
    losses
}

/// libvirt restores the hardware of the snapshot: a disk that it does not know disappears from the machine.
fn detached_disks(situation: Situation<'_>, target: &SnapshotFacts) -> Vec<Loss> {
    situation
        .vm
        .writable_disks()
        .filter(|disk| !target.disks.contains(&disk.target))
        .map(|disk| Loss::DiskDetached(disk.target.clone()))
        .collect()
}

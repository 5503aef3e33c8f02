//! The steps. Each can be repeated from its beginning, however far it came the time before.
//!
//! - **Create**: a whole snapshot of that id is success. Remains of one are cleared first. After the call the machine is
//!   looked at, whatever the call said: libvirt can fail after the snapshot was taken, and succeed on some of the disks.
//!   What is not whole is removed again, and a guest that was left paused runs on.
//! - **Revert**: see [`super::revert`] and [`super::in_place`].
//! - **Delete**: a snapshot that is not there is success. One that libvirt cannot delete, because its data is gone or a volume that it
//!   names, is forgotten; what it has in images is removed after the last step.
//! - **Write a label**: the label as it should be is success.
//! - **Power off**: off is success.

use std::time::Instant;

use snapshot_core::description::Label;
use snapshot_core::ids::SnapshotId;
use snapshot_core::operation::Request;
use snapshot_core::plan::Step;
use snapshot_core::restriction::{RestrictedOperation, Restriction};
use snapshot_core::snapshot::SnapshotFacts;
use snapshot_core::vm::VmState;
use snapshot_core::{Error, Reason};

use super::vanished::is_purge;
use super::waiting::Tries;
use super::work::{Halt, Work};
use crate::hypervisor::{Failure, Observed, PausedBy};

/// How often a machine is switched off.
const POWER_OFF_TRIES: u32 = 3;

impl Work<'_> {
    pub(super) fn step(&mut self, step: &Step) -> Result<(), Halt> {
        match step {
            Step::CreateInternal { snapshot, memory } => self.create(snapshot, *memory),
            Step::CreateLive { snapshot, quiesce } => self.create_live(snapshot, *quiesce),
            Step::WriteLabel { snapshot } => self.write_label(snapshot),
            Step::RevertInternal { snapshot, then } => self.revert(snapshot, *then, false),
            Step::RevertInPlace { snapshot, then, fallback } => self.revert_in_place(snapshot, *then, *fallback),
            Step::KeepDefinition { snapshot, start } => self.keep_definition(snapshot, *start),
            Step::PowerOff => self.power_off(),
            Step::DeleteInternal { snapshot } => self.delete(snapshot),
            Step::CreateExternal { snapshot, memory, quiesce } => self.create_external(snapshot, *memory, *quiesce),
            Step::RevertExternal { snapshot, then } => self.revert_external(snapshot, *then),
            Step::MarkDeleted { snapshot } => self.mark_deleted(snapshot),
            Step::MergeLayers { disk } => self.merge_layers(disk),
            Step::CleanUp => self.clean_up(),
        }
    }

    fn create(&mut self, id: &SnapshotId, memory: bool) -> Result<(), Halt> {
        let Some(seen) = self.room_for(id)? else { return Ok(()) };
        let label = self.new_label()?;
        let (start, was_running) = (Instant::now(), seen.vm.state == VmState::Running);
        self.stale = true;
        let result = self.shared.hypervisor.create_internal(&seen.vm, id, &label, memory);
        let took = start.elapsed();
        let now = if result.is_ok() { self.look_again()? } else { self.look()? };
        if now.has_whole(id) {
            if let Err(failure) = &result {
                tracing::warn!(%failure, "taking the snapshot failed and the snapshot is whole");
            }
            // libvirt stops the guest from the first to the last moment of the call.
            self.pause = (memory && was_running).then_some(took);
            return Ok(());
        }
        let interrupted = matches!(result, Err(Failure::Unreachable(_)));
        Err(self.not_whole(id, result.err().as_ref(), interrupted))
    }

    /// The machine with nothing in the way of a snapshot that is to be taken; none where it is there already.
    pub(super) fn room_for(&mut self, id: &SnapshotId) -> Result<Option<Observed>, Halt> {
        let seen = self.seen()?;
        if seen.has_whole(id) {
            return Ok(None);
        }
        if seen.snapshot(id).is_some() || seen.has_stray(id) {
            return self.clear_remains(id, false).map(Some);
        }
        Ok(Some(seen))
    }

    /// Clears what there is of a snapshot whose taking ended with `failure`, or with none, and that is not whole.
    /// Returns how its step ends.
    pub(super) fn not_whole(&mut self, id: &SnapshotId, failure: Option<&Failure>, interrupted: bool) -> Halt {
        let error = match failure {
            Some(failure) => self.error(failure, Some(id), "the snapshot could not be taken"),
            None => Error::new(Reason::HypervisorFailed, "the snapshot was taken, and it is not whole"),
        };
        tracing::warn!(?error, "the snapshot is not whole; clearing what there is of it");
        match self.clear_remains(id, interrupted) {
            Ok(_) => error.into(),
            Err(Halt::Failed(remains)) => error.with("remains", remains.to_string()).into(),
            Err(halt) => halt,
        }
    }

    /// Removes what there is of a snapshot, and lets a guest run on that it left paused. When it was interrupted, libvirt
    /// may say that somebody paused it: a desktop that stands still for no reason is worse than one that runs although
    /// somebody paused it in this very moment. Returns the machine after that.
    pub(super) fn clear_remains(&mut self, id: &SnapshotId, interrupted: bool) -> Result<Observed, Halt> {
        let seen = self.seen()?;
        let hypervisor = &self.shared.hypervisor;
        let mut attempts = Vec::new();
        if seen.snapshot(id).is_some() {
            attempts.push(hypervisor.delete_internal(seen.vm.id, id));
        } else if seen.has_stray(id) {
            attempts.push(hypervisor.remove_stray(&seen.vm, id));
        }
        if self.is_left_paused(&seen, interrupted) {
            attempts.push(hypervisor.resume(seen.vm.id));
        }
        for failure in attempts.iter().filter_map(|attempt| attempt.as_ref().err()) {
            tracing::warn!(%failure, "clearing the remains of a snapshot failed");
        }
        if attempts.is_empty() {
            return Ok(seen);
        }
        self.stale = true;
        let seen = self.look()?;
        if seen.snapshot(id).is_none() && !seen.has_stray(id) {
            return Ok(seen);
        }
        if let Some(owned) = self.shared.machines.owned() {
            owned.remains(seen.vm.id, id);
        }
        let message = format!("what there is of snapshot {id} could not be removed now; it will be tried again");
        Err(Error::new(Reason::HypervisorFailed, message).into())
    }

    /// Whether a snapshot that failed has left the guest paused.
    fn is_left_paused(&self, seen: &Observed, interrupted: bool) -> bool {
        let left_paused = match seen.paused_by {
            Some(PausedBy::Snapshot) => true,
            Some(PausedBy::Somebody) => interrupted,
            Some(PausedBy::Something) | None => false,
        };
        // A guest that did not run when the operation began was paused before.
        left_paused && self.entry.before.state == VmState::Running && self.is_untouched(seen)
    }

    pub(super) fn resume_left_paused(&self, seen: &Observed, interrupted: bool) -> Result<(), Failure> {
        if self.is_left_paused(seen, interrupted) { self.shared.hypervisor.resume(seen.vm.id) } else { Ok(()) }
    }

    pub(super) fn new_label(&self) -> Result<Label, Error> {
        let create = self.create_request().ok_or_else(|| Error::new(Reason::Internal, "a create without a request"))?;
        Ok(Label {
            display_name: create.display_name.clone(),
            description: create.description.clone(),
            protected: create.protected,
            actor: self.entry.actor.clone(),
            issuer: self.entry.issuer.clone(),
            disks: None,
        })
    }

    fn write_label(&mut self, id: &SnapshotId) -> Result<(), Halt> {
        let Request::Update { display_name, description, protected, .. } = self.entry.request.clone() else {
            return Err(Error::new(Reason::Internal, "an update without a request").into());
        };
        let seen = self.seen()?;
        let snapshot = seen.snapshot(id).ok_or_else(|| Error::snapshot_not_found(seen.vm.id, id))?;
        // Who made it stays as it is written.
        let label = Label { display_name, description, protected, ..snapshot.label.clone() };
        if snapshot.label == label {
            return Ok(());
        }
        self.stale = true;
        let result = self.shared.hypervisor.write_label(seen.vm.id, &seen.layers, id, &label);
        let now = if result.is_ok() { self.look_again()? } else { self.look()? };
        let written = now.snapshot(id).is_some_and(|snapshot| snapshot.label == label);
        match result {
            _ if written => Ok(()),
            Err(failure) => Err(self.error(&failure, Some(id), "the snapshot's name could not be written").into()),
            Ok(()) => Err(Error::new(Reason::HypervisorFailed, "libvirt wrote another name than it was given").into()),
        }
    }

    fn power_off(&mut self) -> Result<(), Halt> {
        let mut tries = Tries::new(POWER_OFF_TRIES);
        loop {
            self.stale = true;
            let result = self.shared.hypervisor.power_off(self.entry.vm);
            if self.look()?.vm.state == VmState::Shutoff {
                return Ok(());
            }
            let failure = result.err().unwrap_or_else(|| Failure::Unintelligible("it is not off".to_owned()));
            tracing::warn!(%failure, "switching off failed");
            if tries.is_last(&failure) {
                let doing = "the machine was taken back to the snapshot and is paused; it could not be switched off";
                return Err(self.error(&failure, None, doing).into());
            }
        }
    }

    fn delete(&mut self, id: &SnapshotId) -> Result<(), Halt> {
        let vm = self.entry.vm;
        let mut tries = Tries::new(1);
        loop {
            self.stale = true;
            let failure = match self.shared.hypervisor.delete_internal(vm, id) {
                Ok(()) | Err(Failure::SnapshotGone) => return Ok(()),
                Err(Failure::VmGone) if is_purge(&self.entry.request) => return self.clear_left_behind(),
                Err(failure) => failure,
            };
            tracing::warn!(%failure, "a deletion failed; looking what came of it");
            let seen = self.look()?;
            match seen.snapshot(id) {
                None => return Ok(()),
                Some(snapshot) if is_beyond_libvirt(snapshot) => {
                    let forgotten = self.patiently(|hypervisor| hypervisor.forget(vm, id))?;
                    self.stale = true;
                    return forgotten.map_err(|failure| self.delete_error(&failure, id).into());
                }
                Some(_) if !tries.is_last(&failure) => {}
                Some(_) => return Err(self.delete_error(&failure, id).into()),
            }
        }
    }

    fn delete_error(&self, failure: &Failure, id: &SnapshotId) -> Error {
        self.error(failure, Some(id), "the snapshot could not be deleted")
    }

    /// After the last step: none of the deleted snapshots may be left in an image. libvirt can say that it has deleted
    /// one where an image kept it.
    pub(super) fn clear_deleted(&mut self) -> Result<(), Halt> {
        if is_purge(&self.entry.request) {
            return self.clear_purged();
        }
        let deleted: Vec<SnapshotId> = self.entry.steps.iter().filter_map(deleted).cloned().collect();
        if deleted.is_empty() {
            return Ok(());
        }
        let seen = self.seen()?;
        for id in deleted.iter().filter(|id| seen.has_stray(id)) {
            tracing::warn!(%id, "a deleted snapshot is still in an image; removing it");
            self.clear_remains(id, false)?;
        }
        Ok(())
    }
}

/// Whether libvirt cannot delete it. It looks up each volume that a snapshot names before, also that of a medium.
fn is_beyond_libvirt(snapshot: &SnapshotFacts) -> bool {
    let missing = [Reason::ResourceMissing, Reason::MediumMissing, Reason::ImageUnavailable];
    let lacks = |restriction: &Restriction| {
        missing.contains(&restriction.reason) && restriction.operations.contains(&RestrictedOperation::Revert)
    };
    snapshot.broken == Some(Reason::SnapshotBroken) || snapshot.restrictions.iter().any(lacks)
}

pub(super) fn deleted(step: &Step) -> Option<&SnapshotId> {
    step.deletes()
}

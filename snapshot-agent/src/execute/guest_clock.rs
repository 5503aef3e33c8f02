//! The guest's clock after a revert. The running state that was loaded holds the time at which it was saved, and the guest goes on
//! from there: certificates are not valid yet, builds and log files are in disorder. So the guest agent is asked to set it; what
//! comes of that is noted with the outcome, and never makes the revert fail.

use snapshot_core::operation::{Note, NoteKind};
use snapshot_core::plan::{PowerState, Step};
use snapshot_core::snapshot::Content;

use super::work::Work;
use crate::hypervisor::Failure;

impl Work<'_> {
    /// After the last step. A repeat sets it again.
    pub(super) fn set_guest_clock(&mut self) {
        let Some(then) = self.resumes() else { return };
        let why = match then {
            PowerState::Running => match self.shared.hypervisor.set_guest_clock(self.entry.vm) {
                Ok(()) => return,
                Err(Failure::Precondition(error)) => error.message().to_owned(),
                Err(failure) => {
                    tracing::warn!(%failure, "clock of the guest could not be set");
                    "the guest agent could not set it".to_owned()
                }
            },
            PowerState::Paused | PowerState::Off => "the VM is paused".to_owned(),
        };
        let message = format!(
            "The guest's clock was not set after the revert ({why}): it shows the time of the snapshot; set it in the guest"
        );
        self.notes.push(Note { kind: NoteKind::GuestClockNotSet, message });
    }

    /// What the VM does after a revert to a running state; `None` where there was none, or where it is off now.
    fn resumes(&self) -> Option<PowerState> {
        let steps = &self.entry.steps;
        if steps.iter().any(|step| matches!(step, Step::PowerOff)) {
            return None;
        }
        let (snapshot, then) = steps.iter().find_map(|step| match step {
            Step::RevertInternal { snapshot, then }
            | Step::RevertExternal { snapshot, then }
            | Step::RevertInPlace { snapshot, then, .. } => Some((snapshot, *then)),
            _ => None,
        })?;
        let has_memory = match self.seen.as_ref().and_then(|seen| seen.snapshot(snapshot)) {
            Some(snapshot) => snapshot.content == Content::DisksAndMemory,
            None => steps.iter().any(|step| matches!(step, Step::RevertInPlace { .. })),
        };
        (has_memory && then != PowerState::Off).then_some(then)
    }
}

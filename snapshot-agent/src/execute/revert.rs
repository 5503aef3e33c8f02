//! The step of libvirt's own revert, internal or external.
//!
//! 1. What the revert needs of the host is checked, and the present is protected ([`super::safety`]): nothing was changed up to here.
//! 2. libvirt reverts. The call is repeated when it left the VM other than it should be: the same call may end half a revert. A VM
//!    that still runs in the same QEMU process was not touched, and then the failure stands.
//! 3. A revert that failed for good is undone: the disks get their previous state, the VM its previous definition.
//! 4. Where the host's policy keeps definitions, a further step restores it, and starts the VM. It is in the journal since 1.

use snapshot_core::ids::SnapshotId;
use snapshot_core::plan::PowerState;
use snapshot_core::vm::VmState;
use snapshot_core::{Error, Reason};

use super::safety::Way;
use super::waiting::Tries;
use super::work::{Halt, Work};
use crate::hypervisor::{Failure, Observed};

/// How often a revert is tried.
const REVERT_TRIES: u32 = 3;
/// How often it is tried to restore the definition after a revert, and to start the VM.
const KEEP_TRIES: u32 = 3;

impl Work<'_> {
    pub(super) fn revert(&mut self, id: &SnapshotId, then: PowerState, external: bool) -> Result<(), Halt> {
        let vm = self.entry.vm;
        self.protect(id, if external { Way::External } else { Way::Internal })?;
        let mut tries = Tries::new(REVERT_TRIES);
        loop {
            let result = if external {
                self.call_revert_external(id, then)?
            } else {
                self.stale = true;
                self.shared.hypervisor.revert_internal(vm, id, then)
            };
            let mut seen = self.look()?;
            if result.is_ok() && then == PowerState::Running && seen.vm.state == VmState::Paused {
                let resumed = self.shared.hypervisor.resume(vm);
                tracing::warn!(?resumed, "the guest was left paused by a revert");
                seen = self.look()?;
            }
            let failure = match result {
                Ok(()) if is_in(&seen, then) && seen.lies_on(id) => return Ok(()),
                Ok(()) if is_in(&seen, then) => {
                    Failure::Unintelligible("after the revert not every disk is the snapshot's".to_owned())
                }
                Ok(()) => Failure::Unintelligible(format!("after the revert the VM is {:?}", seen.vm.state)),
                Err(failure) if self.is_reverted(&seen, id, then) => {
                    tracing::warn!(%failure, "the revert failed and the VM is as it should be");
                    return Ok(());
                }
                Err(failure) => failure,
            };
            let lost = matches!(failure, Failure::Unreachable(_));
            let gone = matches!(failure, Failure::SnapshotGone);
            if tries.is_last(&failure) || gone || (self.is_untouched(&seen) && !lost) {
                return Err(self.undo_revert(&failure, id)?.into());
            }
            tracing::warn!(%failure, "the revert failed and may have been half done; trying again");
        }
    }

    /// Gives the VM, which the revert left off, its previous definition, and starts it. Where that fails for good the revert is undone.
    pub(super) fn keep_definition(&mut self, id: &SnapshotId, start: bool) -> Result<(), Halt> {
        let vm = self.entry.vm;
        let Some(safety) = self.protection.as_ref().map(|protection| protection.safety.clone()) else {
            return Err(Error::new(Reason::Internal, "the definition before the revert is not recorded").into());
        };
        let mut tries = Tries::new(KEEP_TRIES);
        loop {
            self.stale = true;
            let mut result = self.shared.hypervisor.restore_definition(vm, &safety).map(drop);
            if result.is_ok() && start {
                result = self.shared.hypervisor.start(vm);
            }
            let seen = self.look()?;
            let is_done = result.is_ok() || (start && seen.vm.state == VmState::Running);
            let Some(failure) = result.err().filter(|_| !is_done) else { return Ok(()) };
            if tries.is_last(&failure) {
                return Err(self.undo_revert(&failure, id)?.into());
            }
            tracing::warn!(%failure, "the definition could not be seen to be kept; trying again");
        }
    }

    /// Whether a revert that was not seen to succeed has succeeded all the same. A revert of a VM that ran, or that is to run, starts
    /// another QEMU process; where none is to be seen it cannot be told, and it is done again.
    pub(super) fn is_reverted(&self, seen: &Observed, id: &SnapshotId, then: PowerState) -> bool {
        let is_current = seen.snapshot(id).is_some_and(|snapshot| snapshot.is_current);
        let another_run = seen.instance.is_some() && seen.instance != self.entry.before.instance;
        is_current && another_run && is_in(seen, then) && seen.lies_on(id)
    }

    /// Whether the VM still runs as it did: then no revert has begun to change anything.
    pub(super) fn is_untouched(&self, seen: &Observed) -> bool {
        self.is_same_run(seen) && !self.is_loading
    }

    /// Whether it is the QEMU process of before. A revert in place leaves that as it is.
    pub(super) fn is_same_run(&self, seen: &Observed) -> bool {
        seen.instance.is_some() && seen.instance == self.entry.before.instance
    }
}

pub(super) fn is_in(seen: &Observed, then: PowerState) -> bool {
    match then {
        PowerState::Running => seen.vm.state == VmState::Running,
        PowerState::Paused => seen.vm.state == VmState::Paused,
        PowerState::Off => seen.vm.state == VmState::Shutoff,
    }
}

//! The step that goes back to a snapshot within the QEMU process that there is.
//!
//! The guest is stopped; QEMU loads the snapshot; that is marked as current; the guest runs on, or not. Once the step is marked
//! as done in the journal, QEMU is told to forget the load.
//!
//! The process stays the same, so its number, by which other reverts are told, tells nothing here. QEMU's memory of the load
//! does: it is under the operation's id, and stays until then. From it each repeat learns where it stands. None: nothing
//! was begun, the guest at most stands still, and it begins anew. Done: whatever the guest has done since is kept, and
//! only what is left of the rest is done. Failed, or it cannot be told: disks and memory may be of two moments, although the guest
//! looks like one that was merely stopped. It must not run, so libvirt's own revert follows, which ends the process and starts
//! another from the snapshot. Where libvirt's revert cannot succeed, QEMU loads once more; where that fails, too, the VM is switched
//! off and its disks get their previous state ([`super::safety`]). A load that was refused before it changed a disk has changed
//! nothing: where libvirt's revert cannot succeed, the guest runs on.

use std::time::Instant;

use snapshot_core::hardware::Comparison;
use snapshot_core::ids::SnapshotId;
use snapshot_core::operation::Method;
use snapshot_core::plan::{PowerState, Step};
use snapshot_core::vm::VmState;

use super::revert::is_in;
use super::safety::Way;
use super::settle::BEGIN_WITHIN;
use super::waiting::Tries;
use super::work::{Halt, Work};
use crate::hypervisor::{Failure, Load, Observed};

/// How often a load that is done is followed up.
const TRIES: u32 = 3;

impl Work<'_> {
    /// Reverts in place; where that is not possible, by libvirt's own revert, if that can succeed.
    pub(super) fn revert_in_place(&mut self, id: &SnapshotId, then: PowerState, fallback: bool) -> Result<(), Halt> {
        let Err(mut failure) = self.load(id, then)? else { return Ok(()) };
        if fallback && self.may_fall_back(id)? {
            tracing::warn!(%failure, "cannot go back in place; going back by libvirt's own revert");
            self.entry.method = Some(Method::Libvirt);
            self.revert(id, then, false)?;
            self.is_loading = false;
            return Ok(());
        }
        if self.is_loading {
            tracing::warn!(%failure, "a load came part of the way, and libvirt's revert cannot succeed; loading again");
            match self.load_again(id, then)? {
                Ok(()) => return Ok(()),
                Err(again) => failure = again,
            }
        }
        Err(self.undo_revert(&failure, id)?.into())
    }

    /// Whether libvirt's own revert, which ends the process first, can succeed.
    fn may_fall_back(&mut self, id: &SnapshotId) -> Result<bool, Halt> {
        let seen = self.look()?;
        match self.patiently(|hypervisor| hypervisor.check_revert(&seen.vm, id))? {
            Ok(()) => Ok(true),
            Err(failure) => {
                tracing::warn!(%failure, "libvirt's own revert cannot succeed");
                Ok(false)
            }
        }
    }

    /// QEMU's name for the load. The first stays as it is until the end, so that a failed one is not taken for none.
    fn job(&self) -> String {
        if self.is_second_load { self.second_job() } else { self.first_job() }
    }

    fn first_job(&self) -> String {
        format!("in-place-{}", self.entry.operation)
    }

    fn second_job(&self) -> String {
        format!("in-place-{}-again", self.entry.operation)
    }

    fn what_was_loaded(&mut self) -> Result<Result<Load, Failure>, Halt> {
        let vm = self.entry.vm;
        let (first, second) = (self.first_job(), self.second_job());
        let loaded = self.patiently(|hypervisor| hypervisor.loaded(vm, &first))?;
        // There is no second where the first did not fail.
        if loaded != Ok(Load::Failed) {
            return Ok(loaded);
        }
        match self.patiently(|hypervisor| hypervisor.loaded(vm, &second))? {
            Ok(Load::None) => Ok(loaded),
            loaded => {
                self.is_second_load = true;
                Ok(loaded)
            }
        }
    }

    /// Loads once more over a load that came part of the way.
    fn load_again(&mut self, id: &SnapshotId, then: PowerState) -> Result<Result<(), Failure>, Halt> {
        if self.is_second_load {
            return Ok(Err(Failure::Unintelligible("the second load failed, too".to_owned())));
        }
        let seen = self.look()?;
        if !self.is_same_run(&seen) || seen.vm.state != VmState::Paused {
            return Ok(Err(Failure::Unintelligible("the VM is not as the load left it".to_owned())));
        }
        self.is_second_load = true;
        if let Err(failure) = self.call_load(id, &seen)? {
            return Ok(Err(failure));
        }
        let done = self.after_load(id, then)?;
        self.is_loading = done.is_err();
        Ok(done)
    }

    /// The failure is the reason to go back in the other way.
    fn load(&mut self, id: &SnapshotId, then: PowerState) -> Result<Result<(), Failure>, Halt> {
        let started = Instant::now();
        let stood_still = self.entry.before.state != VmState::Running || then != PowerState::Running;
        // A new operation has not loaded anything; one that is gone on with was asked about.
        let begun = if self.is_loading { self.go_on_loading(id)? } else { self.begin_load(id)? };
        if let Err(failure) = begun {
            return Ok(Err(failure));
        }
        // From here on nothing is half, but libvirt's own revert may still be needed, and the process is the same.
        self.is_loading = true;
        if let Err(failure) = self.after_load(id, then)? {
            return Ok(Err(failure));
        }
        self.is_loading = false;
        if !stood_still {
            self.pause = Some(self.pause.unwrap_or_default() + started.elapsed());
        }
        Ok(Ok(()))
    }

    /// Where nothing was begun. A failure that leaves it so leaves the guest as it was, but for its standing still.
    fn begin_load(&mut self, id: &SnapshotId) -> Result<Result<(), Failure>, Halt> {
        let vm = self.entry.vm;
        let mut seen = self.look()?;
        if !self.is_untouched(&seen) {
            return Ok(Err(Failure::Unintelligible("the machine was switched off or started anew".to_owned())));
        }
        // It may have changed since it was planned, and before a restart of this process.
        match self.patiently(|hypervisor| hypervisor.hardware(vm, id))? {
            Ok(Comparison::Same) => {}
            Ok(Comparison::Different(what)) => return Ok(Err(Failure::Unintelligible(what))),
            Err(failure) => return Ok(Err(failure)),
        }
        if self.protection.is_none()
            && let Err(error) = self.check_users(&seen, id)
        {
            return Ok(Err(Failure::Precondition(error)));
        }
        if seen.vm.state == VmState::Running {
            self.stale = true;
            let suspended = self.shared.hypervisor.suspend(vm);
            seen = self.look()?;
            if seen.vm.state != VmState::Paused {
                let failure = Failure::Unintelligible("the guest could not be stopped".to_owned());
                return Ok(Err(suspended.err().unwrap_or(failure)));
            }
        }
        if seen.vm.state != VmState::Paused || seen.vm.block_job_disk.is_some() || !self.is_untouched(&seen) {
            return Ok(Err(Failure::Unintelligible("the machine is no more as it was".to_owned())));
        }
        if let Err(failure) = self.try_protect(id, Way::InPlace)? {
            return Ok(Err(failure));
        }
        self.call_load(id, &seen)
    }

    /// Where something may have been begun.
    fn go_on_loading(&mut self, id: &SnapshotId) -> Result<Result<(), Failure>, Halt> {
        match self.what_was_loaded()? {
            Ok(Load::None) => {
                self.is_loading = false;
                self.begin_load(id)
            }
            Ok(Load::Running | Load::Done) => {
                let seen = self.look()?;
                self.call_load(id, &seen)
            }
            Ok(Load::Failed) => Ok(Err(Failure::Unintelligible("the load failed before".to_owned()))),
            Err(failure) => Ok(Err(failure)),
        }
    }

    fn call_load(&mut self, id: &SnapshotId, seen: &Observed) -> Result<Result<(), Failure>, Halt> {
        self.stale = true;
        let job = self.job();
        let Err(failure) = self.shared.hypervisor.load(&seen.vm, id, &job) else { return Ok(Ok(())) };
        // What the call said is not what QEMU did: libvirt may have gone away in between.
        let was_loading = match self.what_was_loaded()? {
            Ok(Load::Done) => {
                tracing::warn!(%failure, "loading failed and the snapshot is loaded");
                return Ok(Ok(()));
            }
            Ok(Load::None) => false,
            Ok(Load::Failed) => !self.has_loaded_nothing(id)?,
            Ok(Load::Running) | Err(_) => true,
        };
        self.is_loading |= was_loading;
        Ok(Err(failure))
    }

    /// Marks the snapshot as current, and lets the guest run on. A guest that runs already was marked before.
    fn after_load(&mut self, id: &SnapshotId, then: PowerState) -> Result<Result<(), Failure>, Halt> {
        let vm = self.entry.vm;
        let mut tries = Tries::new(TRIES);
        loop {
            let seen = self.look()?;
            let is_current = seen.snapshot(id).is_some_and(|snapshot| snapshot.is_current);
            let result = match seen.vm.state {
                _ if !self.is_same_run(&seen) => {
                    return Ok(Err(Failure::Unintelligible("the machine went off after the load".to_owned())));
                }
                _ if is_in(&seen, then) && is_current => return Ok(Ok(())),
                // Somebody let it run on, or this is a repeat and it does since: what it has done is not to be lost.
                VmState::Running if is_current => return Ok(Ok(())),
                VmState::Running | VmState::Paused if !is_current => {
                    self.stale = true;
                    self.shared.hypervisor.make_current(vm, id)
                }
                VmState::Paused if then == PowerState::Running => {
                    self.stale = true;
                    self.shared.hypervisor.resume(vm)
                }
                state => return Ok(Err(Failure::Unintelligible(format!("after the load the machine is {state:?}")))),
            };
            if let Err(failure) = result {
                tracing::warn!(%failure, "what follows a load failed");
                if tries.is_last(&failure) {
                    return self.load_not_finished(failure, id);
                }
            }
        }
    }

    /// After a load that is done and that the last of it could not be done for. A guest that runs has gone on from the snapshot, and
    /// keeps what it has done; but libvirt has another snapshot as the current one.
    fn load_not_finished(&mut self, failure: Failure, id: &SnapshotId) -> Result<Result<(), Failure>, Halt> {
        if self.look()?.vm.state != VmState::Running {
            return Ok(Err(failure));
        }
        let doing = "the VM runs with the disks and the memory of the snapshot, and libvirt could not mark the snapshot as current";
        Err(self.error(&failure, Some(id), doing).into())
    }

    /// After a revert that failed for good: a guest of which some may be loaded must not run, and one that was merely paused for
    /// it runs on.
    pub(super) fn after_failed_revert(&mut self, seen: Observed) -> Result<Observed, Halt> {
        if self.is_loading && self.is_same_run(&seen) {
            tracing::error!("a revert failed after some of it was loaded; switching the machine off");
            let vm = self.entry.vm;
            if let Err(failure) = self.patiently(|hypervisor| hypervisor.power_off(vm))? {
                tracing::error!(%failure, "the machine could not be brought into a state that is known");
            }
            self.stale = true;
        } else {
            self.resume_paused(&seen)?;
        }
        self.look()
    }

    /// Has QEMU forget a load that is marked as done. What is not forgotten now is in nobody's way.
    pub(super) fn forget_load(&mut self) {
        for job in [self.first_job(), self.second_job()] {
            if let Err(failure) = self.shared.hypervisor.forget_load(self.entry.vm, &job) {
                tracing::debug!(%failure, "QEMU still remembers a load");
            }
        }
    }

    /// Goes on with it after the process died, or has it fail where it was not begun and nobody expects it any more.
    pub(super) fn settle_in_place(
        &mut self,
        next: usize,
        begun: bool,
        id: &SnapshotId,
        then: PowerState,
    ) -> Result<(), Halt> {
        if begun {
            self.wait_for_libvirt()?;
        }
        let seen = self.look()?;
        if begun && self.is_reverted(&seen, id, then) {
            self.entry.method = Some(Method::Libvirt);
            return self.run_steps(next + 1);
        }
        // Where it cannot be told, it may be halfway.
        self.is_loading = begun && !matches!(self.what_was_loaded()?, Ok(Load::None));
        self.protect_anew(&seen);
        let since = self.entry.accepted.elapsed();
        let is_fresh = since.is_some_and(|since| since <= BEGIN_WITHIN);
        if self.is_loading || self.is_halfway(&seen, begun, since) || is_fresh {
            return self.run_steps(next);
        }
        self.back_out(&seen)
    }
}

pub(super) fn is_in_place(step: &Step) -> bool {
    matches!(step, Step::RevertInPlace { .. })
}

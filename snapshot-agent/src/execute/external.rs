//! The steps of external snapshots. Each can be repeated from its beginning, however far it came the time before.
//!
//! - **Create**: a whole snapshot is success. libvirt can fail after it has put the machine on the overlays, or on some
//!   of them. So whatever the call said, the machine is looked at; what is not whole is taken back: what the guest has
//!   written into an overlay meanwhile is merged into the file below, and the machine goes on with that.
//! - **Revert**: as for internal ones, and every disk has to lie on what the snapshot froze, or it is done again. libvirt
//!   removes the overlay of the snapshot that was current, which may be another branch: that file is guarded.
//! - **Mark deleted**: a snapshot that is not listed is success. From here on nobody is offered it, so its data may change.

mod decisions;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use snapshot_core::ids::SnapshotId;
use snapshot_core::layers::{Merge, is_overlay_of, memory_path, overlay_paths};
use snapshot_core::plan::PowerState;
use snapshot_core::vm::VmState;
use snapshot_core::{Error, Reason};

pub(super) use self::decisions::{After, holds_snapshots};
use self::decisions::{
    consistency, endangered, guardable, has_ended, is_given_up, is_known_to_libvirt, is_left, is_taken, laid_since,
    removable_by_revert, unreached_files,
};
use super::operation::{Operation, Progress};
use super::waiting::Tries;
use super::work::{Halt, Work};
use crate::clock::unix_now;
use crate::hypervisor::{Failure, NewExternal, Observed, Watch};

/// How often something is tried that fails.
const TRIES: u32 = 3;
/// The time between two requests to a guest that may be frozen to thaw.
const THAW_PAUSE: Duration = Duration::from_secs(1);

/// Tells of a step that takes long, and whether it is to end.
pub(super) struct Follower<'a> {
    operation: &'a Operation,
    stopping: &'a tokio_util::sync::CancellationToken,
    cancellable: bool,
    phase: String,
    /// The steps that are done, and all of them.
    steps: (usize, usize),
}

impl Watch for Follower<'_> {
    fn progress(&self, done: u64, of: u64) {
        let (before, all) = (self.steps.0 as u64 * 100, self.steps.1.max(1) as u64);
        let within = done.min(of).saturating_mul(100).checked_div(of).unwrap_or(0);
        let percent = u8::try_from((before + within) / all).unwrap_or(100);
        self.operation.progress(Progress { phase: self.phase.clone(), percent });
    }

    fn is_cancelled(&self) -> bool {
        self.cancellable && (self.operation.is_cancelled() || self.stopping.is_cancelled())
    }
}

impl Work<'_> {
    pub(super) fn follower(&self, may_stop: bool) -> Follower<'_> {
        let phase = self.entry.steps.get(self.done).map(ToString::to_string).unwrap_or_default();
        Follower {
            operation: self.operation,
            stopping: &self.shared.stopping,
            cancellable: may_stop && self.entry.cancellable,
            phase,
            steps: (self.done, self.entry.steps.len()),
        }
    }

    pub(super) fn create_external(&mut self, id: &SnapshotId, memory: bool, quiesce: bool) -> Result<(), Halt> {
        let seen = self.seen()?;
        if seen.has_whole(id) {
            return Ok(());
        }
        let mut label = self.new_label()?;
        let disks = seen.vm.writable_disks().map(|disk| (disk.target.as_str(), disk.path.as_str()));
        let overlays = overlay_paths(disks, id);
        let memory_file = seen.vm.writable_disks().next().filter(|_| memory).map(|disk| memory_path(&disk.path, id));
        label.disks = consistency(seen.vm.is_active(), memory, quiesce);
        let new = NewExternal { id, label: &label, overlays: &overlays, memory_file: memory_file.as_deref(), quiesce };
        let (start, was_running) = (Instant::now(), seen.vm.state == VmState::Running);
        self.stale = true;
        let result = self.shared.hypervisor.create_external(&seen.vm, &new, &self.follower(true));
        if let Err(Failure::Precondition(error)) = &result {
            return Err(error.clone().with("vm", proto::names::vm(seen.vm.id)).into());
        }
        let took = start.elapsed();
        let now = self.look()?;
        if quiesce && result.is_err() {
            self.thaw()?;
        }
        if is_taken(&result, &now, id) {
            if let Err(failure) = result {
                tracing::warn!(%failure, "taking the snapshot failed and the snapshot is whole");
            }
            // The guest runs on while its memory is saved, and stands still for the last of it: this is the most.
            self.pause = (memory && was_running).then_some(took);
            return Ok(());
        }
        let cancelled = self.follower(true).is_cancelled();
        let error = match &result {
            Err(failure) => self.error(failure, Some(id), "the snapshot could not be taken"),
            Ok(()) => Error::new(Reason::HypervisorFailed, "libvirt took the snapshot, and it is not whole"),
        };
        tracing::warn!(?error, cancelled, "the snapshot is not as it should be; taking back what there is of it");
        let after = if matches!(result, Err(Failure::Unreachable(_))) { After::Loss } else { After::Failure };
        Err(match self.undo_external(id, after) {
            Ok(()) if cancelled => Halt::Cancelled,
            Ok(()) => error.into(),
            Err(Halt::Failed(remains)) => error.with("remains", remains.to_string()).into(),
            Err(halt) => halt,
        })
    }

    /// Thaws a guest that may be frozen, or freeze late: until it says that it is thawed, is off, or has said nothing for a
    /// long time. One that is not frozen is not changed by it.
    pub(super) fn thaw(&mut self) -> Result<(), Halt> {
        let since = Instant::now();
        while self.look()?.vm.is_active() {
            match self.shared.hypervisor.thaw(self.entry.vm) {
                Ok(()) => return Ok(()),
                Err(failure) => match is_given_up(since.elapsed()) {
                    true => {
                        tracing::error!(%failure, "the guest's file systems may be frozen, and its agent does not thaw them");
                        return Ok(());
                    }
                    false => tracing::warn!(%failure, "the guest may be frozen; asking it again to thaw"),
                },
            }
            if self.shared.stopping.is_cancelled() {
                return Err(Halt::LeftOff);
            }
            std::thread::sleep(THAW_PAUSE);
        }
        Ok(())
    }

    /// Takes back what there is of a snapshot that is not whole. The machine goes on with what it has written since.
    pub(super) fn undo_external(&mut self, id: &SnapshotId, after: After) -> Result<(), Halt> {
        if self.look()?.snapshot(id).is_some() {
            // What it froze is about to change, and whoever finds it after a crash must not take it for whole.
            self.mark_deleted(id)?;
        }
        self.leave_overlays(id, after)?;
        let seen = self.look()?;
        self.stale = true;
        let mut attempts = Vec::new();
        if is_known_to_libvirt(&seen, id) {
            attempts.push(self.shared.hypervisor.forget(seen.vm.id, id));
        }
        attempts.push(self.shared.hypervisor.unlink(&unreached_files(&seen, id)));
        attempts.push(self.resume_left_paused(&seen, after.was_interrupted()));
        for failure in attempts.iter().filter_map(|attempt| attempt.as_ref().err()) {
            tracing::warn!(%failure, "taking back a snapshot failed");
        }
        let seen = self.look()?;
        if is_left(&seen.layers, id) {
            let message = format!("what there is of snapshot {id} could not be taken back");
            return Err(Error::new(Reason::HypervisorFailed, message).into());
        }
        if let Some(owned) = self.shared.machines.owned() {
            // A file of it that could not be removed is nobody's snapshot.
            owned.deleted(seen.vm.id, id);
        }
        Ok(())
    }

    /// Has the machine leave the overlays of a snapshot that is not whole: first those that libvirt knows it to be on, then
    /// those that only QEMU knows of. Until that is done no file may be removed.
    fn leave_overlays(&mut self, id: &SnapshotId, after: After) -> Result<(), Halt> {
        let disks = self.look()?.layers.live.len();
        for _ in 0..disks + TRIES as usize {
            let seen = self.look()?;
            let own = seen.layers.live.iter().find(|(_, path)| is_overlay_of(path, id));
            let Some((disk, top)) = own.map(|(disk, top)| (disk.clone(), top.clone())) else { break };
            let base = seen.layers.files.get(&top).and_then(|layer| layer.backing.clone());
            let base = base.ok_or_else(|| Error::new(Reason::HypervisorFailed, format!("{top} lies on nothing")))?;
            self.merge(&Merge { disk, above: vec![top.clone()], top, base, bytes: 0 }, false)?;
        }
        let mut tries = Tries::new(TRIES);
        loop {
            let seen = self.look()?;
            self.stale = true;
            let taken_back = self.shared.hypervisor.take_back(&seen.vm, &seen.layers, id, after.may_have_run());
            let Err(failure) = taken_back else { return Ok(()) };
            if tries.is_last(&failure) {
                if let Some(owned) = self.shared.machines.owned() {
                    owned.give_up(seen.vm.id, id);
                }
                let doing = "the machine is on files of a snapshot that was not taken, and could not be taken back";
                return Err(self.error(&failure, Some(id), doing).into());
            }
            tracing::warn!(%failure, "the machine could not be taken back; trying again");
        }
    }

    /// Goes back to an external snapshot. What libvirt could remove has second names until it is known how that ended.
    pub(super) fn revert_external(&mut self, id: &SnapshotId, then: PowerState) -> Result<(), Halt> {
        let reverted = self.revert(id, then, true);
        if has_ended(&reverted) {
            let seen = self.look()?;
            self.unguard(&seen);
        }
        reverted
    }

    /// One try of it.
    pub(super) fn call_revert_external(
        &mut self,
        id: &SnapshotId,
        then: PowerState,
    ) -> Result<Result<(), Failure>, Halt> {
        let seen = self.seen()?;
        let hypervisor = &self.shared.hypervisor;
        let given_up = self.given_up(&seen, id)?;
        // libvirt has on the current snapshot, beside its XML, which file its next revert removes. The disk may have got another image
        // since, on top of that file or not.
        let wanted = self.shared.machines.owned().map(|owned| owned.wanted(self.entry.vm)).unwrap_or_default();
        let may_touch = |path: &String| hypervisor.folders().has(Path::new(path));
        let endangered = endangered(&seen.layers, &wanted, &given_up, may_touch);
        // The second names of an earlier try stay: libvirt may be at it still, and goes on to remove files.
        if let Err(failure) = hypervisor.guard(&endangered) {
            return Err(self.error(&failure, Some(id), "what the revert could lose cannot be guarded").into());
        }
        self.stale = true;
        let since = laid_since(unix_now());
        let reverted = hypervisor.revert_external(self.entry.vm, &seen.layers, id, then);
        if let Some(owned) = self.shared.machines.owned() {
            owned.laid(&seen, id, since);
        }
        if matches!(reverted, Err(Failure::Unreachable(_))) {
            self.wait_for_libvirt()?;
        }
        Ok(reverted)
    }

    /// The active files that a revert to this snapshot gives up, so that libvirt may remove them: those of the disks that it holds, if
    /// they are on record as created by a snapshot. A disk that was attached since is detached by the revert, and nobody has asked for
    /// what that holds to be removed; nor for snapshots of other tools inside an image, nor for what others depend on, nor for an image
    /// that somebody has put in the place of one of ours. Where that is not to be found out, nothing is given up.
    fn given_up(&mut self, seen: &Observed, id: &SnapshotId) -> Result<BTreeSet<String>, Halt> {
        let held = removable_by_revert(&seen.layers, id);
        match self.elsewhere(seen, &held) {
            Ok(elsewhere) => Ok(held.difference(&elsewhere).cloned().collect()),
            Err(Halt::Failed(error)) => {
                tracing::warn!(?error, "what others depend on is not known, so a revert removes nothing");
                Ok(BTreeSet::new())
            }
            Err(halt) => Err(halt),
        }
    }

    /// Brings back the files of the VM that a revert has lost. What cannot be brought back now stays under its second name, and is
    /// brought back by the next revert or clean-up.
    pub(super) fn unguard(&mut self, seen: &Observed) {
        self.stale = true;
        let on_record = self.shared.machines.owned().map(|owned| owned.wanted(seen.vm.id)).unwrap_or_default();
        let files = guardable(&seen.layers, on_record, &self.entry.active);
        for attempt in 1..=TRIES {
            match self.shared.hypervisor.unguard(&files) {
                Ok(()) => return,
                Err(failure) => tracing::error!(%failure, attempt, ?files, "guarded files could not be looked after"),
            }
        }
    }

    pub(super) fn mark_deleted(&mut self, id: &SnapshotId) -> Result<(), Halt> {
        let vm = self.entry.vm;
        let mut tries = Tries::new(1);
        loop {
            let layers = self.seen()?.layers;
            self.stale = true;
            let failure = match self.shared.hypervisor.mark_deleted(vm, &layers, id) {
                Ok(()) | Err(Failure::SnapshotGone) => return Ok(()),
                Err(failure) => failure,
            };
            let seen = self.look()?;
            if seen.snapshot(id).is_none() {
                return Ok(());
            }
            if tries.is_last(&failure) {
                return Err(self.error(&failure, Some(id), "the snapshot could not be deleted").into());
            }
        }
    }
}

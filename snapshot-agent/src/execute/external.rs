//! The steps of external snapshots. Each can be repeated from its beginning, however far it came the time before.
//!
//! - **Create**: a whole snapshot is success. libvirt can fail after it has put the machine on the overlays, or on some
//!   of them. So whatever the call said, the machine is looked at; what is not whole is taken back: what the guest has
//!   written into an overlay meanwhile is merged into the file below, and the machine goes on with that.
//! - **Revert**: as for internal ones, and every disk has to lie on what the snapshot froze, or it is done again. libvirt
//!   removes the overlay of the snapshot that was current, which may be another branch: that file is guarded.
//! - **Mark deleted**: a snapshot that is not listed is success. From here on nobody is offered it, so its data may change.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use snapshot_core::ids::SnapshotId;
use snapshot_core::layers::{Layers, Merge, is_overlay_of, memory_path, overlay_paths};
use snapshot_core::plan::PowerState;
use snapshot_core::snapshot::Consistency;
use snapshot_core::vm::VmState;
use snapshot_core::{Error, Reason};

use super::operation::{Operation, Progress};
use super::waiting::Tries;
use super::work::{Halt, Work};
use crate::clock::unix_now;
use crate::hypervisor::{Failure, NewExternal, Observed, Watch};
use crate::qcow2::{self, ImageError};

/// How often something is tried that fails.
const TRIES: u32 = 3;
/// How long a guest that may be frozen is asked to thaw, and how often: one that does not answer has to be given up some time.
const THAWS_WITHIN: Duration = Duration::from_secs(120);
const THAW_PAUSE: Duration = Duration::from_secs(1);

/// After what a snapshot is taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// libvirt said that it failed.
    Failure,
    /// libvirt went away in the middle.
    Loss,
    /// The agent did, and anything may have happened since.
    Restart,
}

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

impl Observed {
    /// Whether the machine is on the overlays of this snapshot, or on later ones, with every disk.
    fn is_on(&self, id: &SnapshotId) -> bool {
        let Some(parts) = self.layers.snapshots.get(id) else { return false };
        parts.overlays.iter().all(|(target, overlay)| {
            let live = self.layers.live.get(target);
            live.is_some_and(|live| self.layers.chain(live).any(|path| path == overlay))
        })
    }

    /// Whether every disk lies directly on what this snapshot froze; internal snapshots freeze nothing.
    pub(super) fn lies_on(&self, id: &SnapshotId) -> bool {
        let Some(parts) = self.layers.snapshots.get(id) else { return true };
        parts.frozen.iter().all(|(target, frozen)| {
            let live = self.layers.live.get(target).and_then(|live| self.layers.files.get(live));
            live.is_some_and(|layer| layer.backing.as_ref() == Some(frozen))
        })
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
        if !memory && seen.vm.is_active() {
            label.disks = Some(if quiesce { Consistency::FileSystem } else { Consistency::Crash });
        }
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
        let is_frozen = !matches!(result, Err(Failure::FreezeLost(_)));
        if is_frozen && now.has_whole(id) && now.is_on(id) {
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
                Err(failure) if since.elapsed() > THAWS_WITHIN => {
                    tracing::error!(%failure, "the guest's file systems may be frozen, and its agent does not thaw them");
                    return Ok(());
                }
                Err(failure) => tracing::warn!(%failure, "the guest may be frozen; asking it again to thaw"),
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
        if seen.layers.snapshots.contains_key(id) || seen.snapshot(id).is_some() {
            attempts.push(self.shared.hypervisor.forget(seen.vm.id, id));
        }
        let disks = seen.vm.writable_disks().map(|disk| (disk.target.as_str(), disk.path.as_str()));
        let reached = seen.layers.reached(&BTreeSet::from([id.clone()]));
        let mut remains: Vec<String> = overlay_paths(disks, id).into_values().collect();
        remains.extend(seen.vm.writable_disks().next().map(|disk| memory_path(&disk.path, id)));
        remains.retain(|path| !reached.contains(path.as_str()));
        attempts.push(self.shared.hypervisor.unlink(&remains));
        attempts.push(self.resume_left_paused(&seen, after != After::Failure));
        for failure in attempts.iter().filter_map(|attempt| attempt.as_ref().err()) {
            tracing::warn!(%failure, "taking back a snapshot failed");
        }
        let seen = self.look()?;
        if seen.layers.snapshots.contains_key(id) || seen.layers.live.values().any(|path| is_overlay_of(path, id)) {
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
            // Where the guest is switched off in the middle, the files tell the rest.
            let may_have_run = after == After::Restart;
            let Err(failure) = self.shared.hypervisor.take_back(&seen.vm, &seen.layers, id, may_have_run) else {
                return Ok(());
            };
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
        if !matches!(reverted, Err(Halt::LeftOff)) {
            let seen = self.look()?;
            self.unguard(&self.guardable(&seen));
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
        let since = unix_now() - 1;
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
        let is_held = |target: &String| seen.layers.snapshots.get(id).is_some_and(|it| it.frozen.contains_key(target));
        let held = seen.layers.live.iter().filter(|(target, _)| is_held(target)).map(|(_, path)| path.clone());
        let is_removable = |path: &String| seen.layers.is_created(path) && !holds_snapshots(Path::new(path));
        let held: BTreeSet<String> = held.filter(is_removable).collect();
        match self.elsewhere(seen, &held) {
            Ok(elsewhere) => Ok(held.difference(&elsewhere).cloned().collect()),
            Err(Halt::Failed(error)) => {
                tracing::warn!(?error, "what others depend on is not known, so a revert removes nothing");
                Ok(BTreeSet::new())
            }
            Err(halt) => Err(halt),
        }
    }

    /// Files that a revert may have left guarded: the machine has moved since, and may be on one of them. Those on record are, too:
    /// libvirt has other overlays on a snapshot after a revert to it.
    pub(super) fn guardable(&self, seen: &Observed) -> Vec<String> {
        let on_record = self.shared.machines.owned().map(|owned| owned.wanted(seen.vm.id)).unwrap_or_default();
        let before = self.entry.active.values().cloned();
        seen.layers.paths().into_iter().map(str::to_owned).chain(on_record).chain(before).collect()
    }

    /// What cannot be brought back now stays under its second name, and is brought back by the next revert or clean-up.
    pub(super) fn unguard(&mut self, files: &[String]) {
        self.stale = true;
        for attempt in 1..=TRIES {
            match self.shared.hypervisor.unguard(files) {
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

/// Whether there are snapshots inside an image. Of one that cannot be read nobody knows.
pub(super) fn holds_snapshots(path: &Path) -> bool {
    match qcow2::read(path) {
        Ok(image) => !image.stamps().is_empty(),
        Err(ImageError::Io(error)) => error.kind() != ErrorKind::NotFound,
        Err(ImageError::Format(_) | ImageError::Unsteady) => true,
    }
}

/// Files that libvirt's next revert may take for the active ones, but for those that are given up: the overlays of snapshots, and, where
/// they may be touched, the active files and those on record that hold a `wanted` state.
fn endangered(
    layers: &Layers,
    wanted: &BTreeSet<String>,
    given_up: &BTreeSet<String>,
    may_touch: impl Fn(&String) -> bool,
) -> Vec<String> {
    let overlays = layers.snapshots.values().flat_map(|parts| parts.overlays.values());
    let others = layers.live.values().chain(wanted).filter(|path| may_touch(path));
    overlays.chain(others).filter(|path| !given_up.contains(*path)).cloned().collect()
}

#[cfg(test)]
mod tests;

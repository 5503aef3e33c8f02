//! Protecting the present before a revert, and undoing a revert that failed ([`crate::safety`]).
//!
//! ```text
//!   check -> journal: Protecting -> tags set -> journal: Protected -> revert -> tags removed -> journal: Ended
//!                                                                       |
//!                                                                       +-- failed: disks restored, definition restored
//! ```
//!
//! - A guest that runs is paused before the tags are set, so that they are the state in which QEMU is ended.
//! - After a death of this process nothing was reverted where the journal does not say Protected: the tags are set anew.
//! - Where the disks cannot be restored they may hold states of different moments. Then the VM is marked, and the tag is listed as
//!   a snapshot: it can be reverted to that one or to the one that was asked for, and either ends the mark.
//! - An external revert leaves the previous files alone, so there are no tags.

use std::collections::BTreeMap;

use snapshot_core::description::Label;
use snapshot_core::ids::SnapshotId;
use snapshot_core::plan::Step;
use snapshot_core::restriction::RestrictedOperation;
use snapshot_core::vm::VmState;
use snapshot_core::{Error, Reason};

use super::vanished::is_purge;
use super::waiting::Tries;
use super::work::{Halt, Work};
use crate::hypervisor::{Failure, Observed};
use crate::safety::{self, Held, Mixed, Safety};

/// How often it is tried to restore disks, and to remove tags.
const TRIES: u32 = 3;

/// The most bytes on the host of disks that are protected before a load in place. Setting a tag takes QEMU some 5 ms for each GiB,
/// while the guest is paused, and a load in place is chosen because the pause is short. libvirt's own revert, which takes seconds, is
/// always protected.
const MOST_IN_PLACE: u64 = 8 << 30;

/// The protection of a revert.
#[derive(Debug)]
pub(super) struct Protection {
    pub(super) safety: Safety,
    /// Whether all tags are set.
    pub(super) is_set: bool,
    /// Whether the tags are to stay: they are the only way to the state before the revert.
    is_needed: bool,
    /// Whether they are a snapshot that is listed.
    is_listed: bool,
}

/// How a VM is reverted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// By libvirt, to an internal snapshot.
    Internal,
    /// By libvirt, to an external snapshot.
    External,
    /// Within the QEMU process.
    InPlace,
}

impl Protection {
    pub(super) fn recorded((safety, is_set): (Safety, bool)) -> Self {
        Self { safety, is_set, is_needed: false, is_listed: false }
    }
}

impl Work<'_> {
    /// Checks the revert and protects the present. A failure leaves the VM as it was.
    pub(super) fn protect(&mut self, id: &SnapshotId, way: Way) -> Result<(), Halt> {
        match self.try_protect(id, way)? {
            Ok(()) => Ok(()),
            // A load in place came part of the way before.
            Err(failure) if self.is_loading => Err(self.undo_revert(&failure, id)?.into()),
            Err(failure) => {
                let doing = "the VM could not be reverted to the snapshot; nothing was changed";
                let error = self.error(&failure, Some(id), doing);
                let seen = self.look()?;
                self.resume_paused(&seen)?;
                Err(error.into())
            }
        }
    }

    /// The same, with the failure that keeps it from being protected.
    pub(super) fn try_protect(&mut self, id: &SnapshotId, way: Way) -> Result<Result<(), Failure>, Halt> {
        if self.protection.as_ref().is_some_and(|protection| protection.is_set) {
            return Ok(Ok(()));
        }
        let (vm, seen) = (self.entry.vm, self.seen()?);
        if way == Way::Internal
            && self.protection.is_none()
            && let Err(error) = self.check_users(&seen, id)
        {
            return Ok(Err(Failure::Precondition(error)));
        }
        // In place nothing is needed of the host that the process does not have.
        if way != Way::InPlace
            && let Err(failure) = self.patiently(|hypervisor| hypervisor.check_revert(&seen.vm, id))?
        {
            return Ok(Err(failure));
        }
        let bytes = seen.vm.writable_disks().fold(0, |sum: u64, disk| sum.saturating_add(disk.allocation_bytes));
        if way == Way::InPlace && self.protection.is_none() && bytes > MOST_IN_PLACE {
            tracing::info!(bytes, "the disks are too large to be protected during the pause of a load in place");
            return Ok(Ok(()));
        }
        if self.protection.is_none() {
            let tag = safety::tag(self.entry.operation);
            let mut safety = match self.patiently(|hypervisor| hypervisor.before_revert(vm, id, tag.clone()))? {
                Ok(safety) => safety,
                Err(failure) => return Ok(Err(failure)),
            };
            let policy = &self.shared.policy;
            if way == Way::External {
                // The previous files stay, and libvirt's record of the current snapshot must not be rewritten.
                (safety.images, safety.current) = (BTreeMap::new(), None);
            } else if self.is_loading || (seen.instance.is_some() && !policy.live_snapshots && !policy.in_place_reverts)
            {
                // What there is after half a load is no state to go back to; or nothing may be asked of QEMU itself.
                safety.images.clear();
            }
            self.log.protecting(&safety).map_err(journal_error)?;
            self.protection = Some(Protection::recorded((safety, false)));
        }
        if let Err(failure) = self.set_tags()? {
            return Ok(Err(failure));
        }
        if let Some(protection) = &mut self.protection {
            protection.is_set = true;
        }
        self.log.protected().map_err(journal_error)?;
        Ok(Ok(()))
    }

    /// A clone may have been created since the revert was planned: while the current state was saved, or libvirt was away.
    pub(super) fn check_users(&self, seen: &Observed, id: &SnapshotId) -> Result<(), Error> {
        let machines = &self.shared.machines;
        machines.find_dependents(self.shared.hypervisor.folders());
        let told = machines.restrict(seen);
        let of_vm = told.vm.restrictions.iter().filter(|one| !seen.vm.restrictions.contains(one));
        let known = seen.snapshot(id).map(|one| one.restrictions.as_slice()).unwrap_or_default();
        let of_snapshot = told.snapshots.iter().filter(|one| one.id == *id).flat_map(|one| &one.restrictions);
        let found = of_vm
            .chain(of_snapshot.filter(|one| !known.contains(one)))
            .find(|one| one.operations.contains(&RestrictedOperation::Revert));
        match found {
            Some(found) => Err(Error::new(found.reason, found.message.clone())),
            None => Ok(()),
        }
    }

    fn set_tags(&mut self) -> Result<Result<(), Failure>, Halt> {
        let Some(safety) = self.protection.as_ref().map(|protection| protection.safety.clone()) else {
            return Ok(Ok(()));
        };
        if safety.images.is_empty() {
            return Ok(Ok(()));
        }
        let (vm, mut seen) = (self.entry.vm, self.seen()?);
        if seen.vm.state == VmState::Running {
            self.stale = true;
            let suspended = self.shared.hypervisor.suspend(vm);
            seen = self.look()?;
            if seen.vm.state == VmState::Running {
                let failure = Failure::Unintelligible("the guest could not be paused".to_owned());
                return Ok(Err(suspended.err().unwrap_or(failure)));
            }
        }
        match self.patiently(|hypervisor| hypervisor.set_safety_tag(vm, &safety))? {
            Err(Failure::Unintelligible(why)) if seen.instance.is_some() => {
                tracing::warn!(why, "QEMU cannot protect the disks of the VM; a revert that fails cannot be undone");
                if let Some(protection) = &mut self.protection {
                    protection.safety.images.clear();
                }
                self.log.protecting(&Safety { images: BTreeMap::new(), ..safety }).map_err(journal_error)?;
                Ok(Ok(()))
            }
            set => Ok(set),
        }
    }

    /// After a revert that failed for good. Returns the error, which tells what each disk holds.
    pub(super) fn undo_revert(&mut self, failure: &Failure, id: &SnapshotId) -> Result<Error, Halt> {
        let seen = self.look()?;
        let seen = self.after_failed_revert(seen)?;
        let was_on = self.entry.before.instance.is_some();
        let is_untouched = self.is_untouched(&seen);
        let disks = match is_untouched || seen.instance.is_some() {
            true => BTreeMap::new(),
            false if self.tags().is_none() && self.reverts_inside() => unknown(&seen),
            false => self.restore_disks(id)?,
        };
        self.restore_definition();
        let seen = self.look()?;
        let is_current = |held: &Held| held.is_current();
        let mut doing = "the VM could not be reverted to the snapshot".to_owned();
        let is_off = seen.vm.state == VmState::Shutoff;
        if is_untouched || (!was_on && is_off && !disks.is_empty() && disks.values().all(is_current)) {
            doing += "; nothing was changed";
        } else {
            doing += if was_on && is_off { " and was left off" } else { "" };
            if !disks.is_empty() && disks.values().all(is_current) {
                doing += "; its disks hold their current state";
            }
        }
        if let Some(create) = self.create_request() {
            doing += &format!("; its state before is in snapshot {}", create.snapshot);
        }
        let state = format!("{:?}", seen.vm.state).to_uppercase();
        let texts: BTreeMap<_, _> = disks.iter().map(|(target, held)| (target.clone(), held.text(id))).collect();
        let error = self.error(failure, Some(id), &doing).with("vm_state", state);
        let error = safety::with_disks(error, &texts);
        if disks.values().all(is_current) {
            return Ok(error);
        }
        Ok(self.not_undone(error, id, &disks, texts))
    }

    /// Whether this is a revert to an internal snapshot.
    fn reverts_inside(&self) -> bool {
        let inside = |step: &Step| matches!(step, Step::RevertInternal { .. } | Step::RevertInPlace { .. });
        self.entry.steps.iter().any(inside)
    }

    /// The disks could not all be restored: the state before the revert is listed, and the VM is marked where they differ.
    fn not_undone(
        &mut self,
        error: Error,
        id: &SnapshotId,
        disks: &BTreeMap<String, Held>,
        texts: BTreeMap<String, String>,
    ) -> Error {
        let vm = self.entry.vm;
        tracing::error!(disks = ?texts, "a revert failed, and not every disk could be restored");
        let mut message = error.to_string();
        if let Some(protection) = self.protection.as_mut().filter(|protection| !protection.safety.images.is_empty()) {
            protection.is_needed = true;
            let label = Label::foreign("state before a failed revert", &format!("before the revert to snapshot {id}"));
            let listed = self.shared.hypervisor.list_safety_tag(vm, &protection.safety, &label);
            protection.is_listed = listed.is_ok();
            match listed {
                Ok(()) => message += &format!("; the state before it is listed as snapshot {}", protection.safety.tag),
                Err(failure) => {
                    tracing::error!(%failure, "the state before a failed revert cannot be listed as a snapshot")
                }
            }
        }
        if disks.values().all(|held| *held == Held::Snapshot) {
            return safety::with_disks(Error::new(error.reason(), message), &texts).with("vm", proto::names::vm(vm));
        }
        if let Some(owned) = self.shared.machines.owned() {
            owned.mix(vm, Mixed { snapshot: id.clone(), disks: texts.clone() });
        }
        let message =
            format!("{message}; its disks hold states of different moments: revert to a snapshot to end this");
        let mixed = Error::new(Reason::DisksMixed, message).with("cause", error.reason().as_str());
        let mixed = error.metadata().iter().fold(mixed, |mixed, (key, value)| mixed.with(key, value));
        safety::with_disks(mixed, &texts)
    }

    /// Brings the disks of a VM that is off back to their state before the revert. Returns what each holds then.
    fn restore_disks(&mut self, id: &SnapshotId) -> Result<BTreeMap<String, Held>, Halt> {
        let Some(safety) = self.tags() else { return Ok(BTreeMap::new()) };
        let vm = self.entry.vm;
        let mut tries = Tries::new(TRIES);
        loop {
            let held = match self.patiently(|hypervisor| hypervisor.held(vm, &safety, id))? {
                Ok(held) => held,
                Err(failure) => {
                    tracing::warn!(%failure, "what the disks hold cannot be read");
                    safety.images.keys().map(|target| (target.clone(), Held::Unknown)).collect()
                }
            };
            if held.values().all(|held| held.is_current()) {
                return Ok(held);
            }
            self.stale = true;
            let restored = self.patiently(|hypervisor| hypervisor.restore_disks(vm, &safety))?;
            let failure =
                restored.err().unwrap_or_else(|| Failure::Unintelligible("not every disk was restored".to_owned()));
            if tries.is_last(&failure) {
                let again = self.patiently(|hypervisor| hypervisor.held(vm, &safety, id))?;
                return Ok(again.unwrap_or(held));
            }
            tracing::warn!(%failure, "the disks could not be seen to be restored; looking again");
        }
    }

    /// The state before the revert, where its tags are set.
    fn tags(&self) -> Option<Safety> {
        let protection = self.protection.as_ref().filter(|protection| protection.is_set)?;
        Some(protection.safety.clone()).filter(|safety| !safety.images.is_empty())
    }

    /// Whether a revert has changed no disk: told by what the disks hold. Not known means that it may have.
    pub(super) fn has_changed_no_disk(&mut self, id: &SnapshotId) -> Result<bool, Halt> {
        match &self.protection {
            // Tags come before everything else.
            Some(protection) if !protection.is_set => return Ok(true),
            Some(_) | None => {}
        }
        Ok(self.held(id)?.is_some_and(|held| held.values().all(|held| held.is_current())))
    }

    /// Whether a load in place has changed nothing at all. QEMU loads the memory after it has reverted every disk, so a disk that
    /// it would have changed tells.
    pub(super) fn has_loaded_nothing(&mut self, id: &SnapshotId) -> Result<bool, Halt> {
        let held = self.held(id)?.unwrap_or_default();
        Ok(held.values().all(|held| held.is_current()) && held.values().any(|held| *held == Held::Current))
    }

    fn held(&mut self, id: &SnapshotId) -> Result<Option<BTreeMap<String, Held>>, Halt> {
        let Some(safety) = self.tags() else { return Ok(None) };
        let vm = self.entry.vm;
        Ok(self.patiently(|hypervisor| hypervisor.held(vm, &safety, id))?.ok())
    }

    /// Gives the VM its previous definition, and its previous current snapshot.
    pub(super) fn restore_definition(&mut self) {
        let Some(protection) = &self.protection else { return };
        let (vm, hypervisor) = (self.entry.vm, &self.shared.hypervisor);
        match hypervisor.restore_definition(vm, &protection.safety) {
            Ok(true) => tracing::warn!("the definition of the VM was that of the snapshot; it was restored"),
            Ok(false) => {}
            Err(failure) => tracing::error!(%failure, "the definition of the VM could not be restored"),
        }
        if let Some(current) = &protection.safety.current
            && let Err(failure) = hypervisor.make_current(vm, current)
        {
            tracing::warn!(%failure, %current, "the snapshot that was current could not be marked as current again");
        }
        self.stale = true;
    }

    /// Resumes a guest that was paused for a revert which did not begin.
    pub(super) fn resume_paused(&mut self, seen: &Observed) -> Result<(), Halt> {
        let was_paused = self.entry.before.state == VmState::Running && seen.vm.state == VmState::Paused;
        if was_paused && self.is_untouched(seen) {
            self.stale = true;
            let vm = self.entry.vm;
            if let Err(failure) = self.patiently(|hypervisor| hypervisor.resume(vm))? {
                tracing::error!(%failure, "a guest that was paused for a revert could not be resumed");
            }
        }
        Ok(())
    }

    /// At the end of the operation: removes the tags, unless they are needed. What cannot be removed now is noted, and removed later.
    pub(super) fn remove_tags(&mut self) {
        let Some(protection) = self.protection.take() else { return };
        let (vm, safety) = (self.entry.vm, protection.safety);
        if safety.images.is_empty() || protection.is_listed {
            return;
        }
        if !protection.is_needed {
            let mut tries = Tries::new(TRIES);
            loop {
                let Err(failure) = self.shared.hypervisor.remove_safety_tag(vm, &safety) else { return };
                tracing::warn!(%failure, tag = safety.tag, "a safety tag could not be removed");
                if tries.is_last(&failure) {
                    break;
                }
            }
        }
        if let Some(owned) = self.shared.machines.owned() {
            owned.keep_safety(vm, safety);
        }
    }

    /// The disks hold one snapshot again.
    pub(super) fn unmix(&self) {
        let reverts = |step: &Step| {
            matches!(step, Step::RevertInternal { .. } | Step::RevertInPlace { .. } | Step::RevertExternal { .. })
        };
        // After a purge there is nothing that it could be reverted to.
        let ends = is_purge(&self.entry.request) || self.entry.steps.iter().any(reverts);
        if let Some(owned) = self.shared.machines.owned().filter(|_| ends) {
            owned.unmix(self.entry.vm);
        }
    }
}

/// What disks hold that were not protected. A single one holds one state, whichever it is.
fn unknown(seen: &Observed) -> BTreeMap<String, Held> {
    let disks = seen.vm.writable_disks().map(|disk| (disk.target.clone(), Held::Unknown));
    disks.collect::<BTreeMap<_, _>>().into_iter().filter(|_| seen.vm.writable_disks().count() > 1).collect()
}

fn journal_error(error: std::io::Error) -> Error {
    Error::new(Reason::Internal, "the agent's journal cannot be written; the revert was not begun")
        .with("cause", error.to_string())
}

//! Merging and removing what deleted external snapshots leave. Both steps can be repeated from their beginning.
//!
//! - **Merge**: what there is to merge is decided by the machine and the host as they are, until nothing is. Each merge is
//!   noted in the journal before and after its data is copied: once it is, top and base are the same, and those that use
//!   the top are sent to the base one by one, which only the journal can tell from a machine that was forked. Before each,
//!   it is looked whether there is room for it; where there is not, all that is left is put off to the next deletion.
//! - **Clean up**: files that nothing on the host reaches go first, then what libvirt has of deleted snapshots: as long as
//!   that is there, it is known which files they were. What cannot go yet is left to the next deletion or revert.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use snapshot_core::ids::SnapshotId;
use snapshot_core::layers::{Layers, Merge};
use snapshot_core::operation::Request;
use snapshot_core::plan::{Step, check_merge};
use snapshot_core::{Error, Reason};

use super::external::holds_snapshots;
use super::waiting::Tries;
use super::work::{Halt, Work};
use crate::bounded::files;
use crate::hypervisor::{Failure, Observed};
use crate::journal::Merging;
use crate::owned;

/// The most merges of one disk in one operation; what is left after that is left to the next.
const MOST_MERGES: usize = 200;
/// How often a merge is tried that libvirt or QEMU refuses.
const MERGE_TRIES: u32 = 3;

impl Work<'_> {
    pub(super) fn merge_layers(&mut self, disk: &str) -> Result<(), Halt> {
        for noted in self.merging.clone() {
            if noted.merge.disk == disk {
                self.finish_noted(&noted)?;
            }
        }
        for _ in 0..MOST_MERGES {
            let seen = self.look()?;
            let elsewhere = self.elsewhere(&seen, &BTreeSet::new())?;
            check_readable(&seen.layers)?;
            let merges = seen.layers.merges(&seen.layers.deleted(), &elsewhere);
            let Some(merge) = merges.into_iter().find(|merge| merge.disk == disk) else { return Ok(()) };
            self.check_room(&merge)?;
            self.merge(&merge, true)?;
        }
        Ok(())
    }

    /// What was free when the plan was made may be gone, also by the merges before this one.
    fn check_room(&self, merge: &Merge) -> Result<(), Halt> {
        let free = self.shared.hypervisor.free_bytes(&merge.base);
        check_merge(merge, free, &self.shared.policy).map_err(|error| {
            let deleted = self.entry.steps.iter().filter_map(Step::deletes).count();
            let mut message = error.message().to_owned();
            if deleted > 0 {
                message += "; the snapshots are deleted, and what is left of their files goes with the next deletion";
            }
            let said = Error::new(error.reason(), message).with("deleted", deleted.to_string());
            let said = error.metadata().iter().fold(said, |said, (key, value)| said.with(key, value));
            said.with("vm", proto::names::vm(self.entry.vm)).into()
        })
    }

    /// What an earlier process noted: a merge that was begun begins again with all others; of one that was copied those
    /// who use the top are sent to the base, and one that is all done leaves its files behind.
    fn finish_noted(&mut self, noted: &Merging) -> Result<(), Halt> {
        let seen = self.look()?;
        if is_copied(noted, &seen) {
            return self.after_copy(&noted.merge);
        }
        if !seen.layers.reached(&BTreeSet::new()).contains(noted.merge.top.as_str()) {
            // Its disk is somewhere else by now, and the base may have half of it: it is nobody's to remove.
            tracing::warn!(top = noted.merge.top, "a merge was not finished, and the disk no longer uses its files");
            self.merging.retain(|other| other.merge != noted.merge);
        }
        Ok(())
    }

    /// `may_stop` says whether it is ended when somebody asks for that; what is taken back has to be taken back to its end.
    pub(super) fn merge(&mut self, merge: &Merge, may_stop: bool) -> Result<(), Halt> {
        let seen = self.look()?;
        let lies_on_top =
            |path: &&str| seen.layers.files.get(*path).is_some_and(|it| it.backing.as_ref() == Some(&merge.top));
        let live = seen.layers.live.get(&merge.disk).filter(|_| seen.vm.is_active());
        let child = live.and_then(|live| seen.layers.chain(live).find(lies_on_top)).map(str::to_owned);
        let mut noted = Merging { merge: merge.clone(), child, copied: false };
        self.note(&noted)?;
        let mut tries = Tries::new(MERGE_TRIES);
        loop {
            let seen = self.look()?;
            self.stale = true;
            let follower = self.follower(may_stop);
            let failure = match self.shared.hypervisor.commit(&seen.vm, &seen.layers, merge, &follower) {
                Ok(()) => break,
                Err(failure) => failure,
            };
            if let Failure::Precondition(error) = &failure
                && error.reason() == Reason::Cancelled
            {
                return Err(if self.operation.is_cancelled() { Halt::Cancelled } else { Halt::LeftOff });
            }
            let now = self.look()?;
            if is_copied(&noted, &now) {
                tracing::warn!(%failure, "a merge failed and its data is in the base");
                break;
            }
            if tries.is_last(&failure) {
                return Err(self.error(&failure, None, "the files of the disk could not be merged").into());
            }
            tracing::warn!(%failure, "a merge failed; doing it again");
        }
        noted.copied = true;
        self.note(&noted)?;
        self.after_copy(merge)
    }

    /// Top and base have the same content: everybody uses the base, and what is above it goes.
    fn after_copy(&mut self, merge: &Merge) -> Result<(), Halt> {
        let mut tries = Tries::new(MERGE_TRIES);
        let seen = loop {
            let seen = self.look()?;
            self.stale = true;
            // Also where nobody lies on the top any more: libvirt has written down chains that are no longer so.
            let redirected = self.shared.hypervisor.redirect(&seen.vm, &seen.layers, merge);
            let seen = self.look()?;
            let is_used = seen.layers.reached(&BTreeSet::new()).contains(merge.top.as_str());
            let failure = match redirected {
                Ok(()) if !is_used => break seen,
                Ok(()) => {
                    let message = format!("{} is still used after it was merged", merge.top);
                    Failure::Precondition(Error::new(Reason::HypervisorFailed, message))
                }
                Err(failure) => failure,
            };
            tracing::warn!(%failure, "those that use a merged file could not all be sent to its base");
            if tries.is_last(&failure) {
                return Err(self.error(&failure, None, "the files of the disk could not be merged").into());
            }
        };
        if let Some(owned) = self.shared.machines.owned() {
            // What they hold is in the base.
            owned.discard(&seen, &merge.above.iter().cloned().collect());
        }
        self.unlink_merged(merge, &seen)?;
        self.merging.retain(|noted| noted.merge != *merge);
        Ok(())
    }

    /// Once this operation has ended nobody knows of these files any more, so what fails is tried again.
    fn unlink_merged(&mut self, merge: &Merge, seen: &Observed) -> Result<(), Halt> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let unlinked = self.elsewhere(seen, &merge.above.iter().cloned().collect()).and_then(|elsewhere| {
                let files = unused(&merge.above, &seen.layers, &elsewhere);
                let unlinked = self.shared.hypervisor.unlink(&files);
                let doing = "merged files could not be removed";
                unlinked.map_err(|failure| self.error(&failure, None, doing).with("remains", files.join(" ")).into())
            });
            self.stale = true;
            match unlinked {
                Err(Halt::Failed(error)) if attempt < MERGE_TRIES => {
                    tracing::warn!(?error, attempt, "merged files could not be removed; trying again");
                    self.look()?;
                }
                unlinked => return unlinked,
            }
        }
    }

    fn note(&mut self, noted: &Merging) -> Result<(), Halt> {
        self.merging.retain(|other| other.merge != noted.merge);
        self.merging.push(noted.clone());
        self.log.merging(noted).map_err(|error| {
            Error::new(Reason::Internal, "the agent's journal cannot be written")
                .with("cause", error.to_string())
                .into()
        })
    }

    pub(super) fn clean_up(&mut self) -> Result<(), Halt> {
        for noted in self.merging.clone() {
            self.finish_noted(&noted)?;
        }
        let cleaned = self.try_clean_up();
        match (&self.entry.request, cleaned) {
            // The machine is where it should be; the next deletion or revert cleans up.
            (Request::Revert { .. }, Err(Halt::Failed(error))) => {
                tracing::warn!(?error, "cleaning up after a revert failed");
                Ok(())
            }
            (_, cleaned) => cleaned,
        }
    }

    fn try_clean_up(&mut self) -> Result<(), Halt> {
        let mut seen = self.look()?;
        self.unguard(&self.guardable(&seen));
        let left = self.given_up_by_revert(&seen);
        let given_up: BTreeSet<String> = seen.layers.given_up(&seen.layers.deleted()).union(&left).cloned().collect();
        if let Some(owned) = self.shared.machines.owned() {
            let deleted = seen.layers.snapshots.values().filter(|parts| parts.deleted);
            let memory = deleted.filter_map(|parts| parts.memory_file.clone());
            owned.discard(&seen, &memory.chain(given_up.iter().cloned()).collect());
        }
        check_readable(&seen.layers)?;
        let elsewhere = self.elsewhere(&seen, &given_up)?;
        for path in &left {
            seen.layers.files.entry(path.clone()).or_default();
        }
        let mut remains = seen.layers.remains(&elsewhere, &left);
        if let Some(owned) = self.shared.machines.owned() {
            let vm = seen.vm.id;
            let of = |path: &String| seen.layers.snapshots.iter().find(|(_, it)| it.memory_file.as_ref() == Some(path));
            remains.files.retain(|path| of(path).is_none_or(|(id, _)| owned.is_memory(vm, id, path)));
        }
        let homes = homes(&seen.layers);
        let (files, abroad): (Vec<_>, Vec<_>) = remains
            .files
            .into_iter()
            .partition(|path| Path::new(path).parent().is_some_and(|home| homes.contains(home)));
        if !abroad.is_empty() {
            tracing::warn!(?abroad, "files of deleted snapshots are not in the folders of the machine's images; left");
        }
        let unlinked = self.patiently(|hypervisor| hypervisor.unlink(&files))?;
        self.stale = true;
        unlinked.map_err(|failure| self.error(&failure, None, "files of deleted snapshots could not be removed"))?;
        for id in &remains.snapshots {
            let vm = seen.vm.id;
            let forgotten = self.patiently(|hypervisor| hypervisor.forget(vm, id))?;
            self.stale = true;
            match forgotten {
                Ok(()) | Err(Failure::SnapshotGone) => {}
                Err(failure) => {
                    if self.look()?.layers.snapshots.contains_key(id) {
                        let doing = "the deleted snapshot could not be removed from libvirt";
                        return Err(self.error(&failure, Some(id), doing).into());
                    }
                }
            }
        }
        self.clear_spare();
        Ok(())
    }

    /// What a revert has taken disks from: of those that the snapshot holds, the files that were active before.
    fn given_up_by_revert(&self, seen: &Observed) -> BTreeSet<String> {
        let Request::Revert { snapshot, .. } = &self.entry.request else { return BTreeSet::new() };
        left_by_revert(&seen.layers, snapshot, &self.entry.active)
    }

    /// What the record has and nobody needs any more. What cannot be removed now is, when the machine is looked at later.
    pub(super) fn clear_spare(&mut self) {
        let Ok(seen) = self.seen() else { return };
        if let Some(owned) = self.shared.machines.owned()
            && let Err(error) = owned::clear_spare(&*self.shared.hypervisor, owned, &seen)
        {
            tracing::warn!(?error, "files that nobody needs could not be removed");
        }
    }

    /// What others keep: the VMs of the host, and images that belong to none of them. `given_up` are files of this one that somebody has
    /// asked to be removed.
    pub(super) fn elsewhere(&mut self, seen: &Observed, given_up: &BTreeSet<String>) -> Result<BTreeSet<String>, Halt> {
        let vm = self.entry.vm;
        let elsewhere = self.patiently(|hypervisor| hypervisor.elsewhere(vm))?;
        let mut elsewhere = elsewhere
            .map_err(|failure| self.error(&failure, None, "what other machines use could not be found out"))?;
        elsewhere.extend(owned::kept_by_strangers(self.shared.hypervisor.folders(), seen, given_up)?);
        Ok(elsewhere)
    }
}

/// Where an image cannot be read it is not known what it depends on.
fn check_readable(layers: &Layers) -> Result<(), Error> {
    match &layers.unreadable {
        Some(path) => {
            let message = "an image of the machine cannot be read, so it is not known which of them are needed";
            Err(Error::new(Reason::HypervisorFailed, message).with("path", path))
        }
        None => Ok(()),
    }
}

/// Whether a merge has copied everything: it is noted so, libvirt has moved what lay on the top, or the running disk itself, to the base,
/// or the top is gone, which only comes after that.
fn is_copied(noted: &Merging, seen: &Observed) -> bool {
    let (merge, layers) = (&noted.merge, &seen.layers);
    let child = noted.child.as_ref().and_then(|child| layers.files.get(child));
    let moved = child.is_some_and(|child| child.backing.as_ref() == Some(&merge.base));
    let pivoted = seen.vm.is_active() && layers.live.get(&merge.disk) == Some(&merge.base);
    let is_gone = || !layers.files.contains_key(&merge.top) && !files::may_exist(Path::new(&merge.top));
    noted.copied || moved || pivoted || is_gone()
}

/// Of these files, those that neither the VM nor `elsewhere` reaches. Those that deleted snapshots froze are reached until these are
/// dropped.
fn unused(files: &[String], layers: &Layers, elsewhere: &BTreeSet<String>) -> Vec<String> {
    let reached = layers.reached(&BTreeSet::new());
    let is_unused = |path: &&String| !reached.contains(path.as_str()) && !elsewhere.contains(*path);
    files.iter().filter(is_unused).cloned().collect()
}

/// Of the disks that a snapshot holds, the files that were active before a revert to it, if they are not active still.
fn left_by_revert(layers: &Layers, snapshot: &SnapshotId, active: &BTreeMap<String, String>) -> BTreeSet<String> {
    let Some(parts) = layers.snapshots.get(snapshot) else { return BTreeSet::new() };
    let was_reverted = |target: &String, path: &String| {
        parts.frozen.contains_key(target) && layers.live.get(target) != Some(path) && !holds_snapshots(Path::new(path))
    };
    let left = active.iter().filter(|(target, path)| was_reverted(target, path));
    left.map(|(_, path)| path.clone()).collect()
}

/// The folders of the machine's images.
fn homes(layers: &Layers) -> BTreeSet<&Path> {
    let frozen = layers.snapshots.values().flat_map(|parts| parts.frozen.values());
    layers.live.values().chain(frozen).filter_map(|path| Path::new(path).parent()).collect()
}

#[cfg(test)]
mod tests;

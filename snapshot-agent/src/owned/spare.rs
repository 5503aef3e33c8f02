//! Files on record that a machine which is there has no use for: what was given up by a revert or a deletion, overlays of reverts that
//! were interrupted, and what was brought back for nothing. A file that holds a state which nobody has given up, because its disk
//! was detached or got another image, is kept.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use snapshot_core::Error;
use snapshot_core::ids::{SnapshotId, VmId};

use super::abandoned::{Host, remove};
use super::files::{self, Files, Holds, Kind, Made, Standing};
use super::{Owned, Record};
use crate::bounded;
use crate::hypervisor::{Hypervisor, Observed};

impl Record {
    /// Whether libvirt has lost the metadata of a snapshot that nobody has deleted: it was deleted without its data, or the machine was
    /// defined anew.
    pub(super) fn has_lost(&self, seen: &Observed, id: &SnapshotId) -> bool {
        self.snapshots.contains_key(id) && !seen.layers.snapshots.contains_key(id)
    }
}

impl Owned {
    /// libvirt was told to take the machine back to an external snapshot, in some second from this one on.
    pub fn laid(&self, seen: &Observed, id: &SnapshotId, since: i64) {
        self.change(seen.vm.id, |record| {
            let files = files::after_laying(record.map_or(&Files::new(), |record| &record.files), seen, id, since);
            Record::with_files(record, seen, files)
        });
    }

    /// What is in the files of a snapshot that was never whole is not known to be of no use: they are nobody's to remove.
    pub fn give_up(&self, vm: VmId, id: &SnapshotId) {
        self.change(vm, |record| {
            let mut record = record?.clone();
            record.files.retain(|_, made| made.snapshot != *id);
            record.forget_the_gone();
            (!record.is_empty()).then_some(record)
        });
    }

    /// The overlays on record as made for a machine that are still what was made.
    pub fn overlays(&self, vm: VmId) -> BTreeSet<String> {
        self.paths(vm, |path, made| made.kind != Kind::Memory && matches!(made.looks(path), Ok(Standing::Ours)))
    }

    /// The images on record that hold a state which nobody has asked to be removed.
    pub fn wanted(&self, vm: VmId) -> BTreeSet<String> {
        self.paths(vm, |_, made| made.kind != Kind::Memory && made.holds.is_wanted())
    }

    /// The files on record that somebody has asked to be removed.
    pub fn discarded(&self, vm: VmId) -> BTreeSet<String> {
        self.paths(vm, |_, made| made.holds == Holds::Discarded)
    }

    /// The files on record, of all VMs, that hold nothing which somebody may want, and their second names.
    pub(crate) fn unwanted_files(&self) -> Files {
        let records = self.lock();
        let all = records.values().flat_map(|record| &record.files).filter(|(_, made)| !made.holds.is_wanted());
        all.flat_map(|(path, made)| [(files::guarded(path), made.clone()), (path.clone(), made.clone())]).collect()
    }

    /// The paths of the files on record for which this holds.
    fn paths(&self, vm: VmId, is_one: impl Fn(&Path, &Made) -> bool) -> BTreeSet<String> {
        let files = self.files(vm).into_iter().filter(|(path, made)| is_one(path, made));
        files.map(|(path, _)| path.to_string_lossy().into_owned()).collect()
    }

    /// Somebody has asked for these files to be removed. What holds a state that is still needed is not given up by that. When this
    /// returns, a power cut does not forget it.
    pub fn discard(&self, seen: &Observed, paths: &BTreeSet<String>) {
        let states = files::states(seen);
        let changed = self.change(seen.vm.id, |record| {
            let mut record = record?.clone();
            for (path, made) in &mut record.files {
                let path = path.to_string_lossy();
                if paths.contains(&*path) && !states.contains(&*path) {
                    made.holds = Holds::Discarded;
                }
            }
            Some(record)
        });
        if changed {
            self.sync(seen.vm.id);
        }
    }

    /// A file is kept as an orphan, because it holds more than what somebody has asked to be removed.
    pub(super) fn orphan(&self, vm: VmId, path: &Path) {
        let changed = self.change(vm, |record| {
            let mut record = record?.clone();
            if let Some(made) = record.files.get_mut(path) {
                made.holds = Holds::Orphaned;
            }
            Some(record)
        });
        if changed {
            tracing::warn!(%vm, path = %path.display(), "an image holds a snapshot that another tool took: it is kept as an orphan");
            self.sync(vm);
        }
    }

    /// The disks in snapshots whose metadata libvirt has lost: what their overlays lie on, and those of reverts to them. Nobody has deleted
    /// these.
    pub fn lost_states(&self, seen: &Observed) -> BTreeSet<String> {
        let Some(record) = self.get(seen.vm.id) else { return BTreeSet::new() };
        let is_lost = |made: &Made| made.kind != Kind::Memory && record.has_lost(seen, &made.snapshot);
        let overlays = record.files.values().filter(|made| is_lost(made));
        overlays.filter_map(|made| Some(made.backing.as_ref()?.to_string_lossy().into_owned())).collect()
    }

    /// Whether the running state in a deleted snapshot is one: on record, or, of a snapshot that is not ours, by what is in it.
    pub fn is_memory(&self, vm: VmId, id: &SnapshotId, path: &str) -> bool {
        let path = Path::new(path);
        match id.is_ours() {
            true => self.files(vm).get(path).is_some_and(|made| {
                made.kind == Kind::Memory && matches!(made.standing(path), Ok(Standing::Ours | Standing::Gone))
            }),
            false => files::is_running_state(path).unwrap_or(false),
        }
    }

    /// Whether files of the record are there that a machine has no use for, as it was seen.
    pub fn has_spare(&self, seen: &Observed) -> bool {
        let is_there = |path: &PathBuf| bounded::files::exists(path) || bounded::files::exists(&files::guarded(path));
        self.spare(seen).keys().any(is_there)
    }

    /// The files on record that a machine has no use for. Those of a snapshot whose metadata libvirt has lost may be all that is left
    /// of it.
    fn spare(&self, seen: &Observed) -> Files {
        // Without the lock: storage is read.
        let record = self.get(seen.vm.id).filter(|record| !record.files.is_empty());
        let Some(record) = record.filter(|_| seen.layers.unreadable.is_none()) else { return Files::new() };
        let needed = needed(seen);
        let mut files = record.files.clone();
        files.retain(|path, made| {
            let is_needed = record.has_lost(seen, &made.snapshot) || needed.contains(&*path.to_string_lossy());
            // A guest may have written to it before it was ever seen as the active image.
            let is_empty = || made.kind == Kind::Memory || !files::has_data(path);
            !is_needed && (made.holds == Holds::Discarded || (made.holds == Holds::Nothing && is_empty()))
        });
        files
    }
}

/// Removes them: the branches that the machine has left, and what was brought back for nothing.
pub(crate) fn clear_spare(hypervisor: &dyn Hypervisor, owned: &Owned, seen: &Observed) -> Result<(), Error> {
    let vm = seen.vm.id;
    let files = owned.spare(seen);
    if files.is_empty() {
        return Ok(());
    }
    let mut used = needed(seen);
    let elsewhere = hypervisor.elsewhere(vm);
    used.extend(
        elsewhere
            .map_err(|failure| failure.to_error(vm, None, "which files other machines use could not be found out"))?,
    );
    let unlink = |paths: &[String]| hypervisor.unlink(paths);
    let host =
        Host { used, is_back: &|| Ok(false), unlink: &unlink, folders: hypervisor.folders(), all_snapshots_go: false };
    remove(owned, vm, &files, &host)
}

/// What a machine and its snapshots need.
pub(super) fn needed(seen: &Observed) -> BTreeSet<String> {
    let layers = &seen.layers;
    let memory = layers.snapshots.values().filter_map(|parts| parts.memory_file.clone());
    layers.reached(&BTreeSet::new()).into_iter().map(str::to_owned).chain(memory).collect()
}

#[cfg(test)]
mod tests;

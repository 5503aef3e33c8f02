//! What the steps of external snapshots decide by the machine as it was seen. Nothing here changes anything.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use snapshot_core::ids::SnapshotId;
use snapshot_core::layers::{Layers, is_overlay_of, memory_path, overlay_paths};
use snapshot_core::snapshot::Consistency;

use crate::execute::work::Halt;
use crate::hypervisor::{Failure, Observed};
use crate::qcow2::{self, ImageError};

/// How long a guest that may be frozen is asked to thaw; one that does not answer has to be given up some time.
const THAWS_WITHIN: Duration = Duration::from_secs(120);

/// After what a snapshot is taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::execute) enum After {
    /// libvirt said that it failed.
    Failure,
    /// libvirt went away in the middle.
    Loss,
    /// The agent did, and anything may have happened since.
    Restart,
}

impl After {
    /// Whether the VM may have been started again since, on what the overlays lie on. Then the files tell the rest.
    pub(in crate::execute) fn may_have_run(self) -> bool {
        self == Self::Restart
    }

    /// Whether nobody may have been there to let a guest run on that was paused for the snapshot.
    pub(in crate::execute) fn was_interrupted(self) -> bool {
        self != Self::Failure
    }
}

impl Observed {
    /// Whether the machine is on the overlays of this snapshot, or on later ones, with every disk.
    pub(in crate::execute) fn is_on(&self, id: &SnapshotId) -> bool {
        let Some(parts) = self.layers.snapshots.get(id) else { return false };
        parts.overlays.iter().all(|(target, overlay)| {
            let live = self.layers.live.get(target);
            live.is_some_and(|live| self.layers.chain(live).any(|path| path == overlay))
        })
    }

    /// Whether every disk lies directly on what this snapshot froze; internal snapshots freeze nothing.
    pub(in crate::execute) fn lies_on(&self, id: &SnapshotId) -> bool {
        let Some(parts) = self.layers.snapshots.get(id) else { return true };
        parts.frozen.iter().all(|(target, frozen)| {
            let live = self.layers.live.get(target).and_then(|live| self.layers.files.get(live));
            live.is_some_and(|layer| layer.backing.as_ref() == Some(frozen))
        })
    }
}

/// How consistent the disks in a snapshot are; `None` where its running state tells, or the VM is off.
pub(in crate::execute) fn consistency(is_active: bool, memory: bool, quiesce: bool) -> Option<Consistency> {
    (is_active && !memory).then_some(if quiesce { Consistency::FileSystem } else { Consistency::Crash })
}

/// Whether a snapshot is taken, whatever the call said: it is listed with all its data, every disk is on it, and the guest's file
/// systems were frozen for as long as they had to be.
pub(in crate::execute) fn is_taken(result: &Result<(), Failure>, now: &Observed, id: &SnapshotId) -> bool {
    let is_frozen = !matches!(result, Err(Failure::FreezeLost(_)));
    is_frozen && now.has_whole(id) && now.is_on(id)
}

/// Whether a guest that does not thaw has been asked for long enough.
pub(in crate::execute) fn is_given_up(asked: Duration) -> bool {
    asked > THAWS_WITHIN
}

/// Whether libvirt has anything written about this snapshot, also if it is marked as deleted.
pub(in crate::execute) fn is_known_to_libvirt(seen: &Observed, id: &SnapshotId) -> bool {
    seen.layers.snapshots.contains_key(id) || seen.snapshot(id).is_some()
}

/// Whether something of an external snapshot is still there: what libvirt has written about it, or a disk on an overlay of it.
pub(in crate::execute) fn is_left(layers: &Layers, id: &SnapshotId) -> bool {
    layers.snapshots.contains_key(id) || layers.live.values().any(|path| is_overlay_of(path, id))
}

/// The files that were to be made for a snapshot which is taken back, without those that the VM or another snapshot of it reaches.
pub(in crate::execute) fn unreached_files(seen: &Observed, id: &SnapshotId) -> Vec<String> {
    let disks = seen.vm.writable_disks().map(|disk| (disk.target.as_str(), disk.path.as_str()));
    let reached = seen.layers.reached(&BTreeSet::from([id.clone()]));
    let mut files: Vec<String> = overlay_paths(disks, id).into_values().collect();
    files.extend(seen.vm.writable_disks().next().map(|disk| memory_path(&disk.path, id)));
    files.retain(|path| !reached.contains(path.as_str()));
    files
}

/// Whether a revert is over. libvirt may be at one that was left off, and remove files still.
pub(in crate::execute) fn has_ended(reverted: &Result<(), Halt>) -> bool {
    !matches!(reverted, Err(Halt::LeftOff))
}

/// From which second on overlays are libvirt's of a revert that begins now, in seconds of the Unix epoch: its clock may be read a moment
/// before ours.
pub(in crate::execute) fn laid_since(now: i64) -> i64 {
    now - 1
}

/// The active files of the disks that a snapshot holds, if they are on record as created by a snapshot and have no snapshots inside.
pub(in crate::execute) fn removable_by_revert(layers: &Layers, id: &SnapshotId) -> BTreeSet<String> {
    let is_held = |target: &String| layers.snapshots.get(id).is_some_and(|it| it.frozen.contains_key(target));
    let held = layers.live.iter().filter(|(target, _)| is_held(target)).map(|(_, path)| path);
    held.filter(|path| layers.is_created(path) && !holds_snapshots(Path::new(path))).cloned().collect()
}

/// Files that a revert may have left guarded: those of the VM, which has moved since and may be on one of them, those that hold a state on
/// record, because libvirt has other overlays on a snapshot after a revert to it, and those that were active before.
pub(in crate::execute) fn guardable(
    layers: &Layers,
    on_record: BTreeSet<String>,
    before: &BTreeMap<String, String>,
) -> Vec<String> {
    layers.paths().into_iter().map(str::to_owned).chain(on_record).chain(before.values().cloned()).collect()
}

/// Whether there are snapshots inside an image. Of one that cannot be read nobody knows.
pub(in crate::execute) fn holds_snapshots(path: &Path) -> bool {
    match qcow2::read(path) {
        Ok(image) => !image.stamps().is_empty(),
        Err(ImageError::Io(error)) => error.kind() != ErrorKind::NotFound,
        Err(ImageError::Format(_) | ImageError::Unsteady) => true,
    }
}

/// Files that libvirt's next revert may take for the active ones, but for those that are given up: the overlays of snapshots, and, where
/// they may be touched, the active files and those on record that hold a `wanted` state.
pub(in crate::execute) fn endangered(
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

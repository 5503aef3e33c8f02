//! What deletions and reverts leave to be removed.

use std::collections::BTreeSet;

use super::{Layers, MOST_LAYERS, Parts};
use crate::ids::SnapshotId;

/// What can be removed now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Remains {
    /// Files, each before what it lies on.
    pub files: Vec<String>,
    /// Deleted snapshots, each before its parent.
    pub snapshots: Vec<SnapshotId>,
}

impl Layers {
    /// Whether a file that nothing reaches may be removed, where these are given up.
    pub(super) fn is_removable(&self, path: &String, given_up: &BTreeSet<String>) -> bool {
        (given_up.contains(path) || self.discarded.contains(path)) && self.is_created(path)
    }

    /// What can be removed once nothing more can be merged: deleted snapshots, and files that nothing reaches and that somebody has asked
    /// to be removed. `left` are files that were active before a revert that gave them up.
    pub fn remains(&self, elsewhere: &BTreeSet<String>, left: &BTreeSet<String>) -> Remains {
        let deleted = self.deleted();
        let put_off = self.put_off(&deleted, elsewhere);
        let gone: BTreeSet<SnapshotId> = deleted.difference(&put_off).cloned().collect();
        let boundaries = self.boundaries(&gone, elsewhere);
        let waiting: BTreeSet<&str> = boundaries.values().map(|(base, _)| *base).collect();
        let is_waiting = |parts: &Parts| parts.frozen.values().any(|path| waiting.contains(path.as_str()));
        // One whose data is still to be merged is kept: without it nobody would know that the data may go.
        let ids: BTreeSet<SnapshotId> =
            gone.into_iter().filter(|id| !self.snapshots.get(id).is_some_and(is_waiting)).collect();
        Remains { files: self.unreached(&deleted, &ids, elsewhere, left), snapshots: self.leaf_first(ids) }
    }

    /// The files that the deletion of these snapshots gives up: their disks as they were.
    pub fn given_up(&self, deleted: &BTreeSet<SnapshotId>) -> BTreeSet<String> {
        let deleted = deleted.iter().filter_map(|id| self.snapshots.get(id));
        deleted.flat_map(|parts| parts.frozen.values()).cloned().collect()
    }

    /// Files that snapshots created, that were given up, and that nothing reaches, each before what it lies on. An image that was
    /// there before any snapshot is never among them.
    fn unreached(
        &self,
        deleted: &BTreeSet<SnapshotId>,
        dropped: &BTreeSet<SnapshotId>,
        elsewhere: &BTreeSet<String>,
        left: &BTreeSet<String>,
    ) -> Vec<String> {
        let (reached, given_up) = (self.reached(dropped), self.given_up(dropped));
        let free = |path: &String| !reached.contains(path.as_str()) && !elsewhere.contains(path);
        let given_up: BTreeSet<String> = given_up.union(left).cloned().collect();
        let removable = |path: &String| {
            let is_pinned = self.files.get(path).is_none_or(|layer| layer.pinned);
            !is_pinned && free(path) && self.is_removable(path, &given_up)
        };
        // What stays, though nothing reaches it, keeps what it lies on.
        let stays = self.files.keys().filter(|path| !removable(path));
        let needed: BTreeSet<&str> = stays.flat_map(|path| self.chain(path)).collect();
        let files = self.files.keys().filter(|path| removable(path) && !needed.contains(path.as_str()));
        let mut files: Vec<String> = files.cloned().collect();
        files.sort_by_key(|path| std::cmp::Reverse(self.chain(path).count()));
        let memory = deleted.intersection(dropped).filter_map(|id| self.snapshots.get(id));
        files.extend(memory.filter_map(|parts| parts.memory_file.clone()).filter(|path| !elsewhere.contains(path)));
        files
    }

    fn leaf_first(&self, ids: BTreeSet<SnapshotId>) -> Vec<SnapshotId> {
        let depth = |id: &SnapshotId| {
            let parent = |id: &&SnapshotId| self.snapshots.get(*id).and_then(|parts| parts.parent.as_ref());
            std::iter::successors(Some(id), parent).take(MOST_LAYERS).count()
        };
        let mut ids: Vec<SnapshotId> = ids.into_iter().collect();
        ids.sort_by_key(|id| std::cmp::Reverse(depth(id)));
        ids
    }
}

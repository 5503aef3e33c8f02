//! The files that a machine's external snapshots are made of, and which of them may be merged or removed.
//!
//! A graph: files are its nodes, and each file points to its backing file. What must be kept is what the *roots* reach:
//! the active file of every disk, and the *frozen* file (the disk as it was) of every snapshot that stays.
//!
//! Deleting snapshots leaves two kinds of file behind. One that no root reaches is removed. One that a root reaches
//! through an overlay is *merged*: the boundary between an overlay `f` and its backing file `g` goes when
//!
//! 1. `g` is the frozen file of a deleted snapshot, or an overlay that a deletion had to leave, and `f` is on record as created by a
//!    snapshot,
//! 2. no disk and no snapshot that stays has `g` itself as its root,
//! 3. `f` is the only file on top of `g` that anybody on the host reaches, and
//! 4. neither has to stay as it is for another reason.
//!
//! A run of such boundaries is one merge, whose data is written once: from the top of the run into its base. The content
//! seen through the top does not change by that, whatever moment it is looked at, so it can be interrupted and repeated.
//! The base changes at once, which is why the deleted snapshots are marked before anything is merged: from then on
//! nobody is offered them.
//!
//! Who created a file is known by a record, never by its name: by that of the agent ([`Layers::ours`]), or by libvirt's of snapshots that
//! are not ours. A file is removed only where somebody has asked for that: by deleting the snapshot whose disk it is, or by a
//! revert that gives up the active file. What became unused in another way (a disk that was detached, or that got another image)
//! stays.
//!
//! Two things are put off to a later operation, because libvirt 11.3 would destroy data:
//!
//! - dropping the *current* snapshot where its parent's overlay is another branch: libvirt's next revert removes the
//!   overlay of the current snapshot, taking it for the active file;
//! - rewriting a snapshot that is current and has such a branch: what libvirt keeps against exactly this
//!   (`<revertDisks>`) cannot be written through its API.

mod abandoned;
mod remains;

use std::collections::{BTreeMap, BTreeSet};

pub use abandoned::{Abandoned, abandoned};
pub use remains::Remains;
use serde::{Deserialize, Serialize};

use crate::ids::SnapshotId;

/// The longest chain that is followed; it ends those that lead back to themselves. libvirt runs no machine on more than
/// 200 files.
const MOST_LAYERS: usize = 2000;

/// A file, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layer {
    /// Its path as the one who refers to it spells it; the graph itself goes by paths without links.
    pub spelled: String,
    /// The format, such as `qcow2`.
    pub format: String,
    /// What it lies on.
    pub backing: Option<String>,
    /// Bytes taken on the host.
    pub bytes: u64,
    /// Whether it must stay as it is: it holds internal snapshots, or what it lies on could not be understood.
    pub pinned: bool,
}

/// The files of one external snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parts {
    /// The snapshot that libvirt has it under, deleted ones included.
    pub parent: Option<SnapshotId>,
    /// Whether libvirt marks it as current.
    pub is_current: bool,
    /// Whether it is deleted for everybody but libvirt.
    pub deleted: bool,
    /// By target: the disk as it was.
    pub frozen: BTreeMap<String, String>,
    /// By target: what was laid on top of it when it was taken.
    pub overlays: BTreeMap<String, String>,
    /// The running state.
    pub memory_file: Option<String>,
}

/// The files of one machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layers {
    /// Every file that is known, by path.
    pub files: BTreeMap<String, Layer>,
    /// The active file of each disk, by target.
    pub live: BTreeMap<String, String>,
    /// Its external snapshots.
    pub snapshots: BTreeMap<SnapshotId, Parts>,
    /// Files that have to stay for another reason, such as a definition that differs from what runs.
    pub kept: BTreeSet<String>,
    /// Overlays that are on record as made for this machine: what they lie on was its active file.
    pub ours: BTreeSet<String>,
    /// Those among them that somebody has asked to be removed, by an operation that could not do it yet.
    pub discarded: BTreeSet<String>,
    /// A file that could not be read: then nothing is known for certain, and nothing may be removed.
    pub unreadable: Option<String>,
}

/// A run of files that become one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merge {
    /// The disk.
    pub disk: String,
    /// The topmost file, whose content stays what it is.
    pub top: String,
    /// The file that takes it all in.
    pub base: String,
    /// The files that are no longer needed, from the top down.
    pub above: Vec<String>,
    /// The most bytes that are written.
    pub bytes: u64,
}

impl Layers {
    /// The snapshots that are marked as deleted.
    pub fn deleted(&self) -> BTreeSet<SnapshotId> {
        let deleted = self.snapshots.iter().filter(|(_, parts)| parts.deleted);
        deleted.map(|(id, _)| id.clone()).collect()
    }

    /// A file and what it lies on, down to the base.
    pub fn chain<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a str> {
        let below = |path: &&'a str| self.files.get(*path).and_then(|layer| layer.backing.as_deref());
        std::iter::successors(Some(path), below).take(MOST_LAYERS)
    }

    /// Every file that is known of: those that may have a second name, which keeps them from being lost.
    pub fn paths(&self) -> BTreeSet<&str> {
        let overlays = self.snapshots.values().flat_map(|parts| parts.overlays.values());
        self.files.keys().chain(overlays).map(String::as_str).collect()
    }

    /// How many files the deepest disk lies on, itself included.
    pub fn depth(&self) -> usize {
        self.live.values().map(|path| self.chain(path).count()).max().unwrap_or(0)
    }

    /// The current snapshot, deleted or not.
    fn current(&self) -> Option<(&SnapshotId, &Parts)> {
        self.snapshots.iter().find(|(_, parts)| parts.is_current)
    }

    /// What is reached from the disks, and from the snapshots that are not `gone`.
    pub fn reached(&self, gone: &BTreeSet<SnapshotId>) -> BTreeSet<&str> {
        let staying = self.snapshots.iter().filter(|(id, _)| !gone.contains(*id));
        let frozen = staying.flat_map(|(_, parts)| parts.frozen.values());
        let roots = self.live.values().chain(&self.kept).chain(frozen);
        let mut reached = BTreeSet::new();
        for root in roots {
            // What was reached before has been followed to its end.
            self.chain(root).take_while(|path| reached.insert(*path)).for_each(drop);
        }
        reached
    }

    /// Whether somebody still needs this snapshot's own overlay although the machine is not on it: a branch of this
    /// machine, or another machine.
    fn has_branch(&self, parts: &Parts, gone: &BTreeSet<SnapshotId>, elsewhere: &BTreeSet<String>) -> bool {
        let (reached, boundaries) = (self.reached(gone), self.boundaries(gone, elsewhere));
        parts.overlays.iter().any(|(target, overlay)| {
            let needed = reached.contains(overlay.as_str()) || elsewhere.contains(overlay);
            // Where the disk will be when everything is merged.
            let mut active = self.live.get(target).map(String::as_str);
            for _ in 0..boundaries.len() {
                active = active.map(|path| boundaries.get(path).map_or(path, |(base, _)| *base));
            }
            needed && active != Some(overlay)
        })
    }

    /// Of these snapshots, those whose deletion cannot be finished now: the current one, where libvirt's next revert
    /// would take a branch of its parent for the active file.
    fn put_off(&self, gone: &BTreeSet<SnapshotId>, elsewhere: &BTreeSet<String>) -> BTreeSet<SnapshotId> {
        let Some((id, parts)) = self.current().filter(|(id, _)| gone.contains(*id)) else { return BTreeSet::new() };
        let mut parent = parts.parent.as_ref();
        for _ in 0..self.snapshots.len() {
            match parent.filter(|parent| gone.contains(*parent)).and_then(|parent| self.snapshots.get(parent)) {
                Some(parts) => parent = parts.parent.as_ref(),
                None => break,
            }
        }
        match parent.and_then(|parent| self.snapshots.get(parent)) {
            Some(parts) if self.has_branch(parts, gone, elsewhere) => BTreeSet::from([id.clone()]),
            _ => BTreeSet::new(),
        }
    }

    /// By file, what lies on it and stays when these are gone. A file that nothing reaches and that was given up will be removed, and
    /// nobody will miss what it lay on.
    fn on_top(&self, gone: &BTreeSet<SnapshotId>) -> BTreeMap<&str, Vec<&str>> {
        let (reached, given_up) = (self.reached(gone), self.given_up(gone));
        let stays = |path: &String| reached.contains(path.as_str()) || !self.is_removable(path, &given_up);
        let mut on_top: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (path, layer) in self.files.iter().filter(|(path, _)| stays(path)) {
            if let Some(backing) = &layer.backing {
                on_top.entry(backing).or_default().push(path);
            }
        }
        on_top
    }

    /// The boundaries, from an overlay to its backing file, that the deletion of `gone` leaves without a purpose.
    /// `elsewhere` is what others on the host reach.
    fn boundaries(&self, gone: &BTreeSet<SnapshotId>, elsewhere: &BTreeSet<String>) -> BTreeMap<&str, (&str, &str)> {
        let (on_top, reached) = (self.on_top(gone), self.reached(gone));
        let staying = self.snapshots.iter().filter(|(id, _)| !gone.contains(*id));
        let roots: BTreeSet<&str> = staying
            .flat_map(|(_, parts)| parts.frozen.values())
            .chain(self.live.values())
            .chain(&self.kept)
            .map(String::as_str)
            .collect();
        let pinned = |path: &str| self.files.get(path).is_none_or(|layer| layer.pinned) || elsewhere.contains(path);
        let deleted = gone.iter().filter_map(|id| self.snapshots.get(id));
        let purposes = deleted.flat_map(|parts| &parts.frozen).map(|(target, base)| (base.as_str(), target.as_str()));
        let purposes: BTreeMap<&str, &str> = purposes.chain(self.unnamed(&on_top)).collect();
        let mut found = BTreeMap::new();
        for (base, target) in purposes {
            let [top] = on_top.get(base).map_or(&[][..], Vec::as_slice) else { continue };
            if self.is_created(top) && reached.contains(top) && !roots.contains(base) && !pinned(base) && !pinned(top) {
                found.insert(*top, (base, target));
            }
        }
        found
    }

    /// Whether a file is on record as created by a snapshot: in the agent's record, or in libvirt's of a snapshot that is not ours.
    pub fn is_created(&self, path: &str) -> bool {
        let foreign = self.snapshots.iter().filter(|(id, _)| !id.is_ours());
        self.ours.contains(path)
            || foreign.flat_map(|(_, parts)| parts.overlays.values()).any(|overlay| overlay == path)
    }

    /// Files that no snapshot has as its frozen file any more, because another branch lay on them when theirs was
    /// deleted, and the disks they belong to. They are on record as created by snapshots, or all that lies on them is: that is
    /// the machine's own image. An image that a disk was cloned from is no such thing, whatever it is called.
    fn unnamed<'a>(&'a self, on_top: &BTreeMap<&'a str, Vec<&'a str>>) -> BTreeMap<&'a str, &'a str> {
        let disks = self.live.iter().chain(self.snapshots.values().flat_map(|parts| &parts.frozen));
        let mut found = BTreeMap::new();
        for (target, root) in disks {
            for path in self.chain(root) {
                let tops = on_top.get(path).map_or(&[][..], Vec::as_slice);
                if !tops.is_empty() && tops.iter().all(|top| self.is_created(top) && stem(top) == stem(path)) {
                    found.insert(path, target.as_str());
                }
            }
        }
        found
    }

    /// The merges that the deletion of `gone` asks for.
    pub fn merges(&self, gone: &BTreeSet<SnapshotId>, elsewhere: &BTreeSet<String>) -> Vec<Merge> {
        let gone: BTreeSet<SnapshotId> = gone.difference(&self.put_off(gone, elsewhere)).cloned().collect();
        let boundaries = self.boundaries(&gone, elsewhere);
        let bases: BTreeSet<&str> = boundaries.values().map(|(base, _)| *base).collect();
        let tops = boundaries.iter().filter(|(top, _)| !bases.contains(*top));
        let runs = tops.filter(|(top, _)| !self.is_delicate(top, &gone, elsewhere));
        runs.map(|(top, (_, disk))| {
            let (mut above, mut base) = (Vec::new(), *top);
            while let Some((below, _)) = boundaries.get(base).filter(|_| above.len() < MOST_LAYERS) {
                above.push(base.to_owned());
                base = *below;
            }
            let bytes = above.iter().filter_map(|path| self.files.get(path)).map(|layer| layer.bytes).sum();
            Merge { disk: (*disk).to_owned(), top: (*top).to_owned(), base: base.to_owned(), above, bytes }
        })
        .collect()
    }

    /// Whether merging this file away would rewrite a snapshot that libvirt must be left alone with.
    fn is_delicate(&self, top: &str, gone: &BTreeSet<SnapshotId>, elsewhere: &BTreeSet<String>) -> bool {
        let Some((_, parts)) = self.current().filter(|(id, _)| !gone.contains(*id)) else { return false };
        let frozen = parts.frozen.values().any(|path| path == top);
        frozen && self.has_branch(parts, gone, elsewhere)
    }
}

/// The name of a file without its folder and without what follows the last dot, as libvirt shortens it for the overlays
/// that it names itself.
fn stem(path: &str) -> (&str, &str) {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    (folder, name.rsplit_once('.').map_or(name, |(stem, _)| stem))
}

/// Whether this is a number of seconds of the Unix epoch.
fn is_time(text: &str) -> bool {
    (10..=11).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Where the overlays of a new snapshot go: beside the files they lie on, `<stem>.<id>`. `disks` are targets and paths.
pub fn overlay_paths<'a>(
    disks: impl IntoIterator<Item = (&'a str, &'a str)>,
    id: &SnapshotId,
) -> BTreeMap<String, String> {
    let mut taken = BTreeSet::new();
    let mut paths = BTreeMap::new();
    for (target, path) in disks {
        let (folder, stem) = stem(path);
        let mut overlay = format!("{folder}/{stem}.{id}");
        if !taken.insert(overlay.clone()) {
            overlay = format!("{folder}/{stem}-{target}.{id}");
            taken.insert(overlay.clone());
        }
        paths.insert(target.to_owned(), overlay);
    }
    paths
}

/// Whether a file has the name of an overlay of this snapshot.
pub fn is_overlay_of(path: &str, id: &SnapshotId) -> bool {
    path.strip_suffix(id.as_str()).is_some_and(|rest| rest.ends_with('.'))
}

/// Whether a file has the name of the running state of this snapshot.
pub fn is_memory_of(path: &str, id: &SnapshotId) -> bool {
    path.strip_suffix(".mem").is_some_and(|rest| is_overlay_of(rest, id))
}

/// Whether a file has the name of what libvirt lays on `frozen` when a machine is taken back to it.
pub fn is_reverted_from(path: &str, frozen: &str) -> bool {
    path.rsplit_once('.').is_some_and(|(_, last)| is_time(last)) && stem(path) == stem(frozen)
}

/// Where the running state of a new snapshot goes: beside this file.
pub fn memory_path(path: &str, id: &SnapshotId) -> String {
    let (folder, stem) = stem(path);
    format!("{folder}/{stem}.{id}.mem")
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod rule_tests;
#[cfg(test)]
mod tests;

//! A machine of one disk whose files hold blocks, and libvirt's own habits around it: what a revert removes, what a
//! metadata deletion does to the current snapshot. Everything that is asked for is done in the smallest steps there are,
//! and may end after any of them.

use uuid::Uuid;

use super::*;

pub(super) type Blocks = BTreeMap<u8, u32>;

#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    pub(super) layers: Layers,
    pub(super) blocks: BTreeMap<String, Blocks>,
    /// libvirt's `<revertDisks>`.
    revert_disks: BTreeMap<SnapshotId, String>,
    /// Clones that other machines have made.
    pub(super) elsewhere: BTreeSet<String>,
    pub(super) written: u32,
    /// Whether an administrator has given the disk another image. From then on more stays than the machine needs.
    pub(super) was_swapped: bool,
    names: u32,
}

impl Model {
    pub(super) fn new() -> Self {
        let mut model = Self::default();
        model.add("/golden/base.qcow2", None);
        model.add("/images/desk.qcow2", Some("/golden/base.qcow2"));
        model.blocks.insert("/golden/base.qcow2".to_owned(), Blocks::from([(0, 1), (1, 1)]));
        model.layers.live.insert("vda".to_owned(), "/images/desk.qcow2".to_owned());
        model
    }

    pub(super) fn add(&mut self, path: &str, backing: Option<&str>) {
        let layer = Layer { backing: backing.map(str::to_owned), format: "qcow2".to_owned(), ..Layer::default() };
        assert!(self.layers.files.insert(path.to_owned(), layer).is_none(), "{path} is overwritten");
        self.blocks.insert(path.to_owned(), Blocks::new());
    }

    /// A file that a snapshot or a revert has created, which the agent has on record.
    fn create_overlay(&mut self, path: &str, backing: &str) {
        self.add(path, Some(backing));
        self.layers.ours.insert(path.to_owned());
    }

    /// What is read through a file; a file that is gone is a failure of the test.
    pub(super) fn content(&self, path: &str) -> Blocks {
        let mut seen = Blocks::new();
        for path in self.layers.chain(path) {
            for (block, value) in self.blocks.get(path).unwrap_or_else(|| panic!("{path} is gone")) {
                seen.entry(*block).or_insert(*value);
            }
        }
        seen
    }

    pub(super) fn live(&self) -> String {
        self.layers.live["vda"].clone()
    }

    pub(super) fn ids(&self) -> Vec<SnapshotId> {
        let staying = self.layers.snapshots.iter().filter(|(_, parts)| !parts.deleted);
        staying.map(|(id, _)| id.clone()).collect()
    }

    pub(super) fn name(&mut self) -> u32 {
        self.names += 1;
        self.names
    }

    /// Everything that somebody may still ask for.
    pub(super) fn contents(&self) -> BTreeMap<String, Blocks> {
        let mut all: BTreeMap<String, Blocks> = BTreeMap::from([("live".to_owned(), self.content(&self.live()))]);
        for id in self.ids() {
            all.insert(id.to_string(), self.content(&self.layers.snapshots[&id].frozen["vda"]));
        }
        for path in &self.elsewhere {
            all.insert(path.clone(), self.content(path));
        }
        all
    }

    /// What somebody finds who looks at the host: files that the machine, its snapshots or an earlier look lead to.
    fn known(&self, left: &BTreeSet<String>) -> Layers {
        let parts = self.layers.snapshots.values();
        let named = parts.flat_map(|parts| parts.frozen.values().chain(parts.overlays.values()));
        let roots = named.chain(self.layers.live.values()).chain(left);
        let found: BTreeSet<&str> = roots.flat_map(|root| self.layers.chain(root)).collect();
        let mut known = self.layers.clone();
        known.files.retain(|path, _| found.contains(path.as_str()));
        known
    }

    pub(super) fn reached_elsewhere(&self) -> BTreeSet<String> {
        self.elsewhere.iter().flat_map(|path| self.layers.chain(path)).map(str::to_owned).collect()
    }

    pub(super) fn set_current(&mut self, id: Option<&SnapshotId>) {
        for (other, parts) in &mut self.layers.snapshots {
            parts.is_current = Some(other) == id;
        }
    }

    pub(super) fn current(&self) -> Option<SnapshotId> {
        self.layers.current().map(|(id, _)| id.clone())
    }

    pub(super) fn create(&mut self) {
        let id = SnapshotId::from_uuid(Uuid::from_u128(self.name().into()));
        let (frozen, parent) = (self.live(), self.current());
        let overlay = overlay_paths([("vda", frozen.as_str())], &id)["vda"].clone();
        self.create_overlay(&overlay, &frozen);
        if let Some(parent) = &parent {
            self.revert_disks.remove(parent);
        }
        let one = |path: String| BTreeMap::from([("vda".to_owned(), path)]);
        let parts = Parts { parent, frozen: one(frozen), overlays: one(overlay.clone()), ..Parts::default() };
        self.layers.snapshots.insert(id.clone(), parts);
        self.layers.live = one(overlay);
        self.set_current(Some(&id));
    }

    /// What libvirt 11.3 does: it removes what it takes for the active file, and that had better be it.
    pub(super) fn revert(&mut self, id: &SnapshotId) {
        let frozen = self.layers.snapshots[id].frozen["vda"].clone();
        let overlay = format!("/images/desk.{}", 1_700_000_000 + self.name());
        self.create_overlay(&overlay, &frozen);
        let before = self.live();
        let mut left = BTreeSet::new();
        if self.layers.ours.contains(&before) {
            left.insert(before);
        } else if before.contains("/desk.16") {
            // The image that an administrator gave the disk is nobody's to remove.
            self.elsewhere.insert(before);
        }
        if let Some(current) = self.current() {
            let parts = &self.layers.snapshots[&current];
            let discarded = self.revert_disks.remove(&current).unwrap_or_else(|| parts.overlays["vda"].clone());
            // Every other file has a second name during a revert, and is brought back.
            if discarded == self.live() {
                self.unlink(&discarded);
            }
        }
        let has_children = self.layers.snapshots.values().any(|parts| parts.parent.as_ref() == Some(id));
        if has_children {
            self.revert_disks.insert(id.clone(), overlay.clone());
        } else if let Some(parts) = self.layers.snapshots.get_mut(id) {
            parts.overlays.insert("vda".to_owned(), overlay.clone());
        }
        self.layers.discarded.extend(left.clone());
        self.layers.live.insert("vda".to_owned(), overlay);
        self.set_current(Some(id));
        self.clean_up(&left, &mut usize::MAX.clone());
    }

    /// An administrator gives the disk another image, whose name may be one that snapshots give. What the disk was is wanted.
    pub(super) fn swap(&mut self, backing: Option<&str>) {
        self.was_swapped = true;
        let path = format!("/images/desk.{}", 1_600_000_000 + self.name());
        self.add(&path, backing);
        let before = self.live();
        self.elsewhere.insert(before);
        self.layers.live.insert("vda".to_owned(), path);
        self.keep_what_is_needed();
    }

    pub(super) fn unlink(&mut self, path: &str) {
        self.layers.files.remove(path);
        self.layers.ours.remove(path);
        self.layers.discarded.remove(path);
        self.blocks.remove(path);
    }

    pub(super) fn forget(&mut self, id: &SnapshotId) {
        let Some(gone) = self.layers.snapshots.remove(id) else { return };
        self.revert_disks.remove(id);
        for parts in self.layers.snapshots.values_mut() {
            if parts.parent.as_ref() == Some(id) {
                parts.parent.clone_from(&gone.parent);
            }
        }
        if gone.is_current {
            self.set_current(gone.parent.as_ref());
        }
    }

    /// Commits, sends everybody who used the top to the base, and removes what is above. `budget` is how many of the
    /// smallest steps are done before everything ends; returns whether it came to its end. `noted` is the journal.
    pub(super) fn merge(&mut self, merge: &Merge, budget: &mut usize, noted: &mut Vec<Merge>) -> bool {
        let mut step = || std::mem::replace(budget, budget.saturating_sub(1)) > 0;
        let committed = noted.contains(merge);
        for path in merge.above.iter().rev().filter(|_| !committed) {
            for (block, value) in self.blocks[path].clone() {
                if !step() {
                    return false;
                }
                self.blocks.get_mut(&merge.base).unwrap().insert(block, value);
            }
        }
        if !committed {
            noted.push(merge.clone());
        }
        let above: Vec<String> = self
            .layers
            .files
            .iter()
            .filter(|(_, layer)| layer.backing.as_ref() == Some(&merge.top))
            .map(|(path, _)| path.clone())
            .collect();
        for path in above {
            if !step() {
                return false;
            }
            self.layers.files.get_mut(&path).unwrap().backing = Some(merge.base.clone());
        }
        if self.live() == merge.top {
            if !step() {
                return false;
            }
            self.layers.live.insert("vda".to_owned(), merge.base.clone());
        }
        for (id, parts) in &mut self.layers.snapshots {
            if parts.frozen["vda"] == merge.top {
                if !step() {
                    return false;
                }
                parts.frozen.insert("vda".to_owned(), merge.base.clone());
                // libvirt takes a new definition without it.
                self.revert_disks.remove(id);
            }
        }
        for path in &merge.above {
            if !step() {
                return false;
            }
            self.unlink(path);
        }
        noted.retain(|other| other != merge);
        self.keep_what_is_needed();
        true
    }

    pub(super) fn clean_up(&mut self, left: &BTreeSet<String>, budget: &mut usize) -> bool {
        let remains = self.known(left).remains(&self.reached_elsewhere(), left);
        let mut step = || std::mem::replace(budget, budget.saturating_sub(1)) > 0;
        for path in &remains.files {
            if !step() {
                return false;
            }
            self.unlink(path);
        }
        for id in &remains.snapshots {
            if !step() {
                return false;
            }
            self.forget(id);
        }
        true
    }

    /// Finishes all deletions that can be finished, as one run of the agent does.
    pub(super) fn collect(&mut self, budget: &mut usize, noted: &mut Vec<Merge>) -> bool {
        for merge in noted.clone() {
            if !self.merge(&merge, budget, noted) {
                return false;
            }
        }
        let next = |model: &Self| {
            let merges = model.known(&BTreeSet::new()).merges(&model.layers.deleted(), &model.reached_elsewhere());
            merges.into_iter().next()
        };
        let mut most = self.layers.files.len();
        while let Some(merge) = next(self) {
            // Each merge takes a file at least.
            assert!(most > 0, "{merge:?} has no end: {self:#?}");
            most -= 1;
            if !self.merge(&merge, budget, noted) {
                return false;
            }
        }
        self.clean_up(&BTreeSet::new(), budget)
    }

    pub(super) fn mark(&mut self, id: &SnapshotId, subtree: bool) {
        let mut doomed = BTreeSet::from([id.clone()]);
        for _ in 0..self.layers.snapshots.len() {
            let below =
                self.layers.snapshots.iter().filter(|(_, parts)| {
                    subtree && parts.parent.as_ref().is_some_and(|parent| doomed.contains(parent))
                });
            let below: Vec<_> = below.map(|(id, _)| id.clone()).collect();
            doomed.extend(below);
        }
        self.layers.discarded.extend(self.layers.given_up(&doomed));
        for id in doomed {
            self.layers.snapshots.get_mut(&id).unwrap().deleted = true;
        }
        self.keep_what_is_needed();
    }

    /// The files that nobody has given up: what somebody may lay an image on.
    pub(super) fn wanted(&self) -> Vec<String> {
        self.layers.files.keys().filter(|path| !self.layers.discarded.contains(*path)).cloned().collect()
    }

    /// What somebody needs was not given up, whoever asked for it before.
    fn keep_what_is_needed(&mut self) {
        let staying = self.layers.snapshots.values().filter(|parts| !parts.deleted);
        let roots = staying.flat_map(|parts| parts.frozen.values()).chain(self.layers.live.values());
        let roots: BTreeSet<String> = roots.cloned().collect();
        self.layers.discarded.retain(|path| !roots.contains(path));
    }

    pub(super) fn check_tidy(&self) {
        if self.was_swapped {
            return;
        }
        let elsewhere = self.reached_elsewhere();
        let reached = self.layers.reached(&BTreeSet::new());
        for path in self.layers.files.keys() {
            let known = reached.contains(path.as_str()) || elsewhere.contains(path) || !self.layers.ours.contains(path);
            assert!(known, "{path} is left: {self:#?}");
        }
        // What is deleted and still there is what libvirt must not be told of yet, or what waits for that: somebody else
        // than the disk itself needs the overlay of the snapshot that is current, or that would be.
        let deleted = self.layers.deleted();
        let mut current = self.layers.current();
        while let Some((id, parts)) = current.filter(|(id, _)| deleted.contains(*id)) {
            let parent = parts.parent.as_ref().and_then(|parent| self.layers.snapshots.get_key_value(parent));
            current = parent.filter(|(parent, _)| *parent != id);
        }
        let mut others = self.layers.clone();
        others.live.clear();
        others.snapshots.retain(|id, _| !deleted.contains(id));
        let others = others.reached(&BTreeSet::new());
        let is_branch = current.is_some_and(|(_, parts)| {
            let overlay = &parts.overlays["vda"];
            others.contains(overlay.as_str()) || elsewhere.contains(overlay)
        });
        assert!(deleted.is_empty() || is_branch, "{deleted:?} are left: {self:#?}");
    }
}

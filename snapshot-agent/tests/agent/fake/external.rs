//! External snapshots of the host of variables: each file has one letter, and a file that was half merged has `?`.

use super::*;
use snapshot_core::layers::Parts;

/// The images of a machine without snapshots.
pub(super) fn images(vm: &VmFacts) -> (Layers, BTreeMap<String, char>) {
    let (mut layers, mut content) = (Layers::default(), BTreeMap::new());
    for disk in &vm.disks {
        let layer = Layer { spelled: disk.path.clone(), format: "qcow2".to_owned(), ..Layer::default() };
        layers.files.insert(disk.path.clone(), layer);
        layers.live.insert(disk.target.clone(), disk.path.clone());
        content.insert(disk.path.clone(), 'B');
    }
    (layers, content)
}

impl Fake {
    /// Has the next questions for free space answered so; after them there is plenty.
    pub(crate) fn answer_free(&self, bytes: &[u64]) {
        lock(&self.state).free.extend(bytes);
    }
}

impl World {
    /// Adds a machine whose disk lies on this file of another one.
    pub(crate) fn add_machine_on(&mut self, path: &str) {
        let vm = VmFacts { id: VmId::from_uuid(uuid::Uuid::new_v4()), ..vm_facts() };
        let below = self.machines.values().find(|machine| machine.layers.files.contains_key(path)).unwrap();
        let mut machine = below.clone();
        machine.layers.snapshots.clear();
        machine.layers.live.clear();
        machine.snapshots.clear();
        machine.vm = VmFacts { state: VmState::Shutoff, ..vm.clone() };
        machine.lay("vda", "/images/neighbour.qcow2", path);
        self.machines.insert(vm.id, machine);
    }

    /// The files that there are of a machine, second names included.
    pub(crate) fn files(&self, vm: VmId) -> Vec<String> {
        let guarded =
            self.guarded.iter().filter(|(_, (owner, ..))| *owner == vm).map(|(path, _)| format!("{path}.kept"));
        let mut files: Vec<String> = self.machines[&vm].layers.files.keys().cloned().chain(guarded).collect();
        files.sort();
        files
    }

    pub(super) fn guard(&mut self, files: &[String]) -> Result<(), Failure> {
        for path in files {
            let machines = self.machines.iter();
            let found = machines.filter_map(|(id, machine)| {
                Some((*id, machine.layers.files.get(path)?.clone(), *machine.content.get(path)?))
            });
            if let Some(found) = found.into_iter().next() {
                self.guarded.entry(path.clone()).or_insert(found);
            } else if let Some((id, layer, content)) = self.guarded.get(path).cloned()
                && let Some(machine) = self.machines.get_mut(&id)
            {
                machine.layers.files.insert(path.clone(), layer);
                machine.content.insert(path.clone(), content);
            }
        }
        Ok(())
    }

    pub(super) fn unguard(&mut self, files: &[String]) -> Result<(), Failure> {
        for path in files {
            let Some((id, layer, content)) = self.guarded.remove(path) else { continue };
            let Some(machine) = self.machines.get_mut(&id) else { continue };
            machine.layers.files.entry(path.clone()).or_insert(layer);
            machine.content.entry(path.clone()).or_insert(content);
        }
        Ok(())
    }
}

impl Machine {
    /// The files that are known of: what is merely there is not seen.
    pub(super) fn seen_layers(&self) -> Layers {
        let reached = self.reached();
        let mut layers = self.layers.clone();
        // What an agent has on record of a machine that nobody else changes: every overlay is ours, and what nobody needs was given up.
        let originals: Vec<&str> = self.vm.disks.iter().map(|disk| disk.target.as_str()).collect();
        let is_original = |path: &str| originals.iter().any(|target| path.ends_with(&format!("{target}.qcow2")));
        layers.ours = layers.files.keys().filter(|path| !is_original(path)).cloned().collect();
        layers.discarded = layers.ours.clone();
        layers.files.retain(|path, _| reached.contains(path));
        for path in reached {
            let missing = || Layer { format: "qcow2".to_owned(), pinned: true, ..Layer::default() };
            layers.files.entry(path).or_insert_with(missing);
        }
        layers
    }

    /// What its disks and its snapshots reach.
    pub(super) fn reached(&self) -> BTreeSet<String> {
        let overlays = self.layers.snapshots.values().flat_map(|parts| parts.overlays.values());
        let overlays = overlays.filter(|path| self.layers.files.contains_key(*path));
        let mut reached: BTreeSet<String> =
            overlays.flat_map(|path| self.layers.chain(path)).map(str::to_owned).collect();
        reached.extend(self.layers.reached(&BTreeSet::new()).into_iter().map(str::to_owned));
        reached
    }

    pub(super) fn has_lost_files(&self, id: &SnapshotId) -> bool {
        let is_there = |path: &str| self.layers.files.contains_key(path);
        let Some(parts) = self.layers.snapshots.get(id) else { return false };
        let mut chains = parts.frozen.values().flat_map(|path| self.layers.chain(path));
        chains.any(|path| !is_there(path)) || parts.memory_file.as_deref().is_some_and(|path| !is_there(path))
    }

    pub(super) fn is_deleted(&self, id: &SnapshotId) -> bool {
        self.layers.snapshots.get(id).is_some_and(|parts| parts.deleted)
    }

    /// As if libvirt had deleted what is marked so.
    pub(super) fn reparent(&self, listed: &mut [SnapshotFacts]) {
        let staying = |mut id: Option<SnapshotId>| {
            while let Some(deleted) = id.as_ref().filter(|id| self.is_deleted(id)) {
                id.clone_from(&self.layers.snapshots[deleted].parent);
            }
            id
        };
        let current = staying(self.snapshots.iter().find(|snapshot| snapshot.is_current).map(|it| it.id.clone()));
        for snapshot in listed {
            snapshot.parent = staying(snapshot.parent.take());
            snapshot.is_current = current.as_ref() == Some(&snapshot.id);
        }
    }

    /// What the disks' active files hold is what the guest reads.
    fn write_through(&mut self) {
        for (path, content) in self.layers.live.values().zip(&self.disks) {
            self.content.insert(path.clone(), *content);
        }
    }

    fn move_disk(&mut self, target: &str, path: &str) {
        self.layers.live.insert(target.to_owned(), path.to_owned());
        let is_backed = self.layers.files.get(path).is_some_and(|layer| layer.backing.is_some());
        for disk in self.vm.disks.iter_mut().filter(|disk| disk.target == target) {
            (disk.path, disk.has_backing_file) = (path.to_owned(), is_backed);
        }
    }

    fn lay(&mut self, target: &str, path: &str, on: &str) {
        let layer = Layer {
            spelled: path.to_owned(),
            backing: Some(on.to_owned()),
            format: "qcow2".to_owned(),
            ..Layer::default()
        };
        self.layers.files.insert(path.to_owned(), layer);
        let content = self.content[on];
        self.content.insert(path.to_owned(), content);
        self.move_disk(target, path);
    }

    pub(super) fn create_external(&mut self, new: &NewExternal<'_>, disks: usize) -> Result<(), Failure> {
        if !self.ahead.is_empty() {
            return Err(Failure::Refused { code: 1, message: "node is used as backing hd".to_owned() });
        }
        self.write_through();
        let mut targets = new.overlays.values().map(String::as_str).chain(new.memory_file);
        if let Some(path) = targets.find(|path| self.layers.files.contains_key(*path)) {
            return Err(Failure::Precondition(Error::new(Reason::TargetExists, format!("{path} exists"))));
        }
        let frozen = self.layers.live.clone();
        for (target, path) in new.overlays.iter().take(disks) {
            let on = frozen[target].clone();
            self.lay(target, path, &on);
        }
        if disks < usize::MAX {
            return Ok(());
        }
        let parent = self.snapshots.iter().find(|snapshot| snapshot.is_current).map(|snapshot| snapshot.id.clone());
        self.snapshots.iter_mut().for_each(|snapshot| snapshot.is_current = false);
        self.layers.snapshots.values_mut().for_each(|parts| parts.is_current = false);
        let memory = new.memory_file.is_some();
        self.snapshots.push(SnapshotFacts {
            id: new.id.clone(),
            parent: parent.clone(),
            is_current: true,
            create_time: 1_700_000_000 + self.snapshots.len() as i64,
            label: new.label.clone(),
            content: if memory { Content::DisksAndMemory } else { Content::Disks },
            storage: Storage::External,
            vm_state: match (self.vm.state, memory) {
                (VmState::Running, true) => RecordedState::Running,
                (VmState::Paused, true) => RecordedState::Paused,
                (VmState::Shutoff, _) => RecordedState::Shutoff,
                _ => RecordedState::DiskOnly,
            },
            consistency: None,
            disks: frozen.keys().cloned().collect(),
            size_bytes: 0,
            origin: Origin::Service,
            broken: None,
            restrictions: Vec::new(),
            revert_denied: None,
        });
        let overlays = new.overlays.clone();
        let memory_file = new.memory_file.map(str::to_owned);
        self.layers.files.extend(memory_file.iter().map(|path| (path.clone(), Layer::default())));
        let parts = Parts { parent, is_current: true, frozen, overlays, memory_file, ..Parts::default() };
        self.layers.snapshots.insert(new.id.clone(), parts);
        Ok(())
    }

    /// Where libvirt's daemon dies, QEMU may go on with the overlays and that is not written down.
    pub(super) fn create_halfway(&mut self, new: &NewExternal<'_>, lost: bool) {
        if lost && self.vm.state == VmState::Running {
            self.ahead = new.overlays.values().cloned().collect();
        } else {
            let _ = self.create_external(new, 1);
        }
    }

    pub(super) fn revert_external(
        &mut self,
        id: &SnapshotId,
        then: PowerState,
        run: u32,
        disks: usize,
    ) -> Result<(), Failure> {
        self.listed(id)?;
        self.write_through();
        let frozen = self.layers.snapshots[id].frozen.clone();
        let current = self.layers.snapshots.iter().find(|(_, parts)| parts.is_current).map(|(id, _)| id.clone());
        if let Some(current) = &current {
            self.give_up_active(current);
        }
        // libvirt remembers the new overlays as the snapshot's own where nothing was taken since.
        let is_leaf = self.layers.snapshots.values().all(|parts| parts.parent.as_ref() != Some(id));
        for (index, (target, path)) in frozen.iter().enumerate().take(disks) {
            let left = self.layers.live[target].clone();
            let overlay = format!("/images/{target}.{}", 1_700_000_000 + run);
            self.lay(target, &overlay, path);
            if is_leaf && let Some(parts) = self.layers.snapshots.get_mut(id) {
                parts.overlays.insert(target.clone(), overlay);
            }
            self.disks[index] = self.content[path];
            let used = self.layers.files.values().any(|layer| layer.backing.as_ref() == Some(&left));
            let named = self.layers.snapshots.values().any(|parts| parts.frozen.values().any(|path| *path == left));
            if !used && !named && current.is_some() {
                self.unlink(&left);
            }
        }
        if disks < usize::MAX {
            (self.vm.state, self.instance, self.paused_by) = (VmState::Shutoff, None, None);
            return Ok(());
        }
        self.snapshots.iter_mut().for_each(|snapshot| snapshot.is_current = snapshot.id == *id);
        self.layers.snapshots.iter_mut().for_each(|(other, parts)| parts.is_current = other == id);
        (self.vm.state, self.instance, self.paused_by) = match then {
            PowerState::Running => (VmState::Running, Some(run), None),
            PowerState::Paused => (VmState::Paused, Some(run), Some(PausedBy::Something)),
            PowerState::Off => (VmState::Shutoff, None, None),
        };
        Ok(())
    }

    /// What libvirt removes at a revert are the overlays of the current snapshot, so it is told that those are the active files.
    fn give_up_active(&mut self, current: &SnapshotId) {
        let mut overlays = self.layers.snapshots[current].overlays.clone();
        for (target, overlay) in &mut overlays {
            let (live, frozen) = (&self.layers.live[target], &self.layers.snapshots[current].frozen[target]);
            if live != frozen && self.layers.chain(live).any(|path| path == frozen) {
                overlay.clone_from(live);
            }
        }
        self.layers.snapshots.get_mut(current).unwrap().overlays = overlays;
    }

    pub(super) fn mark_deleted(&mut self, id: &SnapshotId) -> Result<(), Failure> {
        self.listed(id)?;
        self.layers.snapshots.get_mut(id).ok_or(Failure::SnapshotGone)?.deleted = true;
        Ok(())
    }

    pub(super) fn commit(&mut self, merge: &Merge) -> Result<(), Failure> {
        self.write_through();
        let content = self.content[&merge.top];
        self.content.insert(merge.base.clone(), content);
        let live = self.layers.live[&merge.disk].clone();
        if self.vm.state != VmState::Shutoff && self.layers.chain(&live).any(|path| path == merge.top) {
            let above =
                self.layers.chain(&live).find(|path| self.layers.files[*path].backing.as_ref() == Some(&merge.top));
            match above.map(str::to_owned) {
                Some(above) => self.layers.files.get_mut(&above).unwrap().backing = Some(merge.base.clone()),
                None => self.move_disk(&merge.disk, &merge.base),
            }
        }
        Ok(())
    }

    /// Sends the first so many of those who use the top to the base.
    pub(super) fn redirect(&mut self, merge: &Merge, most: usize) {
        let mut left = most;
        let mut one = || {
            let before = left;
            left = left.saturating_sub(1);
            before > 0
        };
        for layer in self.layers.files.values_mut().filter(|layer| layer.backing.as_ref() == Some(&merge.top)) {
            if one() {
                layer.backing = Some(merge.base.clone());
            }
        }
        let live = self.layers.live.clone();
        for parts in self.layers.snapshots.values_mut() {
            let uses_top = parts.frozen.values().any(|path| *path == merge.top);
            let is_elsewhere = parts.overlays.iter().any(|(target, path)| live.get(target) != Some(path));
            if parts.is_current && is_elsewhere && !uses_top {
                continue;
            }
            let paths = parts.frozen.values_mut().chain(parts.overlays.values_mut());
            let mut paths: Vec<_> = paths.filter(|path| **path == merge.top).collect();
            if !paths.is_empty() && one() {
                paths.iter_mut().for_each(|path| path.clone_from(&merge.base));
            }
        }
        if self.layers.live[&merge.disk] == merge.top && one() {
            self.move_disk(&merge.disk, &merge.base);
        }
    }

    pub(super) fn unlink(&mut self, path: &str) {
        if self.ahead.contains(path) {
            // What the guest writes is in no file any more.
            self.disks.fill('?');
        }
        self.layers.files.remove(path);
        self.content.remove(path);
    }

    pub(super) fn forget_parts(&mut self, id: &SnapshotId) {
        let Some(gone) = self.layers.snapshots.remove(id) else { return };
        for (other, parts) in &mut self.layers.snapshots {
            if parts.parent.as_ref() == Some(id) {
                parts.parent.clone_from(&gone.parent);
            }
            parts.is_current |= gone.is_current && Some(other) == gone.parent.as_ref();
        }
    }
}

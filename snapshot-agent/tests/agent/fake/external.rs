//! External snapshots of the host of variables: each file has one letter, and a file that was half merged has `?`.

use super::*;
use snapshot_core::layers::{Layer, Parts};

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

impl Machine {
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
        self.vm.disks.iter_mut().filter(|disk| disk.target == target).for_each(|disk| disk.path = path.to_owned());
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
        let frozen = self.layers.live.clone();
        for (target, path) in new.overlays.iter().take(disks) {
            if self.layers.files.contains_key(path) {
                return Err(Failure::Refused { code: 67, message: format!("{path} exists") });
            }
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
            disks: frozen.keys().cloned().collect(),
            size_bytes: 0,
            origin: Origin::Service,
            broken: None,
        });
        let overlays = new.overlays.clone();
        let parts = Parts { parent, is_current: true, frozen, overlays, ..Parts::default() };
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
        for (index, (target, path)) in frozen.iter().enumerate().take(disks) {
            let left = self.layers.live[target].clone();
            let overlay = format!("/images/{target}.{}", 1_700_000_000 + run);
            self.lay(target, &overlay, path);
            self.disks[index] = self.content[path];
            let used = self.layers.files.values().any(|layer| layer.backing.as_ref() == Some(&left));
            let named = self.layers.snapshots.values().any(|parts| parts.frozen.values().any(|path| *path == left));
            if !used && !named {
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
        let frozen = self.layers.snapshots.values_mut().flat_map(|parts| parts.frozen.values_mut());
        for path in frozen.filter(|path| **path == merge.top) {
            if one() {
                path.clone_from(&merge.base);
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

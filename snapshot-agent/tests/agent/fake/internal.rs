//! Internal snapshots of the host of variables.

use snapshot_agent::qcow2::Stamp;

use super::*;

impl Machine {
    pub(super) fn listed(&self, id: &SnapshotId) -> Result<&SnapshotFacts, Failure> {
        self.snapshots.iter().find(|snapshot| snapshot.id == *id).ok_or(Failure::SnapshotGone)
    }

    pub(super) fn create(&mut self, id: &SnapshotId, label: &Label, memory: bool) -> Result<(), Failure> {
        if memory == (self.vm.state == VmState::Shutoff) || self.images.iter().any(|image| image.contains_key(id)) {
            return Err(Failure::Refused { code: 9, message: "not so".to_owned() });
        }
        self.transact(id);
        self.list(id, label, memory);
        Ok(())
    }

    /// What QEMU does to the images: all of them at once.
    pub(super) fn transact(&mut self, id: &SnapshotId) {
        for (image, content) in self.images.iter_mut().zip(&self.disks) {
            image.insert(id.clone(), *content);
        }
    }

    pub(super) fn create_live(&mut self, id: &SnapshotId, label: &Label) -> Result<Duration, Failure> {
        if self.vm.state == VmState::Shutoff || self.images.iter().any(|image| image.contains_key(id)) {
            return Err(Failure::Refused { code: 9, message: "not so".to_owned() });
        }
        self.transact(id);
        let crash = Some(Consistency::Crash);
        self.list(id, &Label { disks: crash, ..label.clone() }, false);
        let listed = self.snapshots.iter_mut().filter(|snapshot| snapshot.id == *id);
        listed.for_each(|listed| (listed.vm_state, listed.consistency) = (RecordedState::DiskOnly, crash));
        Ok(Duration::from_millis(5))
    }

    /// Lists a safety tag as a snapshot that is not current.
    pub(super) fn list_tag(&mut self, safety: &Safety, label: &Label) {
        let current = self.snapshots.iter().find(|one| one.is_current).map(|one| one.id.clone());
        self.list(&safety.tag.parse().unwrap(), label, false);
        self.snapshots.iter_mut().for_each(|one| one.is_current = Some(&one.id) == current.as_ref());
    }

    fn list(&mut self, id: &SnapshotId, label: &Label, memory: bool) {
        let parent = self.snapshots.iter().find(|snapshot| snapshot.is_current).map(|snapshot| snapshot.id.clone());
        self.snapshots.iter_mut().for_each(|snapshot| snapshot.is_current = false);
        self.snapshots.push(SnapshotFacts {
            id: id.clone(),
            parent,
            is_current: true,
            create_time: 1_700_000_000 + self.snapshots.len() as i64,
            label: label.clone(),
            content: if memory { Content::DisksAndMemory } else { Content::Disks },
            storage: Storage::Internal,
            vm_state: match self.vm.state {
                VmState::Running => RecordedState::Running,
                VmState::Paused => RecordedState::Paused,
                _ => RecordedState::Shutoff,
            },
            consistency: None,
            disks: self.vm.disks.iter().map(|disk| disk.target.clone()).collect(),
            size_bytes: 0,
            origin: Origin::Service,
            broken: None,
            restrictions: Vec::new(),
            revert_denied: None,
        });
    }

    pub(super) fn delete(&mut self, id: &SnapshotId, images: bool) -> Result<(), Failure> {
        let removed = self.listed(id)?.clone();
        self.forget_parts(id);
        self.snapshots.retain(|snapshot| snapshot.id != *id);
        for snapshot in &mut self.snapshots {
            if snapshot.parent.as_ref() == Some(id) {
                snapshot.parent.clone_from(&removed.parent);
            }
            snapshot.is_current |= removed.is_current && Some(&snapshot.id) == removed.parent.as_ref();
        }
        if images {
            self.images.iter_mut().for_each(|image| _ = image.remove(id));
        }
        Ok(())
    }

    pub(super) fn revert_halfway(&mut self, id: &SnapshotId) {
        self.disks[0] = self.images[0].get(id).copied().unwrap_or('?');
        self.take_definition();
        self.end_run();
    }

    pub(super) fn revert(&mut self, id: &SnapshotId, then: PowerState, run: u32) -> Result<(), Failure> {
        self.listed(id)?;
        if self.reverts_halfway {
            self.revert_halfway(id);
            return Err(Failure::Refused { code: 1, message: "the second disk fails".to_owned() });
        }
        self.disks = self.images.iter().map(|image| image.get(id).copied().unwrap_or('?')).collect();
        self.make_current(id)?;
        self.take_definition();
        self.end_run();
        (self.vm.state, self.instance, self.paused_by) = match then {
            PowerState::Running => (VmState::Running, Some(run), None),
            PowerState::Paused => (VmState::Paused, Some(run), Some(PausedBy::Something)),
            PowerState::Off => (VmState::Shutoff, None, None),
        };
        Ok(())
    }

    pub(super) fn contents(&self) -> BTreeMap<PathBuf, Option<BTreeMap<String, Stamp>>> {
        let names =
            |image: &BTreeMap<SnapshotId, char>| image.keys().map(|id| (id.to_string(), Stamp::default())).collect();
        let paths = self.vm.disks.iter().map(|disk| PathBuf::from(&disk.path));
        paths.zip(self.images.iter().map(|image| Some(names(image)))).collect()
    }
}

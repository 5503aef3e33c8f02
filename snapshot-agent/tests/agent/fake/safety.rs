//! Safety tags of the host of variables: snapshots in the images that are not listed.

use snapshot_agent::safety::{Held, Safety};

use super::*;

/// The definition of every snapshot.
const THEN: &str = "then";

fn id(safety: &Safety) -> SnapshotId {
    safety.tag.parse().unwrap()
}

impl Machine {
    pub(super) fn before_revert(&self, id: &SnapshotId, tag: String) -> Result<Safety, Failure> {
        self.listed(id)?;
        let images = self.vm.disks.iter().map(|disk| (disk.target.clone(), disk.path.clone())).collect();
        let current = self.snapshots.iter().find(|snapshot| snapshot.is_current).map(|snapshot| snapshot.id.clone());
        Ok(Safety { tag, images, definition: self.definition.clone(), current })
    }

    pub(super) fn set_tags(&mut self, safety: &Safety, most: usize) -> Result<(), Failure> {
        assert!(self.vm.state != VmState::Running, "the state that is protected is the last one");
        self.remove_tags(safety, usize::MAX);
        let tag = id(safety);
        self.images
            .iter_mut()
            .zip(&self.disks)
            .take(most)
            .for_each(|(image, disk)| _ = image.insert(tag.clone(), *disk));
        Ok(())
    }

    pub(super) fn held(&self, safety: &Safety, snapshot: &SnapshotId) -> BTreeMap<String, Held> {
        let tag = id(safety);
        let held = |(image, disk): (&BTreeMap<SnapshotId, char>, &char)| match (
            image.get(&tag).map(|tag| tag == disk),
            image.get(snapshot) == Some(disk),
        ) {
            (Some(true), true) => Held::Both,
            (Some(true), false) => Held::Current,
            (_, true) => Held::Snapshot,
            (None, _) => Held::Unknown,
            (Some(false), _) => Held::Other,
        };
        let targets = self.vm.disks.iter().map(|disk| disk.target.clone());
        targets.zip(self.images.iter().zip(&self.disks).map(held)).collect()
    }

    pub(super) fn restore_disks(&mut self, safety: &Safety, most: usize) -> Result<(), Failure> {
        if self.restores_nothing {
            return Err(Failure::Refused { code: 1, message: "the image is locked".to_owned() });
        }
        if self.instance.is_some() {
            return Err(Failure::Refused { code: 55, message: "it is on".to_owned() });
        }
        let tag = id(safety);
        for (image, disk) in self.images.iter().zip(&mut self.disks).take(most) {
            *disk = image.get(&tag).copied().unwrap_or('?');
        }
        Ok(())
    }

    pub(super) fn remove_tags(&mut self, safety: &Safety, most: usize) {
        self.images.iter_mut().take(most).for_each(|image| _ = image.remove(&id(safety)));
    }

    pub(super) fn restore_definition(&mut self, safety: &Safety) -> bool {
        std::mem::replace(&mut self.definition, safety.definition.clone()) != safety.definition
    }

    /// libvirt's revert, however it ends, brings the definition of then.
    pub(super) fn take_definition(&mut self) {
        self.definition = THEN.to_owned();
    }
}

//! A VM that is gone, as it is planned for by its record.

use std::collections::{BTreeMap, BTreeSet};

use snapshot_core::ids::SnapshotId;
use snapshot_core::images::Uses;
use snapshot_core::layers::Layers;
use snapshot_core::snapshot::{Content, Origin, RecordedState, SnapshotFacts, Storage};
use snapshot_core::vm::{VmFacts, VmState};

use super::{Kept, Record};
use crate::hypervisor::Observed;

impl Record {
    /// The machine as the planner may see it when all that is left of it is this: off, with these snapshots.
    pub fn recalled(&self) -> Observed {
        let vm = VmFacts::bare(self.vm, self.name.clone(), VmState::Shutoff);
        let inside: BTreeSet<&SnapshotId> = self.images.values().flat_map(BTreeMap::keys).collect();
        let snapshot = |(id, kept): (&SnapshotId, &Kept)| SnapshotFacts {
            id: id.clone(),
            parent: None,
            is_current: false,
            create_time: kept.create_time,
            label: kept.label.clone(),
            content: Content::Disks,
            storage: if inside.contains(id) { Storage::Internal } else { Storage::External },
            vm_state: RecordedState::Shutoff,
            consistency: None,
            disks: Vec::new(),
            size_bytes: 0,
            origin: Origin::Service,
            broken: None,
            restrictions: Vec::new(),
            revert_denied: None,
        };
        let snapshots = self.snapshots.iter().map(snapshot).collect();
        let (layers, strays, images) = (Layers::default(), BTreeSet::new(), BTreeMap::new());
        Observed {
            vm,
            snapshots,
            layers,
            instance: None,
            paused_by: None,
            strays,
            images,
            nvram: None,
            uses: Uses::default(),
            defined: Vec::new(),
        }
    }
}

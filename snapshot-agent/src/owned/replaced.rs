//! Snapshots of ours in whose place an image holds another one: it was deleted behind our back, and one of the same name was taken.
//! A revert would take what that one holds for what the user kept.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use snapshot_core::Reason;
use snapshot_core::ids::SnapshotId;
use snapshot_core::snapshot::SnapshotFacts;

use super::Owned;
use crate::hypervisor::Observed;
use crate::qcow2::Stamp;

/// By image, the snapshots of ours in it, and when they were taken; `None` until libvirt has listed them.
pub type Tags = BTreeMap<PathBuf, BTreeMap<SnapshotId, Option<Stamp>>>;

impl Owned {
    /// Marks those among the snapshots that this look has found as broken.
    pub fn mark_replaced(&self, seen: &Observed, snapshots: &mut [SnapshotFacts]) {
        let replaced = self.replaced(seen);
        for snapshot in snapshots.iter_mut().filter(|snapshot| replaced.contains(&snapshot.id)) {
            snapshot.broken.get_or_insert(Reason::SnapshotBroken);
        }
    }

    fn replaced(&self, seen: &Observed) -> BTreeSet<SnapshotId> {
        let Some(record) = self.get(seen.vm.id) else { return BTreeSet::new() };
        let mut replaced = BTreeSet::new();
        for (image, taken) in &record.images {
            let Some(Some(found)) = seen.images.get(image) else { continue };
            replaced
                .extend(taken.iter().filter(|(id, taken)| is_another(found, id, **taken)).map(|(id, _)| id.clone()));
        }
        replaced
    }
}

/// Whether an image holds another snapshot by the name of one that was taken then.
fn is_another(found: &BTreeMap<String, Stamp>, id: &SnapshotId, taken: Option<Stamp>) -> bool {
    matches!((found.get(id.as_str()), taken), (Some(found), Some(taken)) if *found != taken)
}

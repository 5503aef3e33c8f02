//! Snapshots.

use proto::convert::timestamp;
use proto::{names, v1};
use snapshot_core::snapshot::{Consistency, Content, RecordedState};

use crate::etag;
use crate::store::SnapshotRow;

/// A snapshot.
pub fn snapshot(epoch: &str, row: &SnapshotRow) -> v1::Snapshot {
    let facts = &row.facts;
    let mut wire = v1::Snapshot {
        name: names::snapshot(row.vm, &facts.id),
        display_name: facts.label.display_name.to_string(),
        description: facts.label.description.to_string(),
        parent_snapshot: facts.parent.as_ref().map(|id| names::snapshot(row.vm, id)).unwrap_or_default(),
        depth: i32::try_from(row.depth).unwrap_or(i32::MAX),
        is_current: facts.is_current,
        child_count: i32::try_from(row.child_count).unwrap_or(i32::MAX),
        create_time: Some(timestamp(facts.create_time)),
        size_bytes: i64::try_from(facts.size_bytes).unwrap_or(i64::MAX),
        protected: facts.label.protected,
        state_reason: facts.broken.map(|reason| reason.as_str().to_owned()).unwrap_or_default(),
        actor: facts.label.actor.clone(),
        disks: facts.disks.clone(),
        etag: etag::encode(epoch, row.label_revision),
        ..v1::Snapshot::default()
    };
    wire.set_storage(facts.storage.into());
    wire.set_origin(facts.origin.into());
    wire.set_state(match (row.creating, row.deleting, facts.broken) {
        (true, _, _) => v1::SnapshotState::Creating,
        (false, true, _) => v1::SnapshotState::Deleting,
        (false, false, Some(_)) => v1::SnapshotState::Broken,
        (false, false, None) => v1::SnapshotState::Ready,
    });
    // What a snapshot in creation will hold is known when the host has it.
    if !row.creating {
        wire.set_content(facts.content.into());
        wire.set_vm_state(facts.vm_state.into());
        let complete = facts.content == Content::DisksAndMemory || facts.vm_state == RecordedState::Shutoff;
        let likely = if complete { Consistency::Complete } else { Consistency::Crash };
        wire.set_consistency(facts.consistency.unwrap_or(likely).into());
    }
    wire
}

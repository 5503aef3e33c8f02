//! The step of live snapshots. It can be repeated from its beginning, however far it came the time before.
//!
//! QEMU has the snapshot first, and libvirt is told of it then. Between the two it is a stray: in the images, and listed by
//! nobody. Whatever the call said, the machine is looked at. What is whole stays; a stray is removed, and never taken for
//! the snapshot: only the call knew whether the file systems were frozen for it.

use snapshot_core::ids::SnapshotId;
use snapshot_core::plan::Freeze;
use snapshot_core::snapshot::Consistency;

use super::work::{Halt, Work};
use crate::hypervisor::{Failure, Observed};

impl Work<'_> {
    pub(super) fn create_live(&mut self, id: &SnapshotId, quiesce: Freeze) -> Result<(), Halt> {
        let Some(seen) = self.room_for(id)? else { return Ok(()) };
        let label = self.new_label()?;
        self.stale = true;
        let result = self.shared.hypervisor.create_live(&seen.vm, id, &label, quiesce);
        if let Err(Failure::Precondition(error)) = &result {
            return Err(error.clone().with("vm", proto::names::vm(seen.vm.id)).into());
        }
        if matches!(result, Err(Failure::Unreachable(_))) {
            // QEMU may be at it still, or libvirt may be about to ask it.
            self.wait_for_libvirt()?;
        }
        let now = if result.is_ok() { self.look_again()? } else { self.look()? };
        let whole = now.has_whole(id);
        if quiesce != Freeze::No && (result.is_err() || may_freeze_late(&now, id)) {
            self.thaw()?;
        }
        if whole {
            match result {
                Ok(held_up) => self.pause = Some(held_up),
                Err(failure) => tracing::warn!(%failure, "taking the snapshot failed and the snapshot is whole"),
            }
            return Ok(());
        }
        Err(self.not_whole(id, result.err().as_ref(), false))
    }

    /// Of a process that is no more.
    pub(super) fn settle_live(&mut self, id: &SnapshotId, quiesce: Freeze, begun: bool) -> Result<(), Halt> {
        if begun {
            // QEMU may be at it still: what is looked at before that would not have the stray yet.
            self.wait_for_libvirt()?;
            if quiesce != Freeze::No {
                self.thaw()?;
            }
        }
        self.settle_create(id, begun)
    }
}

/// An agent that did not answer in time may freeze the file systems when nobody waits for it any more.
fn may_freeze_late(seen: &Observed, id: &SnapshotId) -> bool {
    seen.snapshot(id).is_some_and(|snapshot| snapshot.label.disks == Some(Consistency::CrashFreezeTimeout))
}

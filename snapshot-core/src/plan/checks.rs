//! Checks that several requests share.

use super::Situation;
use crate::error::{Error, Reason};
use crate::ids::SnapshotId;
use crate::restriction::{self, RestrictedOperation, Restriction};
use crate::snapshot::{SnapshotFacts, Storage};

impl<'a> Situation<'a> {
    pub(super) fn snapshot(&self, id: &SnapshotId) -> Result<&'a SnapshotFacts, Error> {
        self.tree.get(id).ok_or_else(|| Error::snapshot_not_found(self.vm.id, id))
    }

    pub(super) fn refuse(&self, reason: Reason, message: impl Into<String>) -> Error {
        Error::new(reason, message).with("vm", format!("vms/{}", self.vm.id))
    }

    /// The first restriction of the VM, or of the snapshot that the operation is about, on this operation.
    pub(super) fn restriction(
        &self,
        operation: RestrictedOperation,
        snapshot: Option<&'a SnapshotFacts>,
    ) -> Option<&'a Restriction> {
        let of_snapshot = snapshot.and_then(|snapshot| restriction::first(&snapshot.restrictions, operation));
        of_snapshot.or_else(|| restriction::first(&self.vm.restrictions, operation))
    }

    /// Refuses everything where a restriction of the VM makes every operation unavailable: then nothing else about the VM may be
    /// known, and another refusal would be a wrong one.
    pub(super) fn check_available(&self) -> Result<(), Error> {
        let every = |one: &&Restriction| RestrictedOperation::ALL.iter().all(|operation| one.restricts(*operation));
        match self.vm.restrictions.iter().find(every) {
            Some(restriction) => Err(restriction.refusal().with("vm", format!("vms/{}", self.vm.id))),
            None => Ok(()),
        }
    }

    /// Refuses an operation that a restriction makes unavailable.
    pub(super) fn check_restrictions(
        &self,
        operation: RestrictedOperation,
        snapshot: Option<&'a SnapshotFacts>,
    ) -> Result<(), Error> {
        match self.restriction(operation, snapshot) {
            Some(restriction) => Err(restriction.refusal().with("vm", format!("vms/{}", self.vm.id))),
            None => Ok(()),
        }
    }

    /// What makes both taking a snapshot and going back to one impossible or dangerous.
    pub(super) fn check_changeable(&self) -> Result<(), Error> {
        let vm = self.vm;
        if !vm.persistent {
            return Err(self.refuse(
                Reason::VmTransient,
                "the machine is transient: it and its snapshots' metadata vanish when it stops",
            ));
        }
        if vm.has_managed_save {
            return Err(self.refuse(
                Reason::VmHibernated,
                "the machine is hibernated: its saved memory belongs to the disks as they are now; start it first",
            ));
        }
        self.check_no_block_job()?;
        if let Some(target) = &vm.missing_medium {
            let message = format!("the medium in drive {target} does not exist: eject it first");
            return Err(self.refuse(Reason::MediumMissing, message).with("disk", target));
        }
        Ok(())
    }

    pub(super) fn check_no_block_job(&self) -> Result<(), Error> {
        match &self.vm.block_job_disk {
            Some(target) => Err(self
                .refuse(
                    Reason::BlockJobActive,
                    format!("a block job runs on disk {target}: ask again when it has ended"),
                )
                .with("disk", target)),
            None => Ok(()),
        }
    }

    /// Whether the snapshot can be reverted to or deleted here. Both move the active image of an external one, which the
    /// policy may forbid; and beside internal ones they lose data: an overlay takes those inside it along.
    pub(super) fn check_handled(&self, snapshot: &SnapshotFacts) -> Result<(), Error> {
        let refuse = |message: String| {
            Err(self
                .refuse(Reason::SnapshotStorageUnsupported, message)
                .with("snapshot", format!("vms/{}/snapshots/{}", self.vm.id, snapshot.id)))
        };
        match snapshot.storage {
            Storage::Internal => Ok(()),
            Storage::External if self.policy.stable_paths => {
                refuse(format!("snapshot {} is external; this host handles internal ones", snapshot.id))
            }
            Storage::External => match self.tree.iter().find(|other| other.storage == Storage::Internal) {
                Some(other) => refuse(format!(
                    "snapshot {} is external and {} is internal: the two kinds cannot be mixed",
                    snapshot.id, other.id
                )),
                None => Ok(()),
            },
        }
    }
}

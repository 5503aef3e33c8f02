//! What about a VM or a snapshot makes operations unavailable.
//!
//! The agent derives restrictions from the domain's XML, its images and its host. It works by a closed list: an element or a
//! header bit that it does not understand restricts every operation that it may break. Restrictions are part of the facts of a
//! VM and of a snapshot, so that the API (GetVm), the plan and the operation decide by the same list and cannot disagree.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Reason};

/// An operation on a VM, as finely as restrictions tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestrictedOperation {
    /// An internal snapshot of a VM that is shut off.
    CreateOffline,
    /// An internal snapshot of a VM that is on, with its memory.
    CreateWithMemory,
    /// An internal snapshot of the disks of a VM that is on, by QEMU's own transaction.
    CreateLive,
    /// An external snapshot, with memory or without.
    CreateExternal,
    /// A revert by libvirt, which ends the QEMU process, if there is one, and starts another.
    Revert,
    /// A revert within the QEMU process.
    RevertInPlace,
    /// A deletion of a snapshot.
    Delete,
    /// The memory of an external snapshot: such a snapshot needs [`Self::CreateExternal`] and this.
    CreateExternalMemory,
}

impl RestrictedOperation {
    /// Every operation there is.
    pub const ALL: [Self; 8] = [
        Self::CreateOffline,
        Self::CreateWithMemory,
        Self::CreateLive,
        Self::CreateExternal,
        Self::Revert,
        Self::RevertInPlace,
        Self::Delete,
        Self::CreateExternalMemory,
    ];

    /// Every kind of snapshot.
    pub const CREATE: [Self; 4] = [Self::CreateOffline, Self::CreateWithMemory, Self::CreateLive, Self::CreateExternal];

    /// What needs the device state that QEMU saves and loads: snapshots with memory, and reverts within the process.
    pub const MEMORY: [Self; 3] = [Self::CreateWithMemory, Self::CreateExternalMemory, Self::RevertInPlace];

    /// Every kind of revert.
    pub const REVERT: [Self; 2] = [Self::Revert, Self::RevertInPlace];

    /// Every kind of snapshot and of revert: what writes disks or memory of the VM, without deletions.
    pub const CREATE_AND_REVERT: [Self; 6] = [
        Self::CreateOffline,
        Self::CreateWithMemory,
        Self::CreateLive,
        Self::CreateExternal,
        Self::Revert,
        Self::RevertInPlace,
    ];
}

/// One reason for which some operations are unavailable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restriction {
    /// The operations that are unavailable, in order and without repetition.
    pub operations: Vec<RestrictedOperation>,
    /// The machine-readable reason.
    pub reason: Reason,
    /// The sentence for the user: what stands in the way, with its value, and what to do.
    pub message: String,
    /// The target of the disk it is about, such as `vda`; `None` when it is about no single disk.
    #[serde(default)]
    pub disk: Option<String>,
}

impl Restriction {
    /// A restriction of these operations.
    pub fn new(
        operations: impl IntoIterator<Item = RestrictedOperation>,
        reason: Reason,
        message: impl Into<String>,
    ) -> Self {
        let mut operations: Vec<_> = operations.into_iter().collect();
        operations.sort_unstable();
        operations.dedup();
        Self { operations, reason, message: message.into(), disk: None }
    }

    /// The same, about one disk.
    #[must_use]
    pub fn on_disk(mut self, target: impl Into<String>) -> Self {
        self.disk = Some(target.into());
        self
    }

    /// Whether it makes this operation unavailable.
    pub fn restricts(&self, operation: RestrictedOperation) -> bool {
        self.operations.contains(&operation)
    }

    /// The refusal of an operation that it makes unavailable.
    pub fn refusal(&self) -> Error {
        let error = Error::new(self.reason, self.message.clone());
        match &self.disk {
            Some(disk) => error.with("disk", disk),
            None => error,
        }
    }
}

/// The first of these restrictions that makes the operation unavailable.
pub fn first(restrictions: &[Restriction], operation: RestrictedOperation) -> Option<&Restriction> {
    restrictions.iter().find(|restriction| restriction.restricts(operation))
}

//! What a revert is undone by when it fails: the previous state of each disk, and the previous definition.
//!
//! libvirt reverts one disk after the other and stops at the first error, so a revert that fails may leave disks of different
//! moments and the definition of the snapshot. Before it, an internal snapshot of the present that libvirt does not list, the
//! safety tag, is set in every image that the revert writes: in all of them or in none. It costs metadata only, and it is removed
//! when the operation has ended. What it is called, and where it is, is in the journal before it is set.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use snapshot_core::ids::{OperationId, SnapshotId};
use snapshot_core::restriction::{RestrictedOperation, Restriction};
use snapshot_core::{Error, Reason};

/// The beginning of the name of a safety tag; the id of its operation follows.
const PREFIX: &str = "safety-";

/// The state of a VM before a revert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Safety {
    /// The name of the safety tag.
    pub tag: String,
    /// By target, such as `vda`: the path of each qcow2 image with the safety tag.
    pub images: BTreeMap<String, String>,
    /// The persistent definition, with its secrets.
    pub definition: String,
    /// The snapshot that was current.
    pub current: Option<SnapshotId>,
}

/// What a disk holds after a revert that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// The state before the revert.
    Current,
    /// The state before the revert, which is also that of the snapshot: nothing was written in between.
    Both,
    /// The snapshot.
    Snapshot,
    /// Neither: something has written to it since.
    Other,
    /// The image cannot be read, or has no safety tag.
    Unknown,
}

/// Disks that hold states of different moments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mixed {
    /// The snapshot that a revert to failed.
    pub snapshot: SnapshotId,
    /// By target: what the disk holds, for a person to read.
    pub disks: BTreeMap<String, String>,
}

/// The name of the safety tag of an operation.
pub fn tag(operation: OperationId) -> String {
    format!("{PREFIX}{operation}")
}

/// Whether a name is one of a safety tag.
pub fn is_tag(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|rest| rest.parse::<OperationId>().is_ok())
}

impl Held {
    /// Whether it is the state before the revert.
    pub fn is_current(self) -> bool {
        matches!(self, Self::Current | Self::Both)
    }

    /// What is said of it to users.
    pub fn text(self, snapshot: &SnapshotId) -> String {
        match self {
            Self::Current | Self::Both => "current state".to_owned(),
            Self::Snapshot => format!("snapshot {snapshot}"),
            Self::Other => "another state".to_owned(),
            Self::Unknown => "unknown".to_owned(),
        }
    }
}

/// Adds what each disk holds to the error of a revert.
pub fn with_disks(error: Error, disks: &BTreeMap<String, String>) -> Error {
    disks.iter().fold(error, |error, (target, holds)| error.with(&format!("disk.{target}"), holds))
}

impl Mixed {
    /// What the VM must not do as long as its disks are mixed: nobody needs a snapshot of that. A revert ends it.
    pub fn restriction(&self) -> Restriction {
        let holds: Vec<String> = self.disks.iter().map(|(target, holds)| format!("{target}: {holds}")).collect();
        let message = format!(
            "the disks of the VM hold states of different moments after a failed revert to snapshot {} ({}): revert to a \
             snapshot without saving the current state first",
            self.snapshot,
            holds.join(", ")
        );
        Restriction::new(RestrictedOperation::CREATE, Reason::DisksMixed, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_safety_tag_is_told_by_its_name() {
        let operation = OperationId::from_uuid(uuid::Uuid::now_v7());
        assert!(is_tag(&tag(operation)));
        assert!(!is_tag("safety-net") && !is_tag("safety-") && !is_tag(&operation.to_string()));
        // QEMU compares names with ids, which are numbers.
        assert!(tag(operation).parse::<u64>().is_err());
        assert!(tag(operation).parse::<SnapshotId>().is_ok_and(|id| !id.is_ours() && id.can_name_a_job()));
    }
}

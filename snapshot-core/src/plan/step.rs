//! What a plan consists of. Each step is idempotent where it is carried out.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::SnapshotId;
use crate::snapshot::Storage;

/// What a step leaves the machine doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerState {
    /// The guest runs.
    Running,
    /// The guest is stopped in memory.
    Paused,
    /// The machine is off.
    Off,
}

/// Whether the guest's file systems are frozen while a live snapshot is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Freeze {
    /// No.
    No,
    /// Where the guest agent does it; the snapshot tells whether it did.
    IfPossible,
    /// Yes, or there is no snapshot.
    Required,
}

/// Steps of a journal from before there was a choice.
fn fallback_by_default() -> bool {
    true
}

/// One idempotent change of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "step")]
pub enum Step {
    /// Take a snapshot inside the qcow2 images.
    CreateInternal {
        /// Its id.
        snapshot: SnapshotId,
        /// Whether the running state goes into it.
        memory: bool,
    },
    /// Take a snapshot of the disks alone inside the qcow2 images of a machine that is on, all at one moment, and have
    /// libvirt know of it.
    CreateLive {
        /// Its id.
        snapshot: SnapshotId,
        /// Whether the guest's file systems are frozen meanwhile.
        quiesce: Freeze,
    },
    /// Write a snapshot's label anew.
    WriteLabel {
        /// Which.
        snapshot: SnapshotId,
    },
    /// Take the machine back to a snapshot inside its images.
    RevertInternal {
        /// Which.
        snapshot: SnapshotId,
        /// What the machine does afterwards.
        then: PowerState,
    },
    /// Load a snapshot with its running state into the QEMU process that there is.
    RevertInPlace {
        /// The id of the snapshot.
        snapshot: SnapshotId,
        /// What the machine does afterwards.
        then: PowerState,
        /// Whether libvirt's revert can succeed where this fails. Without it a failure leaves the VM as it is, or off.
        #[serde(default = "fallback_by_default")]
        fallback: bool,
    },
    /// Give the VM, which a revert has left off, the definition that it had before, and start it if it is to run.
    KeepDefinition {
        /// The id of the snapshot that was reverted to.
        snapshot: SnapshotId,
        /// Whether it is started.
        start: bool,
    },
    /// Switch the machine off at once. Only ever planned after a revert that left it paused, so no work is in its RAM.
    PowerOff,
    /// Delete a snapshot inside the images.
    DeleteInternal {
        /// Which.
        snapshot: SnapshotId,
    },
    /// Take a snapshot by laying an overlay on every disk.
    CreateExternal {
        /// Its id.
        snapshot: SnapshotId,
        /// Whether the running state goes into a file.
        memory: bool,
        /// Whether the guest's file systems are frozen meanwhile.
        quiesce: bool,
    },
    /// Take the machine back to the files that a snapshot froze.
    RevertExternal {
        /// Which.
        snapshot: SnapshotId,
        /// What the machine does afterwards.
        then: PowerState,
    },
    /// Take an external snapshot from everybody's sight. From here on nobody can go back to it, so its data may go.
    MarkDeleted {
        /// Which.
        snapshot: SnapshotId,
    },
    /// Merge the files of one disk that deleted snapshots leave without a purpose, each run of them at once.
    MergeLayers {
        /// The disk.
        disk: String,
    },
    /// Remove files that nothing reaches, and what libvirt has of deleted snapshots.
    CleanUp,
}

impl Step {
    /// The kind, in UPPER_SNAKE, as shown in plans and logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::CreateInternal { .. } => "CREATE_INTERNAL",
            Self::CreateLive { .. } => "CREATE_LIVE",
            Self::WriteLabel { .. } => "WRITE_LABEL",
            Self::RevertInternal { .. } => "REVERT_INTERNAL",
            Self::RevertInPlace { .. } => "REVERT_IN_PLACE",
            Self::KeepDefinition { .. } => "KEEP_DEFINITION",
            Self::PowerOff => "POWER_OFF",
            Self::DeleteInternal { .. } => "DELETE_INTERNAL",
            Self::CreateExternal { .. } => "CREATE_EXTERNAL",
            Self::RevertExternal { .. } => "REVERT_EXTERNAL",
            Self::MarkDeleted { .. } => "MARK_DELETED",
            Self::MergeLayers { .. } => "MERGE_LAYERS",
            Self::CleanUp => "CLEAN_UP",
        }
    }

    /// The snapshot it acts on.
    pub fn snapshot(&self) -> Option<&SnapshotId> {
        match self {
            Self::CreateInternal { snapshot, .. }
            | Self::CreateLive { snapshot, .. }
            | Self::WriteLabel { snapshot }
            | Self::RevertInternal { snapshot, .. }
            | Self::RevertInPlace { snapshot, .. }
            | Self::KeepDefinition { snapshot, .. }
            | Self::DeleteInternal { snapshot }
            | Self::CreateExternal { snapshot, .. }
            | Self::RevertExternal { snapshot, .. }
            | Self::MarkDeleted { snapshot } => Some(snapshot),
            Self::PowerOff | Self::MergeLayers { .. } | Self::CleanUp => None,
        }
    }

    /// The snapshot that it takes from the user.
    pub fn deletes(&self) -> Option<&SnapshotId> {
        match self {
            Self::DeleteInternal { snapshot } | Self::MarkDeleted { snapshot } => Some(snapshot),
            Self::CreateInternal { .. }
            | Self::CreateLive { .. }
            | Self::WriteLabel { .. }
            | Self::RevertInternal { .. }
            | Self::RevertInPlace { .. }
            | Self::KeepDefinition { .. }
            | Self::PowerOff
            | Self::CreateExternal { .. }
            | Self::RevertExternal { .. }
            | Self::MergeLayers { .. }
            | Self::CleanUp => None,
        }
    }

    /// How it stores the snapshot that it takes.
    pub fn stores(&self) -> Option<Storage> {
        match self {
            Self::CreateInternal { .. } | Self::CreateLive { .. } => Some(Storage::Internal),
            Self::CreateExternal { .. } => Some(Storage::External),
            Self::WriteLabel { .. }
            | Self::RevertInternal { .. }
            | Self::RevertInPlace { .. }
            | Self::KeepDefinition { .. }
            | Self::PowerOff
            | Self::DeleteInternal { .. }
            | Self::RevertExternal { .. }
            | Self::MarkDeleted { .. }
            | Self::MergeLayers { .. }
            | Self::CleanUp => None,
        }
    }

    /// Whether an operation may be stopped before it and leave what somebody asked for: a smaller tree.
    pub(super) fn may_be_left(&self) -> bool {
        self.deletes().is_some() || matches!(self, Self::MergeLayers { .. } | Self::CleanUp)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CreateInternal { memory: true, .. } => "saving the disks and the running state",
            Self::CreateInternal { memory: false, .. } | Self::CreateLive { .. } => "saving the disks",
            Self::WriteLabel { .. } => "writing the name and description",
            Self::RevertInternal { .. } | Self::RevertInPlace { .. } | Self::KeepDefinition { .. } => {
                "going back to the snapshot"
            }
            Self::RevertExternal { .. } => "going back to the snapshot",
            Self::PowerOff => "switching the machine off",
            Self::DeleteInternal { .. } | Self::MarkDeleted { .. } => "deleting a snapshot",
            Self::CreateExternal { memory: true, .. } => "saving the running state and laying overlays on the disks",
            Self::CreateExternal { memory: false, .. } => "laying overlays on the disks",
            Self::MergeLayers { .. } => "merging what deleted snapshots leave",
            Self::CleanUp => "removing what nothing needs",
        })
    }
}

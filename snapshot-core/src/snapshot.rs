//! What a host has of a snapshot.

use serde::{Deserialize, Serialize};

use crate::description::Label;
use crate::error::Reason;
use crate::ids::SnapshotId;
use crate::restriction::Restriction;

/// What a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// The disks alone.
    Disks,
    /// The disks and the running state.
    DisksAndMemory,
}

/// How a snapshot is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// Inside the qcow2 images.
    Internal,
    /// As overlay files.
    External,
}

/// What the machine was doing when the snapshot was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordedState {
    /// It was off.
    Shutoff,
    /// It was running, and its memory is in the snapshot.
    Running,
    /// It was paused, and its memory is in the snapshot.
    Paused,
    /// It was running, and only its disks are in the snapshot.
    DiskOnly,
}

/// How consistent the file systems in a snapshot are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// Nothing is missing: the machine was off, or its memory is in the snapshot.
    Complete,
    /// The guest agent froze them.
    FileSystem,
    /// As after a power cut: no freeze was asked for.
    Crash,
    /// As after a power cut: there was no guest agent to freeze them.
    CrashNoAgent,
    /// As after a power cut: the guest agent did not freeze them, or not for long enough.
    CrashFreezeTimeout,
}

/// Who made a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// This service.
    Service,
    /// Another tool.
    Foreign,
}

/// A snapshot as the host has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotFacts {
    /// libvirt's name.
    pub id: SnapshotId,
    /// The snapshot it was taken on top of.
    pub parent: Option<SnapshotId>,
    /// Whether the machine's present descends from it directly.
    pub is_current: bool,
    /// When it was taken, in seconds of the Unix epoch, by the host's clock.
    pub create_time: i64,
    /// What the user wrote.
    pub label: Label,
    /// What it holds.
    pub content: Content,
    /// How it is stored.
    pub storage: Storage,
    /// What the machine was doing.
    pub vm_state: RecordedState,
    /// How consistent its file systems are; `None` where nobody wrote that down.
    #[serde(default)]
    pub consistency: Option<Consistency>,
    /// The targets of the disks in it.
    pub disks: Vec<String>,
    /// Bytes that are its own from its first moment.
    pub size_bytes: u64,
    /// Who made it.
    pub origin: Origin,
    /// Why its data cannot be used.
    pub broken: Option<Reason>,
    /// What about it makes operations on it unavailable; those of its VM apply as well.
    #[serde(default)]
    pub restrictions: Vec<Restriction>,
    /// Why the host's policy leaves reverts to it to administrators, for a person to read; `None` where it does not.
    #[serde(default)]
    pub revert_denied: Option<String>,
}

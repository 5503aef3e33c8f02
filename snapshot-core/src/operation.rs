//! The life of an operation.
//!
//! ```text
//!   Pending --accepted--> Running --ended--> Succeeded | Failed | Cancelled
//!      |                     |
//!      +----- refused -------+--(contact lost)--> Running, until the host is heard of again
//!      +--> Failed | Cancelled
//! ```
//!
//! Every state that is not an end has an owner: the API owns `Pending` and gives it up at the latest when the caller's
//! token ends; the agent that journalled the acceptance owns `Running`.

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ids::{SnapshotId, VmId};
use crate::snapshot::{Content, Storage};
use crate::text::{Description, DisplayName};

/// How far an operation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// Recorded; no host has taken it on yet.
    Pending,
    /// A host has taken it on.
    Running,
    /// Done.
    Succeeded,
    /// Not done.
    Failed,
    /// Stopped on request.
    Cancelled,
}

/// What can happen to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// A host journalled it.
    Accepted,
    /// It ended so.
    Ended(Outcome),
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Done.
    Succeeded,
    /// Not done.
    Failed,
    /// Stopped on request.
    Cancelled,
}

impl OperationState {
    /// Whether nothing more happens to it.
    pub fn is_ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// The state after an event; `None` when the event changes nothing, as every event after the end and every repeat.
    pub fn after(self, transition: Transition) -> Option<OperationState> {
        match (self, transition) {
            (Self::Pending, Transition::Accepted) => Some(Self::Running),
            (Self::Pending | Self::Running, Transition::Ended(Outcome::Succeeded)) => Some(Self::Succeeded),
            (Self::Pending | Self::Running, Transition::Ended(Outcome::Failed)) => Some(Self::Failed),
            (Self::Pending | Self::Running, Transition::Ended(Outcome::Cancelled)) => Some(Self::Cancelled),
            (Self::Running, Transition::Accepted)
            | (Self::Succeeded | Self::Failed | Self::Cancelled, Transition::Accepted | Transition::Ended(_)) => None,
        }
    }
}

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// Takes a snapshot.
    Create,
    /// Changes what is written about one.
    Update,
    /// Takes the machine back to one.
    Revert,
    /// Deletes one or several.
    Delete,
    /// Deletes all of a machine.
    Purge,
}

/// How an operation reached its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// By libvirt's own snapshot calls.
    Libvirt,
    /// While the guest ran on, by QEMU's transaction.
    Live,
    /// In the running QEMU process.
    InPlace,
}

/// Something that a person should know of an operation that succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// What it is about.
    pub kind: NoteKind,
    /// The sentence for a person.
    pub message: String,
}

/// What a note is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoteKind {
    /// After a revert to a running state the guest's clock was not set: it shows the time of the snapshot.
    GuestClockNotSet,
    /// Something that this version does not know; the message says it.
    Other,
}

/// What a machine does after a revert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunAfter {
    /// As the snapshot recorded it.
    #[default]
    AsRecorded,
    /// It runs.
    Running,
    /// It is off.
    Off,
}

/// Which snapshots a deletion takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeleteScope {
    /// The snapshot itself; its children move up to its parent.
    #[default]
    Only,
    /// The snapshot and all that descend from it.
    Subtree,
    /// All that descend from it, and not the snapshot itself.
    Descendants,
}

/// Take a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Create {
    /// Its id.
    pub snapshot: SnapshotId,
    /// The user's name for it.
    pub display_name: DisplayName,
    /// The user's text about it.
    pub description: Description,
    /// Whether it is protected.
    pub protected: bool,
    /// What it shall hold; `None` is automatic.
    pub content: Option<Content>,
    /// How it shall be stored; `None` is automatic.
    pub storage: Option<Storage>,
    /// Whether to freeze the file systems.
    pub quiesce: bool,
    /// Whether a live snapshot is taken all the same where they cannot be frozen.
    #[serde(default)]
    pub allow_crash_consistent: bool,
}

/// What to do to a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Request {
    /// Take a snapshot.
    Create(Create),
    /// Change what is written about one.
    Update {
        /// Which.
        snapshot: SnapshotId,
        /// The name afterwards.
        display_name: DisplayName,
        /// The text afterwards.
        description: Description,
        /// The protection afterwards.
        protected: bool,
    },
    /// Go back to one.
    Revert {
        /// Which.
        snapshot: SnapshotId,
        /// What the machine does afterwards.
        run_after: RunAfter,
        /// The snapshot of the present to take first.
        save_current: Option<Create>,
    },
    /// Delete some.
    Delete {
        /// The one the scope is about.
        snapshot: SnapshotId,
        /// Which.
        scope: DeleteScope,
        /// Whether protected ones are deleted too.
        force: bool,
    },
    /// Delete all.
    Purge {
        /// Whether protected ones are deleted too.
        force: bool,
    },
}

impl Request {
    /// What it does, without the details.
    pub fn kind(&self) -> OperationKind {
        match self {
            Self::Create(_) => OperationKind::Create,
            Self::Update { .. } => OperationKind::Update,
            Self::Revert { .. } => OperationKind::Revert,
            Self::Delete { .. } => OperationKind::Delete,
            Self::Purge { .. } => OperationKind::Purge,
        }
    }

    /// The snapshot it is about, if it is about one.
    pub fn snapshot(&self) -> Option<&SnapshotId> {
        match self {
            Self::Create(create) => Some(&create.snapshot),
            Self::Update { snapshot, .. } | Self::Revert { snapshot, .. } | Self::Delete { snapshot, .. } => {
                Some(snapshot)
            }
            Self::Purge { .. } => None,
        }
    }
}

/// The refusal of a second mutation while another runs.
pub fn busy(vm: VmId, operation: impl std::fmt::Display) -> Error {
    Error::new(crate::Reason::VmBusy, format!("operations/{operation} is changing vms/{vm}"))
        .with("operation", format!("operations/{operation}"))
        .with("vm", format!("vms/{vm}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_transition() -> impl Strategy<Value = Transition> {
        prop_oneof![
            Just(Transition::Accepted),
            prop_oneof![Just(Outcome::Succeeded), Just(Outcome::Failed), Just(Outcome::Cancelled)]
                .prop_map(Transition::Ended),
        ]
    }

    proptest! {
        #[test]
        fn an_end_is_final_and_the_first_end_wins(events in proptest::collection::vec(any_transition(), 0..12)) {
            let mut state = OperationState::Pending;
            let mut end = None;
            for event in events {
                if let Some(next) = state.after(event) {
                    prop_assert!(!state.is_ended());
                    state = next;
                }
                if let Some(end) = end { prop_assert_eq!(state, end); }
                if state.is_ended() { end = Some(state); }
            }
        }
    }
}

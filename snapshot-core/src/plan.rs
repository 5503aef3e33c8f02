//! The planner: (live domain facts, live tree, policy, request) to steps, or a refusal with its reason.
//!
//! Each step is idempotent where it is carried out, so that a plan can be repeated after any crash. The rules come from what
//! libvirt was measured to do; each refusal stands for a way in which it would fail late, lose data or stop a guest.

mod capability;
mod create;
mod delete;
mod in_place;
mod names;
mod revert;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use capability::{Capability, CapabilityKind, capabilities};
pub use create::id_in_use;
pub use delete::check_merge;
pub use in_place::{go_in_place, may_go_in_place};

use crate::error::{Error, Reason};
use crate::ids::SnapshotId;
use crate::layers::Layers;
use crate::operation::{Method, Request};
use crate::policy::HostPolicy;
use crate::snapshot::{SnapshotFacts, Storage};
use crate::tree::SnapshotTree;
use crate::vm::VmFacts;

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
        /// Which.
        snapshot: SnapshotId,
        /// What the machine does afterwards.
        then: PowerState,
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
            | Self::PowerOff
            | Self::DeleteInternal { .. }
            | Self::RevertExternal { .. }
            | Self::MarkDeleted { .. }
            | Self::MergeLayers { .. }
            | Self::CleanUp => None,
        }
    }

    /// Whether an operation may be stopped before it and leave what somebody asked for: a smaller tree.
    fn may_be_left(&self) -> bool {
        self.deletes().is_some() || matches!(self, Self::MergeLayers { .. } | Self::CleanUp)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CreateInternal { memory: true, .. } => "saving the disks and the running state",
            Self::CreateInternal { memory: false, .. } | Self::CreateLive { .. } => "saving the disks",
            Self::WriteLabel { .. } => "writing the name and description",
            Self::RevertInternal { .. } | Self::RevertInPlace { .. } => "going back to the snapshot",
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

/// Something that cannot be got back once a plan is carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loss {
    /// What was written to the disks since a snapshot was taken, or since the machine was made.
    ChangesSince(Option<Box<SnapshotFacts>>),
    /// What runs in the machine now.
    RunningState,
    /// A disk that the snapshot does not know leaves the machine; its image stays.
    DiskDetached(String),
    /// The UEFI variables of that time, which the snapshot does not hold: those of now stay, with older disks.
    UefiVariables,
    /// A snapshot.
    Snapshot(Box<SnapshotFacts>),
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ChangesSince(Some(snapshot)) => {
                write!(f, "everything written to the disks since \u{201c}{}\u{201d}", snapshot.label.display_name)
            }
            Self::ChangesSince(None) => f.write_str("everything written to the disks since the machine was made"),
            Self::RunningState => f.write_str("the programs that are running now and what they have not saved"),
            Self::DiskDetached(disk) => {
                write!(f, "disk {disk} was added later: it leaves the machine (its image file stays)")
            }
            Self::UefiVariables => f.write_str(
                "the UEFI variables of that time (such as the order in which it boots) are not in the snapshot: \
                 the machine keeps those it has now",
            ),
            Self::Snapshot(snapshot) => write!(f, "the snapshot \u{201c}{}\u{201d}", snapshot.label.display_name),
        }
    }
}

/// What will be done, and at what price.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// The bytes they are expected to write on the host; an upper bound where the guest's RAM is saved.
    pub bytes_written: u64,
    /// How long the guest is expected to stand still, in milliseconds; `None` when it does not.
    pub predicted_pause_ms: Option<u64>,
    /// What cannot be got back.
    pub losses: Vec<Loss>,
    /// How it is done.
    pub method: Option<Method>,
    /// Why it is not done live or in place, for a person to read.
    pub other_way: Option<String>,
}

impl Plan {
    /// The snapshots that will be gone.
    pub fn deleted(&self) -> impl Iterator<Item = &SnapshotId> {
        self.steps.iter().filter_map(Step::deletes)
    }

    /// Whether it can be stopped between two steps and leave what somebody asked for: deletions can, a revert after its saving
    /// step cannot, a single step has no between. Saving the running state in a file is the one that can be stopped within.
    pub fn cancellable(&self) -> bool {
        match self.steps.as_slice() {
            [Step::CreateExternal { memory, .. }] => *memory,
            steps => steps.len() > 1 && steps.iter().all(Step::may_be_left),
        }
    }
}

/// What the planner looks at.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// The machine.
    pub vm: &'a VmFacts,
    /// Its snapshots.
    pub tree: &'a SnapshotTree,
    /// The files of its external snapshots; empty where they are not known, which only makes a plan less exact.
    pub layers: &'a Layers,
    /// What its host allows.
    pub policy: &'a HostPolicy,
}

/// Plans a request, or refuses it.
pub fn plan(situation: Situation<'_>, request: &Request) -> Result<Plan, Error> {
    match request {
        Request::Create(create) => create::plan(situation, create),
        Request::Update { snapshot, .. } => update(situation, snapshot),
        Request::Revert { snapshot, run_after, save_current } => {
            revert::plan(situation, snapshot, *run_after, save_current.as_ref())
        }
        Request::Delete { snapshot, scope, force } => delete::plan(situation, snapshot, *scope, *force),
        Request::Purge { force } => delete::purge(situation, *force),
    }
}

/// Plans the purge of a machine that is gone; the situation is what is remembered of it.
pub fn purge_left_behind(situation: Situation<'_>, force: bool) -> Result<Plan, Error> {
    delete::purge_left_behind(situation, force)
}

fn update(situation: Situation<'_>, snapshot: &SnapshotId) -> Result<Plan, Error> {
    situation.snapshot(snapshot)?;
    Ok(Plan { steps: vec![Step::WriteLabel { snapshot: snapshot.clone() }], ..Plan::default() })
}

impl<'a> Situation<'a> {
    fn snapshot(&self, id: &SnapshotId) -> Result<&'a SnapshotFacts, Error> {
        self.tree.get(id).ok_or_else(|| Error::snapshot_not_found(self.vm.id, id))
    }

    fn refuse(&self, reason: Reason, message: impl Into<String>) -> Error {
        Error::new(reason, message).with("vm", format!("vms/{}", self.vm.id))
    }

    /// What makes both taking a snapshot and going back to one impossible or dangerous.
    fn check_changeable(&self) -> Result<(), Error> {
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

    fn check_no_block_job(&self) -> Result<(), Error> {
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
    fn check_handled(&self, snapshot: &SnapshotFacts) -> Result<(), Error> {
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

#[cfg(test)]
mod external_tests;
#[cfg(test)]
mod live_tests;
#[cfg(test)]
mod tests;

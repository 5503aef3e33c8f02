//! What the agent asks of a hypervisor, in the agent's own types.
//!
//! Everything here blocks and is called on blocking threads only. [`libvirt`] implements it; tests have a fake that fails or stalls.
//!
//! None of these calls decides anything: the planner decides what may be done, and the caller looks whether it is done already. A call
//! that fails may have had its effect, or half of it.

mod beyond;
mod block_nodes;
mod definition;
pub(crate) mod directory_images;
mod domain_xml;
#[cfg(fuzzing)]
pub mod fuzzing;
mod hardware_xml;
mod image_facts;
mod images;
pub mod inbox;
pub mod libvirt;
mod other_hosts;
mod overlays;
mod snapshot_write;
mod snapshot_xml;
#[cfg(test)]
mod tests;
mod versions;
#[cfg(test)]
mod xml_samples;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use proto::convert::Inventory;
use snapshot_core::description::Label;
use snapshot_core::hardware::Comparison;
use snapshot_core::ids::{SnapshotId, VmId};
use snapshot_core::images::Uses;
use snapshot_core::layers::{Layers, Merge};
use snapshot_core::plan::{Freeze, PowerState, RevertedDefinition};
use snapshot_core::restriction::Restriction;
use snapshot_core::snapshot::SnapshotFacts;
use snapshot_core::vm::{VmFacts, VmState};
use snapshot_core::{Error, Reason};

pub use self::versions::Versions;
use crate::beneath::Beneath;
use crate::safety::{Held, Safety};
use inbox::Inbox;

/// What is added to the name of a file that is guarded ([`Hypervisor::guard`]).
pub(crate) const GUARDED: &str = ".kept";

/// A hypervisor.
pub trait Hypervisor: Send + Sync + 'static {
    /// The machines there are.
    fn vms(&self) -> Result<Vec<VmId>, Failure>;

    /// Everything there is to know about a machine.
    fn observe(&self, vm: VmId, reread: Reread<'_>) -> Result<Observed, Failure>;

    /// The same once more after a snapshot was taken or deleted, for less: what that does not change is taken over.
    fn observe_again(&self, before: &Observed) -> Result<Observed, Failure>;

    /// The little of it that changes when somebody takes, deletes or goes back to a snapshot.
    fn outline(&self, vm: VmId) -> Result<Outline, Failure>;

    /// Takes a snapshot of all writable disks inside their images, with the running state or without.
    fn create_internal(&self, vm: &VmFacts, id: &SnapshotId, label: &Label, memory: bool) -> Result<(), Failure>;

    /// Takes a snapshot of all writable disks of a machine that is on inside their images, without its memory and without
    /// stopping it: of all of them or of none. How consistent it is, is written in its label. Tells how long the guest's disks were
    /// held up. Where the guest's file systems are to be frozen, they are thawed again, as with [`Hypervisor::create_external`].
    fn create_live(&self, vm: &VmFacts, id: &SnapshotId, label: &Label, quiesce: Freeze) -> Result<Duration, Failure>;

    /// Replaces what is written about a snapshot.
    fn write_label(&self, vm: VmId, layers: &Layers, id: &SnapshotId, label: &Label) -> Result<(), Failure>;

    /// Takes the machine back to a snapshot inside its images.
    fn revert_internal(&self, vm: VmId, id: &SnapshotId, then: PowerState) -> Result<(), Failure>;

    /// Checks what libvirt's own revert needs of the host and finds out only after it has changed something; changes nothing.
    fn check_revert(&self, vm: &VmFacts, id: &SnapshotId) -> Result<(), Failure>;

    /// The state of a VM before a revert to a snapshot, with the images that a safety tag of this name can be set in.
    fn before_revert(&self, vm: VmId, id: &SnapshotId, tag: String) -> Result<Safety, Failure>;

    /// Sets the safety tag in every image, or in none, in place of an earlier one. [`Failure::Unintelligible`]: QEMU cannot do it here.
    fn set_safety_tag(&self, vm: VmId, safety: &Safety) -> Result<(), Failure>;

    /// By target: what each image with a safety tag holds, of that and of the snapshot.
    fn held(&self, vm: VmId, safety: &Safety, id: &SnapshotId) -> Result<BTreeMap<String, Held>, Failure>;

    /// Brings the disks of a VM that is off back to the safety tag.
    fn restore_disks(&self, vm: VmId, safety: &Safety) -> Result<(), Failure>;

    /// Defines the VM as it was before a revert. Whether it was otherwise.
    fn restore_definition(&self, vm: VmId, safety: &Safety) -> Result<bool, Failure>;

    /// Removes the safety tag from all images, also of a VM that does not exist any more.
    fn remove_safety_tag(&self, vm: VmId, safety: &Safety) -> Result<(), Failure>;

    /// Has the safety tag listed as a snapshot.
    fn list_safety_tag(&self, vm: VmId, safety: &Safety, label: &Label) -> Result<(), Failure>;

    /// Whether a machine that is on is still made of what it was made of when a snapshot with its running state was taken, and
    /// whether QEMU can load that into the process that there is.
    fn hardware(&self, vm: VmId, id: &SnapshotId) -> Result<Comparison, Failure>;

    /// What libvirt's revert to this snapshot would do to the VM's definition, and whether the VM has an emulated TPM.
    fn reverted_definition(&self, vm: VmId, snapshot: &SnapshotFacts) -> Result<RevertedDefinition, Failure>;

    /// Has the machine's QEMU load a snapshot, with its running state, under the name of a job. The guest has to stand still, and
    /// does so afterwards. What became of it can be asked until that is forgotten. Where it fails, some of it may be loaded, and
    /// nothing that a guest may see says so.
    fn load(&self, vm: &VmFacts, id: &SnapshotId, job: &str) -> Result<(), Failure>;

    /// What became of a load.
    fn loaded(&self, vm: VmId, job: &str) -> Result<Load, Failure>;

    /// Has QEMU forget what became of a load. One that it does not know is forgotten.
    fn forget_load(&self, vm: VmId, job: &str) -> Result<(), Failure>;

    /// Writes down that the machine's present descends from this snapshot.
    fn make_current(&self, vm: VmId, id: &SnapshotId) -> Result<(), Failure>;

    /// Stops the guest in memory.
    fn suspend(&self, vm: VmId) -> Result<(), Failure>;

    /// Deletes a snapshot inside the images, and what is written about it. Its children go to its parent.
    fn delete_internal(&self, vm: VmId, id: &SnapshotId) -> Result<(), Failure>;

    /// Deletes what is written about a snapshot and leaves the images alone.
    fn forget(&self, vm: VmId, id: &SnapshotId) -> Result<(), Failure>;

    /// Deletes a snapshot that is in the images of `vm` and that nothing is written about.
    fn remove_stray(&self, vm: &VmFacts, id: &SnapshotId) -> Result<(), Failure>;

    /// Takes an external snapshot. Where it is to freeze the guest's file systems, they are thawed again whatever comes of
    /// it, and after a while even before anything has come of it.
    fn create_external(&self, vm: &VmFacts, new: &NewExternal<'_>, watch: &dyn Watch) -> Result<(), Failure>;

    /// Has the machine leave the overlays of a snapshot that libvirt does not know it to be on, because its daemon died
    /// while it took that. What was written there is merged down; but where the machine may have been started again since, on
    /// what lies below, that is an error. Nothing to be left is success.
    fn take_back(&self, vm: &VmFacts, layers: &Layers, id: &SnapshotId, may_have_run: bool) -> Result<(), Failure>;

    /// Takes the machine back to an external snapshot. What libvirt removes then is the active files, which is told it
    /// where it has it otherwise.
    fn revert_external(&self, vm: VmId, layers: &Layers, id: &SnapshotId, then: PowerState) -> Result<(), Failure>;

    /// Writes about a snapshot that it is deleted: from then on it is not listed.
    fn mark_deleted(&self, vm: VmId, layers: &Layers, id: &SnapshotId) -> Result<(), Failure>;

    /// Copies what is above a base into it. Of a disk that runs, the machine uses the base from then on.
    fn commit(&self, vm: &VmFacts, layers: &Layers, merge: &Merge, watch: &dyn Watch) -> Result<(), Failure>;

    /// Sends whoever uses the top of a merge to its base, which has the same content by now.
    fn redirect(&self, vm: &VmFacts, layers: &Layers, merge: &Merge) -> Result<(), Failure>;

    /// The files that others than this machine reach.
    fn elsewhere(&self, vm: VmId) -> Result<BTreeSet<String>, Failure>;

    /// Bytes free on the file system that this file is on; `None` where that cannot be told.
    fn free_bytes(&self, path: &str) -> Option<u64>;

    /// Keeps files from being lost by what comes next, until [`Hypervisor::unguard`]. Those that were lost since they were guarded
    /// are brought back; those that are not there at all are left out.
    fn guard(&self, files: &[String]) -> Result<(), Failure>;

    /// Brings back those of these files that were lost since they were guarded, and guards them no more.
    fn unguard(&self, files: &[String]) -> Result<(), Failure>;

    /// Removes files; those that are not there are gone already.
    fn unlink(&self, files: &[String]) -> Result<(), Failure>;

    /// Thaws the guest's file systems, if the guest can be asked to.
    fn thaw(&self, vm: VmId) -> Result<(), Failure>;

    /// Sets the guest's clock to the host's through the guest agent. An error says that it was not set, or may not have been.
    fn set_guest_clock(&self, vm: VmId) -> Result<(), Failure>;

    /// Whether libvirt is at something that takes long on the machine, whoever asked for it.
    fn is_busy(&self, vm: VmId) -> Result<bool, Failure>;

    /// Starts a VM that is off. One that is on is left as it is.
    fn start(&self, vm: VmId) -> Result<(), Failure>;

    /// Switches the machine off at once.
    fn power_off(&self, vm: VmId) -> Result<(), Failure>;

    /// Lets a paused guest run on.
    fn resume(&self, vm: VmId) -> Result<(), Failure>;

    /// The versions of what runs here.
    fn versions(&self) -> Result<Versions, Failure>;

    /// The folders beneath which files may be touched.
    fn folders(&self) -> &Beneath {
        Beneath::anywhere()
    }

    /// Where news of the machines arrives by itself.
    fn inbox(&self) -> &Inbox;
}

/// An external snapshot to be taken.
#[derive(Debug, Clone, Copy)]
pub struct NewExternal<'a> {
    /// Its id.
    pub id: &'a SnapshotId,
    /// What is written about it.
    pub label: &'a Label,
    /// By target: where the overlays go.
    pub overlays: &'a BTreeMap<String, String>,
    /// Where the running state goes, if it is in it.
    pub memory_file: Option<&'a str>,
    /// Whether the guest's file systems are frozen meanwhile.
    pub quiesce: bool,
}

/// What became of a load of a snapshot into a QEMU process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// This process has not been told to.
    None,
    /// It is at it.
    Running,
    /// It is done, on every disk and in memory.
    Done,
    /// It failed, and may have come any part of the way.
    Failed,
}

/// Somebody who waits for a long call.
pub trait Watch: Sync {
    /// So many bytes are done, of so many.
    fn progress(&self, done: u64, of: u64);

    /// Whether the call is to be ended before it is done.
    fn is_cancelled(&self) -> bool;
}

/// A machine as it was a moment ago.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The machine.
    pub vm: VmFacts,
    /// Its snapshots, as libvirt lists them, without those that are deleted for everybody but libvirt.
    pub snapshots: Vec<SnapshotFacts>,
    /// The files of its disks and of its external snapshots, deleted ones included.
    pub layers: Layers,
    /// The number of the run: it differs from one QEMU process to the next; `None` when the machine is off.
    pub instance: Option<u32>,
    /// Why it is paused, if it is.
    pub paused_by: Option<PausedBy>,
    /// Snapshots in the images of the machine's disks that libvirt does not list, by their ids.
    pub strays: BTreeSet<String>,
    /// The qcow2 images of its disks and of its snapshots, each with the names of the snapshots in it and when they were taken; `None`
    /// for one that is not there, or cannot be read now.
    pub images: BTreeMap<PathBuf, Option<BTreeMap<String, crate::qcow2::Stamp>>>,
    /// The qcow2 file with its UEFI variables.
    pub nvram: Option<PathBuf>,
    /// The files that it reaches, and those that a revert changes.
    pub uses: Uses,
    /// Of the restrictions of the VM, those that do not come from its images: a snapshot that is taken or deleted changes none.
    pub defined: Vec<Restriction>,
}

/// Why a guest stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PausedBy {
    /// A snapshot that was being taken.
    Snapshot,
    /// Somebody. libvirt says so, too, of a guest that was paused for a snapshot when its daemon died before it could
    /// write down why.
    Somebody,
    /// Something for which it must not simply run on, such as a disk that fails; or a revert, as it was told to.
    Something,
}

impl Observed {
    /// The snapshot with this id.
    pub fn snapshot(&self, id: &SnapshotId) -> Option<&SnapshotFacts> {
        self.snapshots.iter().find(|snapshot| snapshot.id == *id)
    }

    /// Whether this snapshot is listed and its data is there.
    pub fn has_whole(&self, id: &SnapshotId) -> bool {
        self.snapshot(id).is_some_and(|snapshot| snapshot.broken.is_none())
    }

    /// Whether the images keep a snapshot of this name that is not listed.
    pub fn has_stray(&self, id: &SnapshotId) -> bool {
        self.strays.contains(id.as_str())
    }

    /// What of it goes to the API; it gets its number when it is published.
    pub fn inventory(&self) -> Inventory {
        Inventory { vm: self.vm.clone(), snapshots: self.snapshots.clone(), sequence: 0, unobserved: false }
    }
}

/// How much of what is written about snapshots is read again. It changes only when somebody redefines it, and reading it
/// is what makes a look at a machine with many snapshots slow: 0.4 ms each. Which snapshots there are, which is current,
/// and what is in the images is read anew by every look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reread<'a> {
    /// All of it.
    All,
    /// Of this snapshot, and of those that are new or whose parent is gone.
    One(&'a SnapshotId),
    /// The same of several, by libvirt's names of them.
    Some(&'a BTreeSet<String>),
    /// Of those that are new or whose parent is gone.
    New,
}

/// The names of a machine's snapshots, and which is current. Comparing two tells whether to look closer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outline {
    /// The names of the snapshots.
    pub snapshots: BTreeSet<String>,
    /// The one marked as current.
    pub current: Option<String>,
}

/// A VM that cannot be observed, because something about it does not respond.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unresponsive {
    /// What that makes unavailable: every operation. Its message names what does not respond.
    pub restriction: Restriction,
    /// libvirt's name of the VM and what it does, where that could be found out.
    pub known: Option<(String, VmState)>,
}

/// Why a call did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// There is no such machine.
    #[error("there is no such machine")]
    VmGone,
    /// There is no such snapshot.
    #[error("there is no such snapshot")]
    SnapshotGone,
    /// The hypervisor cannot be reached; a call that was under way may or may not have been carried out.
    #[error("libvirt cannot be reached: {0}")]
    Unreachable(String),
    /// It refused or failed.
    #[error("libvirt [{code}]: {message}")]
    Refused {
        /// libvirt's number for the kind of error (`virErrorNumber`).
        code: u32,
        /// libvirt's words.
        message: String,
    },
    /// It cannot be done as things are, for a reason that there is a name for; nothing was changed.
    #[error("{0}")]
    Precondition(Error),
    /// The guest's file systems were not frozen for as long as they had to be. What was done meanwhile may be there, and
    /// they may be frozen now, or later.
    #[error("{0}")]
    FreezeLost(Error),
    /// The VM's storage, or libvirt about this VM, does not respond. Nothing was changed.
    #[error("{}", .0.restriction.message)]
    Unresponsive(Box<Unresponsive>),
    /// It said something that makes no sense, or the binding gave up.
    #[error("{0}")]
    Unintelligible(String),
}

impl Failure {
    /// The error for the caller; `while_doing` is what was attempted, as in "the snapshot could not be taken".
    pub fn to_error(&self, vm: VmId, snapshot: Option<&SnapshotId>, while_doing: &str) -> Error {
        let named = |error: Error| error.with("vm", proto::names::vm(vm));
        match self {
            Self::VmGone => Error::vm_not_found(vm),
            Self::SnapshotGone => match snapshot {
                Some(snapshot) => Error::snapshot_not_found(vm, snapshot),
                None => named(Error::new(Reason::HypervisorFailed, while_doing)),
            },
            Self::Unreachable(_) => {
                named(Error::new(Reason::HypervisorUnavailable, "libvirt on the host does not answer"))
            }
            Self::Refused { code, message } => {
                // In QEMU's and libvirt's words: neither has a code for it.
                let error = if message.contains("No space left on device") {
                    Error::new(Reason::SpaceLow, format!("{while_doing}: no space was left on the host"))
                } else {
                    Error::new(Reason::HypervisorFailed, while_doing)
                };
                named(error).with("libvirt_code", code.to_string()).with("libvirt_message", message)
            }
            Self::Precondition(error) | Self::FreezeLost(error) => named(error.clone()),
            Self::Unresponsive(unresponsive) => named(unresponsive.restriction.refusal()),
            Self::Unintelligible(what) => named(Error::new(Reason::Internal, while_doing)).with("cause", what),
        }
    }
}

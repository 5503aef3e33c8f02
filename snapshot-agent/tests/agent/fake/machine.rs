//! A machine of the host of variables.

use snapshot_core::definition_change::DefinitionChange;

use super::*;

/// A machine of variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    /// Its facts.
    pub(crate) vm: VmFacts,
    /// Its snapshots.
    pub(crate) snapshots: Vec<SnapshotFacts>,
    /// The number of its run.
    pub(crate) instance: Option<u32>,
    /// Why it is paused.
    pub(crate) paused_by: Option<PausedBy>,
    /// What a guest reads from each disk.
    pub(crate) disks: Vec<char>,
    /// What is in each disk's image, by snapshot.
    pub(crate) images: Vec<BTreeMap<SnapshotId, char>>,
    /// The files of its disks and external snapshots.
    pub(crate) layers: Layers,
    /// What a guest would read through each file; of a disk's active file see `disks`.
    pub(crate) content: BTreeMap<String, char>,
    /// Overlays that QEMU is on and libvirt does not know of.
    pub(crate) ahead: BTreeSet<String>,
    /// What its QEMU remembers of loads.
    pub(crate) loads: BTreeMap<String, Load>,
    /// Whether its hardware is what it was.
    pub(crate) hardware: Comparison,
    /// Whether somebody resumes it after a load, and no snapshot can be marked as current.
    pub(crate) runs_on_unmarked: bool,
    /// What a revert changes in its definition. Where anything is, the host's policy keeps the definition.
    pub(crate) changes: Vec<DefinitionChange>,
    /// Its persistent definition.
    pub(crate) definition: String,
    /// Whether libvirt's revert fails after the first disk.
    pub(crate) reverts_halfway: bool,
    /// Whether no disk can be restored.
    pub(crate) restores_nothing: bool,
    /// Why libvirt's revert cannot succeed.
    pub(crate) against_revert: Option<Error>,
}

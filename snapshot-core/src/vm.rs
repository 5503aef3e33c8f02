//! What a machine is and does: the facts that the planner decides by.

use serde::{Deserialize, Serialize};

use crate::error::Reason;
use crate::ids::VmId;
use crate::restriction::Restriction;

/// What a machine is doing, as libvirt tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// Not known.
    Unknown,
    /// The guest runs.
    Running,
    /// The guest is stopped in memory.
    Paused,
    /// The machine is off.
    Shutoff,
    /// The guest crashed and its memory is kept.
    Crashed,
    /// The guest sleeps (ACPI S3).
    Suspended,
}

/// How a machine keeps its UEFI variables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Nvram {
    /// It has none.
    Absent,
    /// In a qcow2 file, which internal snapshots include.
    Qcow2,
    /// In a raw file, which they cannot.
    Raw,
}

/// A disk that is not a removable medium.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFacts {
    /// The target, such as `vda`.
    pub target: String,
    /// The path of the active image; empty for network disks.
    pub path: String,
    /// The format of the active image, such as `qcow2`.
    pub format: String,
    /// Whether the guest cannot write to it.
    pub read_only: bool,
    /// Whether the image is a clone on top of a backing file.
    pub has_backing_file: bool,
    /// The size the guest sees, in bytes; 0 when it could not be read.
    pub capacity_bytes: u64,
    /// Bytes taken on the host; 0 when it could not be read.
    pub allocation_bytes: u64,
    /// Bytes free on the file system that holds it; `None` when it could not be read.
    pub free_bytes: Option<u64>,
}

/// How many orphans a VM has ([`crate::orphan`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OrphanSummary {
    /// The number of files.
    pub count: u32,
    /// Bytes that they take on the host.
    pub allocation_bytes: u64,
}

/// One machine at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmFacts {
    /// libvirt's UUID.
    pub id: VmId,
    /// libvirt's name.
    pub name: String,
    /// What it does.
    pub state: VmState,
    /// Whether it is defined persistently.
    pub persistent: bool,
    /// Whether a managed save image (hibernation) exists.
    pub has_managed_save: bool,
    /// The target of the disk with an active block job.
    pub block_job_disk: Option<String>,
    /// RAM in bytes.
    pub memory_bytes: u64,
    /// The disks, in the order of the definition.
    pub disks: Vec<DiskFacts>,
    /// UEFI variables.
    pub nvram: Nvram,
    /// The target of a removable drive whose medium does not exist.
    pub missing_medium: Option<String>,
    /// What about it, its images or its host makes operations unavailable.
    #[serde(default)]
    pub restrictions: Vec<Restriction>,
    /// Its orphans.
    #[serde(default)]
    pub orphans: OrphanSummary,
}

impl VmFacts {
    /// A persistent VM of which no more is known than this: no disks, and nothing that makes operations unavailable.
    pub fn bare(id: VmId, name: String, state: VmState) -> Self {
        Self {
            id,
            name,
            state,
            persistent: true,
            has_managed_save: false,
            block_job_disk: None,
            memory_bytes: 0,
            disks: Vec::new(),
            nvram: Nvram::Absent,
            missing_medium: None,
            restrictions: Vec::new(),
            orphans: OrphanSummary::default(),
        }
    }

    /// Whether there is a running state to save: a QEMU process with a guest in it.
    pub fn is_active(&self) -> bool {
        matches!(self.state, VmState::Running | VmState::Paused)
    }

    /// Whether there is a QEMU process, which has the images open.
    pub fn has_process(&self) -> bool {
        matches!(self.state, VmState::Running | VmState::Paused | VmState::Suspended | VmState::Crashed)
    }

    /// The same without the numbers that change by themselves while a guest works: what is taken and free on the host.
    pub fn without_usage(&self) -> Self {
        let mut steady = self.clone();
        for disk in &mut steady.disks {
            (disk.allocation_bytes, disk.free_bytes) = (0, None);
        }
        steady
    }

    /// Whether the image of a disk is not known, or not there.
    pub fn is_unavailable(&self, target: &str) -> bool {
        let is_it = |restriction: &Restriction| restriction.disk.as_deref() == Some(target);
        self.restrictions.iter().any(|one| one.reason == Reason::ImageUnavailable && is_it(one))
    }

    /// The disks a snapshot has to hold.
    pub fn writable_disks(&self) -> impl Iterator<Item = &DiskFacts> {
        self.disks.iter().filter(|disk| !disk.read_only)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::vm;
    use crate::restriction::RestrictedOperation;

    #[test]
    fn an_image_is_unavailable_where_a_restriction_says_that_of_its_disk() {
        let restriction = |reason| Restriction::new(RestrictedOperation::ALL, reason, "").on_disk("vda");
        let of = |restriction| VmFacts { restrictions: vec![restriction], ..vm(VmState::Running) };
        let lost = of(restriction(Reason::ImageUnavailable));
        assert!(lost.is_unavailable("vda") && !lost.is_unavailable("vdb"));
        assert!(!of(restriction(Reason::ImageInUse)).is_unavailable("vda"));
        let of_vm = Restriction { disk: None, ..restriction(Reason::ImageUnavailable) };
        assert!(!of(of_vm).is_unavailable("vda"));
        assert!(!vm(VmState::Running).is_unavailable("vda"));
    }

    #[test]
    fn what_is_taken_and_free_on_the_host_is_no_other_state_of_a_vm() {
        let mut later = vm(VmState::Running);
        (later.disks[0].allocation_bytes, later.disks[1].free_bytes) = (7, Some(9));
        assert_eq!(later.without_usage(), vm(VmState::Running).without_usage());
        later.disks[0].capacity_bytes += 1;
        assert_ne!(later.without_usage(), vm(VmState::Running).without_usage());
    }
}

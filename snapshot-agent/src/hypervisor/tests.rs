//! What tests of several modules need.

use snapshot_core::vm::{DiskFacts, Nvram, OrphanSummary, VmFacts, VmState};

/// A machine that is off, with these disks.
pub(super) fn vm(disks: &[&str]) -> VmFacts {
    let disk = |target: &&str| DiskFacts {
        target: (*target).to_owned(),
        path: format!("/images/{target}.qcow2"),
        format: "qcow2".to_owned(),
        read_only: false,
        has_backing_file: false,
        capacity_bytes: 64 << 20,
        allocation_bytes: 1 << 20,
        free_bytes: None,
    };
    VmFacts {
        id: "0191f7a0-0000-7000-8000-00000000000a".parse().unwrap(),
        name: "desk".to_owned(),
        state: VmState::Shutoff,
        persistent: true,
        has_managed_save: false,
        block_job_disk: None,
        memory_bytes: 16 << 20,
        disks: disks.iter().map(disk).collect(),
        nvram: Nvram::Absent,
        missing_medium: None,
        orphans: OrphanSummary::default(),
        restrictions: Vec::new(),
    }
}

//! What the host of variables has to begin with.

use snapshot_core::vm::{DiskFacts, Nvram, VmFacts, VmState};

/// Facts of a machine with two disks that runs.
pub(crate) fn vm_facts() -> VmFacts {
    let disk = |target: &str| DiskFacts {
        target: target.to_owned(),
        path: format!("/images/{target}.qcow2"),
        format: "qcow2".to_owned(),
        read_only: false,
        has_backing_file: false,
        capacity_bytes: 64 << 20,
        allocation_bytes: 1 << 20,
        free_bytes: Some(64 << 30),
    };
    VmFacts {
        id: "0191f7a0-0000-7000-8000-00000000000a".parse().unwrap(),
        name: "desk".to_owned(),
        state: VmState::Running,
        persistent: true,
        has_managed_save: false,
        block_job_disk: None,
        memory_bytes: 16 << 20,
        disks: vec![disk("vda"), disk("vdb")],
        nvram: Nvram::Absent,
        missing_medium: None,
    }
}

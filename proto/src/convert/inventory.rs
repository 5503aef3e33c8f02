//! What an agent knows of a machine.

use snapshot_core::description::Label;
use snapshot_core::policy::HostPolicy;
use snapshot_core::snapshot::SnapshotFacts;
use snapshot_core::text::{Description, DisplayName};
use snapshot_core::vm::{DiskFacts, OrphanSummary, VmFacts};
use snapshot_core::{Error, Reason};

use super::restriction::restrictions;
use super::{present, protocol, timestamp};
use crate::{agent, v1};

/// A machine and its snapshots, in any order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    /// The machine.
    pub vm: VmFacts,
    /// Its snapshots.
    pub snapshots: Vec<SnapshotFacts>,
    /// The agent's number of this telling; see `VmInventory.sequence`.
    pub sequence: u64,
    /// Whether the machine could not be observed; see `VmInventory.unobserved`.
    pub unobserved: bool,
}

impl From<&Inventory> for agent::VmInventory {
    fn from(inventory: &Inventory) -> Self {
        Self {
            vm: Some((&inventory.vm).into()),
            snapshots: inventory.snapshots.iter().map(agent::SnapshotFacts::from).collect(),
            sequence: inventory.sequence,
            unobserved: inventory.unobserved,
        }
    }
}

impl TryFrom<agent::VmInventory> for Inventory {
    type Error = Error;

    fn try_from(wire: agent::VmInventory) -> Result<Self, Error> {
        let vm = wire.vm.ok_or_else(|| protocol("an inventory without a machine"))?.try_into()?;
        let snapshots = wire.snapshots.into_iter().map(SnapshotFacts::try_from).collect::<Result<_, _>>()?;
        Ok(Self { vm, snapshots, sequence: wire.sequence, unobserved: wire.unobserved })
    }
}

impl From<&VmFacts> for agent::VmFacts {
    fn from(vm: &VmFacts) -> Self {
        let mut wire = Self {
            vm_id: vm.id.to_string(),
            name: vm.name.clone(),
            persistent: vm.persistent,
            has_managed_save: vm.has_managed_save,
            block_job_disk: vm.block_job_disk.clone().unwrap_or_default(),
            memory_bytes: vm.memory_bytes,
            disks: vm.disks.iter().map(agent::DiskFacts::from).collect(),
            missing_medium: vm.missing_medium.clone().unwrap_or_default(),
            restrictions: vm.restrictions.iter().map(agent::Restriction::from).collect(),
            orphans: orphans(vm.orphans),
            ..Self::default()
        };
        wire.set_state(vm.state.into());
        wire.set_nvram(vm.nvram.into());
        wire
    }
}

impl TryFrom<agent::VmFacts> for VmFacts {
    type Error = Error;

    fn try_from(wire: agent::VmFacts) -> Result<Self, Error> {
        Ok(Self {
            id: wire.vm_id.parse().map_err(|_| protocol("vm_id"))?,
            state: wire.state().into(),
            nvram: wire.nvram().into(),
            name: wire.name,
            persistent: wire.persistent,
            has_managed_save: wire.has_managed_save,
            block_job_disk: present(wire.block_job_disk),
            memory_bytes: wire.memory_bytes,
            disks: wire.disks.into_iter().map(DiskFacts::from).collect(),
            missing_medium: present(wire.missing_medium),
            restrictions: restrictions(wire.restrictions),
            orphans: wire.orphans.map(OrphanSummary::from).unwrap_or_default(),
        })
    }
}

/// On the wire there is nothing where there are no orphans.
pub fn orphans(summary: OrphanSummary) -> Option<v1::OrphanSummary> {
    (summary != OrphanSummary::default()).then(|| v1::OrphanSummary {
        count: i32::try_from(summary.count).unwrap_or(i32::MAX),
        allocation_bytes: i64::try_from(summary.allocation_bytes).unwrap_or(i64::MAX),
    })
}

impl From<v1::OrphanSummary> for OrphanSummary {
    /// Numbers below zero count as zero.
    fn from(wire: v1::OrphanSummary) -> Self {
        Self {
            count: u32::try_from(wire.count).unwrap_or(0),
            allocation_bytes: u64::try_from(wire.allocation_bytes).unwrap_or(0),
        }
    }
}

impl From<&DiskFacts> for agent::DiskFacts {
    fn from(disk: &DiskFacts) -> Self {
        Self {
            target: disk.target.clone(),
            path: disk.path.clone(),
            format: disk.format.clone(),
            read_only: disk.read_only,
            has_backing_file: disk.has_backing_file,
            capacity_bytes: disk.capacity_bytes,
            allocation_bytes: disk.allocation_bytes,
            free_bytes: disk.free_bytes,
        }
    }
}

impl From<agent::DiskFacts> for DiskFacts {
    fn from(wire: agent::DiskFacts) -> Self {
        Self {
            target: wire.target,
            path: wire.path,
            format: wire.format,
            read_only: wire.read_only,
            has_backing_file: wire.has_backing_file,
            capacity_bytes: wire.capacity_bytes,
            allocation_bytes: wire.allocation_bytes,
            free_bytes: wire.free_bytes,
        }
    }
}

impl From<&SnapshotFacts> for agent::SnapshotFacts {
    fn from(snapshot: &SnapshotFacts) -> Self {
        let mut wire = Self {
            snapshot_id: snapshot.id.to_string(),
            parent_id: snapshot.parent.as_ref().map(ToString::to_string).unwrap_or_default(),
            is_current: snapshot.is_current,
            create_time: Some(timestamp(snapshot.create_time)),
            display_name: snapshot.label.display_name.to_string(),
            description: snapshot.label.description.to_string(),
            protected: snapshot.label.protected,
            actor: snapshot.label.actor.clone(),
            disks: snapshot.disks.clone(),
            size_bytes: snapshot.size_bytes,
            broken_reason: snapshot.broken.map(|reason| reason.as_str().to_owned()).unwrap_or_default(),
            restrictions: snapshot.restrictions.iter().map(agent::Restriction::from).collect(),
            revert_denied: snapshot.revert_denied.clone().unwrap_or_default(),
            ..Self::default()
        };
        wire.set_content(snapshot.content.into());
        wire.set_storage(snapshot.storage.into());
        wire.set_vm_state(snapshot.vm_state.into());
        wire.set_origin(snapshot.origin.into());
        wire.set_consistency(snapshot.consistency.map_or(v1::SnapshotConsistency::Unspecified, Into::into));
        wire
    }
}

impl TryFrom<agent::SnapshotFacts> for SnapshotFacts {
    type Error = Error;

    fn try_from(wire: agent::SnapshotFacts) -> Result<Self, Error> {
        let content: Option<_> = wire.content().into();
        let storage: Option<_> = wire.storage().into();
        let vm_state: Option<_> = wire.vm_state().into();
        let origin: Option<_> = wire.origin().into();
        let consistency = wire.consistency().into();
        let broken = present(wire.broken_reason).map(|text| Reason::parse(&text).unwrap_or(Reason::SnapshotBroken));
        Ok(Self {
            id: wire.snapshot_id.parse().map_err(|_| protocol("snapshot_id"))?,
            parent: present(wire.parent_id).map(|id| id.parse()).transpose().map_err(|_| protocol("parent_id"))?,
            is_current: wire.is_current,
            create_time: wire.create_time.map_or(0, |time| time.seconds),
            label: Label {
                display_name: DisplayName::parse(&wire.display_name).map_err(|_| protocol("display_name"))?,
                description: Description::parse(&wire.description).map_err(|_| protocol("description"))?,
                protected: wire.protected,
                actor: wire.actor,
                issuer: String::new(),
                disks: None,
            },
            content: content.ok_or_else(|| protocol("content"))?,
            storage: storage.ok_or_else(|| protocol("storage"))?,
            vm_state: vm_state.ok_or_else(|| protocol("vm_state"))?,
            consistency,
            disks: wire.disks,
            size_bytes: wire.size_bytes,
            origin: origin.ok_or_else(|| protocol("origin"))?,
            broken,
            restrictions: restrictions(wire.restrictions),
            revert_denied: present(wire.revert_denied),
        })
    }
}

impl From<&HostPolicy> for agent::HostPolicy {
    fn from(policy: &HostPolicy) -> Self {
        Self {
            stable_paths: policy.stable_paths,
            prefer_short_pauses: policy.prefer_short_pauses,
            live_snapshots: policy.live_snapshots,
            in_place_reverts: policy.in_place_reverts,
            max_layers: policy.max_layers,
            max_snapshots_per_vm: policy.max_snapshots_per_vm,
            max_snapshot_bytes_per_vm: policy.max_snapshot_bytes_per_vm,
            space_margin_bytes: policy.space_margin_bytes,
        }
    }
}

impl From<&agent::HostPolicy> for HostPolicy {
    fn from(wire: &agent::HostPolicy) -> Self {
        Self {
            stable_paths: wire.stable_paths,
            prefer_short_pauses: wire.prefer_short_pauses,
            live_snapshots: wire.live_snapshots,
            in_place_reverts: wire.in_place_reverts,
            max_layers: wire.max_layers,
            max_snapshots_per_vm: wire.max_snapshots_per_vm,
            max_snapshot_bytes_per_vm: wire.max_snapshot_bytes_per_vm,
            space_margin_bytes: wire.space_margin_bytes,
            // Decided where the definitions are: on the host.
            ..HostPolicy::default()
        }
    }
}

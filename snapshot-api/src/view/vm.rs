//! Machines.

use proto::convert::{orphans, timestamp_millis};
use proto::{names, v1};
use snapshot_core::Error;
use snapshot_core::authority::Permit;
use snapshot_core::layers::Layers;
use snapshot_core::plan::{Capability, CapabilityKind, Situation, capabilities};
use snapshot_core::quota::{Limits, Owner, Usage, admit};
use snapshot_core::restriction::{RestrictedOperation, Restriction};
use snapshot_core::tree::SnapshotTree;

use crate::app::App;
use crate::etag;
use crate::store::{StoreError, VmRow};

/// A machine without its capabilities.
pub fn vm(app: &App, row: &VmRow) -> v1::Vm {
    let facts = &row.facts;
    let disks = facts.disks.iter().map(|disk| v1::Disk {
        target: disk.target.clone(),
        format: disk.format.clone(),
        capacity_bytes: i64::try_from(disk.capacity_bytes).unwrap_or(i64::MAX),
        allocation_bytes: i64::try_from(disk.allocation_bytes).unwrap_or(i64::MAX),
        has_backing_file: disk.has_backing_file,
        read_only: disk.read_only,
    });
    let mut wire = v1::Vm {
        name: names::vm(row.id),
        display_name: facts.name.clone(),
        host: names::host(&row.host),
        host_reachable: app.hosts.is_reachable(&row.host),
        observe_time: Some(timestamp_millis(row.observe_time)),
        disks: disks.collect(),
        memory_bytes: i64::try_from(facts.memory_bytes).unwrap_or(i64::MAX),
        persistent: facts.persistent,
        has_managed_save: facts.has_managed_save,
        current_snapshot: row.current.as_ref().map(|id| names::snapshot(row.id, id)).unwrap_or_default(),
        snapshot_count: i32::try_from(row.snapshot_count).unwrap_or(i32::MAX),
        active_operation: row.active_operation.map(names::operation).unwrap_or_default(),
        etag: etag::encode(app.store.epoch(), row.revision),
        orphans: orphans(facts.orphans),
        other_hosts: row.elsewhere.iter().map(names::host).collect(),
        conflicting_host: row.conflict.as_ref().map(names::host).unwrap_or_default(),
        ..v1::Vm::default()
    };
    wire.set_state(facts.state.into());
    wire
}

/// A VM with what somebody who may read it can ask of it now.
pub fn with_capabilities(app: &App, row: &VmRow, reader: &Permit) -> Result<v1::Vm, StoreError> {
    let user = &reader.actor().to_string();
    let mut wire = vm(app, row);
    let snapshots = app.store.all_snapshots(row.id)?;
    let tree = SnapshotTree::new(snapshots).map_err(|error| StoreError::Corrupt(error.to_string()))?;
    let policy = app.hosts.get(&row.host).map(|agent| agent.policy()).unwrap_or_default();
    let mut facts = row.facts.clone();
    if let Some(conflict) = conflict(row) {
        facts.restrictions = vec![Restriction::new(RestrictedOperation::ALL, conflict.reason(), conflict.message())];
    }
    let situation = Situation { vm: &facts, tree: &tree, layers: &Layers::default(), policy: &policy };
    wire.snapshot_limit = i32::try_from(policy.max_snapshots_per_vm).unwrap_or(i32::MAX);
    let usage = app.store.usage_of_user(user)?;
    wire.capabilities = capabilities(situation, reader.is_administrator())
        .into_iter()
        .map(|capability| v1::Capability::from(&within_quota(capability, user, app.user_quota, usage)))
        .collect();
    let of_vm = Limits { snapshots: u64::from(policy.max_snapshots_per_vm), bytes: policy.max_snapshot_bytes_per_vm };
    wire.quota = Some(quota(of_vm, app.store.usage_of_vm(row.id)?));
    wire.user_quota = Some(quota(app.user_quota, usage));
    Ok(wire)
}

/// Why nothing may be asked about a VM that two hosts claim.
pub fn conflict(row: &VmRow) -> Option<Error> {
    Some(crate::store::conflict(row.id, &row.host, row.conflict.as_ref()?))
}

/// What the planner allows, unless it takes a snapshot that the user may not keep.
fn within_quota(capability: Capability, user: &str, limits: Limits, usage: Usage) -> Capability {
    let Capability { kind, outcome } = capability;
    let outcome = match kind {
        CapabilityKind::CreateDisks | CapabilityKind::CreateDisksAndMemory => outcome.and_then(|plan| {
            admit(Owner::User(user), limits, usage, plan.bytes_written)?;
            Ok(plan)
        }),
        CapabilityKind::Revert | CapabilityKind::Delete => outcome,
    };
    Capability { kind, outcome }
}

fn quota(limits: Limits, usage: Usage) -> v1::Quota {
    let wire = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    v1::Quota {
        snapshot_limit: wire(limits.snapshots),
        snapshots_used: wire(usage.snapshots),
        byte_limit: wire(limits.bytes),
        bytes_used: wire(usage.bytes),
    }
}

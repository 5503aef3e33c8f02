//! The rows of `elsewhere`: what each host says of a VM that is on another one.

use proto::convert::Inventory;
use snapshot_core::ids::{HostId, VmId};
use snapshot_core::placement::Claim;
use snapshot_core::snapshot::SnapshotFacts;
use snapshot_core::vm::VmFacts;

use super::super::StoreError;
use super::super::inventory::{sequence, unobserved};
use super::super::rows::{from_json, parse, to_json};
use super::super::writer::Job;

/// What another host says of a VM.
pub(super) struct Told {
    pub(super) host: HostId,
    pub(super) inventory: Inventory,
    pub(super) observe_time: i64,
}

impl Told {
    /// What it says as far as it matters for where the VM is. Whether the host is connected is not part of it.
    pub(super) fn claim(&self) -> Claim {
        let snapshots = self.inventory.snapshots.iter().filter(|snapshot| snapshot.id.is_ours()).count();
        Claim::new(self.host.clone(), self.inventory.vm.has_process(), snapshots)
    }
}

/// Whether any other host has the VM.
pub(in crate::store) fn is_any(job: &Job<'_>, vm: VmId) -> Result<bool, StoreError> {
    Ok(job.connection.prepare_cached("SELECT 1 FROM elsewhere WHERE vm = ?1")?.exists([vm.to_string()])?)
}

/// Forgets what a host that the VM is not on says of it. Returns whether it said anything.
pub(in crate::store) fn forget(job: &Job<'_>, host: &HostId, vm: VmId) -> Result<bool, StoreError> {
    let sql = "DELETE FROM elsewhere WHERE vm = ?1 AND host = ?2";
    Ok(job.connection.prepare_cached(sql)?.execute((vm.to_string(), host.as_str()))? > 0)
}

/// What came of a telling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Put {
    /// It is older than what the host said before.
    Late,
    /// The host has told of the VM before.
    Known,
    /// It has not.
    New,
}

/// Writes what a host that the VM is not on says of it.
pub(in crate::store) fn put(job: &Job<'_>, host: &HostId, told: &Inventory, now_ms: i64) -> Result<Put, StoreError> {
    let known = told_by(job, told.vm.id, host)?;
    if known.as_ref().is_some_and(|known| known.inventory.sequence > told.sequence) {
        return Ok(Put::Late);
    }
    let put = if known.is_some() { Put::Known } else { Put::New };
    let inventory = match known {
        Some(known) if told.unobserved => Inventory {
            vm: unobserved(&told.vm, known.inventory.vm),
            snapshots: known.inventory.snapshots,
            ..told.clone()
        },
        _ => told.clone(),
    };
    insert(job, &Told { host: host.clone(), inventory, observe_time: now_ms })?;
    Ok(put)
}

pub(super) fn insert(job: &Job<'_>, told: &Told) -> Result<(), StoreError> {
    let sql = "INSERT OR REPLACE INTO elsewhere (vm, host, facts, snapshots, observe_time, sequence) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    job.connection.prepare_cached(sql)?.execute((
        told.inventory.vm.id.to_string(),
        told.host.as_str(),
        to_json(&told.inventory.vm)?,
        to_json(&told.inventory.snapshots)?,
        told.observe_time,
        sequence(&told.inventory),
    ))?;
    Ok(())
}

const TOLD: &str = "SELECT host, facts, snapshots, observe_time, sequence FROM elsewhere WHERE vm = ?1";

pub(super) fn all_told(job: &Job<'_>, vm: VmId) -> Result<Vec<Told>, StoreError> {
    let mut statement = job.connection.prepare_cached(&format!("{TOLD} ORDER BY host"))?;
    let mut rows = statement.query([vm.to_string()])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(told(row)?);
    }
    Ok(found)
}

pub(super) fn told_by(job: &Job<'_>, vm: VmId, host: &HostId) -> Result<Option<Told>, StoreError> {
    let mut statement = job.connection.prepare_cached(&format!("{TOLD} AND host = ?2"))?;
    let mut rows = statement.query((vm.to_string(), host.as_str()))?;
    rows.next()?.map(told).transpose()
}

fn told(row: &rusqlite::Row<'_>) -> Result<Told, StoreError> {
    let facts: VmFacts = from_json(&row.get::<_, String>(1)?)?;
    let snapshots: Vec<SnapshotFacts> = from_json(&row.get::<_, String>(2)?)?;
    let sequence = u64::try_from(row.get::<_, i64>(4)?).unwrap_or_default();
    let inventory = Inventory { vm: facts, snapshots, sequence, unobserved: false };
    Ok(Told { host: parse(&row.get::<_, String>(0)?)?, inventory, observe_time: row.get(3)? })
}

//! What hosts tell, written into the catalogue.
//!
//! A machine is always told whole: its facts and all of its snapshots. Rows that are as they were are not touched, so
//! that watchers hear of changes alone. A snapshot that an operation is just taking stays although the host does not
//! have it yet; the end of the operation settles it.
//!
//! A VM may be told of by several hosts. `vms` and `snapshots` have what the host says that it is on; what others say is beside that
//! ([`super::elsewhere`]), and each telling decides anew where the VM is.

use std::collections::{BTreeMap, BTreeSet};

use proto::convert::Inventory;
use rusqlite::OptionalExtension as _;
use snapshot_core::ids::{HostId, SnapshotId, VmId};
use snapshot_core::snapshot::SnapshotFacts;
use snapshot_core::tree::SnapshotTree;
use snapshot_core::vm::{VmFacts, VmState};

use super::connected::Connected;
use super::elsewhere::{self, After, Put, decide};
use super::quotas::creator;
use super::rows::{from_json, to_json};
use super::writer::Job;
use super::{Store, StoreError};

/// How many rows were not as the host has it.
pub type Corrections = u32;

/// The most bytes that count of a snapshot: what the sum of as many as a host may tell does not overflow.
const MOST_BYTES: i64 = 1 << 44;

/// How many removals are remembered for watchers that resume. Older resume tokens get the whole state instead.
const REMOVALS_KEPT: i64 = 10_000;

impl Store {
    /// Writes down a machine as its host tells it.
    pub async fn put_inventory(
        &self,
        host: HostId,
        inventory: Inventory,
        now_ms: i64,
    ) -> Result<Corrections, StoreError> {
        let connected = self.connected.clone();
        self.write_retold(move |job| put_inventory(job, &connected, &host, &inventory, now_ms)).await
    }

    /// The host begins to tell everything anew, and counts anew where it was booted.
    pub async fn begin_telling(&self, host: HostId) -> Result<(), StoreError> {
        self.connected.set(&host, true);
        self.write_retold(move |job| {
            for sql in
                ["UPDATE vms SET sequence = 0 WHERE host = ?1", "UPDATE elsewhere SET sequence = 0 WHERE host = ?1"]
            {
                job.connection.prepare_cached(sql)?.execute([host.as_str()])?;
            }
            Ok(())
        })
        .await
    }

    /// A host does not have a VM any more. Where another one has it, it is there now.
    pub async fn remove_vm(&self, host: HostId, vm: VmId, now_ms: i64) -> Result<Corrections, StoreError> {
        let connected = self.connected.clone();
        self.write_retold(move |job| remove_vm(job, &connected, &host, vm, now_ms)).await
    }

    /// The same for the VMs of a host that were not among those it has just told.
    pub async fn retain_vms(&self, host: HostId, told: BTreeSet<VmId>, now_ms: i64) -> Result<Corrections, StoreError> {
        let connected = self.connected.clone();
        self.write_retold(move |job| {
            let known: Vec<String> = {
                let sql = "SELECT id FROM vms WHERE host = ?1 UNION SELECT vm FROM elsewhere WHERE host = ?1";
                let mut statement = job.connection.prepare_cached(sql)?;
                let rows = statement.query_map([host.as_str()], |row| row.get(0))?;
                rows.collect::<Result<_, _>>()?
            };
            let mut corrections = 0;
            for id in known {
                let vm = super::rows::parse(&id)?;
                if !told.contains(&vm) {
                    corrections += remove_vm(job, &connected, &host, vm, now_ms)?;
                }
            }
            Ok(corrections)
        })
        .await
    }
}

fn remove_vm(
    job: &mut Job<'_>,
    connected: &Connected,
    host: &HostId,
    vm: VmId,
    now_ms: i64,
) -> Result<Corrections, StoreError> {
    if elsewhere::forget(job, host, vm)? {
        return decide(job, connected, After::Word(host), vm, now_ms);
    }
    if placed_on(job, vm)?.as_ref() != Some(host) {
        return Ok(0);
    }
    if elsewhere::is_any(job, vm)? {
        return elsewhere::leave(job, connected, host, vm, now_ms);
    }
    let mut corrections = 1;
    for id in known_snapshots(job, vm)?.into_keys() {
        remove_snapshot(job, vm, &id)?;
        corrections += 1;
    }
    job.touch(vm)?;
    job.connection.prepare_cached("DELETE FROM vms WHERE id = ?1")?.execute([vm.to_string()])?;
    Ok(corrections)
}

pub(super) fn put_inventory(
    job: &mut Job<'_>,
    connected: &Connected,
    host: &HostId,
    inventory: &Inventory,
    now_ms: i64,
) -> Result<Corrections, StoreError> {
    let vm = inventory.vm.id;
    let tree = tree(host, inventory)?;
    if placed_on(job, vm)?.is_some_and(|other| other != *host) {
        return match elsewhere::put(job, host, inventory, now_ms)? {
            Put::Late => Ok(0),
            Put::Known => decide(job, connected, After::Word(host), vm, now_ms),
            Put::New => decide(job, connected, After::FirstWord(host), vm, now_ms),
        };
    }
    if comes_late(job, host, inventory)? {
        return Ok(0);
    }
    let corrections = match inventory.unobserved {
        true => put_unobserved(job, host, inventory, now_ms)?,
        false => put_whole(job, host, inventory, &tree, now_ms)?,
    };
    Ok(corrections + decide(job, connected, After::Word(host), vm, now_ms)?)
}

/// Writes a VM with all of its snapshots, as this host has it.
pub(super) fn put_whole(
    job: &mut Job<'_>,
    host: &HostId,
    inventory: &Inventory,
    tree: &SnapshotTree,
    now_ms: i64,
) -> Result<Corrections, StoreError> {
    let vm = inventory.vm.id;
    let known = known_snapshots(job, vm)?;
    let mut corrections = put_vm(job, host, inventory, now_ms)?;
    for snapshot in tree.iter() {
        corrections += put_snapshot(job, vm, snapshot, tree.depth(&snapshot.id), known.get(&snapshot.id))?;
    }
    for (id, row) in &known {
        if tree.get(id).is_none() && row.creating_by.is_none() {
            remove_snapshot(job, vm, id)?;
            corrections += 1;
        }
    }
    if corrections > 0 {
        job.touch(vm)?;
    }
    Ok(corrections)
}

/// The snapshots of a VM as this host has them.
pub(super) fn tree(host: &HostId, inventory: &Inventory) -> Result<SnapshotTree, StoreError> {
    SnapshotTree::new(inventory.snapshots.iter().cloned())
        .map_err(|error| StoreError::Corrupt(format!("vms/{} on {host}: {error}", inventory.vm.id)))
}

/// The host that a VM is on.
pub(super) fn placed_on(job: &Job<'_>, vm: VmId) -> Result<Option<HostId>, StoreError> {
    let mut statement = job.connection.prepare_cached("SELECT host FROM vms WHERE id = ?1")?;
    let host: Option<String> = statement.query_row([vm.to_string()], |row| row.get(0)).optional()?;
    host.as_deref().map(super::rows::parse).transpose()
}

/// A VM that its host could not observe: what was known of it stays, but for what makes its operations unavailable. Its snapshots
/// are neither there nor gone.
fn put_unobserved(job: &mut Job<'_>, host: &HostId, told: &Inventory, now_ms: i64) -> Result<Corrections, StoreError> {
    let vm = &told.vm;
    let facts = known_vm(job, host, vm.id)?.map_or_else(|| vm.clone(), |known| unobserved(vm, known));
    let corrections = put_vm(job, host, &Inventory { vm: facts, ..told.clone() }, now_ms)?;
    if corrections > 0 {
        job.touch(vm.id)?;
    }
    Ok(corrections)
}

/// A VM that could not be observed, as it was known before.
pub(super) fn unobserved(told: &VmFacts, known: VmFacts) -> VmFacts {
    let is_named = told.name != told.id.to_string();
    let name = if is_named { told.name.clone() } else { known.name };
    let state = if told.state == VmState::Unknown { known.state } else { told.state };
    VmFacts { name, state, restrictions: told.restrictions.clone(), ..known }
}

/// The end of an operation and the stream of changes both tell of a machine, and the older telling may come last.
fn comes_late(job: &Job<'_>, host: &HostId, inventory: &Inventory) -> Result<bool, StoreError> {
    let key = (inventory.vm.id.to_string(), host.as_str(), sequence(inventory));
    let sql = "SELECT 1 FROM vms WHERE id = ?1 AND host = ?2 AND sequence > ?3";
    let late = job.connection.prepare_cached(sql)?.exists(key)?;
    if !late {
        let sql = "UPDATE vms SET sequence = ?3 WHERE id = ?1 AND host = ?2";
        let (vm, host) = (inventory.vm.id.to_string(), host.as_str());
        job.connection.prepare_cached(sql)?.execute((vm, host, sequence(inventory)))?;
    }
    Ok(late)
}

pub(super) fn sequence(inventory: &Inventory) -> i64 {
    i64::try_from(inventory.sequence).unwrap_or(i64::MAX)
}

/// Numbers that change by themselves are written down, and are no change that anybody is told of.
fn put_vm(job: &mut Job<'_>, host: &HostId, inventory: &Inventory, now_ms: i64) -> Result<Corrections, StoreError> {
    let vm = &inventory.vm;
    let facts = to_json(vm)?;
    if known_vm(job, host, vm.id)?.is_some_and(|known| known.without_usage() == vm.without_usage()) {
        let sql = "UPDATE vms SET facts = ?2, observe_time = ?3 WHERE id = ?1";
        job.connection.prepare_cached(sql)?.execute((vm.id.to_string(), facts, now_ms))?;
        return Ok(0);
    }
    let revision = job.revision()?;
    let sql = "INSERT INTO vms (id, host, facts, observe_time, sequence, revision) VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
               ON CONFLICT (id) DO UPDATE SET host = excluded.host, facts = excluded.facts, sequence = excluded.sequence, \
               observe_time = excluded.observe_time, revision = excluded.revision";
    let values = (vm.id.to_string(), host.as_str(), facts, now_ms, sequence(inventory), revision);
    job.connection.prepare_cached(sql)?.execute(values)?;
    Ok(1)
}

pub(super) fn known_vm(job: &Job<'_>, host: &HostId, vm: VmId) -> Result<Option<VmFacts>, StoreError> {
    let mut statement = job.connection.prepare_cached("SELECT facts FROM vms WHERE id = ?1 AND host = ?2")?;
    let facts: Option<String> = statement.query_row((vm.to_string(), host.as_str()), |row| row.get(0)).optional()?;
    facts.as_deref().map(from_json).transpose()
}

pub(super) struct Known {
    pub(super) facts: SnapshotFacts,
    depth: i64,
    pub(super) creating_by: Option<String>,
}

pub(super) fn known_snapshots(job: &Job<'_>, vm: VmId) -> Result<BTreeMap<SnapshotId, Known>, StoreError> {
    let sql = "SELECT facts, depth, creating_by FROM snapshots WHERE vm = ?1 ORDER BY seq";
    let mut statement = job.connection.prepare_cached(sql)?;
    let mut rows = statement.query([vm.to_string()])?;
    let mut known = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let facts: SnapshotFacts = from_json(&row.get::<_, String>(0)?)?;
        known.insert(facts.id.clone(), Known { facts, depth: row.get(1)?, creating_by: row.get(2)? });
    }
    Ok(known)
}

fn put_snapshot(
    job: &mut Job<'_>,
    vm: VmId,
    snapshot: &SnapshotFacts,
    depth: usize,
    known: Option<&Known>,
) -> Result<Corrections, StoreError> {
    let depth = i64::try_from(depth).unwrap_or(i64::MAX);
    if known.is_some_and(|known| known.facts == *snapshot && known.depth == depth && known.creating_by.is_none()) {
        return Ok(0);
    }
    let same_label = known.is_some_and(|known| known.facts.label == snapshot.label);
    let revision = job.revision()?;
    let sql = "INSERT INTO snapshots (vm, id, parent, depth, is_current, facts, label_revision, revision, created_by, bytes) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, ?9, ?10) ON CONFLICT (vm, id) DO UPDATE SET \
               parent = excluded.parent, depth = excluded.depth, is_current = excluded.is_current, \
               facts = excluded.facts, revision = excluded.revision, creating_by = NULL, \
               label_revision = iif(?8, label_revision, excluded.label_revision), bytes = excluded.bytes, \
               created_by = coalesce(created_by, excluded.created_by)";
    job.connection.prepare_cached(sql)?.execute((
        vm.to_string(),
        snapshot.id.as_str(),
        snapshot.parent.as_ref().map(SnapshotId::as_str),
        depth,
        snapshot.is_current,
        to_json(snapshot)?,
        revision,
        same_label,
        creator(snapshot),
        i64::try_from(snapshot.size_bytes).unwrap_or(i64::MAX).min(MOST_BYTES),
    ))?;
    // A parent's count of children is part of what is shown of it.
    touch_snapshot(job, vm, snapshot.parent.as_ref(), revision)?;
    if let Some(known) = known {
        touch_snapshot(job, vm, known.facts.parent.as_ref(), revision)?;
    }
    Ok(1)
}

fn touch_snapshot(job: &Job<'_>, vm: VmId, id: Option<&SnapshotId>, revision: i64) -> Result<(), StoreError> {
    if let Some(id) = id {
        let sql = "UPDATE snapshots SET revision = ?3 WHERE vm = ?1 AND id = ?2";
        job.connection.prepare_cached(sql)?.execute((vm.to_string(), id.as_str(), revision))?;
    }
    Ok(())
}

pub(super) fn remove_snapshot(job: &mut Job<'_>, vm: VmId, id: &SnapshotId) -> Result<(), StoreError> {
    let revision = job.revision()?;
    let sql = "DELETE FROM snapshots WHERE vm = ?1 AND id = ?2 RETURNING parent";
    let parent: Option<Option<String>> = {
        let mut statement = job.connection.prepare_cached(sql)?;
        statement.query_row((vm.to_string(), id.as_str()), |row| row.get(0)).optional()?
    };
    if let Some(parent) = parent {
        let parent = parent.as_deref().map(super::rows::parse).transpose()?;
        touch_snapshot(job, vm, parent.as_ref(), revision)?;
        let sql = "INSERT INTO removed_snapshots (vm, id, revision) VALUES (?1, ?2, ?3)";
        job.connection.prepare_cached(sql)?.execute((vm.to_string(), id.as_str(), revision))?;
        forget_old_removals(job)?;
    }
    Ok(())
}

fn forget_old_removals(job: &Job<'_>) -> Result<(), StoreError> {
    let sql = "SELECT revision FROM removed_snapshots ORDER BY revision DESC LIMIT 1 OFFSET ?1";
    let mut statement = job.connection.prepare_cached(sql)?;
    let oldest: Option<i64> = statement.query_row([REMOVALS_KEPT], |row| row.get(0)).optional()?;
    if let Some(oldest) = oldest {
        job.connection.execute("UPDATE catalogue SET removals_since = max(removals_since, ?1)", [oldest])?;
        job.connection.execute("DELETE FROM removed_snapshots WHERE revision <= ?1", [oldest])?;
    }
    Ok(())
}

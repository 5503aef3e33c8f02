//! VMs that several hosts have: what each of them says, and on which of them a VM is ([`snapshot_core::placement`]).
//!
//! 1. What the host says that a VM is on is in `vms` and `snapshots`; what the others say is in `elsewhere`. When the VM turns out to be on
//!    another host, the two change places.
//! 2. An operation that was handed to a host that is lost has ended as soon as the VM is active on another one: nobody could tell when, and
//!    until then nothing could be done with the VM.
//! 3. Each change of place between hosts, and each conflict, is in the audit trail.

mod told;

use proto::convert::Inventory;
use rusqlite::OptionalExtension as _;
use snapshot_core::audit::{Event, Outcome, Source};
use snapshot_core::ids::{HostId, OperationId, VmId};
use snapshot_core::placement::{Claim, Placement, place};
use snapshot_core::{Error, Reason};

use super::connected::Connected;
use super::inventory::{Corrections, known_snapshots, known_vm, placed_on, put_whole, remove_snapshot, tree};
use super::operations::active_on;
use super::rows::{from_json, parse, to_json};
use super::writer::Job;
use super::{Ending, Store, StoreError, audit, operations};

pub(super) use told::{Put, forget, is_any, put};
use told::{Told, all_told, insert, told_by};

impl Store {
    /// A host is lost: what it said of VMs that other hosts have as well counts less.
    pub async fn lost(&self, host: HostId, now_ms: i64) -> Result<(), StoreError> {
        self.connected.set(&host, false);
        let connected = self.connected.clone();
        self.write_retold(move |job| {
            let sql = "SELECT vm FROM elsewhere WHERE host = ?1 OR vm IN (SELECT id FROM vms WHERE host = ?1) \
                       UNION SELECT vm FROM operations WHERE host = ?1 AND state IN ('pending', 'running')";
            let vms: Vec<String> = {
                let mut statement = job.connection.prepare_cached(sql)?;
                let rows = statement.query_map([host.as_str()], |row| row.get(0))?;
                rows.collect::<Result<_, _>>()?
            };
            for vm in vms {
                decide(job, &connected, After::Loss, parse(&vm)?, now_ms)?;
            }
            Ok(())
        })
        .await
    }

    /// Only these hosts are configured: what others said counts for nothing where another host has the VM.
    pub async fn lose_others(&self, hosts: &[&HostId], now_ms: i64) -> Result<(), StoreError> {
        let (connected, configured) = (self.connected.clone(), to_json(&hosts)?);
        self.write_retold(move |job| {
            let texts = |sql: &str| -> Result<Vec<(String, String)>, StoreError> {
                let mut statement = job.connection.prepare_cached(sql)?;
                let rows = statement.query_map([&configured], |row| Ok((row.get(0)?, row.get(1)?)))?;
                Ok(rows.collect::<Result<_, _>>()?)
            };
            let unknown = "host NOT IN (SELECT value FROM json_each(?1))";
            let beside = texts(&format!("SELECT vm, host FROM elsewhere WHERE {unknown}"))?;
            let placed =
                texts(&format!("SELECT id, host FROM vms WHERE {unknown} AND id IN (SELECT vm FROM elsewhere)"))?;
            for (vm, host) in &beside {
                let (vm, host): (VmId, HostId) = (parse(vm)?, parse(host)?);
                connected.set(&host, false);
                forget(job, &host, vm)?;
                decide(job, &connected, After::Loss, vm, now_ms)?;
            }
            for (vm, host) in &placed {
                let (vm, host): (VmId, HostId) = (parse(vm)?, parse(host)?);
                connected.set(&host, false);
                if is_any(job, vm)? {
                    leave(job, &connected, &host, vm, now_ms)?;
                }
            }
            // Of VMs that no other host has yet.
            for (_, host) in texts(&format!("SELECT id, host FROM vms WHERE {unknown}"))? {
                connected.set(&parse(&host)?, false);
            }
            Ok(())
        })
        .await
    }

    /// How many VMs are in conflict: two hosts say that they are active.
    pub fn conflicts(&self) -> Result<i64, StoreError> {
        self.read(conflicts)
    }
}

fn conflicts(connection: &rusqlite::Connection) -> Result<i64, StoreError> {
    let sql = "SELECT count(*) FROM vms WHERE conflict IS NOT NULL";
    Ok(connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
}

/// Why nothing may be asked about a VM of which two hosts say that it is active on them.
pub fn conflict(vm: VmId, host: &HostId, other: &HostId) -> Error {
    let (host, other) = (proto::names::host(host), proto::names::host(other));
    let message = format!(
        "{host}, which the VM is on, and {other} both claim it, so nothing is asked of either: stop it on one of them, or disconnect the \
         host that is wrong"
    );
    let error = Error::new(Reason::HostConflict, message).with("vm", proto::names::vm(vm));
    error.with("host", host).with("other_host", other)
}

/// Refuses an intent for a host that the VM is not on any more, or that another one disputes: the user's token would go there.
pub(super) fn check_place(job: &Job<'_>, vm: VmId, host: &HostId) -> Result<(), StoreError> {
    let sql = "SELECT host, conflict FROM vms WHERE id = ?1";
    let found: Option<(String, Option<String>)> = job
        .connection
        .prepare_cached(sql)?
        .query_row([vm.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    match found {
        Some((on, Some(other))) => Err(conflict(vm, &parse(&on)?, &parse(&other)?).into()),
        Some((on, None)) if on != host.as_str() => {
            let message = format!("the VM was moved to hosts/{on} just now; nothing was done, ask again");
            Err(Error::new(Reason::VmBusy, message).with("vm", proto::names::vm(vm)).into())
        }
        // One that is gone is purged by what a host remembers of it.
        Some(_) | None => Ok(()),
    }
}

/// What a decision follows.
#[derive(Debug, Clone, Copy)]
pub(super) enum After<'a> {
    /// A host has said something of the VM.
    Word(&'a HostId),
    /// A host has told of the VM for the first time.
    FirstWord(&'a HostId),
    /// A host was lost.
    Loss,
}

impl<'a> After<'a> {
    /// The host that has spoken.
    fn by(self) -> Option<&'a HostId> {
        match self {
            Self::Word(host) | Self::FirstWord(host) => Some(host),
            Self::Loss => None,
        }
    }
}

/// Decides where a VM is.
pub(super) fn decide(
    job: &mut Job<'_>,
    connected: &Connected,
    after: After<'_>,
    vm: VmId,
    now_ms: i64,
) -> Result<Corrections, StoreError> {
    let others = all_told(job, vm)?;
    let Some(was) = placed_on(job, vm)? else { return Ok(0) };
    let by = after.by();
    let is_connected = |host: &HostId| by == Some(host) || connected.has(host);
    let is_active = |job: &Job<'_>| Ok::<_, StoreError>(known_vm(job, &was, vm)?.is_some_and(|vm| vm.has_process()));
    let mut operation = active_on(job.connection, vm)?;
    if let Some((id, on)) = operation.clone().filter(|(_, on)| *on != was && !is_connected(on))
        && is_active(job)?
    {
        // The VM had left the host before that was lost.
        end_lost(job, id, &on, &was, now_ms)?;
        operation = None;
    }
    if others.is_empty() {
        return settle(job, vm, &Placement { host: was, conflict: None }, by, now_ms);
    }
    let own = known_snapshots(job, vm)?;
    let own = own.values().filter(|known| known.creating_by.is_none() && known.facts.id.is_ours()).count();
    let mut claims = vec![Claim::new(was.clone(), is_active(job)?, own)];
    claims.extend(others.iter().map(Told::claim));
    for claim in &mut claims {
        claim.connected = is_connected(&claim.host);
        claim.is_new = matches!(after, After::FirstWord(host) if *host == claim.host);
        claim.operates = operation.as_ref().is_some_and(|(_, on)| *on == claim.host);
    }
    let Some(now) = place(&claims, Some(&was)) else { return Ok(0) };
    let mut corrections = 0;
    if now.host != was {
        if let Some((id, on)) = operation.filter(|(_, on)| *on != now.host && !is_connected(on)) {
            end_lost(job, id, &on, &now.host, now_ms)?;
        }
        corrections += change_places(job, vm, &was, &now.host, true)?;
        moved(job, vm, &was, &now.host, now_ms)?;
    }
    Ok(corrections + settle(job, vm, &now, by, now_ms)?)
}

/// The host that the VM was on does not have it any more, and others have.
pub(super) fn leave(
    job: &mut Job<'_>,
    connected: &Connected,
    host: &HostId,
    vm: VmId,
    now_ms: i64,
) -> Result<Corrections, StoreError> {
    let mut claims: Vec<Claim> = all_told(job, vm)?.iter().map(Told::claim).collect();
    claims.iter_mut().for_each(|claim| claim.connected = connected.has(&claim.host));
    let Some(now) = place(&claims, None) else { return Ok(0) };
    let corrections = change_places(job, vm, host, &now.host, false)?;
    moved(job, vm, host, &now.host, now_ms)?;
    Ok(corrections + settle(job, vm, &now, None, now_ms)?)
}

/// Puts what the second host says in the place of what the first says, which is kept beside it if the host still has the VM.
fn change_places(
    job: &mut Job<'_>,
    vm: VmId,
    from: &HostId,
    to: &HostId,
    is_kept: bool,
) -> Result<Corrections, StoreError> {
    let Some(told) = told_by(job, vm, to)? else { return Ok(0) };
    forget(job, to, vm)?;
    let known = known_snapshots(job, vm)?;
    if is_kept {
        let sql = "SELECT facts, observe_time, sequence FROM vms WHERE id = ?1";
        let (facts, observe_time, sequence): (String, i64, i64) = job
            .connection
            .prepare_cached(sql)?
            .query_row([vm.to_string()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let snapshots = known.values().filter(|known| known.creating_by.is_none());
        let inventory = Inventory {
            vm: from_json(&facts)?,
            snapshots: snapshots.map(|known| known.facts.clone()).collect(),
            sequence: u64::try_from(sequence).unwrap_or_default(),
            unobserved: false,
        };
        insert(job, &Told { host: from.clone(), inventory, observe_time })?;
    }
    let tree = tree(to, &told.inventory)?;
    for id in known.keys().filter(|id| tree.get(id).is_none()) {
        remove_snapshot(job, vm, id)?;
    }
    let corrections = put_whole(job, to, &told.inventory, &tree, told.observe_time)?;
    job.touch(vm)?;
    Ok(corrections.max(1))
}

fn moved(job: &Job<'_>, vm: VmId, from: &HostId, to: &HostId, now_ms: i64) -> Result<(), StoreError> {
    tracing::info!(%vm, %from, %to, "the VM is on another host");
    metrics::counter!("snapshot_api_vm_moves_total", "host" => to.to_string()).increment(1);
    let detail = format!("from {} to {}", proto::names::host(from), proto::names::host(to));
    audit::append(job.connection, &Event { vm: Some(vm), detail, ..event(Some(to), Outcome::Moved, now_ms) })
}

/// Writes down whether the VM is in conflict.
fn settle(
    job: &mut Job<'_>,
    vm: VmId,
    now: &Placement,
    by: Option<&HostId>,
    now_ms: i64,
) -> Result<Corrections, StoreError> {
    let sql = "UPDATE vms SET conflict = ?2 WHERE id = ?1 AND conflict IS NOT ?2";
    let other = now.conflict.as_ref().map(HostId::as_str);
    if job.connection.prepare_cached(sql)?.execute((vm.to_string(), other))? == 0 {
        return Ok(0);
    }
    job.touch(vm)?;
    metrics::gauge!("snapshot_api_vm_conflicts").set(conflicts(job.connection)? as f64);
    let (host, outcome) = (proto::names::host(&now.host), now.conflict.as_ref());
    let (outcome, detail, reason) = match outcome {
        Some(other) => {
            // For a moment of every live migration it is so.
            tracing::warn!(%vm, host = %now.host, %other, "two hosts say that the VM is active on them: nothing is asked of either");
            let detail = format!("active on {host} and {}", proto::names::host(other));
            (Outcome::Conflict, detail, Reason::HostConflict.as_str().to_owned())
        }
        None => {
            tracing::info!(%vm, host = %now.host, "one host alone says that the VM is active");
            (Outcome::Settled, format!("on {host}"), String::new())
        }
    };
    audit::append(job.connection, &Event { vm: Some(vm), detail, reason, ..event(by, outcome, now_ms) })?;
    Ok(1)
}

/// An event that a host has caused.
fn event(by: Option<&HostId>, outcome: Outcome, now_ms: i64) -> Event {
    let peer = by.map(proto::names::host).unwrap_or_default();
    Event::new(now_ms, Source { peer, ..Source::default() }, outcome)
}

/// Ends an operation of a host that is lost.
fn end_lost(job: &mut Job<'_>, id: OperationId, on: &HostId, now: &HostId, now_ms: i64) -> Result<(), StoreError> {
    let (lost, other) = (proto::names::host(on), proto::names::host(now));
    let message = format!(
        "{lost} cannot be reached, and the VM is active on {other}: nobody can tell how far the operation came on {lost}; the list of \
         snapshots shows what {other} has"
    );
    let ending = Ending::failed(Error::new(Reason::HostLost, message).with("host", lost));
    tracing::warn!(operation = %id, host = %on, "the operation ends, because its host is lost and the VM is active on another one");
    operations::end(job, None, id, &ending, now_ms).map(drop)
}

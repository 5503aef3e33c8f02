//! Snapshots that an operation is taking or deleting are shown as such (AIP-216), from the intent to the outcome.

use rusqlite::OptionalExtension as _;
use snapshot_core::description::Label;
use snapshot_core::ids::SnapshotId;
use snapshot_core::operation::{Create, DeleteScope, Request};
use snapshot_core::snapshot::{Content, Origin, RecordedState, SnapshotFacts, Storage};

use super::inventory::remove_snapshot;
use super::rows::{parse, to_json};
use super::writer::Job;
use super::{NewOperation, OperationRow, StoreError};

/// Marks what an operation is about to take, with the bytes set aside for it, or to delete.
pub(super) fn mark_snapshots(job: &mut Job<'_>, new: &NewOperation, bytes: u64) -> Result<(), StoreError> {
    match &new.request {
        Request::Create(create) => insert_creating(job, new, create, bytes),
        Request::Revert { save_current: Some(create), .. } => insert_creating(job, new, create, bytes),
        Request::Delete { snapshot, scope, .. } => mark_deleting(job, new, Some((snapshot, *scope))),
        Request::Purge { .. } => mark_deleting(job, new, None),
        Request::Update { .. } | Request::Revert { save_current: None, .. } => Ok(()),
    }
}

fn insert_creating(job: &mut Job<'_>, new: &NewOperation, create: &Create, bytes: u64) -> Result<(), StoreError> {
    let sql = "SELECT id, depth FROM snapshots WHERE vm = ?1 AND is_current = 1";
    let current: Option<(String, i64)> = {
        let mut statement = job.connection.prepare_cached(sql)?;
        statement.query_row([new.vm.to_string()], |row| Ok((row.get(0)?, row.get(1)?))).optional()?
    };
    let (parent, depth) = current.map_or((None, 0), |(parent, depth)| (Some(parent), depth + 1));
    let facts = SnapshotFacts {
        id: create.snapshot.clone(),
        parent: parent.as_deref().map(parse).transpose()?,
        is_current: false,
        create_time: new.now_ms.div_euclid(1000),
        label: Label {
            display_name: create.display_name.clone(),
            description: create.description.clone(),
            protected: create.protected,
            actor: new.actor.clone(),
            issuer: String::new(),
            disks: None,
        },
        content: create.content.unwrap_or(Content::Disks),
        storage: create.storage.unwrap_or(Storage::Internal),
        vm_state: RecordedState::Shutoff,
        consistency: None,
        disks: Vec::new(),
        size_bytes: 0,
        origin: Origin::Service,
        broken: None,
        restrictions: Vec::new(),
        revert_denied: None,
    };
    let revision = job.revision()?;
    let sql = "INSERT INTO snapshots (vm, id, parent, depth, is_current, facts, creating_by, label_revision, \
               revision, created_by, bytes) VALUES (?1, ?2, ?3, ?4, 0, ?5, ?6, ?7, ?7, ?8, ?9)";
    job.connection.prepare_cached(sql)?.execute((
        new.vm.to_string(),
        create.snapshot.as_str(),
        parent,
        depth,
        to_json(&facts)?,
        new.id.to_string(),
        revision,
        &new.actor,
        i64::try_from(bytes).unwrap_or(i64::MAX),
    ))?;
    Ok(())
}

fn mark_deleting(
    job: &mut Job<'_>,
    new: &NewOperation,
    target: Option<(&SnapshotId, DeleteScope)>,
) -> Result<(), StoreError> {
    let revision = job.revision()?;
    let (root, include_root, include_below) = match target {
        None => (None, true, true),
        Some((root, scope)) => (Some(root.as_str()), scope != DeleteScope::Descendants, scope != DeleteScope::Only),
    };
    let sql = "WITH RECURSIVE below (id) AS ( \
                 SELECT id FROM snapshots WHERE vm = ?1 AND (parent = ?2 OR ?2 IS NULL) \
                 UNION SELECT s.id FROM snapshots AS s JOIN below ON s.parent = below.id WHERE s.vm = ?1) \
               UPDATE snapshots SET deleting_by = ?3, revision = ?4 WHERE vm = ?1 \
               AND ((?5 AND id = ?2) OR (?6 AND id IN (SELECT id FROM below)))";
    job.connection.prepare_cached(sql)?.execute((
        new.vm.to_string(),
        root,
        new.id.to_string(),
        revision,
        include_root,
        include_below,
    ))?;
    Ok(())
}

/// Takes back what [`mark_snapshots`] did. A snapshot that the host has told of by now is no longer marked as being
/// taken; one that still is was never whole, and goes.
pub(super) fn clear_marks(job: &mut Job<'_>, row: &OperationRow) -> Result<(), StoreError> {
    let revision = job.revision()?;
    let id = row.id.to_string();
    let sql = "UPDATE snapshots SET deleting_by = NULL, revision = ?2 WHERE deleting_by = ?1";
    job.connection.prepare_cached(sql)?.execute((&id, revision))?;
    let unfinished: Vec<String> = {
        let mut statement = job.connection.prepare_cached("SELECT id FROM snapshots WHERE creating_by = ?1")?;
        let rows = statement.query_map([&id], |row| row.get(0))?;
        rows.collect::<Result<_, _>>()?
    };
    for snapshot in unfinished {
        remove_snapshot(job, row.vm, &parse(&snapshot)?)?;
    }
    Ok(())
}

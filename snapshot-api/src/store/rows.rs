//! Rows, in the domain's types.

use rusqlite::Row;
use serde::Serialize;
use serde::de::DeserializeOwned;
use snapshot_core::Error;
use snapshot_core::ids::{HostId, OperationId, RequestId, SnapshotId, VmId};
use snapshot_core::operation::{Method, Note, OperationKind, OperationState, Request};
use snapshot_core::snapshot::SnapshotFacts;
use snapshot_core::vm::VmFacts;

use super::StoreError;

/// A machine.
#[derive(Debug, Clone)]
pub struct VmRow {
    /// Its id.
    pub id: VmId,
    /// The host that it is on.
    pub host: HostId,
    /// As last told.
    pub facts: VmFacts,
    /// When it was told, in milliseconds of the Unix epoch.
    pub observe_time: i64,
    /// The current snapshot.
    pub current: Option<SnapshotId>,
    /// How many snapshots it has.
    pub snapshot_count: i64,
    /// The operation that changes it now.
    pub active_operation: Option<OperationId>,
    /// The last change of it, of its snapshots or of an operation on it.
    pub revision: i64,
    /// The other hosts that have it.
    pub elsewhere: Vec<HostId>,
    /// That one of them which says that it is active there, as its host does.
    pub conflict: Option<HostId>,
}

/// A snapshot.
#[derive(Debug, Clone)]
pub struct SnapshotRow {
    /// Its place in lists.
    pub seq: i64,
    /// Its machine.
    pub vm: VmId,
    /// As last told.
    pub facts: SnapshotFacts,
    /// How many ancestors it has.
    pub depth: i64,
    /// How many snapshots hang on it directly.
    pub child_count: i64,
    /// Whether an operation takes it now.
    pub creating: bool,
    /// Whether an operation deletes it now.
    pub deleting: bool,
    /// The last change of its label.
    pub label_revision: i64,
}

/// A snapshot that is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemovedSnapshot(pub SnapshotId);

/// An operation.
#[derive(Debug, Clone)]
pub struct OperationRow {
    /// Its place in lists.
    pub seq: i64,
    /// Its id.
    pub id: OperationId,
    /// The machine it changes.
    pub vm: VmId,
    /// The host that carries it out.
    pub host: HostId,
    /// What it does.
    pub kind: OperationKind,
    /// How far it has come.
    pub state: OperationState,
    /// What was asked for.
    pub request: Request,
    /// Who asked.
    pub actor: String,
    /// The caller's idempotency key.
    pub request_id: Option<RequestId>,
    /// The step that runs now.
    pub phase: String,
    /// 0 to 100.
    pub percent: i32,
    /// Bytes moved.
    pub bytes_done: i64,
    /// Bytes to move.
    pub bytes_total: i64,
    /// Whether it can still be stopped.
    pub cancellable: bool,
    /// Why it failed.
    pub error: Option<Error>,
    /// How it was done.
    pub method: Option<Method>,
    /// How long the guest stood still, in milliseconds.
    pub pause_ms: Option<i64>,
    /// How long it was expected to, in milliseconds.
    pub predicted_pause_ms: Option<i64>,
    /// What a person should know of it.
    pub notes: Vec<Note>,
    /// Milliseconds of the Unix epoch.
    pub create_time: i64,
    /// Milliseconds of the Unix epoch.
    pub start_time: Option<i64>,
    /// Milliseconds of the Unix epoch.
    pub end_time: Option<i64>,
}

/// Reads one row of a query into a type of ours.
pub(super) trait FromRow: Sized {
    /// The columns, in the order in which `from_row` reads them.
    const COLUMNS: &'static str;
    fn from_row(row: &Row<'_>) -> Result<Self, StoreError>;
}

pub(super) fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, StoreError> {
    text.parse().map_err(|error: T::Err| StoreError::Corrupt(error.to_string()))
}

pub(super) fn from_json<T: DeserializeOwned>(text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Corrupt(error.to_string()))
}

pub(super) fn to_json(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Corrupt(error.to_string()))
}

/// An enum of the domain as its bare text, such as `running`.
pub(super) fn to_text(value: &impl Serialize) -> Result<String, StoreError> {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => Ok(text),
        Ok(other) => Err(StoreError::Corrupt(format!("{other} is not text"))),
        Err(error) => Err(StoreError::Corrupt(error.to_string())),
    }
}

fn from_text<T: DeserializeOwned>(text: String) -> Result<T, StoreError> {
    serde_json::from_value(serde_json::Value::String(text)).map_err(|error| StoreError::Corrupt(error.to_string()))
}

impl FromRow for VmRow {
    const COLUMNS: &'static str = "vms.id, vms.host, vms.facts, vms.observe_time, vms.revision, \
        (SELECT id FROM snapshots WHERE vm = vms.id AND is_current = 1), \
        (SELECT count(*) FROM snapshots WHERE vm = vms.id), \
        (SELECT id FROM operations WHERE vm = vms.id AND state IN ('pending', 'running')), vms.conflict, \
        (SELECT group_concat(host) FROM elsewhere WHERE vm = vms.id)";

    fn from_row(row: &Row<'_>) -> Result<Self, StoreError> {
        let elsewhere = row.get::<_, Option<String>>(9)?.unwrap_or_default();
        Ok(Self {
            id: parse(&row.get::<_, String>(0)?)?,
            host: parse(&row.get::<_, String>(1)?)?,
            facts: from_json(&row.get::<_, String>(2)?)?,
            observe_time: row.get(3)?,
            revision: row.get(4)?,
            current: row.get::<_, Option<String>>(5)?.as_deref().map(parse).transpose()?,
            snapshot_count: row.get(6)?,
            active_operation: row.get::<_, Option<String>>(7)?.as_deref().map(parse).transpose()?,
            conflict: row.get::<_, Option<String>>(8)?.as_deref().map(parse).transpose()?,
            elsewhere: elsewhere.split(',').filter(|host| !host.is_empty()).map(parse).collect::<Result<_, _>>()?,
        })
    }
}

impl FromRow for SnapshotRow {
    const COLUMNS: &'static str = "s.seq, s.vm, s.facts, s.depth, \
        (SELECT count(*) FROM snapshots AS c WHERE c.vm = s.vm AND c.parent = s.id), \
        s.creating_by IS NOT NULL, s.deleting_by IS NOT NULL, s.label_revision";

    fn from_row(row: &Row<'_>) -> Result<Self, StoreError> {
        Ok(Self {
            seq: row.get(0)?,
            vm: parse(&row.get::<_, String>(1)?)?,
            facts: from_json(&row.get::<_, String>(2)?)?,
            depth: row.get(3)?,
            child_count: row.get(4)?,
            creating: row.get(5)?,
            deleting: row.get(6)?,
            label_revision: row.get(7)?,
        })
    }
}

impl FromRow for OperationRow {
    const COLUMNS: &'static str = "seq, id, vm, host, kind, state, request, actor, request_id, phase, percent, \
        bytes_done, bytes_total, cancellable, error, method, pause_ms, create_time, start_time, end_time, predicted_pause_ms, \
        notes";

    fn from_row(row: &Row<'_>) -> Result<Self, StoreError> {
        Ok(Self {
            seq: row.get(0)?,
            id: parse(&row.get::<_, String>(1)?)?,
            vm: parse(&row.get::<_, String>(2)?)?,
            host: parse(&row.get::<_, String>(3)?)?,
            kind: from_text(row.get(4)?)?,
            state: from_text(row.get(5)?)?,
            request: from_json(&row.get::<_, String>(6)?)?,
            actor: row.get(7)?,
            request_id: row.get::<_, Option<String>>(8)?.as_deref().map(parse).transpose()?,
            phase: row.get(9)?,
            percent: row.get(10)?,
            bytes_done: row.get(11)?,
            bytes_total: row.get(12)?,
            cancellable: row.get(13)?,
            error: row.get::<_, Option<String>>(14)?.as_deref().map(from_json).transpose()?,
            method: row.get::<_, Option<String>>(15)?.map(from_text).transpose()?,
            pause_ms: row.get(16)?,
            create_time: row.get(17)?,
            start_time: row.get(18)?,
            end_time: row.get(19)?,
            predicted_pause_ms: row.get(20)?,
            notes: row.get::<_, Option<String>>(21)?.as_deref().map(from_json).transpose()?.unwrap_or_default(),
        })
    }
}

/// All rows of a query.
pub(super) fn all<T: FromRow>(
    connection: &rusqlite::Connection,
    sql: &str,
    parameters: impl rusqlite::Params,
) -> Result<Vec<T>, StoreError> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(parameters)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(T::from_row(row)?);
    }
    Ok(found)
}

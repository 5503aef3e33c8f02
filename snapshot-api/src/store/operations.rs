//! Operations: the intent before the effect, the outcome after it.

use proto::convert::Inventory;
use rusqlite::OptionalExtension as _;
use snapshot_core::audit::Source;
use snapshot_core::authority::Visible;
use snapshot_core::ids::{HostId, OperationId, RequestId, SnapshotId, VmId};
use snapshot_core::operation::{Method, Note, OperationState, Outcome, Request, Transition, busy};
use snapshot_core::quota::Limits;
use snapshot_core::{Error, Reason};

use super::connected::Connected;
use super::elsewhere::{After, check_place, decide};
use super::inventory::put_inventory;
use super::marks::{clear_marks, mark_snapshots};
use super::rows::{FromRow as _, all, parse, to_json, to_text};
use super::vms::visible_json;
use super::writer::Job;
use super::{OperationRow, Store, StoreError, audit, quotas};

/// An intent.
#[derive(Debug, Clone)]
pub struct NewOperation {
    /// Its id.
    pub id: OperationId,
    /// The machine.
    pub vm: VmId,
    /// The host that shall carry it out.
    pub host: HostId,
    /// What to do.
    pub request: Request,
    /// Who asked, `{issuer}/{subject}`.
    pub actor: String,
    /// The same with all that the audit trail has of it.
    pub source: Source,
    /// How much the actor may keep.
    pub quota: Limits,
    /// The caller's idempotency key.
    pub request_id: Option<RequestId>,
    /// Of the caller's request: a replay must be of the same one.
    pub fingerprint: String,
    /// The label revision that the snapshot must have.
    pub expected_label: Option<i64>,
    /// Milliseconds of the Unix epoch.
    pub now_ms: i64,
}

/// What came of writing an intent.
#[derive(Debug)]
pub enum Begun {
    /// It is written: ask the host.
    New,
    /// The same request was made before: this is its operation.
    Replay(Box<OperationRow>),
}

/// How far an operation has come.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// The step that runs now.
    pub phase: String,
    /// 0 to 100.
    pub percent: i32,
    /// Bytes moved.
    pub bytes_done: i64,
    /// Bytes to move.
    pub bytes_total: i64,
}

/// How an operation ended.
#[derive(Debug, Clone)]
pub struct Ending {
    /// So.
    pub outcome: Outcome,
    /// Why it failed.
    pub error: Option<Error>,
    /// How it was done.
    pub method: Option<Method>,
    /// How long the guest stood still.
    pub pause_ms: Option<u64>,
    /// How long it was expected to.
    pub predicted_pause_ms: Option<u64>,
    /// What a person should know of it.
    pub notes: Vec<Note>,
    /// The machine afterwards.
    pub inventory: Option<Inventory>,
}

impl Ending {
    /// An end that changed nothing on the host.
    pub fn failed(error: Error) -> Self {
        Self {
            outcome: Outcome::Failed,
            error: Some(error),
            method: None,
            pause_ms: None,
            predicted_pause_ms: None,
            notes: Vec::new(),
            inventory: None,
        }
    }
}

/// Which operations to list.
#[derive(Debug, Clone)]
pub struct OperationFilter {
    /// Those on machines that the caller may read.
    pub visible: Visible,
    /// Only those on this machine.
    pub vm: Option<VmId>,
    /// Only those that have not ended.
    pub active_only: bool,
    /// Only those before this place in the list.
    pub before: Option<i64>,
}

impl Store {
    /// The operation of an earlier, equal request, if there is one that did not come to nothing.
    pub fn replayed(
        &self,
        actor: &str,
        request_id: Option<RequestId>,
        fingerprint: &str,
    ) -> Result<Option<OperationRow>, StoreError> {
        let Some(request_id) = request_id else { return Ok(None) };
        self.read(|connection| replay(connection, actor, request_id, fingerprint))
    }

    /// Writes an intent and its event in the audit trail, unless it is a replay, another operation is changing the machine, or the
    /// actor's quota is used up.
    pub async fn begin(&self, new: NewOperation) -> Result<Begun, StoreError> {
        self.write(move |job| {
            if let Some(request_id) = new.request_id
                && let Some(row) = replay(job.connection, &new.actor, request_id, &new.fingerprint)?
            {
                return Ok(Begun::Replay(Box::new(row)));
            }
            if let Some((other, _)) = active_on(job.connection, new.vm)? {
                return Err(busy(new.vm, other).into());
            }
            check_place(job, new.vm, &new.host)?;
            check_etag(job.connection, &new)?;
            let bytes = quotas::admit(job.connection, new.vm, &new.actor, new.quota, &new.request)?;
            insert(job, &new)?;
            mark_snapshots(job, &new, bytes)?;
            audit::append(job.connection, &audit::accepted(&new))?;
            job.touch(new.vm)?;
            Ok(Begun::New)
        })
        .await
    }

    /// A host has taken it on.
    pub async fn accept(&self, id: OperationId, cancellable: bool, now_ms: i64) -> Result<OperationRow, StoreError> {
        self.write_retold(move |job| {
            let row = operation(job.connection, id)?;
            if let Some(state) = row.state.after(Transition::Accepted) {
                let sql = "UPDATE operations SET state = ?2, start_time = ?3, cancellable = ?4, revision = ?5 \
                           WHERE id = ?1";
                let revision = job.revision()?;
                let parameters = (id.to_string(), to_text(&state)?, now_ms, cancellable, revision);
                job.connection.prepare_cached(sql)?.execute(parameters)?;
                job.touch(row.vm)?;
            }
            operation(job.connection, id)
        })
        .await
    }

    /// It has come further.
    pub async fn progress(&self, id: OperationId, progress: Progress) -> Result<(), StoreError> {
        self.write_retold(move |job| {
            let sql = "UPDATE operations SET phase = ?2, percent = max(percent, ?3), bytes_done = ?4, \
                       bytes_total = ?5, revision = ?6 WHERE id = ?1 AND state IN ('pending', 'running') \
                       RETURNING vm";
            let revision = job.revision()?;
            let Progress { phase, percent, bytes_done, bytes_total } = progress;
            let parameters = (id.to_string(), phase, percent, bytes_done, bytes_total, revision);
            let vm: Option<String> =
                job.connection.prepare_cached(sql)?.query_row(parameters, |row| row.get(0)).optional()?;
            if let Some(vm) = vm {
                job.touch(parse(&vm)?)?;
            }
            Ok(())
        })
        .await
    }

    /// It has ended: the outcome and the machine afterwards are written together. A second end changes nothing.
    pub async fn end(&self, id: OperationId, ending: Ending, now_ms: i64) -> Result<OperationRow, StoreError> {
        let connected = self.connected.clone();
        self.write(move |job| end(job, Some(&connected), id, &ending, now_ms)).await
    }

    /// One operation, or the error that a caller gets for one that does not exist.
    pub fn operation(&self, id: OperationId) -> Result<OperationRow, StoreError> {
        self.read(|connection| operation(connection, id))
    }

    /// The same, of these machines alone.
    pub fn visible_operation(&self, id: OperationId, visible: &Visible) -> Result<OperationRow, StoreError> {
        let sql = format!(
            "SELECT {} FROM operations WHERE id = ?1 AND (?2 IS NULL OR vm IN (SELECT value FROM json_each(?2)))",
            OperationRow::COLUMNS
        );
        let found = self.read(|connection| all(connection, &sql, (id.to_string(), visible_json(visible))))?;
        found.into_iter().next().ok_or_else(|| operation_not_found(id).into())
    }

    /// Operations, newest first.
    pub fn operations(&self, filter: &OperationFilter, limit: usize) -> Result<Vec<OperationRow>, StoreError> {
        let sql = format!(
            "SELECT {} FROM operations WHERE seq < ?1 AND (?2 IS NULL OR vm = ?2) \
             AND (?3 IS NULL OR vm IN (SELECT value FROM json_each(?3))) \
             AND (NOT ?4 OR state IN ('pending', 'running')) ORDER BY seq DESC LIMIT ?5",
            OperationRow::COLUMNS
        );
        let before = filter.before.unwrap_or(i64::MAX);
        let vm = filter.vm.map(|vm| vm.to_string());
        let visible = visible_json(&filter.visible);
        self.read(|connection| all(connection, &sql, (before, vm, visible, filter.active_only, limit as i64)))
    }

    /// The operations that have not ended on hosts other than these: nobody will ever tell how they end.
    pub fn stranded_operations(&self, hosts: &[&HostId]) -> Result<Vec<OperationRow>, StoreError> {
        let sql = format!(
            "SELECT {} FROM operations WHERE host NOT IN (SELECT value FROM json_each(?1)) \
             AND state IN ('pending', 'running') ORDER BY seq",
            OperationRow::COLUMNS
        );
        let hosts = to_json(&hosts)?;
        self.read(|connection| all(connection, &sql, [hosts]))
    }

    /// The operations of a host that have not ended.
    pub fn active_operations(&self, host: &HostId) -> Result<Vec<OperationRow>, StoreError> {
        let sql = format!(
            "SELECT {} FROM operations WHERE host = ?1 AND state IN ('pending', 'running') ORDER BY seq",
            OperationRow::COLUMNS
        );
        self.read(|connection| all(connection, &sql, [host.as_str()]))
    }
}

/// Writes down how an operation has ended. The VM afterwards is taken over where it is known which hosts are connected.
pub(super) fn end(
    job: &mut Job<'_>,
    connected: Option<&Connected>,
    id: OperationId,
    ending: &Ending,
    now_ms: i64,
) -> Result<OperationRow, StoreError> {
    let row = operation(job.connection, id)?;
    if let Some(state) = row.state.after(Transition::Ended(ending.outcome)) {
        write_end(job, &row, state, ending, now_ms)?;
        audit::append(job.connection, &audit::ended(job.connection, &row, ending, state, now_ms)?)?;
        if let (Some(inventory), Some(connected)) = (&ending.inventory, connected) {
            match put_inventory(job, connected, &row.host, inventory, now_ms) {
                // The operation has ended all the same, and the machine is told again.
                Err(StoreError::Corrupt(cause)) => tracing::error!(cause, "an inventory was not taken over"),
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        clear_marks(job, &row)?;
        job.touch(row.vm)?;
        if let Some(connected) = connected {
            // It may have kept the VM where it was.
            decide(job, connected, After::Word(&row.host), row.vm, now_ms)?;
        }
    }
    operation(job.connection, id)
}

fn operation(connection: &rusqlite::Connection, id: OperationId) -> Result<OperationRow, StoreError> {
    let sql = format!("SELECT {} FROM operations WHERE id = ?1", OperationRow::COLUMNS);
    let found = all(connection, &sql, [id.to_string()])?;
    found.into_iter().next().ok_or_else(|| operation_not_found(id).into())
}

/// The error for an operation that does not exist or that the caller may not see.
fn operation_not_found(id: OperationId) -> Error {
    let name = proto::names::operation(id);
    Error::new(Reason::OperationNotFound, format!("{name} does not exist")).with("operation", name)
}

fn replay(
    connection: &rusqlite::Connection,
    actor: &str,
    request_id: RequestId,
    fingerprint: &str,
) -> Result<Option<OperationRow>, StoreError> {
    let sql = "SELECT id, fingerprint FROM operations WHERE actor = ?1 AND request_id = ?2 \
               AND state IN ('pending', 'running', 'succeeded')";
    let mut statement = connection.prepare_cached(sql)?;
    let found: Option<(String, String)> =
        statement.query_row((actor, request_id.to_string()), |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let Some((id, first)) = found else { return Ok(None) };
    if first != fingerprint {
        let message = format!("request_id {request_id} was used for another request");
        return Err(Error::new(Reason::RequestIdReused, message)
            .with("operation", format!("operations/{id}"))
            .with("field", "request_id")
            .into());
    }
    operation(connection, parse(&id)?).map(Some)
}

/// The operation on a VM that has not ended, and the host that it was handed to.
pub(super) fn active_on(
    connection: &rusqlite::Connection,
    vm: VmId,
) -> Result<Option<(OperationId, HostId)>, StoreError> {
    let sql = "SELECT id, host FROM operations WHERE vm = ?1 AND state IN ('pending', 'running')";
    let mut statement = connection.prepare_cached(sql)?;
    let found: Option<(String, String)> =
        statement.query_row([vm.to_string()], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    found.map(|(id, host)| Ok((parse(&id)?, parse(&host)?))).transpose()
}

fn check_etag(connection: &rusqlite::Connection, new: &NewOperation) -> Result<(), StoreError> {
    let (Some(expected), Some(snapshot)) = (new.expected_label, new.request.snapshot()) else { return Ok(()) };
    let sql = "SELECT label_revision FROM snapshots WHERE vm = ?1 AND id = ?2";
    let found: Option<i64> = connection
        .prepare_cached(sql)?
        .query_row((new.vm.to_string(), snapshot.as_str()), |row| row.get(0))
        .optional()?;
    match found {
        None => Err(Error::snapshot_not_found(new.vm, snapshot).into()),
        Some(found) if found == expected => Ok(()),
        Some(_) => Err(crate::etag::mismatch(new.vm, snapshot).into()),
    }
}

fn insert(job: &mut Job<'_>, new: &NewOperation) -> Result<(), StoreError> {
    let sql = "INSERT INTO operations (id, vm, host, snapshot, kind, state, request, actor, request_id, fingerprint, \
               create_time, revision) VALUES (?1, ?2, ?3, ?4, ?5, 'pending', ?6, ?7, ?8, ?9, ?10, ?11)";
    let revision = job.revision()?;
    job.connection.prepare_cached(sql)?.execute((
        new.id.to_string(),
        new.vm.to_string(),
        new.host.as_str(),
        new.request.snapshot().map(SnapshotId::as_str),
        to_text(&new.request.kind())?,
        to_json(&new.request)?,
        &new.actor,
        new.request_id.map(|id| id.to_string()),
        &new.fingerprint,
        new.now_ms,
        revision,
    ))?;
    Ok(())
}

fn write_end(
    job: &mut Job<'_>,
    row: &OperationRow,
    state: OperationState,
    ending: &Ending,
    now_ms: i64,
) -> Result<(), StoreError> {
    let sql = "UPDATE operations SET state = ?2, error = ?3, method = ?4, pause_ms = ?5, end_time = ?6, \
               percent = iif(?2 = 'succeeded', 100, percent), cancellable = 0, revision = ?7, \
               ended_served_ms = (SELECT served_ms FROM catalogue), predicted_pause_ms = ?8, notes = ?9 WHERE id = ?1";
    let revision = job.revision()?;
    job.connection.prepare_cached(sql)?.execute((
        row.id.to_string(),
        to_text(&state)?,
        ending.error.as_ref().map(to_json).transpose()?,
        ending.method.as_ref().map(to_text).transpose()?,
        ending.pause_ms.map(saturating),
        now_ms,
        revision,
        ending.predicted_pause_ms.map(saturating),
        (!ending.notes.is_empty()).then(|| to_json(&ending.notes)).transpose()?,
    ))?;
    Ok(())
}

fn saturating(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

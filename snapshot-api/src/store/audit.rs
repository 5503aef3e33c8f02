//! The audit trail (docs/adr/0021): one row an event, each with the hash of the one before.
//!
//! Only the writer appends, and the end of the chain is read from the table each time: a job that is taken back leaves nothing
//! of its event, and no event is ever without the change it tells of. The hash is SHA-256 over `snapshot_core::audit::Link`.

mod prune;
mod verify;

use aws_lc_rs::digest::{SHA256, digest};
use rusqlite::{Connection, OptionalExtension as _, Row};
use snapshot_core::audit::{Event, Hash, Head, Link, Outcome, Source};
use snapshot_core::ids::{SnapshotId, VmId};
use snapshot_core::operation::OperationState;

use super::rows::{FromRow, all, parse};
use super::{Ending, NewOperation, OperationRow, Store, StoreError};

pub(super) use verify::check_end;
pub use verify::{Broken, Unverified, Verified, verify};

/// How many events are looked at for one page, where a filter lets few of them through.
const LOOKED_AT: i64 = 100_000;

/// An event as it is in the trail.
#[derive(Debug, Clone)]
pub struct AuditRow {
    /// Its place.
    pub sequence: i64,
    /// Its hash.
    pub hash: Hash,
    /// What happened.
    pub event: Event,
}

/// Which events to list.
#[derive(Debug, Clone, Default)]
pub struct AuditFilter {
    /// Only those about this machine.
    pub vm: Option<VmId>,
    /// Only those of this caller, `{issuer}/{subject}`.
    pub actor: Option<String>,
    /// Only those at or after this time, in milliseconds of the Unix epoch.
    pub from_ms: Option<i64>,
    /// Only those before this time.
    pub until_ms: Option<i64>,
    /// Whether the oldest come first.
    pub oldest_first: bool,
    /// Only those beyond this one, in the order of the list.
    pub beyond: Option<i64>,
}

/// Events, and where to go on when they are not all.
#[derive(Debug, Clone)]
pub struct AuditPage {
    /// The events.
    pub rows: Vec<AuditRow>,
    /// What to go on beyond; `None` at the end.
    pub next: Option<i64>,
}

impl Store {
    /// Adds events. They are not synced for their own sake: who is refused need not wait for the disk.
    pub async fn record(&self, events: Vec<Event>) -> Result<(), StoreError> {
        self.write_retold(move |job| events.iter().try_for_each(|event| append(job.connection, event))).await
    }

    /// Adds an event of a change that is no operation. When this returns, a power cut does not forget it.
    pub async fn record_synced(&self, event: Event) -> Result<(), StoreError> {
        self.write(move |job| append(job.connection, &event)).await
    }

    /// Adds an event that nobody waits for; what is to be done when it could not be written is given along. False when the writer has
    /// too much to do: it is not written then.
    pub fn record_soon(&self, event: Event, failed: impl FnOnce(Event, StoreError) + Send + 'static) -> bool {
        let written = event.clone();
        self.post(
            move |job| append(job.connection, &written),
            move |result| {
                if let Err(error) = result {
                    failed(event, error);
                }
            },
        )
    }

    /// The end of the trail: what is to be noted elsewhere.
    pub fn audit_head(&self) -> Result<Option<Head>, StoreError> {
        self.read(head)
    }

    /// Events in the order that the filter asks for.
    pub fn audit_events(&self, filter: &AuditFilter, limit: usize) -> Result<AuditPage, StoreError> {
        self.read(|connection| page(connection, filter, limit))
    }
}

/// Adds an event at the end.
pub(super) fn append(connection: &Connection, event: &Event) -> Result<(), StoreError> {
    let head = head(connection)?;
    let served: i64 = connection.prepare_cached("SELECT served_ms FROM catalogue")?.query_row([], |row| row.get(0))?;
    let link = Link::after(head.as_ref(), served, event);
    let hash = hash(&link).ok_or_else(|| StoreError::Corrupt("an event that cannot be encoded".to_owned()))?;
    let [issuer, subject, token_id, peer, method, request_id, rest @ ..] = &link.texts;
    let [vm, snapshot, operation, outcome, reason, detail] = rest;
    let sql = "INSERT INTO audit (seq, version, time_ms, served_ms, count, issuer, subject, token_id, peer, method, request_id, \
               vm, snapshot, operation, outcome, reason, detail, previous, hash) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)";
    connection.prepare_cached(sql)?.execute(rusqlite::params![
        link.sequence,
        link.version,
        link.time_ms,
        link.served_ms,
        link.count,
        issuer,
        subject,
        token_id,
        peer,
        method,
        request_id,
        vm,
        snapshot,
        operation,
        outcome,
        reason,
        detail,
        link.previous,
        hash
    ])?;
    Ok(())
}

/// The first event of a catalogue that has none. That a trail is new is itself in the trail: one that was thrown away with its
/// catalogue does not come back unseen.
pub(super) fn begin_trail(connection: &Connection, why: &str) -> Result<(), StoreError> {
    if head(connection)?.is_some() {
        return Ok(());
    }
    let epoch: String = connection.query_row("SELECT epoch FROM catalogue", [], |row| row.get(0))?;
    let now_ms = crate::clock::Clock::system().now_ms();
    let event =
        Event { detail: format!("{why}, epoch {epoch}"), ..Event::new(now_ms, Source::default(), Outcome::Begun) };
    append(connection, &event)
}

/// The event of an intent.
pub(super) fn accepted(new: &NewOperation) -> Event {
    let snapshot = new.request.snapshot().map(SnapshotId::to_string).unwrap_or_default();
    Event {
        vm: Some(new.vm),
        snapshot,
        operation: new.id.to_string(),
        ..Event::new(new.now_ms, new.source.clone(), Outcome::Accepted)
    }
}

/// The event of an end: of whoever asked, as told by the host.
pub(super) fn ended(
    connection: &Connection,
    row: &OperationRow,
    ending: &Ending,
    state: OperationState,
    now_ms: i64,
) -> Result<Event, StoreError> {
    let outcome = match state {
        OperationState::Succeeded => Outcome::Succeeded,
        OperationState::Cancelled => Outcome::Cancelled,
        OperationState::Failed | OperationState::Pending | OperationState::Running => Outcome::Failed,
    };
    let sql = "SELECT issuer, subject, token_id, method, request_id FROM audit WHERE operation = ?1 AND operation <> '' \
               AND outcome = 'accepted' LIMIT 1";
    let mut statement = connection.prepare_cached(sql)?;
    let asked = statement.query_row([row.id.to_string()], |row| {
        let (issuer, subject, token_id) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(Source { issuer, subject, token_id, method: row.get(3)?, request_id: row.get(4)?, peer: String::new() })
    });
    let mut source = match asked.optional()? {
        Some(source) => source,
        // Begun before there was a trail, or so long ago that its event is gone. No issuer has an empty name.
        None => match row.actor.split_once('/') {
            Some((issuer, subject)) => Source { issuer: issuer.into(), subject: subject.into(), ..Source::default() },
            None => Source { subject: row.actor.clone(), ..Source::default() },
        },
    };
    source.peer = proto::names::host(&row.host);
    Ok(Event {
        vm: Some(row.vm),
        snapshot: row.request.snapshot().map(SnapshotId::to_string).unwrap_or_default(),
        operation: row.id.to_string(),
        reason: ending.error.as_ref().map(|error| error.reason().as_str().to_owned()).unwrap_or_default(),
        ..Event::new(now_ms, source, outcome)
    })
}

fn hash(link: &Link) -> Option<Hash> {
    digest(&SHA256, &link.encode()?).as_ref().try_into().ok()
}

fn head(connection: &Connection) -> Result<Option<Head>, StoreError> {
    let sql = "SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1";
    let mut statement = connection.prepare_cached(sql)?;
    let read = |row: &Row<'_>| Ok(Head { sequence: row.get(0)?, hash: row.get(1)? });
    Ok(statement.query_row([], read).optional()?)
}

fn page(connection: &Connection, filter: &AuditFilter, limit: usize) -> Result<AuditPage, StoreError> {
    let sql = "SELECT coalesce(min(seq), 0), coalesce(max(seq), 0) FROM audit";
    let (first, last): (i64, i64) =
        connection.prepare_cached(sql)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    // A filter by time has no index: what one page looks at has a bound, and the next goes on from there.
    let (low, high, more) = if filter.oldest_first {
        let low = filter.beyond.map_or(first, |beyond| beyond.saturating_add(1).max(first));
        let high = low.saturating_add(LOOKED_AT - 1);
        (low, high, (high < last).then_some(high))
    } else {
        let high = filter.beyond.map_or(last, |beyond| beyond.saturating_sub(1).min(last));
        let low = high.saturating_sub(LOOKED_AT - 1);
        (low, high, (low > first).then_some(low))
    };
    let mut sql = format!("SELECT {} FROM audit WHERE seq BETWEEN ?1 AND ?2", AuditRow::COLUMNS);
    // Only what is asked for is in the text, so that SQLite finds the index for it.
    for (asked, clause) in [
        (filter.vm.is_some(), " AND vm = ?3 AND vm <> ''"),
        (filter.actor.is_some(), " AND issuer || '/' || subject = ?4 AND issuer <> ''"),
        (filter.from_ms.is_some(), " AND time_ms >= ?5"),
        (filter.until_ms.is_some(), " AND time_ms < ?6"),
    ] {
        if asked {
            sql.push_str(clause);
        }
    }
    // Named in every text, so that the parameters are the same for all.
    sql.push_str(" AND (?3, ?4, ?5, ?6) IS (?3, ?4, ?5, ?6)");
    sql.push_str(if filter.oldest_first { " ORDER BY seq LIMIT ?7" } else { " ORDER BY seq DESC LIMIT ?7" });
    let vm = filter.vm.map(|vm| vm.to_string());
    let fetch = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
    let parameters = (low, high, vm, &filter.actor, filter.from_ms, filter.until_ms, fetch);
    let mut rows: Vec<AuditRow> = all(connection, &sql, parameters)?;
    let next = if rows.len() > limit {
        rows.truncate(limit);
        rows.last().map(|row| row.sequence)
    } else {
        more
    };
    Ok(AuditPage { rows, next })
}

impl FromRow for AuditRow {
    const COLUMNS: &'static str = "seq, hash, time_ms, count, issuer, subject, token_id, peer, method, request_id, vm, snapshot, \
        operation, outcome, reason, detail";

    fn from_row(row: &Row<'_>) -> Result<Self, StoreError> {
        let vm: String = row.get(10)?;
        let outcome: String = row.get(13)?;
        let event = Event {
            time_ms: row.get(2)?,
            source: Source {
                issuer: row.get(4)?,
                subject: row.get(5)?,
                token_id: row.get(6)?,
                peer: row.get(7)?,
                method: row.get(8)?,
                request_id: row.get(9)?,
            },
            vm: if vm.is_empty() { None } else { Some(parse(&vm)?) },
            snapshot: row.get(11)?,
            operation: row.get(12)?,
            outcome: Outcome::parse(&outcome).ok_or_else(|| StoreError::Corrupt(format!("outcome {outcome:?}")))?,
            reason: row.get(14)?,
            count: row.get(3)?,
            detail: row.get(15)?,
        };
        Ok(Self { sequence: row.get(0)?, hash: row.get(1)?, event })
    }
}

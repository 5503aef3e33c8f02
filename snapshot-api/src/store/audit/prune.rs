//! Removing events that are older than they are kept.
//!
//! An event says so before any goes, with the number and hash of the last that goes: the chain can be verified from there on. So
//! that the trail does not grow by its own pruning, it is only done when something is a day older than it is kept.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _};
use snapshot_core::audit::{Event, Head, Outcome, Source};

use super::append;
use crate::store::{Store, StoreError};

/// How many events are removed in one job, so that others need not wait long.
const AT_ONCE: i64 = 5000;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Store {
    /// Removes events older than this, counted while the service runs; returns how many.
    pub async fn prune_audit(&self, keep: Duration, now_ms: i64) -> Result<usize, StoreError> {
        let millis = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        let (keep, day) = (millis(keep), millis(DAY));
        // The most that is asked is where to begin: until then this costs a read.
        if !self.read(|connection| overdue(connection, keep.saturating_add(day)))? {
            return Ok(0);
        }
        let mut removed = 0;
        loop {
            let now = self.write(move |job| prune(job.connection, keep, now_ms)).await?;
            removed += now;
            if now < usize::try_from(AT_ONCE).unwrap_or(usize::MAX) {
                return Ok(removed);
            }
        }
    }
}

fn overdue(connection: &Connection, keep: i64) -> Result<bool, StoreError> {
    let sql = "SELECT served_ms < (SELECT served_ms FROM catalogue) - ?1 FROM audit ORDER BY seq LIMIT 1";
    Ok(connection.prepare_cached(sql)?.query_row([keep], |row| row.get(0)).optional()?.unwrap_or(false))
}

fn prune(connection: &Connection, keep: i64, now_ms: i64) -> Result<usize, StoreError> {
    // Time of service only grows, so what is old comes first.
    let sql = "SELECT seq, hash FROM (SELECT seq, hash, served_ms FROM audit ORDER BY seq LIMIT ?2) \
               WHERE served_ms < (SELECT served_ms FROM catalogue) - ?1 ORDER BY seq DESC LIMIT 1";
    let last = connection.query_row(sql, (keep, AT_ONCE), |row| Ok(Head { sequence: row.get(0)?, hash: row.get(1)? }));
    let Some(last) = last.optional()? else { return Ok(0) };
    let event = Event::new(now_ms, Source::default(), Outcome::Pruned);
    append(connection, &Event { detail: last.to_string(), ..event })?;
    Ok(connection.execute("DELETE FROM audit WHERE seq <= ?1", [last.sequence])?)
}

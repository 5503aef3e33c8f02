//! What is forgotten with time.
//!
//! Time here is how long the service has run on the catalogue: the wall clock may jump, and while nothing runs nothing needs
//! to be forgotten.

use std::time::Duration;

use super::{Store, StoreError};

/// How many operations are removed in one job, so that others need not wait long.
const AT_ONCE: i64 = 500;

/// How long a request id finds its operation, whatever else is said about how much is kept.
pub const REPLAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How much is kept of what has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Ended operations are kept for this long, at least [`REPLAY`].
    pub keep: Duration,
    /// The most ended operations; those within [`REPLAY`] are kept even beyond it.
    pub most: u64,
}

impl Store {
    /// Adds to how long the service has run on this catalogue.
    pub async fn served(&self, more: Duration) -> Result<(), StoreError> {
        let more = millis(more);
        self.write_retold(move |job| {
            let sql = "UPDATE catalogue SET served_ms = served_ms + ?1";
            job.connection.prepare_cached(sql)?.execute([more])?;
            Ok(())
        })
        .await
    }

    /// Forgets ended operations that are old or too many; returns how many.
    pub async fn prune(&self, retention: Retention) -> Result<usize, StoreError> {
        let keep = millis(retention.keep.max(REPLAY));
        let most = i64::try_from(retention.most).unwrap_or(i64::MAX);
        let mut removed = 0;
        loop {
            let now = self.write_retold(move |job| prune(job.connection, keep, most)).await?;
            removed += now;
            if now == 0 {
                return Ok(removed);
            }
        }
    }
}

fn prune(connection: &rusqlite::Connection, keep: i64, most: i64) -> Result<usize, StoreError> {
    let old = "DELETE FROM operations WHERE seq IN (SELECT seq FROM operations WHERE ended_served_ms IS NOT NULL \
               AND ended_served_ms < (SELECT served_ms FROM catalogue) - ?1 ORDER BY ended_served_ms, seq LIMIT ?2)";
    let removed = connection.prepare_cached(old)?.execute((keep, AT_ONCE))?;
    if removed > 0 {
        return Ok(removed);
    }
    let count = "SELECT count(*) FROM operations WHERE ended_served_ms IS NOT NULL";
    let ended: i64 = connection.prepare_cached(count)?.query_row([], |row| row.get(0))?;
    let surplus = ended.saturating_sub(most).min(AT_ONCE);
    if surplus <= 0 {
        return Ok(0);
    }
    Ok(connection.prepare_cached(old)?.execute((millis(REPLAY), surplus))?)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

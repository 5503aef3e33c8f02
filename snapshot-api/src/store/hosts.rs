//! What is remembered of hosts, so that one that cannot be reached is still described.

use rusqlite::OptionalExtension as _;
use snapshot_core::ids::HostId;

use super::{Store, StoreError};

impl Store {
    /// Remembers what a host's agent told (JSON), and when.
    pub async fn put_host(&self, host: HostId, facts: String, now_ms: i64) -> Result<(), StoreError> {
        self.write_retold(move |job| {
            let sql = "INSERT INTO hosts (id, facts, observe_time) VALUES (?1, ?2, ?3) \
                       ON CONFLICT (id) DO UPDATE SET facts = excluded.facts, observe_time = excluded.observe_time";
            job.connection.prepare_cached(sql)?.execute((host.as_str(), facts, now_ms))?;
            Ok(())
        })
        .await
    }

    /// What was last told of a host (JSON), and when.
    pub fn host(&self, host: &HostId) -> Result<Option<(String, i64)>, StoreError> {
        self.read(|connection| {
            let sql = "SELECT facts, observe_time FROM hosts WHERE id = ?1";
            let mut statement = connection.prepare_cached(sql)?;
            Ok(statement.query_row([host.as_str()], |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
        })
    }
}

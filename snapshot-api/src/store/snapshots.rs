//! Reading snapshots, and what changed since a revision.

use snapshot_core::Error;
use snapshot_core::ids::{SnapshotId, VmId};
use snapshot_core::snapshot::SnapshotFacts;

use super::rows::{FromRow as _, all, from_json, parse};
use super::{OperationRow, RemovedSnapshot, SnapshotRow, Store, StoreError, VmRow};

/// What a watcher of one machine has not seen yet, as of `revision`.
#[derive(Debug)]
pub struct News {
    /// The machine that was asked about.
    pub id: VmId,
    /// Everything up to this revision is in here.
    pub revision: i64,
    /// Whether this is the whole state, because the watcher's revision is too old or it has none.
    pub whole: bool,
    /// The machine, when it or anything of it changed.
    pub vm: Option<VmRow>,
    /// Snapshots that are new or changed.
    pub snapshots: Vec<SnapshotRow>,
    /// Snapshots that are gone.
    pub removed: Vec<RemovedSnapshot>,
    /// Operations that are new or changed.
    pub operations: Vec<OperationRow>,
}

impl Store {
    /// One snapshot, or the error that a caller gets for one that does not exist.
    pub fn snapshot(&self, vm: VmId, id: &SnapshotId) -> Result<SnapshotRow, StoreError> {
        let sql = format!("SELECT {} FROM snapshots AS s WHERE vm = ?1 AND id = ?2", SnapshotRow::COLUMNS);
        let found = self.read(|connection| all(connection, &sql, (vm.to_string(), id.as_str())))?;
        found.into_iter().next().ok_or_else(|| Error::snapshot_not_found(vm, id).into())
    }

    /// Snapshots of a machine after a place in the list, oldest first, each parent before its children.
    pub fn snapshots(&self, vm: VmId, after: i64, limit: usize) -> Result<Vec<SnapshotRow>, StoreError> {
        let sql = format!(
            "SELECT {} FROM snapshots AS s WHERE vm = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
            SnapshotRow::COLUMNS
        );
        self.read(|connection| all(connection, &sql, (vm.to_string(), after, limit as i64)))
    }

    /// Every snapshot that the host of a machine has, for the planner.
    pub fn all_snapshots(&self, vm: VmId) -> Result<Vec<SnapshotFacts>, StoreError> {
        self.read(|connection| {
            let sql = "SELECT facts FROM snapshots WHERE vm = ?1 AND creating_by IS NULL ORDER BY seq";
            let mut statement = connection.prepare_cached(sql)?;
            let mut rows = statement.query([vm.to_string()])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                found.push(from_json(&row.get::<_, String>(0)?)?);
            }
            Ok(found)
        })
    }

    /// What changed of a machine since a revision; all of it for `None` and for a revision that is too old.
    pub fn news(&self, vm: VmId, since: Option<i64>) -> Result<News, StoreError> {
        self.read(|connection| {
            let sql = "SELECT revision, removals_since FROM catalogue";
            let (revision, forgotten): (i64, i64) =
                connection.prepare_cached(sql)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let since = since.filter(|since| (forgotten..=revision).contains(since));
            let floor = since.unwrap_or(-1);
            let key = vm.to_string();
            let sql = format!("SELECT {} FROM vms WHERE id = ?1 AND revision > ?2", VmRow::COLUMNS);
            let machine = all::<VmRow>(connection, &sql, (&key, floor))?.into_iter().next();
            let sql = format!(
                "SELECT {} FROM snapshots AS s WHERE vm = ?1 AND revision > ?2 ORDER BY seq",
                SnapshotRow::COLUMNS
            );
            let snapshots = all(connection, &sql, (&key, floor))?;
            // The whole state has the operations that run; those that ended before are history, not state.
            let ended = if since.is_some() { "" } else { "AND state IN ('pending', 'running')" };
            let sql = format!(
                "SELECT {} FROM operations WHERE vm = ?1 AND revision > ?2 {ended} ORDER BY seq",
                OperationRow::COLUMNS
            );
            let operations = all(connection, &sql, (&key, floor))?;
            let removed = match since {
                Some(since) => removed_since(connection, &key, since)?,
                None => Vec::new(),
            };
            Ok(News { id: vm, revision, whole: since.is_none(), vm: machine, snapshots, removed, operations })
        })
    }
}

/// Removed and not there again: an id of a foreign snapshot may come back.
fn removed_since(connection: &rusqlite::Connection, vm: &str, since: i64) -> Result<Vec<RemovedSnapshot>, StoreError> {
    let sql = "SELECT DISTINCT id FROM removed_snapshots AS r WHERE vm = ?1 AND revision > ?2 \
               AND NOT EXISTS (SELECT 1 FROM snapshots AS s WHERE s.vm = r.vm AND s.id = r.id)";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query((vm, since))?;
    let mut removed = Vec::new();
    while let Some(row) = rows.next()? {
        removed.push(RemovedSnapshot(parse(&row.get::<_, String>(0)?)?));
    }
    Ok(removed)
}

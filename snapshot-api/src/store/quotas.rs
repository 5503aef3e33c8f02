//! What is kept by whom. Counted from the rows of snapshots, those that are being taken among them, so that what a quota is held
//! against cannot differ from what there is.

use rusqlite::{Connection, OptionalExtension as _};
use snapshot_core::ids::VmId;
use snapshot_core::operation::Request;
use snapshot_core::quota::{self, Limits, Owner, Usage};
use snapshot_core::snapshot::{Origin, SnapshotFacts};
use snapshot_core::vm::VmFacts;

use super::rows::from_json;
use super::{Store, StoreError};

impl Store {
    /// What a user, `{issuer}/{subject}`, has taken, on all machines.
    pub fn usage_of_user(&self, user: &str) -> Result<Usage, StoreError> {
        self.read(|connection| of_user(connection, user))
    }

    /// What a machine has, whoever took it.
    pub fn usage_of_vm(&self, vm: VmId) -> Result<Usage, StoreError> {
        let sql = "SELECT count(*), coalesce(sum(bytes), 0) FROM snapshots WHERE vm = ?1";
        self.read(|connection| usage(connection, sql, &vm.to_string()))
    }

    /// Refuses what the user's quota does not allow now, as the intent would be.
    pub fn check_quota(&self, vm: VmId, user: &str, limits: Limits, request: &Request) -> Result<(), StoreError> {
        self.read(|connection| admit(connection, vm, user, limits, request).map(|_| ()))
    }
}

/// Refuses what the user's quota does not allow; answers with the bytes to set aside. Within the job of the intent this is
/// atomic with it: jobs run one after the other, and the row of the snapshot counts from then on.
pub(super) fn admit(
    connection: &Connection,
    vm: VmId,
    user: &str,
    limits: Limits,
    request: &Request,
) -> Result<u64, StoreError> {
    let Some(create) = quota::taken(request) else { return Ok(0) };
    let sql = "SELECT facts FROM vms WHERE id = ?1";
    let mut statement = connection.prepare_cached(sql)?;
    let facts: Option<String> = statement.query_row([vm.to_string()], |row| row.get(0)).optional()?;
    let facts: Option<VmFacts> = facts.as_deref().map(from_json).transpose()?;
    let bytes = facts.map_or(0, |facts| quota::expected_bytes(&facts, create));
    if limits != Limits::default() {
        quota::admit(Owner::User(user), limits, of_user(connection, user)?, bytes)?;
    }
    Ok(bytes)
}

/// Who took a snapshot, as its host tells: this is where the catalogue learns it of snapshots that it has no operation of. The
/// host has it from the `<description>` that the agent wrote. Those of other tools are nobody's.
pub(super) fn creator(facts: &SnapshotFacts) -> Option<&str> {
    let actor = facts.label.actor.as_str();
    (facts.origin == Origin::Service && !actor.is_empty()).then_some(actor)
}

fn of_user(connection: &Connection, user: &str) -> Result<Usage, StoreError> {
    // The words of the index, so that SQLite answers from it alone.
    let sql =
        "SELECT count(*), coalesce(sum(bytes), 0) FROM snapshots WHERE created_by = ?1 AND created_by IS NOT NULL";
    usage(connection, sql, user)
}

fn usage(connection: &Connection, sql: &str, key: &str) -> Result<Usage, StoreError> {
    let (snapshots, bytes): (i64, i64) =
        connection.prepare_cached(sql)?.query_row([key], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(Usage { snapshots: u64::try_from(snapshots).unwrap_or(0), bytes: u64::try_from(bytes).unwrap_or(0) })
}

//! Reading machines.

use snapshot_core::Error;
use snapshot_core::authority::Visible;
use snapshot_core::ids::{HostId, VmId};

use super::rows::{FromRow as _, all};
use super::{Store, StoreError, VmRow};

/// Which machines to list.
#[derive(Debug, Clone)]
pub struct VmFilter {
    /// Those that the caller may read.
    pub visible: Visible,
    /// Only those of this host.
    pub host: Option<HostId>,
    /// Only those after this one.
    pub after: Option<VmId>,
}

/// The machines a caller may read as a JSON list for SQL; `None` for all.
pub(super) fn visible_json(visible: &Visible) -> Option<String> {
    match visible {
        Visible::All => None,
        Visible::Only(vms) => {
            let ids: Vec<String> = vms.iter().map(|vm| format!("\"{vm}\"")).collect();
            Some(format!("[{}]", ids.join(",")))
        }
    }
}

impl Store {
    /// One machine, or the error that a caller gets for one that does not exist.
    pub fn vm(&self, vm: VmId) -> Result<VmRow, StoreError> {
        let sql = format!("SELECT {} FROM vms WHERE id = ?1", VmRow::COLUMNS);
        let found = self.read(|connection| all::<VmRow>(connection, &sql, [vm.to_string()]))?;
        found.into_iter().next().ok_or_else(|| Error::vm_not_found(vm).into())
    }

    /// Machines in the order of their ids.
    pub fn vms(&self, filter: &VmFilter, limit: usize) -> Result<Vec<VmRow>, StoreError> {
        let sql = format!(
            "SELECT {} FROM vms WHERE id > ?1 AND (?2 IS NULL OR host = ?2) \
             AND (?3 IS NULL OR id IN (SELECT value FROM json_each(?3))) ORDER BY id LIMIT ?4",
            VmRow::COLUMNS
        );
        let after = filter.after.map(|vm| vm.to_string()).unwrap_or_default();
        let host = filter.host.as_ref().map(HostId::as_str);
        let visible = visible_json(&filter.visible);
        self.read(|connection| all(connection, &sql, (after, host, visible, limit as i64)))
    }

    /// How many machines each host has.
    pub fn vm_count(&self, host: &HostId) -> Result<i64, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT count(*) FROM vms WHERE host = ?1")?;
            Ok(statement.query_row([host.as_str()], |row| row.get(0))?)
        })
    }
}

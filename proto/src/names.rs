//! Resource names (AIP-122): `vms/{uuid}`, `vms/{uuid}/snapshots/{id}`, `operations/{uuid}`, `hosts/{host}`,
//! `hosts/{host}/orphans/{uuid}`.

use snapshot_core::Error;
use snapshot_core::ids::{HostId, OperationId, OrphanId, SnapshotId, VmId};

/// `vms/{uuid}`.
pub fn vm(id: VmId) -> String {
    format!("vms/{id}")
}

/// `vms/{uuid}/snapshots/{id}`.
pub fn snapshot(vm: VmId, id: &SnapshotId) -> String {
    format!("vms/{vm}/snapshots/{id}")
}

/// `operations/{uuid}`.
pub fn operation(id: OperationId) -> String {
    format!("operations/{id}")
}

/// `hosts/{host}`.
pub fn host(id: &HostId) -> String {
    format!("hosts/{id}")
}

/// `hosts/{host}/orphans/{uuid}`.
pub fn orphan(host: &HostId, id: OrphanId) -> String {
    format!("hosts/{host}/orphans/{id}")
}

fn single<T: std::str::FromStr<Err: std::fmt::Display>>(field: &str, collection: &str, name: &str) -> Result<T, Error> {
    let id = name.strip_prefix(collection).and_then(|rest| rest.strip_prefix('/'));
    let id = id.ok_or_else(|| Error::invalid(field, format!("is not of the form {collection}/{{id}}")))?;
    id.parse().map_err(|error| Error::invalid(field, error))
}

/// Reads `vms/{uuid}`; `field` is what an error names.
pub fn parse_vm(field: &str, name: &str) -> Result<VmId, Error> {
    single(field, "vms", name)
}

/// Reads `operations/{uuid}`; `field` is what an error names.
pub fn parse_operation(field: &str, name: &str) -> Result<OperationId, Error> {
    single(field, "operations", name)
}

/// Reads `hosts/{host}`; `field` is what an error names.
pub fn parse_host(field: &str, name: &str) -> Result<HostId, Error> {
    single(field, "hosts", name)
}

/// Reads `vms/{uuid}/snapshots/{id}`; `field` is what an error names.
pub fn parse_snapshot(field: &str, name: &str) -> Result<(VmId, SnapshotId), Error> {
    let (vm, id) = name
        .split_once("/snapshots/")
        .ok_or_else(|| Error::invalid(field, "is not of the form vms/{uuid}/snapshots/{id}"))?;
    Ok((parse_vm(field, vm)?, id.parse().map_err(|error| Error::invalid(field, error))?))
}

/// Reads `hosts/{host}/orphans/{uuid}`; `field` is what an error names.
pub fn parse_orphan(field: &str, name: &str) -> Result<(HostId, OrphanId), Error> {
    let (host, id) = name
        .split_once("/orphans/")
        .ok_or_else(|| Error::invalid(field, "is not of the form hosts/{host}/orphans/{uuid}"))?;
    Ok((parse_host(field, host)?, id.parse().map_err(|error| Error::invalid(field, error))?))
}

//! Changing machines. Each of these is one step of libvirt's, taken as it is asked for.

use std::sync::Arc;

use snapshot_core::description::Label;
use snapshot_core::ids::{SnapshotId, VmId};
use snapshot_core::plan::PowerState;
use snapshot_core::vm::VmFacts;
use virt::domain::Domain;
use virt::domain_snapshot::DomainSnapshot;
use virt_sys as sys;

use super::super::{Failure, snapshot_write};
use super::link::Connection;
use super::safety;
use crate::beneath::Beneath;

pub(super) fn snapshot(
    connection: &Connection,
    vm: VmId,
    id: &SnapshotId,
) -> Result<(Arc<Domain>, DomainSnapshot), Failure> {
    let domain = connection.domain(vm)?;
    let snapshot = match Domain::lookup_snapshot_by_name(&domain, id.as_str(), 0) {
        Err(error) if id.may_stand_in() && error.code().to_raw() == sys::VIR_ERR_NO_DOMAIN_SNAPSHOT => {
            let mut all = domain.list_all_snapshots(0)?.into_iter();
            all.find(|snapshot| snapshot.name().is_ok_and(|name| SnapshotId::of_name(&name) == *id))
        }
        snapshot => Some(snapshot?),
    };
    Ok((domain, snapshot.ok_or(Failure::SnapshotGone)?))
}

fn targets(vm: &VmFacts) -> impl Iterator<Item = &str> {
    vm.writable_disks().map(|disk| disk.target.as_str())
}

pub(super) fn create_internal(
    connection: &Connection,
    vm: &VmFacts,
    id: &SnapshotId,
    label: &Label,
    memory: bool,
) -> Result<(), Failure> {
    let domain = connection.domain(vm.id)?;
    let xml = snapshot_write::create(id, label, memory, targets(vm))?;
    domain.create_snapshot_xml(&xml, 0)?;
    Ok(())
}

/// Without SECURE the graphics passwords of the machine at that time are left out, and would be lost.
pub(super) fn full_xml(snapshot: &DomainSnapshot) -> Result<String, Failure> {
    Ok(snapshot.xml_desc(sys::VIR_DOMAIN_SNAPSHOT_XML_SECURE)?)
}

/// Replaces what is written about a snapshot.
pub(super) fn redefine(domain: &Domain, snapshot: &DomainSnapshot, xml: &str) -> Result<(), Failure> {
    let mut flags = sys::VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE;
    if snapshot.is_current(0)? {
        flags |= sys::VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT;
    }
    domain.create_snapshot_xml(xml, flags)?;
    Ok(())
}

/// Marks a snapshot as current. Nothing else that is written about it changes.
pub(super) fn make_current(connection: &Connection, vm: VmId, id: &SnapshotId) -> Result<(), Failure> {
    let (domain, snapshot) = snapshot(connection, vm, id)?;
    if snapshot.is_current(0)? {
        return Ok(());
    }
    let flags = sys::VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE | sys::VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT;
    domain.create_snapshot_xml(&full_xml(&snapshot)?, flags)?;
    Ok(())
}

pub(super) fn revert_internal(
    connection: &Connection,
    vm: VmId,
    id: &SnapshotId,
    then: PowerState,
) -> Result<(), Failure> {
    // Without a flag libvirt does what the snapshot recorded, which is how a machine comes to be off.
    let flags = match then {
        PowerState::Running => sys::VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING,
        PowerState::Paused => sys::VIR_DOMAIN_SNAPSHOT_REVERT_PAUSED,
        PowerState::Off => 0,
    };
    let (_domain, snapshot) = snapshot(connection, vm, id)?;
    Ok(snapshot.revert(flags)?)
}

pub(super) fn delete_internal(connection: &Connection, vm: VmId, id: &SnapshotId) -> Result<(), Failure> {
    let (_domain, snapshot) = snapshot(connection, vm, id)?;
    Ok(snapshot.delete(0)?)
}

pub(super) fn forget(connection: &Connection, vm: VmId, id: &SnapshotId) -> Result<(), Failure> {
    let (_domain, snapshot) = snapshot(connection, vm, id)?;
    Ok(snapshot.delete(sys::VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)?)
}

/// libvirt deletes only what it lists, so it is told of the snapshot first. That works whether the machine runs or not,
/// and on images that do not all have it; but not where a VM that is off names a volume that is missing.
pub(super) fn remove_stray(
    connection: &Connection,
    folders: &Beneath,
    vm: &VmFacts,
    id: &SnapshotId,
) -> Result<(), Failure> {
    let domain = connection.domain(vm.id)?;
    let domain_xml = domain.xml_desc(sys::VIR_DOMAIN_XML_SECURE)?;
    let xml = snapshot_write::adopt(id, targets(vm), &domain_xml)?;
    let snapshot = domain.create_snapshot_xml(&xml, sys::VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)?;
    if let Err(error) = snapshot.delete(0) {
        // What was told libvirt only for this must not stay as a snapshot that somebody could go back to.
        snapshot.delete(sys::VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY)?;
        if domain.is_active()? {
            return Err(error.into());
        }
        tracing::warn!(%error, %id, "libvirt cannot remove a snapshot from the images of the VM; qemu-img does");
        return safety::remove_from_images(folders, vm, id.as_str());
    }
    Ok(())
}

pub(super) fn start(connection: &Connection, vm: VmId) -> Result<(), Failure> {
    let domain = connection.domain(vm)?;
    if !domain.is_active()? {
        domain.create()?;
    }
    Ok(())
}

pub(super) fn power_off(connection: &Connection, vm: VmId) -> Result<(), Failure> {
    let domain = connection.domain(vm)?;
    if domain.is_active()? {
        domain.destroy()?;
    }
    Ok(())
}

pub(super) fn resume(connection: &Connection, vm: VmId) -> Result<(), Failure> {
    Ok(connection.domain(vm)?.resume()?)
}

pub(super) fn suspend(connection: &Connection, vm: VmId) -> Result<(), Failure> {
    Ok(connection.domain(vm)?.suspend()?)
}

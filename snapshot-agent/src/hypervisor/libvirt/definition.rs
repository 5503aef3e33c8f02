//! What libvirt's revert would do to a VM's definition, read when a revert is planned.

use snapshot_core::definition_change::{DefinitionChange, changes};
use snapshot_core::ids::VmId;
use snapshot_core::plan::RevertedDefinition;
use snapshot_core::snapshot::{SnapshotFacts, Storage};
use virt_sys as sys;

use super::super::images::Images;
use super::super::{Failure, domain_xml, hardware_xml, snapshot_xml};
use super::action;
use super::link::Connection;

/// Compares the VM's definition and the sizes of its disks with what the snapshot holds. With SECURE libvirt tells passwords as
/// well, so that one that a revert would bring back is noticed; they are not shown.
pub(super) fn reverted(
    connection: &Connection,
    vm: VmId,
    snapshot: &SnapshotFacts,
) -> Result<RevertedDefinition, Failure> {
    let (domain, record) = action::snapshot(connection, vm, &snapshot.id)?;
    let recorded = action::full_xml(&record)?;
    let next_start = domain.xml_desc(sys::VIR_DOMAIN_XML_INACTIVE | sys::VIR_DOMAIN_XML_SECURE)?;
    let running = match domain.is_active()? {
        true => Some(domain.xml_desc(sys::VIR_DOMAIN_XML_SECURE)?),
        false => None,
    };
    let (now, then) = (hardware_xml::definition(running.as_deref(), &next_start)?, hardware_xml::recorded(&recorded)?);
    let mut all = disk_sizes(running.as_deref().unwrap_or(&next_start), &recorded)?;
    all.extend(changes(&now, &then, snapshot.storage == Storage::External));
    Ok(RevertedDefinition { changes: all, has_tpm: now.has_emulated_tpm() || then.has_emulated_tpm() })
}

/// The disks that have another size in the snapshot. An image that cannot be read tells none.
fn disk_sizes(domain: &str, recorded: &str) -> Result<Vec<DefinitionChange>, Failure> {
    let (domain, recorded) = (domain_xml::parse(domain)?, snapshot_xml::parse(recorded)?);
    let mut images = Images::default();
    let changes = domain.disks().filter_map(|disk| {
        let now = images.capacity(disk.path.as_deref()?, &disk.format)?;
        let then = match (recorded.images.get(&disk.target), recorded.files.frozen.get(&disk.target)) {
            (Some(image), _) => images.capacity_in(image, &recorded.name)?,
            (None, Some((frozen, format))) => images.capacity(frozen, format)?,
            (None, None) => return None,
        };
        DefinitionChange::disk_size(&disk.target, now, then)
    });
    Ok(changes.collect())
}

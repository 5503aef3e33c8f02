//! What a look at a VM has to ask of libvirt beside its definition and its snapshots, so that nothing that its images are used for
//! is missed: checkpoints, and the definition that the next start uses.

use std::path::PathBuf;
use std::ptr;

use snapshot_core::Reason;
use snapshot_core::restriction::{RestrictedOperation, Restriction};
use virt::domain::Domain;
use virt_sys as sys;

use super::super::{Failure, domain_xml};
use super::volumes;

/// The checkpoints of a VM that is on. The bitmaps that they are may be in QEMU's memory alone until it closes the images; those of
/// one that is off are in the images' headers.
pub(super) fn checkpoints(domain: &Domain, is_on: bool) -> Result<Option<Restriction>, Failure> {
    if !is_on {
        return Ok(None);
    }
    // SAFETY: the domain is valid as long as the reference; without a place for a list they are only counted.
    let count = unsafe { sys::virDomainListAllCheckpoints(domain.as_ptr(), ptr::null_mut(), 0) };
    if count < 0 {
        let error = virt::error::Error::last_error();
        // libvirt before 5.6, and drivers without checkpoints.
        if error.code().to_raw() == sys::VIR_ERR_NO_SUPPORT {
            return Ok(None);
        }
        return Err(error.into());
    }
    if count == 0 {
        return Ok(None);
    }
    let message = format!(
        "the VM has {count} checkpoints, as backup tools create them, and QEMU reverts no disk that has one: delete them first"
    );
    let operations = RestrictedOperation::CREATE_AND_REVERT;
    Ok(Some(Restriction::new(operations, Reason::CheckpointsPresent, message)))
}

/// The files that a VM uses beside its disks as they are, with their formats: media, and the disks of the definition that its next
/// start uses.
pub(super) fn others(
    domain: &Domain,
    now: &domain_xml::Domain,
    is_persistent: bool,
) -> Result<Vec<(PathBuf, String)>, Failure> {
    let mut others = files(now);
    if now.id.is_some() && is_persistent {
        others.extend(files(&volumes::parse(domain, &domain.xml_desc(sys::VIR_DOMAIN_XML_INACTIVE)?)?));
    }
    Ok(others)
}

fn files(definition: &domain_xml::Domain) -> Vec<(PathBuf, String)> {
    let media = definition.media().map(|medium| (medium.path, "raw".to_owned()));
    definition.all_files().into_iter().chain(media).collect()
}

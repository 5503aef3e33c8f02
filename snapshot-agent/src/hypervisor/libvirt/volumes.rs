//! Disks that are volumes of a storage pool: their paths, which a definition does not tell.

use std::path::PathBuf;

use snapshot_core::Reason;
use snapshot_core::restriction::{RestrictedOperation, Restriction};
use virt::connect::Connect;
use virt::domain::Domain;

use super::super::domain_xml::Unresolved;
use super::super::snapshot_xml::Recorded;
use super::super::{Failure, domain_xml, snapshot_xml};

/// Reads a domain's XML, with the paths of volumes.
pub(super) fn parse(domain: &Domain, xml: &str) -> Result<domain_xml::Domain, Failure> {
    parse_told(domain, xml).map(|(xml, _)| xml)
}

/// The same, with the volumes whose paths are not known now.
pub(super) fn parse_told(domain: &Domain, xml: &str) -> Result<(domain_xml::Domain, Vec<Unresolved>), Failure> {
    let mut parsed = domain_xml::parse(xml)?;
    let connect = domain.connect()?;
    let unresolved = parsed.resolve(|pool, volume| path(&connect, pool, volume));
    Ok((parsed, unresolved))
}

/// Reads a snapshot's XML, with the paths of volumes.
pub(super) fn parse_snapshot(domain: &Domain, xml: &str) -> Result<Recorded, Failure> {
    let connect = domain.connect()?;
    let mut recorded = snapshot_xml::parse_with(xml, |pool, volume| path(&connect, pool, volume))?;
    // Without a medium a snapshot is deleted past libvirt; a disk holds a part of it, and may be there again later.
    let deletion = |of: &Unresolved| (!of.is_removable).then_some(RestrictedOperation::Delete);
    let restriction = |of| restriction(RestrictedOperation::REVERT.into_iter().chain(deletion(of)), of);
    recorded.restrictions.extend(recorded.unresolved.iter().map(restriction));
    Ok(recorded)
}

/// `None` where the pool is not active, or has no such volume.
fn path(connect: &Connect, pool: &str, volume: &str) -> Option<PathBuf> {
    let pool = connect.lookup_storage_pool_by_name(pool).ok()?;
    let found = pool.lookup_storage_vol_by_name(volume).and_then(|volume| volume.path());
    found.ok().filter(|path| path.starts_with('/')).map(PathBuf::from)
}

/// What volumes whose paths are not known make unavailable on the VM. A medium matters to snapshots that will name it: of a
/// revert that is decided by what the snapshot names.
pub(super) fn restrictions(unresolved: &[Unresolved]) -> impl Iterator<Item = Restriction> {
    unresolved.iter().map(|of| match of.is_removable {
        false => restriction(RestrictedOperation::ALL, of),
        true => {
            let message = format!(
                "the medium in drive {}, volume {} of pool {}, does not exist: eject it first",
                of.target, of.volume, of.pool
            );
            Restriction::new(RestrictedOperation::CREATE, Reason::MediumMissing, message).on_disk(&of.target)
        }
    })
}

fn restriction(operations: impl IntoIterator<Item = RestrictedOperation>, of: &Unresolved) -> Restriction {
    let Unresolved { target, pool, volume, .. } = of;
    let message = format!(
        "disk {target} is volume {volume} of pool {pool}, which is not active or has no such volume: start the pool, or \
         refresh it"
    );
    Restriction::new(operations, Reason::ImageUnavailable, message).on_disk(target)
}

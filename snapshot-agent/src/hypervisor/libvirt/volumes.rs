//! Disks that are volumes of a storage pool: their paths, which a definition does not tell.

use std::path::PathBuf;

use serde::Deserialize;
use snapshot_core::Reason;
use snapshot_core::restriction::{RestrictedOperation, Restriction};
use virt::connect::Connect;
use virt::domain::Domain;

use super::super::domain_xml::Unresolved;
use super::super::snapshot_xml::Recorded;
use super::super::{Failure, domain_xml, snapshot_xml};
use crate::bounded::files;

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

/// Where a volume is, also while its pool is not active.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// A file or a device.
    At(PathBuf),
    /// There is none, or it is on the network.
    Nowhere,
    /// Its pool is not active, or not defined.
    Unknown,
}

impl Place {
    pub(super) fn path(self) -> Option<PathBuf> {
        match self {
            Self::At(path) => Some(path),
            Self::Nowhere | Self::Unknown => None,
        }
    }
}

#[derive(Debug, Deserialize)]
struct Pool {
    #[serde(rename = "@type")]
    kind: String,
    target: Option<PoolTarget>,
}

#[derive(Debug, Deserialize)]
struct PoolTarget {
    path: Option<PathBuf>,
}

/// Looks for a volume. One of a directory is found in it, whether the pool is active or not.
pub(super) fn place(connect: &Connect, name: &str, volume: &str) -> Place {
    let Ok(pool) = connect.lookup_storage_pool_by_name(name) else { return Place::Unknown };
    if let Ok(found) = pool.lookup_storage_vol_by_name(volume).and_then(|volume| volume.path()) {
        return if found.starts_with('/') { Place::At(PathBuf::from(found)) } else { Place::Nowhere };
    }
    let told = pool.xml_desc(0).ok().and_then(|xml| quick_xml::de::from_str::<Pool>(&xml).ok());
    let Some(told) = told else { return Place::Unknown };
    let file = told.target.and_then(|target| target.path).map(|directory| directory.join(volume));
    match file.filter(|file| files::exists(file)) {
        Some(file) => Place::At(file),
        // Of a file system that is not mounted it is not known what is on it.
        None if told.kind == "dir" || pool.is_active().unwrap_or(false) => Place::Nowhere,
        None => Place::Unknown,
    }
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

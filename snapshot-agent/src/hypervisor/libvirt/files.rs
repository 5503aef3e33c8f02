//! Files: which of them others reach, and removing those that nobody does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use snapshot_core::ids::VmId;
use snapshot_core::layers::Layers;
use virt::domain::Domain;
use virt_sys as sys;

use super::super::images::Images;
use super::super::overlays::{resolved, text};
use super::super::{Failure, GUARDED, domain_xml, snapshot_xml};
use super::link::Connection;

/// The files that the disks and the snapshots of other machines reach. Read anew each time: what is removed by it is gone.
pub(super) fn elsewhere(connection: &Connection, vm: VmId) -> Result<BTreeSet<String>, Failure> {
    let (mut images, mut layers) = (Images::default(), Layers::default());
    for domain in connection.connect().list_all_domains(0)? {
        if VmId::from_uuid(domain.uuid()?) == vm {
            continue;
        }
        match reached(connection, &domain) {
            Ok(files) => files.into_iter().for_each(|(path, format)| _ = images.follow(&mut layers, &path, &format)),
            // Removed by somebody else since it was listed.
            Err(Failure::VmGone) => {}
            Err(failure) => return Err(failure),
        }
    }
    if let Some(path) = layers.unreadable {
        return Err(Failure::Unintelligible(format!("{path} is used by another machine and cannot be read")));
    }
    Ok(layers.files.into_keys().collect())
}

fn reached(connection: &Connection, domain: &Domain) -> Result<BTreeMap<PathBuf, String>, Failure> {
    let mut files = BTreeMap::new();
    for flags in [0, sys::VIR_DOMAIN_XML_INACTIVE] {
        let xml = domain_xml::parse(&domain.xml_desc(flags)?)?;
        files.extend(xml.files());
        for (pool, name, format) in xml.volumes() {
            let pool = connection.connect().lookup_storage_pool_by_name(pool)?;
            files.insert(PathBuf::from(pool.lookup_storage_vol_by_name(name)?.path()?), format);
        }
        files.extend(xml.media().map(|medium| (medium.path, "raw".to_owned())));
    }
    for snapshot in domain.list_all_snapshots(0)? {
        let xml = match snapshot.xml_desc(0) {
            Ok(xml) => xml,
            Err(error) if error.code().to_raw() == sys::VIR_ERR_NO_DOMAIN_SNAPSHOT => continue,
            Err(error) => return Err(error.into()),
        };
        let recorded = snapshot_xml::parse(&xml)?;
        files.extend(recorded.images.into_values().map(|path| (path, "qcow2".to_owned())));
        files.extend(recorded.files.frozen.into_values());
        files.extend(recorded.files.overlays.into_values().map(|path| (path, "qcow2".to_owned())));
        files.extend(recorded.files.memory.map(|path| (path, "raw".to_owned())));
    }
    Ok(files)
}

/// Gives each file a second name, so that its content outlives a removal of the first.
pub(super) fn guard(paths: &[String]) -> Result<(), Failure> {
    for path in paths.iter().filter(|path| Path::new(path).exists()) {
        match fs::hard_link(path, format!("{path}{GUARDED}")) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Failure::Unintelligible(format!("{path} cannot be guarded: {error}"))),
        }
    }
    Ok(())
}

/// Brings back what was lost, and takes the second names away.
pub(super) fn unguard(paths: &[String]) -> Result<(), Failure> {
    for path in paths {
        let guarded = format!("{path}{GUARDED}");
        if !Path::new(&guarded).exists() {
            continue;
        }
        match Path::new(path).try_exists() {
            Ok(true) => fs::remove_file(&guarded)?,
            Ok(false) => {
                tracing::warn!(path, "a file that is needed was removed; bringing it back");
                fs::rename(&guarded, path)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

pub(super) fn unlink(paths: &[String]) -> Result<(), Failure> {
    for path in paths {
        match fs::remove_file(path) {
            Ok(()) => tracing::info!(path, "removed"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Failure::Unintelligible(format!("{path} cannot be removed: {error}"))),
        }
    }
    Ok(())
}

/// Whether two paths lead to one file.
pub(super) fn is_same(path: &Path, name: &str) -> bool {
    text(&resolved(path)) == name
}

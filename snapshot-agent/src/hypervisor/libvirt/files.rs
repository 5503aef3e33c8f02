//! Files: which of them others reach, and removing those that nobody does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use snapshot_core::ids::VmId;
use snapshot_core::layers::Layers;
use snapshot_core::{Error, Reason};
use virt::domain::Domain;
use virt_sys as sys;

use super::super::beyond;
use super::super::images::Images;
use super::super::overlays::text;
use super::super::{Failure, GUARDED, domain_xml, snapshot_xml};
use super::link::{Connection, Link};
use super::volumes::{self, Place};
use crate::beneath::{Beneath, out_of_reach};
use crate::bounded::files::resolved;
use crate::bounded::{Doing, Stuck, jobs};

/// The files that the disks and the snapshots of other machines reach. Read anew each time: what is removed by it is gone.
/// Where the storage of one of them does not respond, it is not known what they reach, and this fails within bounds.
pub(super) fn elsewhere(
    looks: &Arc<Link>,
    folders: Option<&Arc<Beneath>>,
    vm: VmId,
) -> Result<BTreeSet<String>, Failure> {
    let (link, folders) = (Arc::clone(looks), folders.cloned());
    let found = jobs::run(&format!("files used by others than {vm}"), move || {
        let files = link.look("elsewhere", |connection| reached_by_others(connection, vm))?;
        let folders = folders.as_deref().unwrap_or_else(|| Beneath::anywhere());
        let (found, refused) = jobs::noting_refusals(|| follow(files, folders));
        Ok(match refused {
            None => Ok(found?),
            Some(path) => Err(Stuck { doing: Doing::File(path), since: Duration::ZERO }),
        })
    });
    match found {
        Ok(Ok(Ok(files))) => Ok(files),
        Ok(Err(failure)) => Err(failure),
        Ok(Ok(Err(stuck))) | Err(stuck) => Err(neighbour_unresponsive(&stuck)),
    }
}

fn neighbour_unresponsive(stuck: &Stuck) -> Failure {
    let (reason, what) = match &stuck.doing {
        Doing::File(path) => {
            (Reason::StorageUnresponsive, format!("the storage of {}, which another VM uses,", path.display()))
        }
        Doing::Nothing => (Reason::StorageUnresponsive, "the storage of another VM".to_owned()),
        Doing::Libvirt(_) | Doing::Slot => {
            (Reason::HypervisorUnavailable, "libvirt, asked about the other VMs,".to_owned())
        }
    };
    let message = format!(
        "{what} does not respond, so it is not known whether other VMs use the files of this one; nothing was removed; retry when \
         it responds"
    );
    Failure::Precondition(Error::new(reason, message))
}

/// With the formats by which they are used: one file may be used by several. And who uses them.
fn reached_by_others(connection: &Connection, vm: VmId) -> Result<BTreeMap<(PathBuf, String), String>, Failure> {
    let mut all = BTreeMap::new();
    for domain in connection.connect().list_all_domains(0)? {
        if VmId::from_uuid(domain.uuid()?) == vm {
            continue;
        }
        jobs::doing(Doing::Libvirt("elsewhere"));
        match reached(connection, &domain) {
            Ok(files) => {
                let name = domain.name().unwrap_or_default();
                all.extend(files.into_iter().map(|file| (file, name.clone())));
            }
            // Removed by somebody else since it was listed.
            Err(Failure::VmGone) => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(all)
}

fn follow(files: BTreeMap<(PathBuf, String), String>, folders: &Beneath) -> Result<BTreeSet<String>, Failure> {
    let (mut images, mut layers) = (Images::default(), Layers::default());
    let beyond = files.keys().flat_map(|(path, format)| beyond::depends_on(path, format));
    let beyond: BTreeSet<String> = beyond.map(|path| text(&path)).collect();
    // A file is followed once: first by the format that has something below it.
    let (chains, others): (Vec<_>, Vec<_>) = files.into_iter().partition(|((_, format), _)| format == "qcow2");
    for ((path, format), name) in chains.into_iter().chain(others) {
        images.follow(&mut layers, &path, &format);
        if let Some(path) = &layers.unreadable {
            return Err(unreadable(path, &name, folders));
        }
    }
    Ok(layers.files.into_keys().chain(beyond).collect())
}

fn unreadable(path: &str, name: &str, folders: &Beneath) -> Failure {
    let error = match folders.may_read(Path::new(path)) {
        true => {
            let message = format!(
                "{path}, which VM {name} of this host uses, cannot be read, so it is not known which images it depends on; nothing was \
                 changed; make it readable, and ask again"
            );
            Error::new(Reason::ImageUnavailable, message).with("path", path)
        }
        false => out_of_reach(Path::new(path), "read_dirs"),
    };
    Failure::Precondition(error.with("neighbour", name))
}

fn reached(connection: &Connection, domain: &Domain) -> Result<BTreeMap<PathBuf, String>, Failure> {
    let mut files = BTreeMap::new();
    for flags in [0, sys::VIR_DOMAIN_XML_INACTIVE] {
        let xml = domain_xml::parse(&domain.xml_desc(flags)?)?;
        files.extend(xml.all_files());
        for (pool, name, format) in xml.volumes() {
            match volumes::place(connection.connect(), pool, name) {
                Place::At(path) => _ = files.insert(path, format),
                Place::Nowhere => {}
                Place::Unknown => return Err(unknown_volume(domain, pool, name)),
            }
        }
        files.extend(xml.media().map(|medium| (medium.path, "raw".to_owned())));
    }
    for snapshot in domain.list_all_snapshots(0)? {
        let xml = match snapshot.xml_desc(0) {
            Ok(xml) => xml,
            Err(error) if error.code().to_raw() == sys::VIR_ERR_NO_DOMAIN_SNAPSHOT => continue,
            Err(error) => return Err(error.into()),
        };
        let place = |pool: &str, volume: &str| volumes::place(connection.connect(), pool, volume);
        let recorded = snapshot_xml::parse_with(&xml, |pool, volume| place(pool, volume).path())?;
        if let Some(unknown) = recorded.unresolved.iter().find(|it| place(&it.pool, &it.volume) == Place::Unknown) {
            return Err(unknown_volume(domain, &unknown.pool, &unknown.volume));
        }
        files.extend(recorded.images.into_values().map(|path| (path, "qcow2".to_owned())));
        files.extend(recorded.files.frozen.into_values());
        files.extend(recorded.files.overlays.into_values().map(|path| (path, "qcow2".to_owned())));
        files.extend(recorded.files.memory.map(|path| (path, "raw".to_owned())));
    }
    Ok(files)
}

fn unknown_volume(domain: &Domain, pool: &str, volume: &str) -> Failure {
    let name = domain.name().unwrap_or_default();
    let message = format!(
        "VM {name} of this host uses volume {volume} of storage pool {pool}, which is not active, so it is not known which images that one \
         depends on; nothing was changed; start the pool, or undefine the VM, and ask again"
    );
    Failure::Precondition(Error::new(Reason::ResourceMissing, message).with("neighbour", name).with("pool", pool))
}

/// Gives each file a second name, so that its content outlives a removal of the first; one that has lost its first gets that
/// again and keeps the second.
pub(super) fn guard(folders: &Beneath, paths: &[String]) -> Result<(), Failure> {
    let failed = |path: &str, error| Failure::Unintelligible(format!("{path} cannot be guarded: {error}"));
    for path in paths {
        let (first, second) = (PathBuf::from(path), second(path));
        let find = |name: &Path| folders.find(name).map_err(|error| failed(path, error));
        if find(&first)?.is_some() {
            folders.link(&first, &second).map_err(|error| failed(path, error))?;
        } else if find(&second)?.is_some() {
            tracing::warn!(path, "a file that is needed was removed; bringing it back");
            folders.link(&second, &first).map_err(|error| failed(path, error))?;
        }
    }
    Ok(())
}

/// Brings back what was lost, and takes the second names away.
pub(super) fn unguard(folders: &Beneath, paths: &[String]) -> Result<(), Failure> {
    for path in paths {
        let guarded = second(path);
        if folders.find(&guarded)?.is_none() {
            continue;
        }
        if folders.find(Path::new(path))?.is_some() {
            folders.unlink(&guarded)?;
        } else {
            tracing::warn!(path, "a file that is needed was removed; bringing it back");
            folders.rename(&guarded, Path::new(path))?;
        }
    }
    Ok(())
}

fn second(path: &str) -> PathBuf {
    PathBuf::from(format!("{path}{GUARDED}"))
}

pub(super) fn unlink(folders: &Beneath, paths: &[String]) -> Result<(), Failure> {
    for path in paths {
        match folders.unlink(Path::new(path)) {
            Ok(true) => tracing::info!(path, "removed"),
            Ok(false) => {}
            Err(error) => return Err(Failure::Unintelligible(format!("{path} cannot be removed: {error}"))),
        }
    }
    Ok(())
}

/// Whether two paths lead to one file.
pub(super) fn is_same(path: &Path, name: &str) -> bool {
    text(&resolved(path)) == name
}

#[cfg(test)]
mod tests;

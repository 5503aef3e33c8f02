//! The safety tag of a revert ([`crate::safety`]), and the previous definition.
//!
//! Where the VM is off, `qemu-img` sets and removes the tag, and what it cannot open libvirt could not revert. Where the VM is on,
//! QEMU has the images open, and does it itself: one transaction over all of them.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use snapshot_core::description::Label;
use snapshot_core::ids::{SnapshotId, VmId};
use snapshot_core::vm::VmFacts;
use snapshot_core::{Error, Reason};
use virt::domain::Domain;
use virt_sys as sys;

use super::super::block_nodes::{Node, image_nodes};
use super::super::snapshot_write::Taken;
use super::super::snapshot_xml::Recorded;
use super::super::{Failure, domain_xml, snapshot_write};
use super::link::Connection;
use super::{action, monitor, observe, volumes};
use crate::beneath::Beneath;
use crate::bounded::files::{self, resolved};
use crate::clock::unix_now;
use crate::qcow2;
use crate::qemu_img::snapshots;
use crate::safety::{Held, Safety};

/// What the variables of the UEFI go by among the disks.
const NVRAM: &str = "nvram";

/// The state of a VM before a revert. An image that the agent may not touch, such as a block device, is left out.
pub(super) fn before(
    connection: &Connection,
    folders: &Beneath,
    vm: VmId,
    id: &SnapshotId,
    tag: String,
) -> Result<Safety, Failure> {
    let (domain, snapshot) = action::snapshot(connection, vm, id)?;
    let recorded = volumes::parse_snapshot(&domain, &snapshot.xml_desc(0)?)?;
    let definition = definition(&domain)?;
    let mut images = recorded.images;
    if let Some(path) = domain_xml::parse(&definition)?.qcow2_nvram().filter(|path| files::exists(path)) {
        images.insert(NVRAM.to_owned(), path);
    }
    let images = images.into_iter().map(|(target, path)| (target, resolved(&path)));
    let images = images.filter(|(_, path)| folders.has(path)).map(|(target, path)| (target, text(&path))).collect();
    let current = observe::current_name(&domain)?.map(|name| SnapshotId::of_name(&name));
    Ok(Safety { tag, images, definition, current })
}

/// Checks that each image that a revert writes can be written, and that everything below it is there. QEMU may have them open, so
/// they are not opened.
pub(super) fn check_images(folders: &Beneath, recorded: &Recorded) -> Result<(), Failure> {
    for (target, path) in recorded.images.iter().filter(|(_, path)| folders.has(&resolved(path))) {
        snapshots::check(&resolved(path)).map_err(|error| {
            let message = format!("disk {target} cannot be reverted: {error}; nothing was changed");
            Failure::Precondition(Error::new(Reason::ImageUnavailable, message).with("disk", target))
        })?;
    }
    Ok(())
}

/// The persistent definition.
fn definition(domain: &Domain) -> Result<String, Failure> {
    Ok(domain.xml_desc(sys::VIR_DOMAIN_XML_INACTIVE | sys::VIR_DOMAIN_XML_SECURE)?)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Sets the tag in all images, or in none. One that is there from before is replaced.
pub(super) fn set(connection: &Connection, folders: &Beneath, vm: VmId, safety: &Safety) -> Result<(), Failure> {
    remove(connection, folders, vm, safety)?;
    let domain = connection.domain(vm)?;
    let nodes = nodes(&domain, safety)?;
    let set = || -> Result<(), Failure> {
        // What QEMU does not have open comes first: it is what can fail.
        for path in safety.images.values().filter(|path| !nodes.contains_key(*path)) {
            snapshots::create(folders, Path::new(path), &safety.tag).map_err(|error| refused(path, &error))?;
        }
        if nodes.is_empty() {
            return Ok(());
        }
        let action =
            |node| json!({ "type": "blockdev-snapshot-internal-sync", "data": { "device": node, "name": safety.tag } });
        let actions: Vec<Value> = nodes.values().map(action).collect();
        let _: Value = monitor::ask(&domain, "transaction", json!({ "actions": actions })).map_err(unsupported)?;
        Ok(())
    };
    set().inspect_err(|_| {
        if let Err(failure) = remove(connection, folders, vm, safety) {
            tracing::warn!(%failure, tag = safety.tag, "a safety tag that could not be set in every image could not be removed");
        }
    })
}

/// A disk with a filter, such as a throttle, on top of its image takes no snapshot from outside, and is reverted by libvirt all the same:
/// that is no refusal of a revert. QEMU has no code for it.
fn unsupported(failure: Failure) -> Failure {
    match failure {
        Failure::Refused { message, .. }
            if ["root block node", "does not support internal snapshots"].iter().any(|why| message.contains(why)) =>
        {
            Failure::Unintelligible(message)
        }
        failure => failure,
    }
}

fn refused(path: &str, error: &std::io::Error) -> Failure {
    Failure::Refused { code: sys::VIR_ERR_OPERATION_FAILED, message: format!("{path}: {error}") }
}

/// The nodes of the images that QEMU has open, by path. None where the VM is off.
fn nodes(domain: &Domain, safety: &Safety) -> Result<BTreeMap<String, String>, Failure> {
    if !domain.is_active()? {
        return Ok(BTreeMap::new());
    }
    let all: Vec<Node> = monitor::ask(domain, "query-named-block-nodes", json!({ "flat": true }))?;
    image_nodes(&all, safety.images.values().map(String::as_str), |file| text(&resolved(Path::new(file))))
        .map_err(Failure::Unintelligible)
}

/// What each image holds. One that is left out of the tags is not told of.
pub(super) fn held(safety: &Safety, id: &SnapshotId) -> BTreeMap<String, Held> {
    let held = |path: &String| {
        qcow2::held(Path::new(path), &safety.tag, id.as_str()).unwrap_or_else(|error| {
            tracing::warn!(path, %error, "what an image holds cannot be read");
            Held::Unknown
        })
    };
    safety.images.iter().map(|(target, path)| (target.clone(), held(path))).collect()
}

/// Brings each image of a VM that is off back to the tag. One that holds that state already is left alone.
pub(super) fn restore(connection: &Connection, folders: &Beneath, vm: VmId, safety: &Safety) -> Result<(), Failure> {
    if connection.domain(vm)?.is_active()? {
        return Err(Failure::Unintelligible("the VM is on: its disks cannot be restored".to_owned()));
    }
    let mut failed = Ok(());
    for path in safety.images.values() {
        // One that fails does not keep the others from being restored.
        let is_current = qcow2::held(Path::new(path), &safety.tag, &safety.tag).is_ok_and(Held::is_current);
        if !is_current && let Err(error) = snapshots::apply(folders, Path::new(path), &safety.tag) {
            failed = Err(refused(path, &error));
        }
    }
    failed
}

/// Whether an image has a snapshot of that name. One that does not exist has none.
fn has_tag(path: &Path, name: &str) -> Result<bool, Failure> {
    match qcow2::read(path) {
        Ok(image) => Ok(image.tags.iter().any(|tag| tag.name == name)),
        Err(qcow2::ImageError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Failure::Unintelligible(format!("{}: {error}", path.display()))),
    }
}

/// Removes a snapshot from the images of a VM that is off, without libvirt.
pub(super) fn remove_from_images(folders: &Beneath, vm: &VmFacts, name: &str) -> Result<(), Failure> {
    for disk in vm.writable_disks().filter(|disk| disk.format == "qcow2") {
        let path = resolved(Path::new(&disk.path));
        if has_tag(&path, name)? {
            snapshots::delete(folders, &path, name).map_err(|error| refused(&disk.path, &error))?;
        }
    }
    Ok(())
}

/// Removes the tag from every image that has it. A VM that does not exist any more leaves its images behind.
pub(super) fn remove(connection: &Connection, folders: &Beneath, vm: VmId, safety: &Safety) -> Result<(), Failure> {
    let mut tagged = Vec::new();
    for path in safety.images.values() {
        if has_tag(Path::new(path), &safety.tag)? {
            tagged.push(path);
        }
    }
    if tagged.is_empty() {
        return Ok(());
    }
    let domain = match connection.domain(vm) {
        Err(Failure::VmGone) => None,
        domain => Some(domain?),
    };
    let nodes = domain.as_ref().map(|domain| nodes(domain, safety)).transpose()?.unwrap_or_default();
    for path in tagged {
        match (nodes.get(path), &domain) {
            (Some(node), Some(domain)) => {
                let arguments = json!({ "device": node, "name": safety.tag });
                let _: Value = monitor::ask(domain, "blockdev-snapshot-delete-internal-sync", arguments)?;
            }
            _ => snapshots::delete(folders, Path::new(path), &safety.tag).map_err(|error| refused(path, &error))?,
        }
    }
    Ok(())
}

/// Defines the VM as it was, where a revert has changed that.
pub(super) fn restore_definition(connection: &Connection, vm: VmId, safety: &Safety) -> Result<bool, Failure> {
    let domain = connection.domain(vm)?;
    if definition(&domain)? == safety.definition {
        return Ok(false);
    }
    // After half a revert to an external snapshot the previous files may be gone.
    if let Some((path, _)) =
        volumes::parse(&domain, &safety.definition)?.files().iter().find(|(path, _)| !files::exists(path))
    {
        return Err(Failure::Unintelligible(format!("{} of the previous definition does not exist", path.display())));
    }
    connection.connect().define_domain_xml(&safety.definition)?;
    Ok(true)
}

/// Has libvirt list the tag as a snapshot, so that somebody can revert to it.
pub(super) fn list(connection: &Connection, vm: VmId, safety: &Safety, label: &Label) -> Result<(), Failure> {
    let domain = connection.domain(vm)?;
    let id = SnapshotId::of_name(&safety.tag);
    let taken =
        Taken { id: &id, label, parent: safety.current.as_ref().map(SnapshotId::as_str), create_time: unix_now() };
    let defined = domain_xml::parse(&safety.definition)?;
    let targets: Vec<String> = defined.disks().filter(|disk| !disk.read_only).map(|disk| disk.target).collect();
    if let Some(target) = targets.iter().find(|target| !safety.images.contains_key(*target)) {
        return Err(Failure::Unintelligible(format!("disk {target} has no safety tag")));
    }
    let xml = snapshot_write::taken(&taken, targets.iter().map(String::as_str), &safety.definition)?;
    domain.create_snapshot_xml(&xml, sys::VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)?;
    Ok(())
}

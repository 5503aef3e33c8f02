//! Resources of devices: what a device names, and which of its paths have to exist.

use std::collections::BTreeSet;

use super::files::{character, generic, parent, path};
use super::{Resource, attribute, child};
use crate::hardware::Element;

pub(super) fn device(device: &Element, without: &BTreeSet<String>, needed: &mut BTreeSet<Resource>) {
    match device.name.as_str() {
        "disk" => disk(device, without, needed),
        "interface" => interface(device, needed),
        "hostdev" => host_device(device, needed),
        "filesystem" => filesystem(device, needed),
        "serial" | "parallel" | "console" | "channel" | "redirdev" => character(device, needed),
        "smartcard" if attribute(device, "mode") == "passthrough" => character(device, needed),
        "rng" => random(device, needed),
        "tpm" => tpm(device, needed),
        "graphics" => graphics(device, needed),
        "audio" if attribute(device, "type") == "file" => parent(attribute(device, "path"), needed),
        _ => generic(device, needed),
    }
}

/// Whether libvirt starts the VM without it where it does not exist.
fn is_optional(source: &Element) -> bool {
    matches!(attribute(source, "startupPolicy"), "optional" | "requisite")
}

fn disk(disk: &Element, without: &BTreeSet<String>, needed: &mut BTreeSet<Resource>) {
    let target = child(disk, "target").map_or("", |target| attribute(target, "dev"));
    let is_removable = matches!(attribute(disk, "device"), "cdrom" | "floppy");
    let is_left_out = without.contains(target);
    for part in &disk.children {
        match part.name.as_str() {
            "source" if !is_left_out && !is_optional(part) => {
                source(disk, part, is_removable.then_some(target), needed)
            }
            "source" | "auth" | "encryption" => secrets(part, needed),
            "backingStore" if !is_left_out => backing(part, needed),
            // What is copied by a job, what the guest is told, and what has a list of words.
            "backingStore" | "mirror" | "driver" | "serial" | "wwn" | "vendor" | "product" | "iotune" | "geometry" => {}
            _ => generic(part, needed),
        }
    }
}

fn source(disk: &Element, source: &Element, removable: Option<&str>, needed: &mut BTreeSet<Resource>) {
    secrets(source, needed);
    match (attribute(disk, "type"), removable) {
        ("file" | "", Some(target)) => {
            let file = attribute(source, "file");
            if file.starts_with('/') {
                needed.insert(Resource::Medium { target: target.to_owned(), path: file.to_owned() });
            }
        }
        ("file" | "", None) => path(attribute(source, "file"), needed),
        ("block", _) => path(attribute(source, "dev"), needed),
        ("dir", _) => path(attribute(source, "dir"), needed),
        ("volume", _) => {
            let (pool, volume) = (attribute(source, "pool").to_owned(), attribute(source, "volume").to_owned());
            needed.insert(Resource::Volume { pool, volume });
        }
        ("network", _) => {
            // The name is one of the server's.
            let parts = source.children.iter().filter(|part| !matches!(part.name.as_str(), "auth" | "encryption"));
            parts.for_each(|part| generic(part, needed));
        }
        ("nvme", _) => pci(source, needed),
        ("vhostuser" | "vhostvdpa", _) => generic(source, needed),
        (kind, _) => _ = needed.insert(Resource::Unknown(format!("a disk of type {kind}"))),
    }
    let Some(reservations) = child(source, "reservations") else { return };
    if attribute(reservations, "managed") != "yes" {
        generic(reservations, needed);
    }
}

/// The files below a disk, one in the other.
fn backing(store: &Element, needed: &mut BTreeSet<Resource>) {
    if let Some(of_store) = child(store, "source") {
        source(store, of_store, None, needed);
    }
    if let Some(below) = child(store, "backingStore") {
        backing(below, needed);
    }
}

/// Secrets, wherever they are in an element.
fn secrets(element: &Element, needed: &mut BTreeSet<Resource>) {
    if element.name == "secret" {
        match (attribute(element, "uuid"), attribute(element, "usage")) {
            ("", "") => {}
            ("", usage) => {
                let kind = attribute(element, "type").to_owned();
                needed.insert(Resource::SecretUsage { kind, usage: usage.to_owned() });
            }
            (uuid, _) => _ = needed.insert(Resource::Secret(uuid.to_owned())),
        }
    }
    element.children.iter().for_each(|child| secrets(child, needed));
}

fn interface(interface: &Element, needed: &mut BTreeSet<Resource>) {
    let named =
        |name: &str| child(interface, "source").map(|source| attribute(source, name)).filter(|it| !it.is_empty());
    let target = child(interface, "target");
    match attribute(interface, "type") {
        "network" => needed.extend(named("network").map(|name| Resource::Network(name.to_owned()))),
        "bridge" => needed.extend(named("bridge").map(|name| Resource::Interface(name.to_owned()))),
        "direct" => needed.extend(named("dev").map(|name| Resource::Interface(name.to_owned()))),
        "ethernet" => {
            let own =
                target.filter(|target| attribute(target, "managed") == "no").map(|target| attribute(target, "dev"));
            needed.extend(own.map(|name| Resource::Interface(name.to_owned())));
        }
        "hostdev" => child(interface, "source").into_iter().for_each(|source| pci(source, needed)),
        "vhostuser" => match (named("mode"), named("path")) {
            (Some("client"), Some(socket)) => path(socket, needed),
            (_, socket) => parent(socket.unwrap_or_default(), needed),
        },
        "vdpa" => path(named("dev").unwrap_or_default(), needed),
        "user" | "server" | "client" | "mcast" | "udp" | "internal" | "null" | "vds" => {}
        kind => _ = needed.insert(Resource::Unknown(format!("an interface of type {kind}"))),
    }
    for part in &interface.children {
        match part.name.as_str() {
            "source" | "target" => {}
            "filterref" => _ = needed.insert(Resource::NetworkFilter(attribute(part, "filter").to_owned())),
            "backend" => {
                parent(attribute(part, "logFile"), needed);
                ["tap", "vhost", "hostname"].iter().for_each(|name| path(attribute(part, name), needed));
            }
            _ => generic(part, needed),
        }
    }
}

fn host_device(device: &Element, needed: &mut BTreeSet<Resource>) {
    let Some(source) = child(device, "source") else { return };
    if is_optional(source) {
        return;
    }
    match (attribute(device, "mode"), attribute(device, "type")) {
        ("subsystem", "pci") => pci(source, needed),
        ("subsystem", "usb") => usb(source, needed),
        ("subsystem", "mdev") => {
            let uuid = child(source, "address").map_or("", |address| attribute(address, "uuid"));
            needed.insert(Resource::Mediated(uuid.to_owned()));
        }
        ("subsystem", "scsi") if attribute(source, "protocol") == "iscsi" => secrets(source, needed),
        ("subsystem", "scsi") => {
            let adapter = child(source, "adapter").map_or("", |adapter| attribute(adapter, "name"));
            needed.insert(Resource::ScsiHost(adapter.to_owned()));
        }
        ("capabilities", _) => generic(source, needed),
        (mode, kind) => _ = needed.insert(Resource::Unknown(format!("a host device of mode {mode} and type {kind}"))),
    }
    let rest = device.children.iter().filter(|part| part.name != "source");
    rest.for_each(|part| generic(part, needed));
}

/// A part of an address, as it is: `0x03` and `3` are the same.
fn number(element: &Element, name: &str) -> u32 {
    let text = attribute(element, name);
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).unwrap_or_default(),
        None => text.parse().unwrap_or_default(),
    }
}

fn pci(source: &Element, needed: &mut BTreeSet<Resource>) {
    let Some(address) = child(source, "address") else { return };
    let part = |name| number(address, name);
    let name = format!("{:04x}:{:02x}:{:02x}.{:x}", part("domain"), part("bus"), part("slot"), part("function"));
    needed.insert(Resource::Pci(name));
}

fn usb(source: &Element, needed: &mut BTreeSet<Resource>) {
    match (child(source, "vendor"), child(source, "product"), child(source, "address")) {
        (Some(vendor), Some(product), _) => {
            let id = format!("{:#06x}:{:#06x}", number(vendor, "id"), number(product, "id"));
            needed.insert(Resource::Usb(id));
        }
        (_, _, Some(address)) => {
            let node = format!("/dev/bus/usb/{:03}/{:03}", number(address, "bus"), number(address, "device"));
            needed.insert(Resource::Path(node));
        }
        _ => _ = needed.insert(Resource::Unknown("a USB device without an id or an address".to_owned())),
    }
}

/// The target is a name that the guest mounts it by.
fn filesystem(filesystem: &Element, needed: &mut BTreeSet<Resource>) {
    for part in filesystem.children.iter().filter(|part| part.name != "target") {
        match (part.name.as_str(), attribute(filesystem, "type")) {
            ("source", "ram") => {}
            ("source", "volume") => {
                let (pool, volume) = (attribute(part, "pool").to_owned(), attribute(part, "volume").to_owned());
                needed.insert(Resource::Volume { pool, volume });
            }
            _ => generic(part, needed),
        }
    }
}

fn random(random: &Element, needed: &mut BTreeSet<Resource>) {
    for backend in random.children.iter().filter(|part| part.name == "backend") {
        match attribute(backend, "model") {
            "random" | "builtin" => generic(backend, needed),
            "egd" => character(backend, needed),
            model => _ = needed.insert(Resource::Unknown(format!("a random number generator of model {model}"))),
        }
    }
}

fn tpm(tpm: &Element, needed: &mut BTreeSet<Resource>) {
    for backend in tpm.children.iter().filter(|part| part.name == "backend") {
        secrets(backend, needed);
        for secret in backend.children.iter().filter(|part| part.name == "encryption") {
            needed.insert(Resource::Secret(attribute(secret, "secret").to_owned()));
        }
        match attribute(backend, "type") {
            "passthrough" | "external" => generic(backend, needed),
            "emulator" => {
                needed.insert(Resource::TpmEmulator);
                backend.children.iter().for_each(|source| parent(attribute(source, "path"), needed));
            }
            kind => _ = needed.insert(Resource::Unknown(format!("a TPM of type {kind}"))),
        }
    }
}

/// Passwords and addresses may begin with anything, so only what is known to be a path counts.
fn graphics(graphics: &Element, needed: &mut BTreeSet<Resource>) {
    parent(attribute(graphics, "socket"), needed);
    for part in &graphics.children {
        parent(attribute(part, "socket"), needed);
        path(attribute(part, "rendernode"), needed);
    }
}

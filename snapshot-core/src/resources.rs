//! The resources of the host that a definition names and that must exist when its VM is started.
//!
//! libvirt finds out about a missing one after it has ended the QEMU process and replaced the definition. So this lists them before,
//! from the definition in a snapshot. Files are found by their form, not by a list of elements: every absolute path in an attribute
//! or a text counts, known here or not, but for what QEMU or libvirt creates itself, which is listed in [`files`]. What has a name
//! instead of a path is listed in [`devices`]; a kind of device that is not known there is a resource that never exists.

mod devices;
mod files;

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::hardware::Element;

/// A resource of a host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Resource {
    /// A file, a directory, a device node or a socket.
    Path(String),
    /// The medium in a removable drive.
    Medium {
        /// The target of the drive, such as `sda`.
        target: String,
        /// The file.
        path: String,
    },
    /// A virtual network that is active.
    Network(String),
    /// A network interface of the host.
    Interface(String),
    /// A network filter.
    NetworkFilter(String),
    /// A volume of a storage pool that is active.
    Volume {
        /// The name of the pool.
        pool: String,
        /// The name of the volume.
        volume: String,
    },
    /// A secret, by its UUID.
    Secret(String),
    /// A secret, by what it is for.
    SecretUsage {
        /// libvirt's type of usage, such as `iscsi`.
        kind: String,
        /// The id of the usage.
        usage: String,
    },
    /// A PCI device, by its address, such as `0000:03:00.0`.
    Pci(String),
    /// A USB device, by its vendor and product, such as `0x046d:0xc52b`.
    Usb(String),
    /// A mediated device, by its UUID.
    Mediated(String),
    /// An adapter for SCSI devices, such as `scsi_host0`.
    ScsiHost(String),
    /// The program that emulates a TPM.
    TpmEmulator,
    /// A machine type.
    Machine {
        /// The path of the emulator.
        emulator: String,
        /// The architecture.
        arch: String,
        /// The name, such as `pc-q35-10.0`.
        machine: String,
        /// The hypervisor, such as `kvm`.
        hypervisor: String,
    },
    /// A libvirt that converts a template of UEFI variables to another format.
    NvramConversion {
        /// The format of the template, such as `raw`.
        from: String,
        /// The format of the variables, such as `qcow2`.
        to: String,
    },
    /// Something that is not understood.
    Unknown(String),
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "file {path}"),
            Self::Medium { target, path } => write!(f, "medium {path} in drive {target}"),
            Self::Network(name) => write!(f, "active network {name}"),
            Self::Interface(name) => write!(f, "network interface {name}"),
            Self::NetworkFilter(name) => write!(f, "network filter {name}"),
            Self::Volume { pool, volume } => write!(f, "volume {volume} of active storage pool {pool}"),
            Self::Secret(uuid) => write!(f, "secret {uuid}"),
            Self::SecretUsage { kind, usage } => write!(f, "{kind} secret {usage}"),
            Self::Pci(address) => write!(f, "PCI device {address}"),
            Self::Usb(id) => write!(f, "USB device {id}"),
            Self::Mediated(uuid) => write!(f, "mediated device {uuid}"),
            Self::ScsiHost(name) => write!(f, "SCSI adapter {name}"),
            Self::TpmEmulator => write!(f, "TPM emulator swtpm"),
            Self::Machine { machine, emulator, .. } => write!(f, "machine type {machine} of {emulator}"),
            Self::NvramConversion { from, to } => {
                write!(
                    f,
                    "libvirt before 12.1, which starts a VM with UEFI variables in {to} and their template in {from}"
                )
            }
            Self::Unknown(what) => write!(f, "{what}, which is not understood"),
        }
    }
}

/// What a `<domain>` needs, without the disks with these targets, whose images are looked at elsewhere.
pub fn needed(domain: &Element, without: &BTreeSet<String>) -> BTreeSet<Resource> {
    let mut needed = BTreeSet::new();
    for part in &domain.children {
        match part.name.as_str() {
            "devices" => part.children.iter().for_each(|device| devices::device(device, without, &mut needed)),
            "os" => os(domain, part, &mut needed),
            name if files::has_no_paths(name) => {}
            _ => files::generic(part, &mut needed),
        }
    }
    needed
}

fn os(domain: &Element, os: &Element, needed: &mut BTreeSet<Resource>) {
    for part in &os.children {
        match part.name.as_str() {
            "cmdline" | "init" | "initarg" | "initenv" | "initdir" | "inituser" | "initgroup" => {}
            "nvram" => files::nvram(part, needed),
            _ => files::generic(part, needed),
        }
    }
    let emulator = child(domain, "devices").and_then(|devices| child(devices, "emulator"));
    if let (Some(kind), Some(emulator)) = (child(os, "type"), emulator)
        && let Some(machine) = kind.attributes.get("machine")
    {
        needed.insert(Resource::Machine {
            emulator: emulator.text.clone(),
            arch: attribute(kind, "arch").to_owned(),
            machine: machine.clone(),
            hypervisor: attribute(domain, "type").to_owned(),
        });
    }
}

fn child<'a>(element: &'a Element, name: &str) -> Option<&'a Element> {
    element.children.iter().find(|child| child.name == name)
}

/// The value of an attribute; empty where there is none.
fn attribute<'a>(element: &'a Element, name: &str) -> &'a str {
    element.attributes.get(name).map_or("", String::as_str)
}

#[cfg(test)]
mod device_tests;
#[cfg(test)]
mod tests;

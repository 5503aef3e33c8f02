//! The libvirt definition of a mini guest.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Result, ensure};
use uuid::Uuid;

use super::Disk;

/// What a domain looks like beside its disks.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// RAM in MiB. The guest needs next to none; more makes a snapshot with memory take longer.
    pub memory_mib: u32,
}

impl Default for Shape {
    fn default() -> Self {
        Self { memory_mib: 16 }
    }
}

/// The definition. Software emulation and no `<cpu>`: `/dev/kvm` may itself be an emulation under which little boots.
/// What is not here libvirt fills in; there is no network, no graphics and no ACPI.
pub(super) fn xml(name: &str, uuid: Uuid, disks: &[Disk], serial: &Path, shape: Shape) -> Result<String> {
    // Nothing below is escaped: these go into XML and into paths as they are.
    let plain = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
    ensure!(plain(name) && !name.contains('/'), "a guest's name is of letters, digits, - and _");
    // Every disk gets a place in the boot order, because the BIOS shows the guest no disk that has none.
    let mut devices = String::new();
    for ((disk, target), order) in disks.iter().zip(["vda", "vdb", "vdc", "vdd"]).zip(1..) {
        let path = disk.path().display().to_string();
        ensure!(plain(&path), "{path} would need escaping");
        let format = disk.format().name();
        write!(
            devices,
            "\n    <disk type='file' device='disk'>\
             \n      <driver name='qemu' type='{format}'/>\
             \n      <source file='{path}'/>\
             \n      <target dev='{target}' bus='virtio'/>\
             \n      <boot order='{order}'/>\
             \n    </disk>"
        )?;
    }
    let memory = shape.memory_mib;
    let socket = serial.display();
    Ok(format!(
        "<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>{devices}
    <serial type='unix'><source mode='bind' path='{socket}'/></serial>
  </devices>
</domain>
"
    ))
}

//! The libvirt definition of a guest.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Result, ensure};
use uuid::Uuid;

use super::Disk;
use crate::tools::shared_cache;

/// What a domain looks like beside its disks.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// RAM in MiB. The mini guest needs next to none; more makes a snapshot with memory take longer.
    pub memory_mib: u32,
    /// What runs in it.
    pub system: System,
    /// How QEMU reads and writes the images, as libvirt's `<driver io=…>` says it; by threads where nothing is said.
    pub io: Option<&'static str>,
}

/// What runs in a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum System {
    /// The boot sector, which tells a true revert from one that was merely recorded.
    Mini,
    /// Linux with a shell on the serial port, ext4 on its disks, and QEMU's guest agent.
    Linux,
}

impl Default for Shape {
    fn default() -> Self {
        Self { memory_mib: 16, system: System::Mini, io: None }
    }
}

impl Shape {
    /// Of a Linux guest. 96 MiB boot it with room to spare.
    pub fn linux() -> Self {
        Self { memory_mib: 96, system: System::Linux, io: None }
    }
}

/// What the Linux guest's kernel needs to be told, most of it to boot in seconds under emulation.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check tsc=reliable \
                                cryptomgr.notests audit=0 random.trust_cpu=on 8250.nr_uarts=1";

/// UEFI itself, of Debian's package `ovmf`.
const UEFI: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";

/// The definition: of disks, and of UEFI where it has variables. A guest with a kernel of its own boots no disk. Software emulation and no `<cpu>`: `/dev/kvm` may itself be an emulation under which little boots.
/// What is not here libvirt fills in; there is no network, no graphics and no ACPI.
pub(super) fn xml(
    name: &str,
    uuid: Uuid,
    (disks, nvram): (&[Disk], Option<&Disk>),
    serial: &Path,
    shape: Shape,
) -> Result<String> {
    // Nothing below is escaped: these go into XML and into paths as they are.
    let plain = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
    ensure!(plain(name) && !name.contains('/'), "a guest's name is of letters, digits, - and _");
    // Every disk gets a place in the boot order, because the BIOS shows the guest no disk that has none.
    let mut devices = String::new();
    let io = shape.io.map_or_else(String::new, |io| format!(" io='{io}'"));
    for ((disk, target), order) in disks.iter().zip(["vda", "vdb", "vdc", "vdd"]).zip(1..) {
        let path = disk.path().display().to_string();
        ensure!(plain(&path), "{path} would need escaping");
        let format = disk.format().name();
        write!(
            devices,
            "\n    <disk type='file' device='disk'>\
             \n      <driver name='qemu' type='{format}'{io}/>\
             \n      <source file='{path}'/>\
             \n      <target dev='{target}' bus='virtio'/>\
             \n      <boot order='{order}'/>\
             \n    </disk>"
        )?;
    }
    let (os, more) = match shape.system {
        System::Mini => (String::new(), ""),
        System::Linux => {
            let folder = shared_cache("linux")?;
            let (kernel, initramfs) = (folder.join("kernel"), folder.join("initramfs"));
            ensure!(initramfs.is_file(), "no {}: run `scripts/setup.sh test` first", initramfs.display());
            let os = format!(
                "<kernel>{}</kernel><initrd>{}</initrd><cmdline>{KERNEL_ARGUMENTS}</cmdline>",
                kernel.display(),
                initramfs.display()
            );
            (os, "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>")
        }
    };
    let firmware = nvram.map_or_else(String::new, |nvram| {
        let (path, format) = (nvram.path().display(), nvram.format().name());
        format!("<loader readonly='yes' type='pflash'>{UEFI}</loader><nvram format='{format}'>{path}</nvram>")
    });
    let features = if nvram.is_some() { "<features><acpi/></features>" } else { "" };
    let memory = shape.memory_mib;
    let socket = serial.display();
    Ok(format!(
        "<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type>{firmware}{os}</os>
  {features}
  <devices>{devices}
    <serial type='unix'><source mode='bind' path='{socket}'/></serial>
    {more}
  </devices>
</domain>
"
    ))
}

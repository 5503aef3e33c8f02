//! Devices, firmware, memory, and what else a definition can say.

use anyhow::Result;
use tests::guest::{Disk, Format};

use super::super::draft::{Draft, Machine};
use super::Form;

const UEFI: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";

/// A VM with this device.
fn with(draft: Draft, device: &str) -> Result<Machine> {
    draft.boot().device(device).finish()
}

/// A VM with this device, which this host does not have.
fn defined_with(draft: Draft, device: &str) -> Result<Machine> {
    draft.boot().device(device).never_started().finish()
}

/// A VM that UEFI starts. It does not boot the mini guest, which is a boot sector.
fn uefi(draft: Draft, format: Format) -> Result<Machine> {
    let nvram = Disk::uefi_variables(&draft.path("variables.img"), format)?;
    let os = format!(
        "<loader readonly='yes' type='pflash'>{UEFI}</loader><nvram format='{}'>{}</nvram>",
        format.name(),
        nvram.path().display()
    );
    draft.boot().os(&os).feature("<acpi/>").never_started().finish()
}

/// The same, with variables in qcow2 that were made from a template in qcow2.
fn uefi_of_qcow2(draft: Draft) -> Result<Machine> {
    let nvram = Disk::uefi_variables(&draft.path("variables.img"), Format::Qcow2)?;
    let template = Disk::uefi_variables(&draft.path("template.img"), Format::Qcow2)?;
    let os = format!(
        "<loader readonly='yes' type='pflash'>{UEFI}</loader>\
         <nvram template='{}' templateFormat='qcow2' format='qcow2'>{}</nvram>",
        template.path().display(),
        nvram.path().display()
    );
    draft.boot().os(&os).feature("<acpi/>").never_started().finish()
}

/// A desktop as Ravada makes one.
const DESKTOP: &str = "<graphics type='spice'><listen type='socket'/></graphics><video><model type='qxl'/></video>\
    <sound model='ich6'/><controller type='usb' model='ich9-ehci1'/><redirdev bus='usb' type='spicevmc'/>\
    <channel type='spicevmc'><target type='virtio' name='com.redhat.spice.0'/></channel>\
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>\
    <input type='tablet' bus='usb'/><memballoon model='virtio'/><rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>";

pub fn forms() -> Vec<Form> {
    vec![
        Form::sample("a desktop with SPICE, QXL, sound and USB redirection", |draft| with(draft, DESKTOP)),
        Form::new("VNC and virtio video", |draft| {
            with(draft, "<graphics type='vnc'><listen type='socket'/></graphics><video><model type='virtio'/></video>")
        }),
        Form::new("3D acceleration (VirGL)", |draft| {
            defined_with(
                draft,
                "<graphics type='egl-headless'/><video><model type='virtio'><acceleration accel3d='yes'/></model></video>",
            )
        }),
        Form::new("watchdog, panic device and random numbers", |draft| {
            with(
                draft,
                "<watchdog model='i6300esb' action='reset'/><panic model='isa'/>\
                 <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>",
            )
        }),
        Form::new("machine type q35", |draft| draft.boot().finish_as("q35")),
        Form::new("UEFI with raw variables", |draft| uefi(draft, Format::Raw)),
        Form::new("UEFI with qcow2 variables", |draft| uefi(draft, Format::Qcow2)),
        Form::new("UEFI with qcow2 variables of a qcow2 template", uefi_of_qcow2),
        Form::new("an emulated TPM 2.0", |draft| {
            defined_with(draft, "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>")
        }),
        Form::new("a TPM that is passed through", |draft| {
            defined_with(
                draft,
                "<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>",
            )
        }),
        Form::new("a directory shared by 9p", |draft| {
            let dir = draft.path("shared");
            std::fs::create_dir_all(&dir)?;
            let device = format!(
                "<filesystem type='mount'><source dir='{}'/><target dir='shared'/></filesystem>",
                dir.display()
            );
            with(draft, &device)
        }),
        Form::sample("a directory shared by virtiofs", |draft| {
            let dir = draft.path("shared");
            std::fs::create_dir_all(&dir)?;
            let device = format!(
                "<filesystem type='mount'><driver type='virtiofs'/><source dir='{}'/><target dir='shared'/></filesystem>",
                dir.display()
            );
            let shared = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>";
            draft.boot().top(shared).device(&device).never_started().finish()
        }),
        Form::new("shared memory (ivshmem)", |draft| {
            let name = tests::scratch::shared_memory(&draft.path(""), "strange");
            with(draft, &format!("<shmem name='{name}'><model type='ivshmem-plain'/><size unit='M'>1</size></shmem>"))
        }),
        Form::new("a PCI device that is passed through", |draft| {
            defined_with(
                draft,
                "<hostdev mode='subsystem' type='pci' managed='yes'><source><address domain='0' bus='0x7f' slot='0x1f' \
                 function='0x7'/></source></hostdev>",
            )
        }),
        Form::new("a USB device that is passed through", |draft| {
            defined_with(
                draft,
                "<controller type='usb' model='qemu-xhci'/><hostdev mode='subsystem' type='usb'><source>\
                 <vendor id='0x1234'/><product id='0xbeef'/></source></hostdev>",
            )
        }),
        Form::new("a mediated device (vGPU)", |draft| {
            defined_with(
                draft,
                "<hostdev mode='subsystem' type='mdev' model='vfio-pci'><source>\
                 <address uuid='c2177883-f1bb-47f0-914d-32a22e3a8804'/></source></hostdev>",
            )
        }),
        Form::new("a network card that is passed through", |draft| {
            defined_with(
                draft,
                "<interface type='hostdev' managed='yes'><source><address type='pci' domain='0' bus='0x7f' slot='0x1e' \
                 function='0x6'/></source></interface>",
            )
        }),
        Form::new("a vhost-user network card", |draft| {
            let socket = draft.path("vhost.sock").display().to_string();
            let device = format!(
                "<interface type='vhostuser'><source type='unix' path='{socket}' mode='client'/><model type='virtio'/></interface>"
            );
            let shared = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>";
            draft.boot().top(shared).device(&device).never_started().finish()
        }),
        Form::new("a network card on a network that is not there", |draft| {
            defined_with(draft, "<interface type='network'><source network='nowhere'/></interface>")
        }),
        Form::new("a network card in user mode", |draft| {
            with(draft, "<interface type='user'><model type='virtio'/></interface>")
        }),
        Form::new("a virtual socket (vsock)", |draft| {
            defined_with(draft, "<vsock model='virtio'><cid auto='yes'/></vsock>")
        }),
        Form::new("memory that can be hotplugged", |draft| {
            let top = "<maxMemory slots='4' unit='MiB'>512</maxMemory><cpu><numa><cell id='0' cpus='0' memory='16' unit='MiB'/></numa></cpu>";
            draft.boot().top(top).finish()
        }),
        Form::new("a DIMM", |draft| {
            let top = "<maxMemory slots='4' unit='MiB'>1024</maxMemory><cpu><numa><cell id='0' cpus='0' memory='16' unit='MiB'/></numa></cpu>";
            let dimm = "<memory model='dimm'><target><size unit='MiB'>128</size><node>0</node></target></memory>";
            draft.memory("<memory unit='MiB'>144</memory>").feature("<acpi/>").boot().top(top).device(dimm).finish()
        }),
        Form::new("memory of a memfd, shared", |draft| {
            draft.boot().top("<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>").finish()
        }),
        Form::new("locked memory and memory limits", |draft| {
            draft.boot().top("<memtune><hard_limit unit='MiB'>1024</hard_limit></memtune>").never_started().finish()
        }),
        Form::new("the host's CPU model", |draft| draft.boot().top("<cpu mode='maximum'/>").finish()),
        Form::sample("arguments of its own for QEMU", |draft| {
            draft
                .boot()
                .top("<qemu:commandline><qemu:arg value='-boot'/><qemu:arg value='menu=off'/></qemu:commandline>")
                .finish()
        }),
        Form::new("title, description and metadata of tools", |draft| {
            let top = "<title>Größe &amp; Maß</title><description>two\nlines</description><metadata>\
                       <x:app xmlns:x='http://example.org/x'><x:any deep='1'><x:er/></x:any></x:app></metadata>";
            draft.boot().top(top).finish()
        }),
        Form::new("a kernel that was removed after the snapshot", |draft| {
            let kernel = draft.path("kernel");
            std::fs::write(&kernel, "not a kernel")?;
            let element = format!("<kernel>{}</kernel>", kernel.display());
            let draft = draft.boot().os(&element).never_started();
            draft
                .after(move |daemon, machine| {
                    super::snapshots::redefine(daemon, machine, &element, "")?;
                    Ok(std::fs::remove_file(&kernel)?)
                })
                .finish()
        }),
    ]
}

//! How a disk is attached, by its definition.

use anyhow::Result;

use super::super::draft::{Draft, Machine};
use super::Form;

/// A second disk with this in its definition.
fn second(draft: Draft, more: &str) -> Result<Machine> {
    let path = draft.empty_image("data.qcow2", &[])?;
    draft.boot().file("vdb", "qcow2", &path, more).finish()
}

/// A second disk with these attributes of its driver.
fn driver(draft: Draft, attributes: &str) -> Result<Machine> {
    let path = draft.empty_image("data.qcow2", &[])?;
    let image = super::super::draft::Image::new("vdb", "qcow2", &path);
    let inside = format!("<driver name='qemu' type='qcow2' {attributes}/><source file='{}'/>", path.display());
    draft.boot().disk("type='file' device='disk'", "vdb", &inside, Some(image)).finish()
}

/// A second disk on another bus.
fn bus(draft: Draft, target: &str, bus: &str, controller: &str) -> Result<Machine> {
    let path = draft.empty_image("data.qcow2", &[])?;
    draft
        .boot()
        .file(target, "qcow2", &path, &format!("<target dev='{target}' bus='{bus}'/>"))
        .device(controller)
        .finish()
}

/// A second disk whose `snapshot` attribute is this.
fn snapshot_attribute(draft: Draft, value: &str) -> Result<Machine> {
    let path = draft.empty_image("data.qcow2", &[])?;
    let image = super::super::draft::Image::new("vdb", "qcow2", &path);
    let inside = format!("<driver name='qemu' type='qcow2'/><source file='{}'/>", path.display());
    draft.boot().disk(&format!("type='file' device='disk' snapshot='{value}'"), "vdb", &inside, Some(image)).finish()
}

pub fn forms() -> Vec<Form> {
    vec![
        Form::new("a read-only disk", |draft| {
            let path = draft.empty_image("data.qcow2", &[])?;
            let mut machine = draft.boot().file("vdb", "qcow2", &path, "<readonly/>").finish()?;
            machine.disks.truncate(1);
            Ok(machine)
        }),
        Form::new("a shareable raw disk", |draft| {
            let path = draft.path("shared.raw");
            std::fs::File::create(&path)?.set_len(8 << 20)?;
            draft.boot().file("vdb", "raw", &path, "<shareable/>").finish()
        }),
        Form::sample("a transient disk", |draft| second(draft, "<transient/>")),
        Form::sample("snapshot='no' on a disk", |draft| snapshot_attribute(draft, "no")),
        Form::new("snapshot='external' on a disk", |draft| snapshot_attribute(draft, "external")),
        Form::new("snapshot='manual' on a disk", |draft| snapshot_attribute(draft, "manual")),
        Form::new("snapshot='internal' on a disk", |draft| snapshot_attribute(draft, "internal")),
        Form::new("copy on read", |draft| driver(draft, "copy_on_read='on'")),
        Form::sample("a throttled disk", |draft| {
            second(draft, "<iotune><total_bytes_sec>104857600</total_bytes_sec></iotune>")
        }),
        Form::new("cache='none' io='native'", |draft| driver(draft, "cache='none' io='native'")),
        Form::new("discard='unmap' detect_zeroes='unmap'", |draft| {
            driver(draft, "discard='unmap' detect_zeroes='unmap'")
        }),
        Form::new("an I/O thread", |draft| driver(draft.top("<iothreads>1</iothreads>"), "iothread='1'")),
        Form::new("error_policy='report'", |draft| driver(draft, "error_policy='report'")),
        Form::new("a disk with a serial number", |draft| second(draft, "<serial>0123</serial>")),
        Form::new("a SCSI disk", |draft| bus(draft, "sda", "scsi", "<controller type='scsi' model='virtio-scsi'/>")),
        Form::new("a USB disk", |draft| bus(draft, "sdb", "usb", "<controller type='usb' model='qemu-xhci'/>")),
        Form::new("an IDE disk", |draft| bus(draft, "hda", "ide", "")),
        Form::new("a SATA disk", |draft| bus(draft, "sdc", "sata", "<controller type='sata'/>")),
        Form::new("a writable floppy disk", |draft| {
            let path = draft.path("floppy.img");
            std::fs::File::create(&path)?.set_len(1_474_560)?;
            let inside = format!(
                "<driver name='qemu' type='raw'/><source file='{}'/><target dev='fda' bus='fdc'/>",
                path.display()
            );
            draft.boot().disk("type='file' device='floppy'", "fda", &inside, None).finish()
        }),
        Form::new("an empty CD-ROM drive", |draft| {
            draft.boot().disk("type='file' device='cdrom'", "hda", "<readonly/>", None).finish()
        }),
        Form::new("a CD-ROM with a medium", |draft| {
            let path = draft.path("medium.iso");
            std::fs::File::create(&path)?.set_len(1 << 20)?;
            let inside = format!("<source file='{}'/><readonly/>", path.display());
            draft.boot().disk("type='file' device='cdrom'", "hda", &inside, None).finish()
        }),
    ]
}

//! Snapshots that other tools took, and what became of the VM since.

use std::process::Command;

use anyhow::Result;
use tests::tools::run;

use super::super::draft::{Draft, Machine};
use super::Form;

/// A VM with snapshots of these names, by virsh; each disk has a mark of its own at each, `0x30` and up.
fn foreign(draft: Draft, names: &'static [&'static str]) -> Result<Machine> {
    let mut machine = draft
        .before(move |daemon, machine| {
            for (name, mark) in names.iter().zip(0x30..) {
                machine.disks.iter().try_for_each(|disk| disk.mark(mark))?;
                machine.virsh(daemon, "snapshot-create-as", &["--name", name])?;
            }
            machine.disks.iter().try_for_each(|disk| disk.mark(0x61))
        })
        .finish()?;
    machine.foreign = names.iter().copied().zip(0x30..).collect();
    Ok(machine)
}

/// A tag in the image that libvirt does not know.
fn tag(machine: &Machine, name: &str) -> Result<()> {
    let path = machine.dir.join("boot.qcow2");
    run(Command::new("qemu-img").args(["snapshot", "-c", name]).arg(path)).map(drop)
}

/// Replaces this text of the definition.
pub(super) fn redefine(daemon: &tests::libvirtd::Libvirtd, machine: &Machine, from: &str, to: &str) -> Result<()> {
    let xml = machine.virsh(daemon, "dumpxml", &["--inactive"])?;
    anyhow::ensure!(xml.contains(from), "no {from} in {xml}");
    let file = machine.dir.join("again.xml");
    std::fs::write(&file, xml.replace(from, to))?;
    daemon.virsh(&["define", &file.display().to_string()]).map(drop)
}

pub fn forms() -> Vec<Form> {
    vec![
        Form::sample("snapshots of virsh named 0, 1, 2", |draft| foreign(draft.boot(), &["0", "1", "2"])),
        Form::new("snapshots of virsh with odd names", |draft| {
            foreign(draft.boot(), &["before exam", "café", "-rf", "$(id)", "a&b<c>"])
        }),
        Form::new("snapshots of virsh named as ids of others", |draft| {
            foreign(draft.boot().data_with(&[]), &["2", "1"])
        }),
        Form::new("a tag in the image that libvirt does not list", |draft| {
            draft.boot().before(|_, machine| tag(machine, "orphan")).finish()
        }),
        Form::new("two tags of one name in the image", |draft| {
            draft.boot().before(|_, machine| tag(machine, "twin").and_then(|()| tag(machine, "twin"))).finish()
        }),
        Form::new("an external snapshot of virsh", |draft| {
            let mut machine = draft
                .boot()
                .before(|daemon, machine| {
                    let spec = format!("vda,file={}", machine.dir.join("overlay.qcow2").display());
                    let arguments = ["--name", "outside", "--disk-only", "--diskspec", &spec];
                    machine.virsh(daemon, "snapshot-create-as", &arguments).map(drop)
                })
                .finish()?;
            // The active layer is another file from then on.
            machine.disks.clear();
            Ok(machine)
        }),
        Form::sample("memory was changed since the snapshot", |draft| {
            draft.boot().after(|daemon, machine| redefine(daemon, machine, ">16384<", ">32768<")).finish()
        }),
        Form::new("a network card was removed since the snapshot", |draft| {
            let card = "<interface type='user'><mac address='52:54:00:00:00:01'/><model type='virtio'/></interface>";
            draft
                .boot()
                .device(card)
                .after(|daemon, machine| {
                    machine
                        .virsh(daemon, "detach-interface", &["user", "--mac", "52:54:00:00:00:01", "--config"])
                        .map(drop)
                })
                .finish()
        }),
        Form::new("a disk was attached since the snapshot", |draft| {
            let path = draft.empty_image("late.qcow2", &[])?;
            draft
                .boot()
                .after(move |daemon, machine| {
                    let path = path.display().to_string();
                    let arguments = [path.as_str(), "vdb", "--driver", "qemu", "--subdriver", "qcow2", "--config"];
                    machine.virsh(daemon, "attach-disk", &arguments).map(drop)
                })
                .finish()
        }),
        Form::sample("a disk was detached since the snapshot", |draft| {
            draft
                .boot()
                .data_with(&[])
                .after(|daemon, machine| machine.virsh(daemon, "detach-disk", &["vdb", "--config"]).map(drop))
                .finish()
        }),
        Form::new("a disk was resized since the snapshot", |draft| {
            draft
                .boot()
                .after(|_, machine| {
                    let path = machine.dir.join("boot.qcow2");
                    run(Command::new("qemu-img").args(["resize", "-q"]).arg(path).arg("16M")).map(drop)
                })
                .finish()
        }),
        Form::new("a checkpoint of libvirt", |draft| {
            draft
                .boot()
                .before(|daemon, machine| {
                    machine.virsh(daemon, "start", &[])?;
                    machine.virsh(daemon, "checkpoint-create-as", &["--name", "backup"])?;
                    machine.virsh(daemon, "destroy", &[]).map(drop)
                })
                .finish()
        }),
    ]
}

//! Where disks are: pools, block devices, the network, other directories.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use tests::libvirtd::Libvirtd;
use tests::tools::run;

use super::super::draft::{Draft, Image, Machine};
use super::Form;

/// A disk that is the volume `boot.qcow2` of a pool over the VM's own directory.
fn volume(draft: Draft) -> Result<Draft> {
    let path = draft.boot_image("boot.qcow2", &[])?;
    let image = Image::new("vda", "qcow2", &path);
    let pool = pool_of(draft.dir());
    let inside = format!("<driver name='qemu' type='qcow2'/><source pool='{pool}' volume='boot.qcow2'/>");
    let dir = draft.dir().to_owned();
    let (removed, defined) = (pool.clone(), pool);
    Ok(draft
        .disk("type='volume' device='disk'", "vda", &inside, Some(image))
        .before(move |daemon, _| {
            daemon.virsh(&["pool-define-as", &defined, "dir", "--target", &dir.display().to_string()])?;
            daemon.virsh(&["pool-start", &defined]).map(drop)
        })
        .end(move |daemon, _| {
            let _ = daemon.virsh(&["pool-destroy", &removed]);
            daemon.virsh(&["pool-undefine", &removed]).map(drop)
        }))
}

fn pool_of(dir: &Path) -> String {
    format!("pool-{}", dir.file_name().unwrap_or_default().to_string_lossy())
}

fn pool_destroy(daemon: &Libvirtd, machine: &Machine) -> Result<()> {
    daemon.virsh(&["pool-destroy", &pool_of(&machine.dir)]).map(drop)
}

/// A disk on a loop device with this format in it.
fn loop_device(draft: Draft, format: &'static str) -> Result<Machine> {
    let file = draft.path("device.img");
    let content = draft.boot_image_of(format, "content.img", &[])?;
    // Room for snapshots, as a logical volume would have it.
    std::fs::File::create(&file)?.set_len(64 << 20)?;
    run(Command::new("dd")
        .args(["conv=notrunc", "status=none"])
        .arg(format!("if={}", content.display()))
        .arg(format!("of={}", file.display())))?;
    let device = run(Command::new("losetup").args(["--find", "--show"]).arg(&file))?.trim().to_owned();
    let image = Image { files: vec![file], ..Image::new("vda", format, Path::new(&device)) };
    let inside = format!("<driver name='qemu' type='{format}'/><source dev='{device}'/>");
    let draft = draft.disk("type='block' device='disk'", "vda", &inside, Some(image));
    draft
        .end(move |daemon, machine| {
            let _ = machine.virsh(daemon, "destroy", &[]);
            run(Command::new("losetup").args(["--detach", &device])).map(drop)
        })
        .finish()
}

/// Serves an image over NBD on a UNIX socket until the VM is removed.
fn served(draft: Draft, socket: &Path, file: &Path) -> Result<Draft> {
    let pid = draft.path("nbd.pid");
    run(Command::new("qemu-nbd")
        .args(["-t", "-e", "64", "--fork", "-f", "qcow2"])
        .arg(format!("--pid-file={}", pid.display()))
        .arg("-k")
        .arg(socket)
        .arg(file))?;
    Ok(draft.end(move |daemon, machine| {
        let _ = machine.virsh(daemon, "destroy", &[]);
        let pid = std::fs::read_to_string(&pid)?.trim().parse().context("a pid")?;
        let pid = rustix::process::Pid::from_raw(pid).context("a pid")?;
        Ok(rustix::process::kill_process(pid, rustix::process::Signal::TERM)?)
    }))
}

pub fn forms() -> Vec<Form> {
    vec![
        Form::sample("a volume of an active pool", |draft| volume(draft)?.finish()),
        Form::new("a volume of a pool that was stopped", |draft| {
            volume(draft)?.never_started().after(pool_destroy).finish()
        }),
        Form::new("a volume that was deleted after the snapshot", |draft| {
            // A medium that is a volume of a pool.
            let draft = volume(draft)?;
            let pool = pool_of(draft.dir());
            run(Command::new("truncate").args(["-s", "1M"]).arg(draft.path("medium.iso")))?;
            let inside = format!("<source pool='{pool}' volume='medium.iso'/><readonly/>");
            draft
                .disk("type='volume' device='cdrom'", "hda", &inside, None)
                .after(|daemon, machine| {
                    machine.virsh(daemon, "change-media", &["hda", "--eject", "--config"])?;
                    std::fs::remove_file(machine.dir.join("medium.iso"))?;
                    daemon.virsh(&["pool-refresh", &pool_of(&machine.dir)]).map(drop)
                })
                .finish()
        }),
        Form::new("a medium that was deleted after the snapshot", |draft| {
            run(Command::new("truncate").args(["-s", "1M"]).arg(draft.path("medium.iso")))?;
            let inside = format!("<source file='{}'/><readonly/>", draft.path("medium.iso").display());
            draft
                .boot()
                .disk("type='file' device='cdrom'", "hda", &inside, None)
                .after(|daemon, machine| {
                    machine.virsh(daemon, "change-media", &["hda", "--eject", "--config"])?;
                    Ok(std::fs::remove_file(machine.dir.join("medium.iso"))?)
                })
                .finish()
        }),
        Form::new("a medium that is missing", |draft| {
            let inside = format!("<source file='{}'/><readonly/>", draft.path("never.iso").display());
            draft.boot().disk("type='file' device='cdrom'", "hda", &inside, None).never_started().finish()
        }),
        Form::new("a medium that is missing and optional", |draft| {
            let inside =
                format!("<source file='{}' startupPolicy='optional'/><readonly/>", draft.path("never.iso").display());
            draft.boot().disk("type='file' device='cdrom'", "hda", &inside, None).finish()
        }),
        Form::new("qcow2 on a block device", |draft| loop_device(draft, "qcow2")),
        Form::new("raw on a block device", |draft| loop_device(draft, "raw")),
        Form::new("a disk over NBD", |draft| {
            let (socket, file) = (draft.path("nbd.sock"), draft.boot_image("served.qcow2", &[])?);
            let inside = format!(
                "<driver name='qemu' type='raw'/><source protocol='nbd' name=''><host transport='unix' socket='{}'/></source>",
                socket.display()
            );
            served(draft, &socket, &file)?.disk("type='network' device='disk'", "vda", &inside, None).finish()
        }),
        Form::sample("an image outside of image_dirs", |draft| {
            let outside = draft.dir().parent().and_then(Path::parent).context("a parent")?.join("outside");
            std::fs::create_dir_all(&outside)?;
            let path = draft.boot_image("boot.qcow2", &[])?;
            let moved = outside.join(format!("{}.qcow2", draft.uuid()));
            std::fs::rename(path, &moved)?;
            draft.file("vda", "qcow2", &moved, "").finish()
        }),
        Form::new("second disk outside of image_dirs", |draft| {
            let outside = draft.dir().parent().and_then(Path::parent).context("a parent")?.join("outside");
            std::fs::create_dir_all(&outside)?;
            let moved = outside.join(format!("{}.qcow2", draft.uuid()));
            std::fs::rename(draft.empty_image("data.qcow2", &[])?, &moved)?;
            draft.boot().file("vdb", "qcow2", &moved, "").finish()
        }),
    ]
}

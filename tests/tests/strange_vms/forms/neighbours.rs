//! Others that use an image: clones, sharers, readers, and file systems that forbid.

use std::process::{Child, Command};
use std::sync::Mutex;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::images;
use tests::tools::run;

use super::super::draft::{Draft, Image, Machine};
use super::Form;

/// A clone of the VM's image, made after the first snapshot: what it shows of its base was written since.
fn with_clone(draft: Draft) -> Result<Machine> {
    let draft = draft.boot();
    let base = draft.path("boot.qcow2");
    let overlay = draft.overlay("clone.qcow2", &base.display().to_string(), "qcow2")?;
    let clone = Image::new("clone", "qcow2", &overlay);
    let device = format!(
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/><target dev='vda'/></disk>",
        overlay.display()
    );
    let name = format!("clone-{}", draft.uuid());
    let other = name.clone();
    let mut machine = draft
        .never_started()
        .after(move |daemon, machine| {
            Image::new("vda", "qcow2", &base).mark(0x4e)?;
            machine.define_other(daemon, &name, &device)
        })
        .end(move |daemon, _| daemon.virsh(&["undefine", &other]).map(drop))
        .finish()?;
    // The base is not marked any more: that by itself would change the clone.
    machine.disks.clear();
    machine.late_neighbours = vec![clone];
    Ok(machine)
}

/// The same of a clone that no VM uses.
fn with_unused_clone(draft: Draft) -> Result<Machine> {
    let draft = draft.boot();
    let base = draft.path("boot.qcow2");
    let overlay = draft.overlay("clone.qcow2", &base.display().to_string(), "qcow2")?;
    let clone = Image::new("clone", "qcow2", &overlay);
    let mut machine = draft.never_started().after(move |_, _| Image::new("vda", "qcow2", &base).mark(0x4e)).finish()?;
    machine.disks.clear();
    machine.late_neighbours = vec![clone];
    Ok(machine)
}

/// Another domain that has the same image as a disk.
fn shared(draft: Draft) -> Result<Machine> {
    let draft = draft.boot();
    let name = format!("sharer-{}", draft.uuid());
    let other = name.clone();
    let device = format!(
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/><target dev='vda'/></disk>",
        draft.path("boot.qcow2").display()
    );
    draft
        .before(move |daemon, machine| machine.define_other(daemon, &name, &device))
        .end(move |daemon, _| daemon.virsh(&["undefine", &other]).map(drop))
        .never_started()
        .finish()
}

/// A process that has the second disk open for reading from the first snapshot on.
fn read_by(draft: Draft) -> Result<Machine> {
    let draft = draft.boot().data_with(&[]);
    let path = draft.path("data.qcow2");
    let reader: std::sync::Arc<Mutex<Option<Child>>> = std::sync::Arc::default();
    let ended = std::sync::Arc::clone(&reader);
    let machine = draft
        .never_started()
        .after(move |_, _| {
            let mut command = Command::new("qemu-io");
            command
                .args(["-r", "-f", "qcow2"])
                .arg(&path)
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::null());
            let child = command.spawn()?;
            *reader.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(child);
            // It is there when a writer is refused.
            let begun = Instant::now();
            while images::check(&path).is_ok()
                && Command::new("qemu-io").args(["-c", "quit"]).arg(&path).output()?.status.success()
            {
                ensure!(begun.elapsed() < Duration::from_secs(10), "the reader does not lock the image");
                sleep(Duration::from_millis(20));
            }
            Ok(())
        })
        .end(move |_, _| {
            let child = ended.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
            let mut child = child.context("no reader")?;
            child.kill()?;
            child.wait()?;
            Ok(())
        })
        .finish()?;
    let disks = machine.disks.into_iter().filter(|disk| disk.target == "vda").collect();
    Ok(Machine { disks, ..machine })
}

/// A file of the second disk that may not be changed from the first snapshot on.
fn immutable(draft: Draft) -> Result<Machine> {
    let draft = draft.boot().data_with(&[]);
    let (set, cleared) = (draft.path("data.qcow2"), draft.path("data.qcow2"));
    let machine = draft
        .never_started()
        .after(move |_, _| run(Command::new("chattr").arg("+i").arg(&set)).map(drop))
        .end(move |_, _| run(Command::new("chattr").arg("-i").arg(&cleared)).map(drop))
        .finish()?;
    let disks = machine.disks.into_iter().filter(|disk| disk.target == "vda").collect();
    Ok(Machine { disks, ..machine })
}

pub fn forms() -> Vec<Form> {
    vec![
        Form::sample("a linked clone of its image, off", with_clone),
        Form::new("a linked clone of its image that no VM uses", with_unused_clone),
        Form::new("its image is a disk of another VM, too", shared),
        Form::sample("second disk is open in a reader", read_by),
        Form::new("second disk's file is immutable", immutable),
    ]
}

//! What a VM is doing.

use anyhow::Result;
use tests::libvirtd::Libvirtd;

use super::super::draft::{Draft, Machine};
use super::Form;

fn hibernate(daemon: &Libvirtd, machine: &Machine) -> Result<()> {
    machine.virsh(daemon, "start", &[])?;
    machine.virsh(daemon, "managedsave", &[]).map(drop)
}

/// A VM that is hibernated at some moment: its disks belong to the saved memory from then on, and are not marked.
fn hibernated(draft: Draft) -> Result<Machine> {
    let mut machine = draft.never_started().finish()?;
    machine.disks.clear();
    Ok(machine)
}

pub fn forms() -> Vec<Form> {
    vec![
        Form::new("hibernated (managed save)", |draft| hibernated(draft.boot().before(hibernate))),
        Form::new("hibernated since the snapshot", |draft| hibernated(draft.boot().after(hibernate))),
        Form::new("started again since the snapshot", |draft| {
            draft.boot().after(|daemon, machine| machine.virsh(daemon, "start", &[]).map(drop)).finish()
        }),
    ]
}

//! What a VM is doing.

use super::Form;

pub fn forms() -> Vec<Form> {
    vec![
        Form::new("hibernated (managed save)", |draft| {
            let mut machine = draft
                .boot()
                .before(|daemon, machine| {
                    machine.virsh(daemon, "start", &[])?;
                    machine.virsh(daemon, "managedsave", &[]).map(drop)
                })
                .never_started()
                .finish()?;
            machine.disks.clear();
            Ok(machine)
        }),
        Form::new("hibernated since the snapshot", |draft| {
            let mut machine = draft
                .boot()
                .after(|daemon, machine| {
                    machine.virsh(daemon, "start", &[])?;
                    machine.virsh(daemon, "managedsave", &[]).map(drop)
                })
                .never_started()
                .finish()?;
            machine.disks.clear();
            Ok(machine)
        }),
        Form::new("started again since the snapshot", |draft| {
            draft.boot().after(|daemon, machine| machine.virsh(daemon, "start", &[]).map(drop)).finish()
        }),
    ]
}

//! Wrongs done behind everybody's back, on each machine another, to see that the whole check finds them: that it looks
//! where it should, and not only that it judges well what it is told.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::task::block_in_place;

use super::lane::Lane;
use super::script::{Act, Manner, Step};
use super::world::World;
use crate::lab::Power;
use crate::tools::run;

/// Does a wrong to each machine.
pub async fn sabotage(world: &World, lanes: &mut [Lane]) -> Result<()> {
    for lane in lanes {
        let machine = world.machines.iter().find(|machine| machine.guest.name() == lane.model.name);
        let guest = &machine.context("a machine of this world")?.guest;
        for act in [Act::Write, Act::Create { protected: false }, Act::Write] {
            lane.settle().await?;
            lane.act(&Step { act, which: 1, manner: Manner::Follow, json: false, pause: Duration::ZERO }).await?;
        }
        lane.settle().await?;
        let last = lane.model.current.clone().context("no snapshot was taken")?;
        match guest.name() {
            "one" => drop(block_in_place(|| world.virsh(&["snapshot-delete", guest.name(), &last]))?),
            "two" => {
                lane.power(Power::Off).await?;
                lane.settle().await?;
                let disk = guest.disks().get(1).context("a second disk")?;
                run(Command::new("qemu-img").args(["snapshot", "-a", &last]).arg(disk.path()))?;
            }
            "clone" => drop(block_in_place(|| guest.write('~'))?),
            _ => {
                block_in_place(|| world.virsh(&["snapshot-create-as", guest.name(), "nobodys"]))?;
                block_in_place(|| world.virsh(&["suspend", guest.name()]))?;
            }
        }
    }
    Ok(())
}

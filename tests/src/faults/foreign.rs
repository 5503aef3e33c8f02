//! Foreign operations: administrators who work beside the service, on its VMs and on everybody else's images.
//!
//! Rooms ([`room`]) hold VMs that are off, with disks so small that all of it can be read back often. What is done in a room is decided by
//! the seed ([`script`]): administrators' acts ([`acts`]) with virsh, `qemu-img`, `qemu-io` and `cp`, alone or while a user's operation is
//! under way ([`user`]), and all of it under the same kills, cuts and full file systems as the lanes. A ledger ([`ledger`]) has what must
//! be there: **no byte that was ever a guest's current state or a snapshot, of any VM, disappears or changes unless somebody asked for
//! exactly that.** What an operation and an act made of each other is looked at ([`reconcile`]); everything is read back
//! now and then and at the end ([`judge`]), when each snapshot is reverted to as well.
//!
//! The service may always refuse, as long as nothing is changed by it.

mod acts;
pub mod content;
pub mod disk_tools;
mod judge;
pub mod ledger;
mod moved;
mod reconcile;
pub mod room;
mod sabotage;
pub mod script;
mod user;

use std::sync::Arc;

use anyhow::Result;
use proto::v1;
use tokio::task::block_in_place;

use self::room::Room;
use self::script::Wish;
use super::rng::Rng;
use super::world::World;

/// Rooms of a round.
const ROOMS: u32 = 3;
/// Steps between two times that everything is read back.
const JUDGED: u32 = 60;
/// Directories and domains with this in their names belong to rooms.
const MARK: &str = "room";

/// Whether a file or a domain belongs to a room.
pub fn is_in_a_room(name: &str) -> bool {
    name.contains(MARK)
}

/// The rooms of a round, and how many foreign operations are to be done in each.
pub struct Rooms(Vec<(Room, u64)>);

impl Rooms {
    /// Makes them, for so many foreign operations.
    pub async fn new(world: &Arc<World>, round: &Rng, storage: v1::StorageKind, operations: u32) -> Result<Self> {
        let mut rooms = Vec::new();
        for number in 0..ROOMS.min(operations) {
            let share = u64::from(operations / ROOMS + u32::from(number < operations % ROOMS));
            rooms.push((Room::new(Arc::clone(world), number as usize, round, storage).await?, share));
        }
        Ok(Self(rooms))
    }

    /// Does them all.
    pub async fn run(self) -> Result<Self> {
        let running: Vec<_> = self
            .0
            .into_iter()
            .map(|(mut room, share)| {
                tokio::spawn(async move {
                    room.run(share).await?;
                    anyhow::Ok((room, share))
                })
            })
            .collect();
        let mut rooms = Vec::new();
        for room in running {
            rooms.push(room.await??);
        }
        Ok(Self(rooms))
    }

    /// Does wrong in one of them, which [`Rooms::check`] has to find.
    pub fn sabotage(&mut self) -> Result<()> {
        self.0.first_mut().map_or(Ok(()), |(room, _)| block_in_place(|| room.sabotage()))
    }

    /// Reads everything back, when all is quiet, and reverts to every snapshot.
    pub async fn check(&mut self) -> Result<()> {
        for (room, _) in &mut self.0 {
            block_in_place(|| room.judge())?;
            room.revert_to_all().await?;
            block_in_place(|| room.judge())?;
        }
        Ok(())
    }
}

impl Room {
    /// Steps until so many foreign operations were done here.
    async fn run(&mut self, share: u64) -> Result<()> {
        let mut since = 0;
        while self.done < share {
            let step = self.steps.next_step();
            match step.wish {
                Some((wish, vm)) => {
                    if !self.wish(wish, vm, &step.moves).await? {
                        self.tell("the end of an operation is not known; nothing more is done here");
                        return Ok(());
                    }
                }
                None => self.acts(&step.moves).await?,
            }
            self.held.clear();
            since += 1;
            if since >= JUDGED {
                since = 0;
                self.renew_tokens()?;
                let world = Arc::clone(&self.world);
                let _calm = world.calm.meddle().await;
                block_in_place(|| self.judge())?;
            }
        }
        Ok(())
    }

    /// A user reverts to every snapshot that there is.
    async fn revert_to_all(&mut self) -> Result<()> {
        let served: Vec<usize> = (0..self.ledger.vms.len()).filter(|vm| self.ledger.vms[*vm].is_served).collect();
        for vm in served {
            let all: Vec<String> = self.ledger.vms[vm].snapshots.keys().cloned().collect();
            for snapshot in all {
                self.wish_of(Wish::Revert { save_current: false }, vm, Some(snapshot), false, &[]).await?;
            }
        }
        Ok(())
    }
}

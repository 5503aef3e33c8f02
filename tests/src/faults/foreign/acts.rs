//! What an administrator does, one act at a time. Each reads what it needs as a person with virsh would, does it, and writes what it
//! changed into the ledger: that, and nothing else, was asked for.

mod definitions;
mod disks;
mod hosts;
mod images;
mod jobs;
mod snapshots;
mod storage;

use anyhow::Result;

use super::room::{Outcome, Room};
use super::script::{Act, Move};

/// A tool's refusal, in one line.
fn refused(error: &anyhow::Error) -> Outcome {
    Outcome::Refused(format!("{error:#}").replace('\n', " "))
}

/// What an act comes to when one of its tools refuses.
macro_rules! attempt {
    ($done:expr) => {
        match $done {
            Ok(done) => done,
            Err(error) => return Ok(super::refused(&error)),
        }
    };
}
use attempt;

impl Room {
    /// Does one act. An error is a fault of the harness.
    pub(super) fn act(&mut self, it: &Move) -> Result<Outcome> {
        let which = it.which;
        let outcome = match it.act {
            Act::Write => self.write(which),
            Act::NewImage => self.make(which),
            Act::Attach => self.attach(which),
            Act::Detach => self.detach(which),
            Act::Swap => self.swap(which),
            Act::Move => self.move_image(which),
            Act::Resize => self.resize(which),
            Act::Rename => self.rename(which),
            Act::Redefine => self.redefine(which),
            Act::Undefine => self.undefine(which),
            Act::DefineAgain => self.define_again(which),
            Act::LinkedClone => self.linked_clone(which),
            Act::FullClone => self.full_clone(which),
            Act::Copy => self.copy(which),
            Act::Replace => self.replace(which),
            Act::Remove => self.remove(which),
            Act::Commit => self.commit(which),
            Act::Rebase => self.rebase(which),
            Act::Tag => self.tag(which),
            Act::Untag => self.untag(which),
            Act::Bitmap => self.bitmap(which),
            Act::VirshCreate => self.virsh_create(which),
            Act::VirshDelete => self.virsh_delete(which),
            Act::VirshForget => self.virsh_forget(which),
            Act::Read => self.hold(which, false),
            Act::Lock => self.hold(which, true),
            Act::StopPool => self.pool(which, "pool-destroy"),
            Act::StartPool => self.pool(which, "pool-start"),
            Act::Hang => self.hang(which),
            Act::Backup => self.backup(which),
            Act::BlockCopy => self.block_copy(which),
            Act::BlockCommit => self.block_commit(which),
            Act::Migrate => self.migrate(which),
            Act::MigrateByLibvirt => self.migrate_by_libvirt(which),
            Act::HangDirectory => self.hang_directory(which),
            Act::Part => self.part(which),
            Act::Share => self.share(which),
        }?;
        let act = it.act;
        match &outcome {
            Outcome::Done(what) => {
                self.done += 1;
                self.tell(&format!("{act:?}: {what}"));
                self.world.history.count(&format!("foreign {act:?}"));
                if self.race.is_some() {
                    self.world.history.count("while an operation was under way: foreign operations");
                }
            }
            Outcome::Refused(why) => {
                self.tell(&format!("{act:?} refused: {why}"));
                self.world.history.count(&format!("refused foreign {act:?}"));
            }
            Outcome::Impossible => {}
        }
        Ok(outcome)
    }

    /// The number of one of the VMs for which this holds. While a user's operation is under way it is mostly that one's.
    fn pick_vm(&self, which: u64, is_one: impl Fn(usize, &Self) -> bool) -> Option<usize> {
        if let Some(race) = &self.race
            && !which.is_multiple_of(4)
            && is_one(race.vm, self)
        {
            return Some(race.vm);
        }
        let all: Vec<usize> = (0..self.ledger.vms.len()).filter(|vm| is_one(*vm, self)).collect();
        pick(&all, which).copied()
    }

    fn is_defined(vm: usize, room: &Self) -> bool {
        room.ledger.vms[vm].is_defined()
    }
}

/// One of these.
fn pick<T>(all: &[T], which: u64) -> Option<&T> {
    all.get((which % (all.len().max(1) as u64)) as usize)
}

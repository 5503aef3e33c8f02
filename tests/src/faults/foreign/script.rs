//! What administrators and users do in a room, as far as the seed decides it. An act names no VM and no image but a number, which picks
//! one of those that are there when its turn comes.

use std::time::Duration;

use proto::v1;

use super::super::rng::Rng;

/// What an administrator does beside the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    /// Writes to a disk, as a guest does.
    Write,
    /// Makes an image with something on it.
    NewImage,
    /// `virsh attach-disk`.
    Attach,
    /// `virsh detach-disk`.
    Detach,
    /// Gives a disk another image.
    Swap,
    /// Moves the image of a disk to another path.
    Move,
    /// `qemu-img resize`.
    Resize,
    /// `virsh domrename`.
    Rename,
    /// `virsh define` of a changed definition.
    Redefine,
    /// `virsh undefine --snapshots-metadata`.
    Undefine,
    /// `virsh define` of one that was undefined, as the same VM or as another one.
    DefineAgain,
    /// A clone on top of an image.
    LinkedClone,
    /// `qemu-img convert`, as a backup.
    FullClone,
    /// `cp`.
    Copy,
    /// Puts another image in the place of one.
    Replace,
    /// Removes an image that was never a disk.
    Remove,
    /// `qemu-img commit`.
    Commit,
    /// `qemu-img rebase`.
    Rebase,
    /// `qemu-img snapshot -c`, with an odd name.
    Tag,
    /// `qemu-img snapshot -d` of one of those.
    Untag,
    /// `qemu-img bitmap`, as incremental backups do.
    Bitmap,
    /// `virsh snapshot-create-as`, with an odd name.
    VirshCreate,
    /// `virsh snapshot-delete` of one of those.
    VirshDelete,
    /// `virsh snapshot-delete --metadata`, of anybody's.
    VirshForget,
    /// A process that has an image open for reading.
    Read,
    /// A process that has an image open for writing.
    Lock,
    /// `virsh pool-destroy`, which stops a pool.
    StopPool,
    /// `virsh pool-start`.
    StartPool,
    /// An image that does not respond for a while.
    Hang,
    /// A directory of images that does not respond for seconds.
    HangDirectory,
    /// `virsh backup-begin` with a checkpoint.
    Backup,
    /// `virsh blockcopy --pivot`.
    BlockCopy,
    /// `virsh blockcommit --active` of an overlay of another tool.
    BlockCommit,
    /// `virsh define` on the other host and `virsh undefine` on this one, in either order, or on both for a while.
    Migrate,
    /// `virsh migrate`, offline or of a VM that is on.
    MigrateByLibvirt,
    /// `virsh undefine` on one of the hosts that both have a VM.
    Part,
    /// `virsh attach-disk` of an image that a VM of the other host has.
    Share,
}

/// What a user asks the service for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// `CreateSnapshot`.
    Create,
    /// `RevertToSnapshot`.
    Revert {
        /// Whether the current state is kept.
        save_current: bool,
    },
    /// `DeleteSnapshot`.
    Delete(v1::DeleteScope),
    /// `PurgeVm`.
    Purge,
}

/// An act with all that the seed decides about it.
#[derive(Debug, Clone, Copy)]
pub struct Move {
    /// What.
    pub act: Act,
    /// Picks what it is about.
    pub which: u64,
    /// How long after the one before.
    pub pause: Duration,
}

/// One step in a room.
#[derive(Debug, Clone)]
pub struct Step {
    /// What a user asks for, if anything, of the VM with this number.
    pub wish: Option<(Wish, u64)>,
    /// What administrators do meanwhile.
    pub moves: Vec<Move>,
}

/// The steps in a room, without an end.
#[derive(Debug)]
pub struct Steps(Rng);

const ACTS: [(u64, Act); 37] = [
    (26, Act::Write),
    (5, Act::NewImage),
    (8, Act::Attach),
    (8, Act::Detach),
    (7, Act::Swap),
    (5, Act::Move),
    (3, Act::Resize),
    (4, Act::Rename),
    (4, Act::Redefine),
    (2, Act::Undefine),
    (6, Act::DefineAgain),
    (7, Act::LinkedClone),
    (4, Act::FullClone),
    (4, Act::Copy),
    (2, Act::Replace),
    (7, Act::Remove),
    (2, Act::Commit),
    (2, Act::Rebase),
    (5, Act::Tag),
    (3, Act::Untag),
    (3, Act::Bitmap),
    (3, Act::VirshCreate),
    (2, Act::VirshDelete),
    (2, Act::VirshForget),
    (4, Act::Read),
    (2, Act::Lock),
    (2, Act::StopPool),
    (3, Act::StartPool),
    (1, Act::Hang),
    (2, Act::HangDirectory),
    (2, Act::Backup),
    (2, Act::BlockCopy),
    (2, Act::BlockCommit),
    (7, Act::Migrate),
    (3, Act::MigrateByLibvirt),
    (4, Act::Part),
    (3, Act::Share),
];

impl Steps {
    /// The steps in a room of a round.
    pub fn new(round: &Rng, room: usize) -> Self {
        Self(round.fork(5000 + room as u64))
    }

    /// The next one.
    pub fn next_step(&mut self) -> Step {
        let rng = &mut self.0;
        let scope = rng.weighted(&[(70, v1::DeleteScope::Only), (30, v1::DeleteScope::Subtree)]);
        let save_current = rng.chance(30);
        let wish = rng.weighted(&[
            (45, Wish::Create),
            (30, Wish::Revert { save_current }),
            (22, Wish::Delete(scope)),
            (3, Wish::Purge),
        ]);
        let vm = rng.number();
        let wish = rng.chance(30).then_some((wish, vm));
        let count = 1 + rng.below(3);
        let mut next_move = || {
            let act = rng.weighted(&ACTS);
            let pause = if wish.is_some() { rng.below(250) } else { 0 };
            Move { act, which: rng.number(), pause: Duration::from_millis(pause) }
        };
        let moves = (0..count).map(|_| next_move()).collect();
        Step { wish, moves }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_steps_and_every_act_comes() {
        let told = |seed: u64| {
            let mut steps = Steps::new(&Rng::new(seed), 1);
            (0..2000).map(|_| steps.next_step()).collect::<Vec<_>>()
        };
        assert_eq!(format!("{:?}", told(7)), format!("{:?}", told(7)));
        assert_ne!(format!("{:?}", told(7)), format!("{:?}", told(8)));
        let acts: std::collections::BTreeSet<Act> =
            told(7).iter().flat_map(|step| &step.moves).map(|it| it.act).collect();
        assert_eq!(acts.len(), ACTS.len());
    }
}

//! What happens in a round, as far as the seed decides it: the acts on each machine, and the faults.
//!
//! An act names no snapshot but a number, which picks one of those that are there when its turn comes. So the sequence
//! of acts is a function of the seed alone; which snapshot an act hits, and what a fault finds under way, hangs on timing.

use std::time::Duration;

use proto::v1;

use super::rng::Rng;

/// The way a request is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Once, and again under the same request id until there is an answer; then followed to its end.
    Follow,
    /// The same twice at once, over two faces: both have to get the same operation.
    Twice,
    /// Followed, while another caller asks for a snapshot at the same time: one of the two is refused, or waits its turn.
    Rivalled,
    /// Followed, and asked to be stopped after so many milliseconds. Only for deletions: nothing else can be stopped.
    Cancelled(u64),
    /// The caller goes away after so many milliseconds, and never learns what became of it. Only for creates.
    Abandon(u64),
}

/// What another tool does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meddling {
    /// `virsh snapshot-create-as`.
    Create,
    /// `virsh snapshot-delete`.
    Delete,
    /// `virsh snapshot-revert`.
    Revert,
}

/// One thing that is done to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// The guest writes another marker; a machine that is off is powered on for it.
    Write,
    /// By virsh.
    PowerOff,
    /// By virsh.
    PowerOn,
    /// By virsh.
    Pause,
    /// By virsh.
    Resume,
    /// CreateSnapshot.
    Create {
        /// Whether it is protected.
        protected: bool,
    },
    /// RevertToSnapshot.
    Revert {
        /// What the machine does afterwards.
        run_after: v1::RunAfter,
        /// Whether the present is kept.
        save_current: bool,
    },
    /// DeleteSnapshot.
    Delete(v1::DeleteScope),
    /// PurgeVm, with force.
    Purge,
    /// UpdateSnapshot.
    Update,
    /// Another tool; on machines where others meddle, otherwise a write.
    Meddle(Meddling),
}

/// An act with all that the seed decides about it.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// What.
    pub act: Act,
    /// Picks the snapshot it is about.
    pub which: u64,
    /// How it is sent.
    pub manner: Manner,
    /// Whether it is sent as JSON first, and not by gRPC.
    pub json: bool,
    /// The wait before it.
    pub pause: Duration,
}

/// The acts on one machine, without an end.
#[derive(Debug)]
pub struct Acts(Rng);

impl Acts {
    /// The acts on a machine in a round.
    pub fn new(round: &Rng, machine: usize) -> Self {
        Self(round.fork(1000 + machine as u64))
    }

    /// The next one.
    pub fn next_step(&mut self) -> Step {
        let rng = &mut self.0;
        let run_after =
            rng.weighted(&[(60, v1::RunAfter::AsRecorded), (25, v1::RunAfter::Running), (15, v1::RunAfter::Off)]);
        let scope = rng.weighted(&[
            (60, v1::DeleteScope::Only),
            (25, v1::DeleteScope::Subtree),
            (15, v1::DeleteScope::Descendants),
        ]);
        let meddling = rng.weighted(&[(50, Meddling::Create), (25, Meddling::Delete), (25, Meddling::Revert)]);
        let (protected, save_current) = (rng.chance(10), rng.chance(40));
        let act = rng.weighted(&[
            (22, Act::Write),
            (26, Act::Create { protected }),
            (20, Act::Revert { run_after, save_current }),
            (10, Act::Delete(scope)),
            (1, Act::Purge),
            (5, Act::Update),
            (4, Act::PowerOff),
            (4, Act::PowerOn),
            (3, Act::Pause),
            (3, Act::Resume),
            (8, Act::Meddle(meddling)),
        ]);
        let patience = rng.below(300);
        let manner = rng.weighted(&[
            (64, Manner::Follow),
            (12, Manner::Twice),
            (16, Manner::Rivalled),
            (8, Manner::Abandon(patience)),
        ]);
        let manner = match (act, manner) {
            (Act::Create { .. }, manner) => manner,
            (Act::Delete(_) | Act::Purge, Manner::Abandon(after)) => Manner::Cancelled(after),
            (_, Manner::Abandon(_)) => Manner::Follow,
            (_, manner) => manner,
        };
        let (which, json, pause) = (rng.number(), rng.chance(50), Duration::from_millis(rng.below(400)));
        Step { act, which, manner, json, pause }
    }
}

/// A process that can be killed or stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// The gateway.
    Gateway,
    /// The API.
    Api,
    /// The agent.
    Agent,
    /// libvirt's daemon.
    Daemon,
    /// The agent of the other host.
    OtherAgent,
    /// libvirt's daemon of the other host.
    OtherDaemon,
    /// A machine's QEMU.
    Qemu,
}

impl Target {
    /// As the summary says it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Api => "api",
            Self::Agent => "agent",
            Self::Daemon => "libvirtd",
            Self::OtherAgent => "agent of the other host",
            Self::OtherDaemon => "libvirtd of the other host",
            Self::Qemu => "qemu",
        }
    }

    /// The same of the other host, for what a host has.
    #[must_use]
    pub fn of_other_host(self) -> Self {
        match self {
            Self::Agent => Self::OtherAgent,
            Self::Daemon => Self::OtherDaemon,
            other => other,
        }
    }
}

/// A way between two processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Callers to the gateway.
    Front,
    /// The gateway to the API.
    Middle,
    /// The API to the agent.
    Back,
    /// The API to the agent of the other host.
    OtherBack,
}

/// What is wrong with a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Connections end, and new ones end at once.
    Dropped,
    /// Nothing gets through, and nobody is told.
    Stalled,
    /// Requests get through and answers do not; then the connections end.
    Mute,
    /// The caller's side of each connection is closed for writing.
    HalfClosed,
}

/// A small file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// The images.
    Images,
    /// The agent's journal.
    Journal,
    /// The API's database.
    Catalogue,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9`, and a start after the wait, which QEMU does not get.
    Kill(Target),
    /// SIGSTOP, and SIGCONT after the wait.
    Stop(Target),
    /// A cut, until the wait is over.
    Cut(Link, Cut),
    /// A full file system, until the wait is over.
    Fill(Store),
}

/// When it goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// After a while.
    Any(Duration),
    /// So long after the next request is sent.
    Dispatch(Duration),
    /// So long after the next operation is seen to run.
    Running(Duration),
}

impl Moment {
    /// As the summary says it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Any(_) => "at any time",
            Self::Dispatch(_) => "after dispatch",
            Self::Running(_) => "while running",
        }
    }
}

/// A fault with all that the seed decides about it.
#[derive(Debug, Clone, Copy)]
pub struct Blow {
    /// When.
    pub moment: Moment,
    /// What.
    pub fault: Fault,
    /// Picks the machine, where one is needed.
    pub which: u64,
    /// How long until it is put right.
    pub wait: Duration,
}

/// The faults of a round: as many as it takes for so many kills.
pub fn blows(round: &Rng, kills: u32) -> Vec<Blow> {
    let mut rng = round.fork(1);
    let mut blows = Vec::new();
    let mut left = kills;
    // In a storm little comes to an end; in calmer rounds there is more to lose.
    let pace = rng.weighted(&[(60, 1), (40, 3)]);
    while left > 0 {
        let target = rng.weighted(&[
            (18, Target::Api),
            (12, Target::Gateway),
            (30, Target::Agent),
            (20, Target::Daemon),
            (20, Target::Qemu),
        ]);
        let link = rng.weighted(&[(25, Link::Front), (30, Link::Middle), (45, Link::Back)]);
        let cut = rng.weighted(&[(35, Cut::Dropped), (25, Cut::Stalled), (25, Cut::Mute), (15, Cut::HalfClosed)]);
        let store = rng.weighted(&[(40, Store::Images), (30, Store::Journal), (30, Store::Catalogue)]);
        let fault = rng.weighted(&[
            (70, Fault::Kill(target)),
            (12, Fault::Stop(target)),
            (12, Fault::Cut(link, cut)),
            (6, Fault::Fill(store)),
        ]);
        let (soon, later) = (Duration::from_millis(rng.below(400)), Duration::from_millis(pace * rng.below(1500)));
        let moment =
            rng.weighted(&[(40, Moment::Any(later)), (25, Moment::Dispatch(soon)), (35, Moment::Running(soon))]);
        let wait = match fault {
            Fault::Kill(_) => Duration::from_millis(rng.below(1500)),
            Fault::Stop(_) => Duration::from_millis(500 + rng.below(4500)),
            // Longer than any call between the processes waits for its answer.
            Fault::Cut(_, Cut::Stalled) if rng.chance(15) => Duration::from_millis(25_000),
            Fault::Cut(..) => Duration::from_millis(200 + rng.below(4000)),
            Fault::Fill(_) => Duration::from_millis(1000 + rng.below(4000)),
        };
        left -= u32::from(matches!(fault, Fault::Kill(_)));
        blows.push(Blow { moment, fault, which: rng.number(), wait });
    }
    blows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_acts_and_faults() {
        let told = |seed: u64| {
            let round = Rng::new(seed);
            let mut acts = Acts::new(&round, 2);
            let acts: Vec<Step> = (0..50).map(|_| acts.next_step()).collect();
            format!("{acts:?} {:?}", blows(&round, 20))
        };
        assert_eq!(told(7), told(7));
        assert_ne!(told(7), told(8));
    }

    #[test]
    fn there_are_as_many_kills_as_were_asked_for() {
        let blows = blows(&Rng::new(3), 40);
        assert_eq!(blows.iter().filter(|blow| matches!(blow.fault, Fault::Kill(_))).count(), 40);
    }
}

//! Rounds, one after another, each with a world of its own and a seed made from the campaign's and its number: so one
//! round alone can be done again.
//!
//! A round: bring up a world; let a lane drive each machine while the faults of the script happen; put everything right;
//! wait until it is quiet; check. What came of it is its history.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use proto::v1;

use super::check;
use super::foreign::Rooms;
use super::history::Counts;
use super::judge::{Kind, Violation};
use super::lane::Lane;
use super::rng::Rng;
use super::sabotage::sabotage;
use super::script::{Acts, blows};
use super::strike::{repair, strike_all};
use super::world::World;

/// What a campaign is to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// The seed.
    pub seed: u64,
    /// Kills in all.
    pub kills: u32,
    /// Foreign operations in all.
    pub foreign: u32,
    /// Kills in a round.
    pub kills_a_round: u32,
    /// Only this round, to do it again.
    pub only: Option<u32>,
    /// Machines in a round.
    pub machines: usize,
    /// How snapshots are asked to be stored.
    pub storage: v1::StorageKind,
    /// Whether to do wrong behind everybody's back before the check, which has to find it.
    pub sabotage: bool,
    /// Whether the host takes the disks of running machines live, and goes back in place.
    pub live: bool,
    /// Where the history and the logs of a round with violations go.
    pub keep: PathBuf,
}

/// What came of a round.
#[derive(Debug)]
pub struct Round {
    /// Its number.
    pub number: u32,
    /// What was wrong.
    pub violations: Vec<Violation>,
    /// How often each thing happened.
    pub counts: Counts,
    /// Where its history and logs are kept.
    pub kept: Option<PathBuf>,
}

impl Options {
    /// The rounds, by their numbers, with the kills of each.
    pub fn rounds(&self) -> Vec<(u32, u32)> {
        let full = self.kills / self.kills_a_round;
        let rest = self.kills % self.kills_a_round;
        let is_last = rest > 0 || (full == 0 && self.foreign > 0);
        let rounds = (0..full).map(|number| (number, self.kills_a_round)).chain(is_last.then_some((full, rest)));
        rounds.filter(|(number, _)| self.only.is_none_or(|only| only == *number)).collect()
    }

    /// The foreign operations of a round.
    fn foreign_of(&self, round: u32) -> u32 {
        let rounds = self.kills.div_ceil(self.kills_a_round).max(1);
        self.foreign / rounds + u32::from(round < self.foreign % rounds)
    }

    /// One round. An error is a fault of the harness.
    pub async fn round(&self, number: u32, kills: u32) -> Result<Round> {
        let rng = Rng::new(self.seed).fork(u64::from(number));
        // The smallest margin that plans still respect: a full file system is to be met in the middle of things, too.
        let mut policy = "space_margin_bytes = 0\n".to_owned();
        let is_external = self.storage == v1::StorageKind::External;
        policy += &format!("live_snapshots = {0}\nin_place_reverts = {0}\n", self.live);
        if is_external {
            policy += "stable_paths = false\n";
        }
        let world = World::start(self.machines, &policy, is_external, self.foreign > 0).await;
        let world = Arc::new(world.context("a world could not be brought up")?);
        let played = self.play(&world, &rng, number, kills).await;
        if let Err(error) = &played {
            let what = format!("the round came to no end: {error:#}");
            world.history.violated(vec![Violation { kind: Kind::Stuck, machine: "all".to_owned(), what }]);
        }
        let violations = world.history.violations();
        let kept = if violations.is_empty() { None } else { Some(self.keep(&world, number)?) };
        Ok(Round { number, violations, counts: world.history.counts(), kept })
    }

    async fn play(&self, world: &Arc<World>, rng: &Rng, number: u32, kills: u32) -> Result<()> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut lanes = Vec::new();
        for machine in 0..world.machines.len() {
            lanes
                .push(Lane::new(Arc::clone(world), machine, Acts::new(rng, machine), (self.storage, self.live)).await?);
        }
        let rooms = Rooms::new(world, rng, self.storage, self.foreign_of(number)).await?;
        let running: Vec<_> = lanes.into_iter().map(|lane| tokio::spawn(lane.run(Arc::clone(&stop)))).collect();
        let blows = blows(rng, kills);
        let (struck, rooms) = tokio::join!(strike_all(world, &blows), rooms.run());
        stop.store(true, Ordering::SeqCst);
        repair(world)?;
        let mut lanes = Vec::new();
        for lane in running {
            lanes.push(lane.await??);
        }
        struck?;
        let mut rooms = rooms?;
        world.history.tell("CHECKER", "everything is put right; waiting until it is quiet");
        // Tokens of the round may be at their end, so the check has its own.
        let (_, client) = world.callers()?;
        let open = check::quiet(&client).await?;
        world.history.tell("CHECKER", &format!("quiet, {} operations have not ended", open.len()));
        if self.sabotage {
            sabotage(world, &mut lanes).await?;
            rooms.sabotage()?;
        }
        rooms.check().await?;
        let checks = lanes.iter_mut().map(|lane| check::check(world, &client, lane, &open));
        for checked in futures_util::future::join_all(checks).await {
            checked?;
        }
        world.history.violated(check::check_host(world)?);
        let purges = world.machines.iter().map(|machine| check::check_purge(world, &client, &machine.guest));
        for purged in futures_util::future::join_all(purges).await {
            purged?;
        }
        world.history.violated(check::check_host(world)?);
        world.history.violated(check::check_ends(&client, &world.history.ends()).await?);
        faulty_logs(world)
    }

    fn keep(&self, world: &World, number: u32) -> Result<PathBuf> {
        let folder = self.keep.join(format!("seed-{}-round-{number}", self.seed));
        world.keep_logs(&folder)?;
        write_lines(&folder.join("history.log"), &world.history.lines())?;
        Ok(folder)
    }
}

fn write_lines(file: &Path, lines: &[String]) -> Result<()> {
    Ok(std::fs::write(file, lines.join("\n") + "\n")?)
}

/// A server that panicked has a fault, whatever was seen of it from outside.
fn faulty_logs(world: &World) -> Result<()> {
    for (process, log) in world.cluster().logs()? {
        if let Some(line) = log.lines().find(|line| line.contains("panicked at")) {
            let what = format!("{process} logged: {line}");
            world.history.violated(vec![Violation { kind: Kind::Disagree, machine: process, what }]);
        }
    }
    Ok(())
}

//! The faults of a run, all over after a while.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fastrand::Rng;
use turmoil::Sim;

use crate::world::{AGENTS, API, OUTSIDE, World};

/// For how long there are faults.
const LASTING: u64 = 60_000;
const HOUR: i64 = 3_600_000;
const TO_1970: i64 = -crate::world::EPOCH_MS;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Link(&'static str, &'static str),
    Process(&'static str),
    Clock,
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    /// What is sent on a link is lost. A connection over it never recovers, as with a router that forgot it.
    Lost,
    /// What is sent in one direction is lost.
    LostOneWay { back: bool },
    /// What is sent on a link arrives when the fault is over.
    Held,
    /// A process is killed, and started again when the fault is over.
    Killed,
    /// The API's clock is wrong by so much.
    Wrong(i64),
}

struct Planned {
    begin: Duration,
    end: Duration,
    place: Place,
    fault: Fault,
}

pub struct Chaos {
    world: Arc<World>,
    planned: Vec<Planned>,
    active: BTreeMap<Place, Planned>,
}

impl Chaos {
    pub fn new(world: Arc<World>) -> Self {
        let mut chance = world.chance("chaos");
        let mut planned: Vec<Planned> = (0..chance.usize(4..24)).map(|_| plan(&mut chance)).collect();
        planned.sort_by_key(|planned| std::cmp::Reverse(planned.begin));
        Self { world, planned, active: BTreeMap::new() }
    }

    /// Begins and ends what is due.
    pub fn act(&mut self, sim: &mut Sim<'_>) {
        let now = sim.elapsed();
        let over: Vec<Place> =
            self.active.values().filter(|planned| planned.end <= now).map(|planned| planned.place).collect();
        for place in over {
            if let Some(planned) = self.active.remove(&place) {
                self.end(sim, &planned);
            }
        }
        while self.planned.last().is_some_and(|planned| planned.begin <= now) {
            let Some(planned) = self.planned.pop() else { return };
            if !self.active.contains_key(&planned.place) {
                self.begin(sim, &planned);
                self.active.insert(planned.place, planned);
            }
        }
        if self.planned.is_empty() && self.active.is_empty() && now.as_millis() >= LASTING.into() {
            self.world.healed.lock().unwrap().get_or_insert(now);
        }
    }

    fn begin(&self, sim: &mut Sim<'_>, planned: &Planned) {
        tracing::info!(place = ?planned.place, fault = ?planned.fault, end = ?planned.end, "FAULT");
        match (planned.place, planned.fault) {
            (Place::Link(a, b), Fault::Lost) => sim.partition(a, b),
            (Place::Link(a, b), Fault::LostOneWay { back: false }) => sim.partition_oneway(a, b),
            (Place::Link(a, b), Fault::LostOneWay { back: true }) => sim.partition_oneway(b, a),
            (Place::Link(a, b), _) => sim.hold(a, b),
            (Place::Process(name), _) => sim.crash(name),
            (Place::Clock, Fault::Wrong(by)) => self.world.wrong_ms.store(by, Ordering::Relaxed),
            (Place::Clock, _) => {}
        }
    }

    fn end(&self, sim: &mut Sim<'_>, planned: &Planned) {
        tracing::info!(place = ?planned.place, fault = ?planned.fault, "FAULT over");
        match (planned.place, planned.fault) {
            (Place::Link(a, b), Fault::Lost) => sim.repair(a, b),
            (Place::Link(a, b), Fault::LostOneWay { back: false }) => sim.repair_oneway(a, b),
            (Place::Link(a, b), Fault::LostOneWay { back: true }) => sim.repair_oneway(b, a),
            (Place::Link(a, b), _) => sim.release(a, b),
            (Place::Process(name), _) => sim.bounce(name),
            (Place::Clock, _) => self.world.wrong_ms.store(0, Ordering::Relaxed),
        }
    }
}

fn plan(chance: &mut Rng) -> Planned {
    let agent = AGENTS[chance.usize(..AGENTS.len())];
    let (place, fault) = match chance.u8(..16) {
        0..2 => (Place::Link(API, agent), Fault::Lost),
        2..4 => (Place::Link(API, agent), Fault::LostOneWay { back: chance.bool() }),
        4..8 => (Place::Link(API, agent), Fault::Held),
        8 => (Place::Link(OUTSIDE, API), Fault::Lost),
        9 => (Place::Link(OUTSIDE, API), Fault::Held),
        10..12 => (Place::Process(API), Fault::Killed),
        12..15 => (Place::Process(agent), Fault::Killed),
        _ => (Place::Clock, Fault::Wrong([HOUR, -HOUR, 1000 * HOUR, TO_1970][chance.usize(..4)])),
    };
    let begin = chance.u64(1000..LASTING - 2000);
    let lasting = if chance.u8(..4) == 0 { chance.u64(5000..30_000) } else { chance.u64(20..4000) };
    let end = (begin + lasting).min(LASTING);
    Planned { begin: Duration::from_millis(begin), end: Duration::from_millis(end), place, fault }
}

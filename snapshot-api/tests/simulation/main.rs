//! The API and two agents over a network that fails, in simulated time.
//!
//! The API is the real one: its services, its links to the hosts, its catalogue on a real file. An agent is a fake that keeps
//! the agent's contract ([`agent`]) and takes its time. Clients ask for things, ask again, hang up in the middle, and write down
//! what they were told ([`client`]). The network delays every message by a time of its own, holds connections back and lets
//! go of them, drops everything on a link; processes are killed and started again; the API's clock jumps ([`chaos`]). Then all
//! of that ends, and a judge ([`judge`]) holds what clients were told, what the catalogue says and what the hosts did against
//! each other: nothing stuck, nothing done twice, nothing said to be done that was not, nothing acknowledged and lost.
//!
//! A run is decided by its seed: what is asked for and when, every delay and every fault. (Not the ids, and not the order in which
//! `tokio::select!` looks at branches that are ready at the same moment. Failures have come again with their seed all the same.)
//!
//!     SEEDS=1000 cargo test -p snapshot-api --test simulation     # as many, from a fixed start
//!     SEED=17 RUST_LOG=info cargo test -p snapshot-api --test simulation -- --nocapture   # one again, with what the API logs

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic, and its helpers are part of it"
)]

mod agent;
mod chaos;
mod client;
mod judge;
mod net;
mod watcher;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// How many seeds every run of the tests takes: some 30 s on two cores.
const USUAL: u64 = 40;

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[test]
#[expect(clippy::print_stderr, reason = "the seed of a failure is what a person needs")]
fn nothing_is_stuck_or_lost_or_done_twice() {
    if std::env::var("RUST_LOG").is_ok() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    let first = variable("SEED").unwrap_or(1);
    let end = first + variable("SEEDS").unwrap_or(if variable("SEED").is_some() { 1 } else { USUAL });
    let (next, failures) = (AtomicU64::new(first), Mutex::new(Vec::new()));
    let (operations, successes) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    match world::run(seed) {
                        Ok((all, succeeded)) => {
                            operations.fetch_add(all, Ordering::Relaxed);
                            successes.fetch_add(succeeded, Ordering::Relaxed);
                        }
                        Err(violation) => {
                            eprintln!("SEED={seed}: {violation}");
                            failures.lock().unwrap().push(seed);
                        }
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    eprintln!("seeds {first} to {}: {operations:?} operations, {successes:?} succeeded", end - 1);
    assert!(failures.is_empty(), "failed with SEED in {failures:?}; run one with SEED=…");
}

//! Another caller beside an attack: their calls are timed before, meanwhile, and after.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tests::client::Client;
use tests::cluster::Cluster;

use crate::raw::Target;
use crate::token;

const CALLS: usize = 60;
/// What a busy machine does to the slowest of a hundred calls without any attack.
const FLOOR: Duration = Duration::from_millis(40);
/// A machine that is busy with something else for a moment does not decide.
const ATTEMPTS: usize = 3;

/// The other caller.
pub struct Beside {
    client: Client,
    name: &'static str,
    calm: Duration,
}

impl Beside {
    /// Times calls before the attack. Every call succeeds, now and later.
    pub async fn begin(cluster: &Cluster, target: &Target) -> Self {
        let client = Client::new(Box::new(target.client(Ipv4Addr::LOCALHOST)), token(cluster));
        client.vms().await.unwrap();
        let calm = timed(&client, CALLS, || false).await;
        Self { client, name: target.name, calm }
    }

    /// The 95th percentile of calls, from now on while `more` says so.
    pub async fn time(&self, more: impl Fn() -> bool) -> Duration {
        timed(&self.client, CALLS, more).await
    }

    /// Whether what was timed meanwhile is at most twice of what it was before, or is after.
    pub async fn agrees(&self, meanwhile: Duration) -> bool {
        let after = timed(&self.client, CALLS, || false).await;
        println!("{}: p95 before {:?}, meanwhile {meanwhile:?}, after {after:?}", self.name, self.calm);
        meanwhile <= (self.calm.max(after) * 2).max(FLOOR)
    }
}

/// Attacks, and times the other caller's calls beside it.
pub async fn undisturbed<T>(cluster: &Cluster, target: &Target, mut attack: impl AsyncFnMut() -> T) -> T {
    for _ in 0..ATTEMPTS {
        let beside = Beside::begin(cluster, target).await;
        let done = AtomicBool::new(false);
        let attacked = async {
            let outcome = attack().await;
            done.store(true, Ordering::Relaxed);
            outcome
        };
        let (outcome, meanwhile) = tokio::join!(attacked, beside.time(|| !done.load(Ordering::Relaxed)));
        if beside.agrees(meanwhile).await {
            return outcome;
        }
    }
    panic!("{}: the other caller waits", target.name)
}

async fn timed(client: &Client, least: usize, more: impl Fn() -> bool) -> Duration {
    let mut took = Vec::new();
    while took.len() < least || more() {
        let begun = Instant::now();
        client.vms().await.unwrap();
        took.push(begun.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    took.sort_unstable();
    took[took.len() * 95 / 100]
}

//! `make bench WHAT=fairness`: how long one user waits for an answer, alone and beside a thousand clients of another one.
//!
//! The quiet user asks for one machine's snapshots, now and then, as a page does. The loud user has a thousand clients, each on a
//! connection of its own. They ask either as a good client does, which waits as long as a refusal says, or without any
//! pause. Both ways in: through the gateway and at the public listener; from another address than the quiet user and from the
//! same one, as behind a NAT. Alone and beside are measured in turn, in one run, on the same machine that makes the load: what
//! the load generator itself takes of the processor is part of what is measured.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use proto::v1;
use serde_json::{Value, json};
use tests::client::{Client, Grpc};
use tests::cluster::{ALL_ACTIONS, Cluster};
use tests::guest::Guest;
use tokio::task::JoinSet;
use tonic::Code;

const CLIENTS: usize = 1000;
const SAMPLES: usize = 150;
/// Between two questions of the quiet user.
const PAUSE: Duration = Duration::from_millis(25);
/// Clients of the loud user begin one after the other within this time.
const RAMP: Duration = Duration::from_secs(5);
/// What a good client does between two answers: a page that is looked at asks far less often.
const THINK: Duration = Duration::from_secs(1);

const QUIET: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1));
const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// One line of the table for each way, place and manner.
pub async fn measure() -> Result<Vec<Value>> {
    let cluster = Cluster::with_daemons(&["alpha"])?;
    let daemon = cluster.host("alpha")?.libvirtd()?;
    let guest = Guest::new(&daemon.images()?, "bench-fairness")?;
    daemon.define(&guest)?;
    let admin = Client::admin(&cluster)?;
    admin.vm_in_state(&guest.vm(), v1::VmState::Shutoff).await?;
    println!(
        "{:<8} {:<17} {:<12} {:>10} {:>10} {:>11} {:>6}   served, refused, broken per s",
        "way", "loud user from", "and", "alone p95", "again p95", "beside p95", "ratio"
    );
    let mut rows = Vec::new();
    for way in ["gateway", "public"] {
        for (place, address) in [("another address", ELSEWHERE), ("the same address", QUIET)] {
            for paced in [true, false] {
                let row = compare(&cluster, &guest, (way, place, address, paced)).await?;
                print(&row);
                rows.push(row);
            }
        }
    }
    Ok(rows)
}

fn print(row: &Value) {
    let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let number = |key: &str| row[key].as_f64().unwrap_or_default();
    println!(
        "{:<8} {:<17} {:<12} {:>10.1} {:>10.1} {:>11.1} {:>6.2}   {}, {}, {}",
        text("way"),
        text("loud_from"),
        text("manner"),
        number("alone_p95_ms"),
        number("alone_again_p95_ms"),
        number("beside_p95_ms"),
        number("ratio"),
        number("loud_served_per_s"),
        number("loud_refused_per_s"),
        number("loud_broken_per_s")
    );
}

fn face(cluster: &Cluster, way: &str, from: IpAddr) -> Result<Grpc> {
    let ca = cluster.identity().ca();
    match way {
        "gateway" => Grpc::plain_from(from, cluster.ports().gateway),
        _ => Grpc::tls_from(from, cluster.ports().public, &ca),
    }
}

async fn compare(cluster: &Cluster, guest: &Guest, plan: (&str, &str, IpAddr, bool)) -> Result<Value> {
    let (way, place, address, paced) = plan;
    let quiet_token = cluster.identity().token("quiet", &guest.uuid().to_string(), &ALL_ACTIONS[..1])?;
    let quiet = Client::new(Box::new(face(cluster, way, QUIET)?), quiet_token);
    let alone = sample(&quiet, guest).await?;

    let token = cluster.identity().token("loud", "*", &ALL_ACTIONS)?;
    let load = Arc::new(Loud::default());
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let client = Client::new(Box::new(face(cluster, way, address)?), token.clone());
        let begin = RAMP * u32::try_from(number)? / u32::try_from(CLIENTS)?;
        clients.spawn(Arc::clone(&load).run(client, guest.vm(), begin, paced));
    }
    tokio::time::sleep(RAMP + Duration::from_secs(1)).await;
    let (begun, before) = (Instant::now(), load.counts());
    let beside = sample(&quiet, guest).await;
    let (seconds, after) = (begun.elapsed().as_secs_f64(), load.counts());
    load.stop.store(true, Ordering::Relaxed);
    clients.abort_all();
    while clients.join_next().await.is_some() {}
    let beside = beside?;
    let again = sample(&quiet, guest).await?;
    let rate = |which: usize| ((after[which] - before[which]) as f64 / seconds).round();
    let base = (p95(&alone) + p95(&again)) / 2.0;
    let ratio = (p95(&beside) / base * 100.0).round() / 100.0;
    Ok(json!({
        "way": way, "loud_from": place, "manner": if paced { "waits" } else { "never waits" },
        "alone_p95_ms": p95(&alone), "alone_again_p95_ms": p95(&again), "beside_p95_ms": p95(&beside), "ratio": ratio,
        "loud_served_per_s": rate(0), "loud_refused_per_s": rate(1), "loud_broken_per_s": rate(2),
    }))
}

/// How long each answer took. Any refusal of the quiet user ends the measurement.
async fn sample(quiet: &Client, guest: &Guest) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(SAMPLES);
    for round in 0..SAMPLES + 5 {
        let begun = Instant::now();
        quiet.snapshots(&guest.vm()).await.context("the quiet user is refused")?;
        // The first ones make the connection.
        if round >= 5 {
            times.push(begun.elapsed());
        }
        tokio::time::sleep(PAUSE).await;
    }
    if times.is_empty() {
        bail!("nothing was measured");
    }
    times.sort_unstable();
    Ok(times)
}

fn p95(sorted: &[Duration]) -> f64 {
    let index = (sorted.len() * 95).div_ceil(100).saturating_sub(1);
    sorted.get(index).map_or(0.0, |time| (time.as_secs_f64() * 1e5).round() / 100.0)
}

#[derive(Default)]
struct Loud {
    stop: AtomicBool,
    served: AtomicU64,
    refused: AtomicU64,
    broken: AtomicU64,
}

impl Loud {
    fn counts(&self) -> [u64; 3] {
        [&self.served, &self.refused, &self.broken].map(|count| count.load(Ordering::Relaxed))
    }

    async fn run(self: Arc<Self>, client: Client, vm: String, begin: Duration, paced: bool) {
        tokio::time::sleep(begin).await;
        while !self.stop.load(Ordering::Relaxed) {
            let (count, pause) = match client.snapshots(&vm).await {
                Ok(_) => (&self.served, THINK),
                Err(refusal) if refusal.code == Code::ResourceExhausted => {
                    // As clients do: what they were told, and twice as long each time would be better still.
                    (&self.refused, refusal.retry_after.unwrap_or_default().max(THINK))
                }
                Err(_) => (&self.broken, THINK),
            };
            count.fetch_add(1, Ordering::Relaxed);
            if paced {
                tokio::time::sleep(pause).await;
            }
        }
    }
}

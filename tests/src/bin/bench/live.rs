//! `make bench WHAT=live`: how long a guest that writes and flushes without end stands still while a snapshot of it is taken.
//!
//! The guest looks at its own clock every millisecond, and says what it sees; the longest time between two looks is its gap. Its clock does not
//! go on while QEMU has stopped the guest, as for a snapshot with memory; so it is also noted when the host heard of it.
//! In turn, in one run: the service's live snapshots of the disks; nothing at all for as long, because an emulated guest has gaps
//! of its own; and libvirt's own snapshot of the same guest, which is with memory.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use proto::v1;
use serde_json::{Value, json};
use tests::client::Client;
use tests::cluster::{Cluster, HostPlan};
use tests::guest::{Clock, Gap, Guest};

use super::report::quantile_ms;
use super::ways::{Libvirt, Ours, Way as _};

/// Enough for a p99.
const ROUNDS: usize = 200;
/// One of libvirt's after so many of ours: it takes a second.
const EACH: usize = 5;

/// What was seen of one way.
#[derive(Default)]
struct Seen {
    calls: Vec<Duration>,
    gaps: Vec<Gap>,
}

impl Seen {
    fn row(&self, way: &str) -> Value {
        let guest: Vec<Duration> = self.gaps.iter().map(|gap| gap.guest).collect();
        let host: Vec<Duration> = self.gaps.iter().map(|gap| gap.host).collect();
        json!({
            "work": "pause", "state": "running, writing", "way": way, "rounds": self.gaps.len(),
            "call_p50_ms": quantile_ms(&self.calls, 0.5),
            "guest_gap_p50_ms": quantile_ms(&guest, 0.5),
            "guest_gap_p99_ms": quantile_ms(&guest, 0.99),
            "guest_gap_max_ms": quantile_ms(&guest, 1.0),
            "host_gap_p50_ms": quantile_ms(&host, 0.5),
            "host_gap_p99_ms": quantile_ms(&host, 0.99),
            "host_gap_max_ms": quantile_ms(&host, 1.0),
        })
    }
}

/// A row for each way.
pub async fn measure() -> Result<Vec<Value>> {
    let cluster = Cluster::start(vec![HostPlan::daemon("alpha")?.policy("live_snapshots = true")])?;
    let daemon = cluster.host("alpha")?.libvirtd()?;
    let guest = Guest::linux(&daemon.images()?, "bench-live", 2)?;
    std::fs::write(guest.xml_file(), Clock::xml(&guest)?)?;
    daemon.virsh(&["define", &guest.xml_file().display().to_string()])?;
    daemon.power_on(&guest)?;
    let admin = Client::admin(&cluster)?;
    admin.vm_in_state(&guest.vm(), v1::VmState::Running).await?;
    guest.write_without_end()?;
    let clock = Clock::start(&guest)?;
    let token = cluster.identity().token_for("bench", "*", &tests::cluster::ALL_ACTIONS, "900")?;
    let mut ours = Ours::new(&cluster, &token, &guest).await?;
    let mut libvirt = Libvirt::new(daemon, &guest)?;

    let plan = ours.predicted().await?;
    ensure!(plan.method() == v1::OperationMethod::Live, "it would be taken otherwise: {plan:?}");
    let (mut live, mut nothing, mut with_memory, mut told) = <(Seen, Seen, Seen, Vec<Duration>)>::default();
    for round in 1..=ROUNDS {
        let begun = Instant::now();
        let took = ours.create().await?;
        live.calls.push(took);
        live.gaps.push(clock.gap(begun, begun + took)?);
        told.push(ours.last.pause.and_then(|pause| Duration::try_from(pause).ok()).unwrap_or_default());
        let begun = Instant::now();
        tokio::time::sleep(took).await;
        nothing.calls.push(took);
        nothing.gaps.push(clock.gap(begun, begun + took)?);
        ours.delete().await?;
        if round % EACH == 0 {
            let begun = Instant::now();
            with_memory.calls.push(libvirt.create().await?);
            with_memory.gaps.push(clock.gap(begun, Instant::now())?);
            libvirt.delete().await?;
        }
    }
    let mut row = live.row("ours, live");
    row["predicted_pauses"] = json!(plan.pauses);
    for (name, quantile) in [("told_p50_ms", 0.5), ("told_p99_ms", 0.99), ("told_max_ms", 1.0)] {
        row[name] = json!(quantile_ms(&told, quantile));
    }
    let rows = vec![row, nothing.row("nothing, for as long"), with_memory.row("libvirt's own, with memory")];
    print(&rows);
    Ok(rows)
}

fn print(rows: &[Value]) {
    println!("a guest that writes stands still, p50 / p99 / max in ms; a live snapshot is predicted to need no pause");
    println!("{:<28} {:>24} {:>26} {:>22}", "", "by the guest's own clock", "by the host's", "as told");
    for row in rows {
        let three = |name: &str| {
            let value = |part: &str| row[format!("{name}_{part}_ms")].as_f64();
            let all = (value("p50"), value("p99"), value("max"));
            let (Some(p50), Some(p99), Some(max)) = all else { return "-".to_owned() };
            format!("{p50:.1} / {p99:.1} / {max:.1}")
        };
        let way = format!("{} ({})", row["way"].as_str().unwrap_or_default(), row["rounds"]);
        println!("{way:<28} {:>24} {:>26} {:>22}", three("guest_gap"), three("host_gap"), three("told"));
    }
}

//! `make bench WHAT=in_place`: how long a running guest takes to be back at a snapshot with memory, in place and by libvirt's own revert.
//!
//! In turn, on the same guest, in one run: one that has next to nothing in its memory, and two with some hundred MiB that are in use, of
//! which one reads its images by threads, libvirt's default, and one by io_uring.
//! Ours is from the call until the operation's end is told; libvirt's is its call alone, on a warm connection.

use std::time::Duration;

use anyhow::{Result, ensure};
use proto::v1;
use serde_json::{Value, json};
use tests::cluster::Cluster;
use tests::guest::{Guest, Shape};

use super::report::quantile_ms;
use super::ways::{Libvirt, Ours, Way as _};

const ROUNDS: usize = 12;
/// What a larger guest has in its memory, of what it has: its root is in memory, and may be half of it.
const FILLED_MIB: u32 = 400;
const MEMORY_MIB: u32 = 1024;

/// A row for each guest.
pub async fn measure() -> Result<Vec<Value>> {
    let cluster = Cluster::with_daemons(&["alpha"])?;
    let daemon = cluster.host("alpha")?.libvirtd()?;
    let token = cluster.identity().token_for("bench", "*", &tests::cluster::ALL_ACTIONS, "900")?;
    let images = daemon.images()?;
    let large = |name, io| -> Result<Guest> {
        Ok(Guest::linux(&images, name, 1)?.shaped(Shape { memory_mib: MEMORY_MIB, io, ..Shape::linux() }))
    };
    let guests = [
        ("small", Guest::new(&images, "bench-small")?),
        ("large", large("bench-large", None)?),
        ("large, io_uring", large("bench-large-uring", Some("io_uring"))?),
    ];
    println!(
        "{:<26} {:>22} {:>22} {:>6} {:>16} {:>12}",
        "back, p50 / p95", "in place", "libvirt", "ratio", "stood still p50", "predicted"
    );
    let mut rows = Vec::new();
    for (state, guest) in &guests {
        daemon.define_and_start(guest)?;
        if *state != "small" {
            let fill = format!("dd if=/dev/urandom of=/fill bs=1M count={FILLED_MIB} 2>/dev/null");
            guest.shell(&fill)?.ok()?;
        } else {
            guest.report()?;
        }
        let mut ours = Ours::new(&cluster, &token, guest).await?;
        let mut libvirt = Libvirt::new(daemon, guest)?;
        ours.create().await?;
        libvirt.create().await?;
        let plan = ours.predicted_revert().await?;
        let predicted = plan.predicted_pause.and_then(|pause| Duration::try_from(pause).ok()).unwrap_or_default();
        let (mut in_place, mut theirs, mut still) = <(Vec<Duration>, Vec<Duration>, Vec<Duration>)>::default();
        // The first round of each is not counted: connections and caches.
        for round in 0..=ROUNDS {
            let took = ours.revert().await?;
            ensure!(ours.last.method() == v1::OperationMethod::InPlace, "it was not in place: {:?}", ours.last);
            let beside = libvirt.revert().await?;
            if round > 0 {
                in_place.push(took);
                theirs.push(beside);
                still.push(ours.last.pause.and_then(|pause| Duration::try_from(pause).ok()).unwrap_or_default());
            }
        }
        daemon.power_off(guest)?;
        let [ours_p50, theirs_p50] = [&in_place, &theirs].map(|times| quantile_ms(times, 0.5));
        let row = json!({
            "work": "revert in place", "state": format!("running, {state}"), "rounds": ROUNDS,
            "ours_p50_ms": ours_p50, "ours_p95_ms": quantile_ms(&in_place, 0.95),
            "libvirt_p50_ms": theirs_p50, "libvirt_p95_ms": quantile_ms(&theirs, 0.95),
            "ratio": (theirs_p50 / ours_p50 * 100.0).round() / 100.0,
            "told_pause_p50_ms": quantile_ms(&still, 0.5), "predicted_pause_ms": quantile_ms(&[predicted], 0.5),
        });
        print(&row);
        rows.push(row);
    }
    Ok(rows)
}

fn print(row: &Value) {
    let number = |name: &str| row[name].as_f64().unwrap_or_default();
    let pair = |way: &str| format!("{:.1} / {:.1}", number(&format!("{way}_p50_ms")), number(&format!("{way}_p95_ms")));
    println!(
        "{:<26} {:>22} {:>22} {:>6.2} {:>16.1} {:>12.1}",
        row["state"].as_str().unwrap_or_default(),
        pair("ours"),
        pair("libvirt"),
        number("ratio"),
        number("told_pause_p50_ms"),
        number("predicted_pause_ms")
    );
}

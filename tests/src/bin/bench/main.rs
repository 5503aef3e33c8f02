//! `make bench [WHAT=latency|cascade|fairness|live|in_place]`: how long create, revert, delete and list take through gateway, API and agent, beside the same calls on
//! a warm libvirt connection and by the virsh process, and how much memory the three processes need.
//!
//! All three ways work on the same guest of the same private daemon, in turn, within one run, so that what the machine
//! does besides disturbs them alike. Ratios can be compared between machines; milliseconds cannot. Then how long the
//! deletion of many snapshots takes, and how much it writes ([`cascade`]), and how long one user waits beside a thousand
//! clients of another ([`fairness`]); how long a guest that writes stands still for a snapshot, by its own clock ([`live`]); and how long
//! a running guest takes to be back ([`in_place`]).

#![expect(clippy::print_stdout, reason = "the table is what the command is for")]

mod cascade;
mod fairness;
mod floor;
mod in_place;
mod live;
mod report;
mod volume;
mod ways;

use anyhow::Result;
use tests::cluster::Cluster;
use tests::guest::Guest;

use floor::Floor;
use report::{Report, Samples};
use ways::{Libvirt, Ours, Virsh, Way};

/// How many rounds: a revert of a running guest takes seconds, the rest some ten milliseconds.
const ROUNDS_OFF: usize = 40;
const ROUNDS_RUNNING: usize = 8;

#[tokio::main]
async fn main() -> Result<()> {
    let what = std::env::args().nth(1);
    let wanted = |name: &str| what.as_deref().is_none_or(|what| what == name);
    let mut report = Report::default();
    if wanted("latency") {
        latency(&mut report).await?;
        report.print();
    }
    if wanted("cascade") {
        report.cascades(cascade::measure().await?);
    }
    if wanted("fairness") {
        report.fairness(fairness::measure().await?);
    }
    if wanted("live") {
        report.desktop(live::measure().await?);
    }
    if wanted("in_place") {
        report.desktop(in_place::measure().await?);
    }
    report.save()
}

async fn latency(report: &mut Report) -> Result<()> {
    let mut cluster = Cluster::with_daemons(&["alpha"])?;
    let images = cluster.host("alpha")?.libvirtd()?.images()?;
    let off = Guest::new(&images, "bench-off")?;
    let running = Guest::new(&images, "bench-running")?;
    let daemon = cluster.host("alpha")?.libvirtd()?;
    daemon.define(&off)?;
    daemon.define(&running)?;
    report.memory(&mut cluster)?;
    let token = cluster.identity().token_for("bench", "*", &tests::cluster::ALL_ACTIONS, "900")?;
    let daemon = cluster.host("alpha")?.libvirtd()?;
    for (state, guest, rounds) in [("off", &off, ROUNDS_OFF), ("running", &running, ROUNDS_RUNNING)] {
        if state == "running" {
            // Not before: an emulated guest keeps a core busy.
            daemon.power_on(guest)?;
            guest.report()?;
        }
        let mut ours = Ours::new(&cluster, &token, guest).await?;
        let mut libvirt = Libvirt::new(daemon, guest)?;
        let mut virsh = Virsh::new(daemon, guest);
        let mut samples = [Samples::default(), Samples::default(), Samples::default()];
        let mut floor = Floor::new()?;
        // One unmeasured round each warms connections and caches.
        for round in 0..=rounds {
            let keep = round > 0;
            measure(&mut ours, &mut samples[0], keep).await?;
            measure(&mut libvirt, &mut samples[1], keep).await?;
            measure(&mut virsh, &mut samples[2], keep).await?;
            floor.sync()?;
        }
        report.add(state, &samples);
        report.floor(state, &samples[0], &floor.syncs());
    }
    Ok(())
}

/// One round: take a snapshot, list, go back to it, delete it.
async fn measure(way: &mut impl Way, samples: &mut Samples, keep: bool) -> Result<()> {
    let create = way.create().await?;
    let list = way.list().await?;
    let revert = way.revert().await?;
    let delete = way.delete().await?;
    if keep {
        samples.add(create, list, revert, delete);
    }
    Ok(())
}

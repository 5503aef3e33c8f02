//! The deletion of a whole line of snapshots: through our service, and by libvirt's own calls one by one.
//!
//! Every way works on a line of its own, made the same way, on a file system that counts what is written to it.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use proto::v1;
use serde_json::{Value, json};
use tests::client::Client;
use tests::cluster::{Backend, Cluster, HostPlan};
use tests::guest::Guest;
use tests::libvirtd::Libvirtd;
use tests::tools::run;
use uuid::Uuid;

use crate::volume::Volume;

/// The size of the disk. Sparse.
const DISK: u64 = 1 << 30;
/// The most places that are written to, each apart; of a longer line, several share one.
const PLACES: u64 = 30;
/// Where the first of it is; before it are the boot sector and what the guest writes by itself.
const FIRST: u64 = 2 << 20;
/// The most snapshots in a line that libvirt 11.3 starts a machine on.
const STARTS_ON: u64 = 24;
/// The first disk, as QEMU's monitor has it.
const DEVICE: &str = "/machine/peripheral/virtio-disk0/virtio-backend";
/// The policy under which external snapshots are taken.
const POLICY: &str = "stable_paths = false\nmax_snapshots_per_vm = 1000\nmax_layers = 100\nspace_margin_bytes = 0\n";

/// Where the guest writes between each two snapshots, and how many MiB.
#[derive(Clone, Copy)]
enum Writes {
    /// Each time to another place: nothing of it can be left out.
    Apart(u64),
    /// Each time to the same place, as a guest does with its logs, its swap and its journal.
    Over(u64),
}

impl Writes {
    fn words(self) -> String {
        match self {
            Self::Apart(mib) => format!("{mib} MiB each apart"),
            Self::Over(mib) => format!("the same {mib} MiB each"),
        }
    }
}

/// A line of snapshots.
#[derive(Clone, Copy)]
struct Line {
    storage: v1::StorageKind,
    length: u64,
    writes: Writes,
    running: bool,
}

/// A way to delete it.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Ours,
    /// One by one: the argument of `cascade.py`.
    Libvirt(&'static str),
}

/// What a deletion took.
struct Cost {
    time: Duration,
    /// The longest that could not be stopped or told of: between two messages of the operation, or in one call.
    longest: Duration,
    bytes: u64,
}

/// Measures every line by every way.
pub async fn measure() -> Result<Vec<Value>> {
    let external = [Way::Ours, Way::Libvirt("leaf-first"), Way::Libvirt("root-first")];
    let internal = [Way::Ours, Way::Libvirt("leaf-first"), Way::Libvirt("root-first"), Way::Libvirt("children")];
    let mut rows = Vec::new();
    for (storage, length, writes, ways, states) in [
        (v1::StorageKind::External, 6, Writes::Apart(64), &external[..], &[false, true][..]),
        (v1::StorageKind::External, 6, Writes::Over(64), &external[..], &[false, true][..]),
        (v1::StorageKind::External, 20, Writes::Apart(3), &external[..], &[false, true][..]),
        (v1::StorageKind::External, 20, Writes::Over(64), &external[..], &[false, true][..]),
        (v1::StorageKind::External, 30, Writes::Apart(2), &external[..], &[false, true][..]),
        (v1::StorageKind::Internal, 200, Writes::Apart(2), &internal[..], &[false, true][..]),
    ] {
        for &running in states {
            let line = Line { storage, length, writes, running };
            let mut row = json!({
                "work": "cascade",
                "storage": storage.as_str_name().trim_start_matches("STORAGE_KIND_").to_lowercase(),
                "length": length,
                "writes": writes.words(),
                "state": if running { "running" } else { "off" },
            });
            for way in ways {
                let (name, cost) = match way {
                    Way::Ours => ("ours".to_owned(), one(line, *way).await?),
                    Way::Libvirt(order) => match one(line, *way).await {
                        Ok(cost) => (order.replace('-', "_"), cost),
                        Err(error) => {
                            // With 30 layers libvirt 11.3 cannot read what QEMU tells it.
                            let text = error.to_string();
                            let why = text.lines().last().unwrap_or_default().to_owned();
                            row[format!("{}_failed", order.replace('-', "_"))] = json!(why);
                            continue;
                        }
                    },
                };
                row[format!("{name}_s")] = json!((cost.time.as_secs_f64() * 1e3).round() / 1e3);
                row[format!("{name}_longest_s")] = json!((cost.longest.as_secs_f64() * 1e3).round() / 1e3);
                row[format!("{name}_written_mib")] = json!(cost.bytes >> 20);
            }
            print(&row);
            rows.push(row);
        }
    }
    Ok(rows)
}

fn print(row: &Value) {
    let (state, storage) = (row["state"].as_str().unwrap_or(""), row["storage"].as_str().unwrap_or(""));
    let (length, writes) = (&row["length"], row["writes"].as_str().unwrap_or(""));
    println!("deleting {length} {storage} snapshots, {state}, with {writes}: seconds, longest step, MiB written");
    for way in ["ours", "leaf_first", "root_first", "children"] {
        if let Some(seconds) = row[format!("{way}_s")].as_f64() {
            let (longest, mib) = (&row[format!("{way}_longest_s")], &row[format!("{way}_written_mib")]);
            println!("  {way:<12} {seconds:>8.2} {longest:>8.2} {mib:>8}");
        } else if let Some(why) = row[format!("{way}_failed")].as_str() {
            println!("  {way:<12} {why}");
        }
    }
}

async fn one(line: Line, way: Way) -> Result<Cost> {
    let volume = Volume::mount()?;
    let host = HostPlan::on("alpha", Backend::Daemon(Libvirtd::start()?)).policy(POLICY).images(volume.folder()?);
    let cluster = Cluster::start(vec![host])?;
    let daemon = cluster.host("alpha")?.libvirtd()?;
    let guest = Guest::new(&volume.folder()?, "bench")?;
    let disk = guest.disks().first().context("a guest without a disk")?;
    run(Command::new("qemu-img").args(["resize", "-q", "-f", "qcow2"]).arg(disk.path()).arg(DISK.to_string()))?;
    daemon.define(&guest)?;
    let client =
        Client::grpc(&cluster, cluster.identity().token_for("bench", "*", &tests::cluster::ALL_ACTIONS, "900")?)?;
    client.vm_in_state(&guest.vm(), v1::VmState::Shutoff).await?;
    // libvirt 11.3 starts no machine on more than 25 files, so one that is to run on more grows while it runs.
    let grows = line.running && line.length > STARTS_ON;
    if grows {
        power_on(&client, daemon, &guest).await?;
    }
    let first = prepare(&client, daemon, &guest, line, grows).await?;
    if line.running && !grows {
        power_on(&client, daemon, &guest).await?;
    }
    let before = volume.written()?;
    let (time, longest) = match way {
        Way::Ours => delete(&client, &first).await?,
        Way::Libvirt(order) => by_libvirt(daemon, &guest, order)?,
    };
    let bytes = volume.written()? - before;
    ensure!(daemon.snapshots(&guest)?.is_empty(), "snapshots are left");
    if line.running {
        daemon.power_off(&guest)?;
    }
    Ok(Cost { time, longest, bytes })
}

async fn power_on(client: &Client, daemon: &Libvirtd, guest: &Guest) -> Result<()> {
    daemon.power_on(guest)?;
    guest.report()?;
    client.vm_in_state(&guest.vm(), v1::VmState::Running).await?;
    Ok(())
}

/// Makes the line; returns the first snapshot.
async fn prepare(client: &Client, daemon: &Libvirtd, guest: &Guest, line: Line, is_on: bool) -> Result<String> {
    let mut first = None;
    for number in 0..line.length {
        let request = v1::CreateSnapshotRequest {
            parent: guest.vm(),
            snapshot: Some(v1::Snapshot { display_name: format!("number {number}"), ..Default::default() }),
            storage: line.storage.into(),
            content: v1::SnapshotContent::Disks.into(),
            request_id: Uuid::new_v4().to_string(),
            ..Default::default()
        };
        let operation = client.done(client.create_as(request).await).await?;
        first.get_or_insert(operation.snapshot);
        let list = daemon.virsh(&["domblklist", guest.name()])?;
        let active = list.split_whitespace().nth(1).context("a guest without a disk")?;
        let (place, mib) = match line.writes {
            Writes::Apart(mib) => (number % PLACES, mib),
            Writes::Over(mib) => (0, mib),
        };
        let (length, pattern) = (mib << 20, number % 255 + 1);
        let place = FIRST + place * length;
        let command = format!("write -q -P {pattern} {place} {length}");
        if is_on {
            let command = format!("qemu-io -d {DEVICE} \"{command}\"");
            daemon.virsh(&["qemu-monitor-command", guest.name(), "--hmp", &command])?;
            continue;
        }
        run(Command::new("qemu-io").args(["-f", "qcow2", "-c", &command, active]))?;
    }
    first.context("a line of no snapshots")
}

async fn delete(client: &Client, first: &str) -> Result<(Duration, Duration)> {
    let begun = Instant::now();
    let operation = client.delete(first, v1::DeleteScope::Subtree).await?;
    let (mut longest, mut last) = (Duration::ZERO, Instant::now());
    let mut phase = None;
    // The watch is collected until its end, so the steps are looked at by asking.
    loop {
        let now = client.operation(&operation.name).await?;
        if phase.as_ref() != Some(&now.progress) {
            (phase, longest, last) = (Some(now.progress.clone()), longest.max(last.elapsed()), Instant::now());
        }
        match now.state() {
            v1::OperationState::Succeeded => return Ok((begun.elapsed(), longest.max(last.elapsed()))),
            v1::OperationState::Pending | v1::OperationState::Running => {}
            _ => anyhow::bail!("the deletion ended so: {now:?}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn by_libvirt(daemon: &Libvirtd, guest: &Guest, order: &str) -> Result<(Duration, Duration)> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/src/bin/bench/cascade.py");
    let told = run(Command::new("/usr/bin/python3").args([script, &daemon.uri(), guest.name(), order]))?;
    let mut seconds = told.split_whitespace().map(|word| word.parse::<f64>().map(Duration::from_secs_f64));
    let mut next = || seconds.next().context("no answer of cascade.py")?.context("a number");
    Ok((next()?, next()?))
}

//! The table and `target/bench/report.json`.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tests::cluster::Cluster;
use tests::tools;

/// The API's intent, the agent's acceptance, the API's outcome: ADR 8.
const SYNCS: f64 = 3.0;
const WORKS: [&str; 4] = ["create", "list", "revert", "delete"];

/// The times of one way, by work.
#[derive(Default)]
pub struct Samples([Vec<Duration>; 4]);

impl Samples {
    /// The times of one round.
    pub fn add(&mut self, create: Duration, list: Duration, revert: Duration, delete: Duration) {
        for (samples, time) in self.0.iter_mut().zip([create, list, revert, delete]) {
            samples.push(time);
        }
    }

    fn quantile(&self, work: usize, quantile: f64) -> f64 {
        quantile_ms(&self.0[work], quantile)
    }
}

/// A quantile in milliseconds.
pub fn quantile_ms(times: &[Duration], quantile: f64) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    let index = (last as f64 * quantile).round() as usize;
    times.get(index).map_or(0.0, |time| (time.as_secs_f64() * 1e5).round() / 100.0)
}

/// Everything that was measured.
#[derive(Default)]
pub struct Report {
    rows: Vec<Value>,
    floor: Vec<Value>,
    cascades: Vec<Value>,
    fairness: Vec<Value>,
    desktop: Vec<Value>,
    memory: serde_json::Map<String, Value>,
}

impl Report {
    /// The times of one state of the guest: ours, the warm connection's, virsh's.
    pub fn add(&mut self, state: &str, [ours, libvirt, virsh]: &[Samples; 3]) {
        for (number, work) in WORKS.iter().enumerate() {
            self.rows.push(json!({
                "work": work,
                "state": state,
                "rounds": ours.0[number].len(),
                "ours_p50_ms": ours.quantile(number, 0.5),
                "ours_p95_ms": ours.quantile(number, 0.95),
                "libvirt_p50_ms": libvirt.quantile(number, 0.5),
                "libvirt_p95_ms": libvirt.quantile(number, 0.95),
                "virsh_p50_ms": virsh.quantile(number, 0.5),
                "virsh_p95_ms": virsh.quantile(number, 0.95),
            }));
        }
    }

    /// What a mutation cannot add less than: the promised syncs, and the way through gateway and API that a list takes, too.
    pub fn floor(&mut self, state: &str, ours: &Samples, syncs: &[Duration]) {
        let (sync, list) = (quantile_ms(syncs, 0.5), ours.quantile(1, 0.5));
        self.floor.push(json!({
            "work": "floor",
            "state": state,
            "sync_p50_ms": sync,
            "sync_p95_ms": quantile_ms(syncs, 0.95),
            "list_p50_ms": list,
            "least_added_ms": ((SYNCS * sync + list) * 100.0).round() / 100.0,
        }));
    }

    /// What deleting many snapshots took.
    pub fn cascades(&mut self, rows: Vec<Value>) {
        self.cascades = rows;
    }

    /// How long a user waits beside another one's thousand clients.
    pub fn fairness(&mut self, rows: Vec<Value>) {
        self.fairness = rows;
    }

    /// What a desktop notices: how long it stands still for a snapshot, and how long it takes to be back.
    pub fn desktop(&mut self, rows: Vec<Value>) {
        self.desktop.extend(rows);
    }

    /// The resident memory of the three idle processes, in MiB.
    pub fn memory(&mut self, cluster: &mut Cluster) -> Result<()> {
        let processes = [
            ("snapshot-gateway", cluster.gateway().id()),
            ("snapshot-api", cluster.api().id()),
            ("snapshot-agent", cluster.host_mut("alpha")?.agent().id()),
        ];
        for (name, id) in processes {
            let id = id.with_context(|| format!("{name} does not run"))?;
            let status = fs::read_to_string(format!("/proc/{id}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
            let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
            self.memory.insert(name.to_owned(), json!((kib / 102.4).round() / 10.0));
        }
        Ok(())
    }

    /// The table.
    pub fn print(&self) {
        println!("p50 / p95 in ms          {:>18} {:>18} {:>18}", "ours", "warm libvirt", "virsh process");
        for row in &self.rows {
            let pair = |way: &str| {
                let value = |part: &str| row[format!("{way}_{part}_ms")].as_f64().unwrap_or_default();
                format!("{:.1} / {:.1}", value("p50"), value("p95"))
            };
            let name = format!("{}, {}", row["work"].as_str().unwrap_or(""), row["state"].as_str().unwrap_or(""));
            println!("{name:<24} {:>18} {:>18} {:>18}", pair("ours"), pair("libvirt"), pair("virsh"));
        }
        for row in &self.floor {
            let value = |key: &str| row[key].as_f64().unwrap_or_default();
            println!(
                "least that is added, {}: {:.1} ms ({SYNCS} syncs of {:.2} and the way of a list, {:.1})",
                row["state"].as_str().unwrap_or(""),
                value("least_added_ms"),
                value("sync_p50_ms"),
                value("list_p50_ms"),
            );
        }
        for (name, mebibytes) in &self.memory {
            println!("{name:<24} {mebibytes} MiB resident when idle");
        }
    }

    /// `target/bench/report.json`.
    pub fn save(&self) -> Result<()> {
        let folder = tools::build_dir()?.parent().context("the build folder has no parent")?.join("bench");
        fs::create_dir_all(&folder)?;
        let rows: Vec<&Value> = self
            .rows
            .iter()
            .chain(&self.floor)
            .chain(&self.cascades)
            .chain(&self.fairness)
            .chain(&self.desktop)
            .collect();
        let text = serde_json::to_string_pretty(&json!({ "rows": rows, "rss_mib": self.memory }))?;
        fs::write(folder.join("report.json"), text + "\n")?;
        Ok(())
    }
}

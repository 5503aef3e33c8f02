//! The three ways to do the same work on the same guest.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use proto::v1;
use tests::client::Client;
use tests::cluster::Cluster;
use tests::guest::Guest;
use tests::libvirtd::Libvirtd;

/// One way to take a snapshot, list, go back and delete; each returns how long it took.
pub trait Way {
    async fn create(&mut self) -> Result<Duration>;
    async fn list(&mut self) -> Result<Duration>;
    async fn revert(&mut self) -> Result<Duration>;
    async fn delete(&mut self) -> Result<Duration>;
}

/// Through gateway, API and agent: the call, and the watch of the operation until it has ended.
pub struct Ours {
    client: Client,
    vm: String,
    snapshot: String,
    /// What was asked last, as it ended.
    pub last: v1::Operation,
}

impl Ours {
    pub async fn new(cluster: &Cluster, token: &str, guest: &Guest) -> Result<Self> {
        let client = Client::grpc(cluster, token)?;
        let known = Instant::now();
        while client.vm(&guest.vm()).await.is_err() {
            ensure!(known.elapsed() < Duration::from_secs(60), "the machine is not known");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(Self { client, vm: guest.vm(), snapshot: String::new(), last: v1::Operation::default() })
    }
}

impl Ours {
    /// What a plan says before: of a new snapshot.
    pub async fn predicted(&self) -> Result<v1::OperationPlan> {
        let request = v1::CreateSnapshotRequest {
            parent: self.vm.clone(),
            snapshot: Some(v1::Snapshot { display_name: "bench".to_owned(), ..Default::default() }),
            request_id: tests::lab::key(),
            validate_only: true,
            ..Default::default()
        };
        self.client.create_as(request).await?.plan.context("no plan")
    }

    /// The same, of going back to the snapshot.
    pub async fn predicted_revert(&self) -> Result<v1::OperationPlan> {
        let request = v1::RevertToSnapshotRequest {
            name: self.snapshot.clone(),
            request_id: tests::lab::key(),
            validate_only: true,
            ..Default::default()
        };
        self.client.revert_as(request).await?.plan.context("no plan")
    }
}

impl Way for Ours {
    async fn create(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        let operation = self.client.done(self.client.create(&self.vm, "bench", "").await).await?;
        let time = begun.elapsed();
        self.snapshot.clone_from(&operation.snapshot);
        self.last = operation;
        Ok(time)
    }

    async fn list(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        let found = self.client.snapshots(&self.vm).await?;
        let time = begun.elapsed();
        ensure!(found.len() == 1, "{found:?}");
        Ok(time)
    }

    async fn revert(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        self.last = self.client.done(self.client.revert(&self.snapshot).await).await?;
        Ok(begun.elapsed())
    }

    async fn delete(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        self.client.done(self.client.delete(&self.snapshot, v1::DeleteScope::Only).await).await?;
        Ok(begun.elapsed())
    }
}

/// libvirt's own calls on one open connection, by its Python binding: `baseline.py` measures each call by itself.
pub struct Libvirt {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Libvirt {
    pub fn new(daemon: &Libvirtd, guest: &Guest) -> Result<Self> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/src/bin/bench/baseline.py");
        let mut process = Command::new("/usr/bin/python3")
            .args([script, &daemon.uri(), guest.name()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("python3 with libvirt's binding: run scripts/setup.sh test")?;
        let input = process.stdin.take().context("no stdin")?;
        let output = BufReader::new(process.stdout.take().context("no stdout")?);
        Ok(Self { process, input, output })
    }

    fn ask(&mut self, work: &str) -> Result<Duration> {
        writeln!(self.input, "{work}")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let seconds: f64 = line.trim().parse().with_context(|| format!("{work}: {line}"))?;
        Ok(Duration::from_secs_f64(seconds))
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Way for Libvirt {
    async fn create(&mut self) -> Result<Duration> {
        self.ask("create")
    }

    async fn list(&mut self) -> Result<Duration> {
        self.ask("list")
    }

    async fn revert(&mut self) -> Result<Duration> {
        self.ask("revert")
    }

    async fn delete(&mut self) -> Result<Duration> {
        self.ask("delete")
    }
}

/// A virsh process for each call.
pub struct Virsh<'a> {
    daemon: &'a Libvirtd,
    guest: &'a Guest,
}

impl<'a> Virsh<'a> {
    pub fn new(daemon: &'a Libvirtd, guest: &'a Guest) -> Self {
        Self { daemon, guest }
    }

    fn run(&self, arguments: &[&str]) -> Result<Duration> {
        let begun = Instant::now();
        self.daemon.virsh(arguments)?;
        Ok(begun.elapsed())
    }
}

impl Way for Virsh<'_> {
    async fn create(&mut self) -> Result<Duration> {
        self.run(&["snapshot-create-as", self.guest.name(), "bench-virsh", "--description", "bench"])
    }

    async fn list(&mut self) -> Result<Duration> {
        self.run(&["snapshot-list", self.guest.name()])
    }

    async fn revert(&mut self) -> Result<Duration> {
        self.run(&["snapshot-revert", self.guest.name(), "bench-virsh"])
    }

    async fn delete(&mut self) -> Result<Duration> {
        self.run(&["snapshot-delete", self.guest.name(), "bench-virsh"])
    }
}

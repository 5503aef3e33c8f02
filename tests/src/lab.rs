//! A cluster, a client and guests: what most end-to-end tests begin with; and the traces that snapshots leave in the
//! three places where they can be: the catalogue, libvirt, and the images.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use proto::v1;
use tonic::Code;
use uuid::Uuid;

use crate::client::Client;
use crate::cluster::{Cluster, HostPlan};
use crate::guest::Guest;
use crate::images;
use crate::libvirtd::{Libvirtd, Listed};

/// The first host's name.
pub const HOST: &str = "alpha";

/// How long it may take until what other tools did is known: a moment, or until the agent's next comparison, as long as
/// the folders could not be watched.
const NOTICED: Duration = Duration::from_secs(25);
const AGAIN: Duration = Duration::from_millis(100);

/// A cluster with an administrator at its gateway.
pub struct Lab {
    /// The administrator.
    pub client: Client,
    /// The cluster.
    pub cluster: Cluster,
}

/// What a guest is doing when something is asked of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// Switched off.
    Off,
    /// Running.
    Running,
    /// Stopped in memory.
    Paused,
}

impl Power {
    /// As `virsh domstate` says it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Off => "shut off",
            Self::Running => "running",
            Self::Paused => "paused",
        }
    }

    /// As the API says it of a machine.
    pub fn state(self) -> v1::VmState {
        match self {
            Self::Off => v1::VmState::Shutoff,
            Self::Running => v1::VmState::Running,
            Self::Paused => v1::VmState::Paused,
        }
    }
}

impl Drop for Lab {
    /// A test in which a server panicked or met a fault of its own has failed, whatever it saw from outside; so has one in which
    /// a secret was logged.
    #[expect(clippy::panic, reason = "this is how a test fails")]
    fn drop(&mut self) {
        let secrets = self.cluster.identity().secrets().unwrap_or_default();
        let is_secret = |line: &&str| secrets.iter().any(|secret| line.contains(secret));
        let faulty = |line: &&str| line.contains("panicked at") || line.contains("ERROR") || is_secret(line);
        for (process, log) in self.cluster.logs().unwrap_or_default() {
            if let Some(line) = log.lines().find(faulty)
                && !std::thread::panicking()
            {
                panic!("{process} logged: {line}");
            }
        }
    }
}

impl Lab {
    /// A cluster of one host with a private daemon.
    pub fn start() -> Result<Self> {
        Self::with_hosts(&[HOST])
    }

    /// A cluster of these hosts, each with a private daemon.
    pub fn with_hosts(names: &[&str]) -> Result<Self> {
        let cluster = Cluster::with_daemons(names)?;
        Ok(Self { client: Client::admin(&cluster)?, cluster })
    }

    /// A cluster of one host with a private daemon, with these lines for the policy of its agent.
    pub fn with_policy(lines: &str) -> Result<Self> {
        Self::on(HostPlan::daemon(HOST)?.policy(lines))
    }

    /// The same where the disks of a running machine are taken live: the agent's own default.
    pub fn live(lines: &str) -> Result<Self> {
        Self::with_policy(&format!("live_snapshots = true\n{lines}"))
    }

    fn on(host: HostPlan) -> Result<Self> {
        let cluster = Cluster::start(vec![host])?;
        Ok(Self { client: Client::admin(&cluster)?, cluster })
    }

    /// A cluster of one host with a private daemon, whose agent compares so seldom that what it knows it was told.
    pub fn without_scan() -> Result<Self> {
        Self::on(HostPlan::daemon(HOST)?.without_scan())
    }

    /// The first host's daemon.
    pub fn daemon(&self) -> Result<&Libvirtd> {
        self.cluster.host(HOST)?.libvirtd()
    }

    /// Where the first host's images are.
    pub fn images(&self) -> Result<PathBuf> {
        self.daemon()?.images()
    }

    /// A guest with one disk, running on the first host and known to the API.
    pub async fn guest(&self, name: &str) -> Result<Guest> {
        let guest = Guest::new(&self.images()?, name)?;
        self.run(&guest).await?;
        Ok(guest)
    }

    /// Defines a guest on the first host, starts it, and waits until the API knows that it runs.
    pub async fn run(&self, guest: &Guest) -> Result<()> {
        self.daemon()?.define_and_start(guest)?;
        self.client.vm_in_state(&guest.vm(), v1::VmState::Running).await?;
        Ok(())
    }

    /// Brings a guest from whatever it does into another state by virsh, and waits until the API knows.
    pub async fn set(&self, guest: &Guest, power: Power) -> Result<()> {
        let daemon = self.daemon()?;
        match (daemon.state(guest)?.as_str(), power) {
            (now, _) if now == power.word() => {}
            ("shut off", Power::Running) => daemon.power_on(guest)?,
            ("paused", Power::Running) => daemon.resume(guest)?,
            ("running", Power::Paused) => daemon.pause(guest)?,
            (_, Power::Off) => daemon.power_off(guest)?,
            (now, _) => anyhow::bail!("a guest cannot be brought from {now} to {power:?}"),
        }
        self.client.vm_in_state(&guest.vm(), power.state()).await?;
        Ok(())
    }

    /// Takes a snapshot and returns it when it is taken.
    pub async fn take(&self, guest: &Guest, name: &str) -> Result<v1::Snapshot> {
        let operation = self.client.done(self.client.create(&guest.vm(), name, "").await).await?;
        Ok(self.client.snapshot(&operation.snapshot).await?)
    }

    /// The same of one that is stored as overlay files.
    pub async fn take_external(&self, guest: &Guest, name: &str) -> Result<v1::Snapshot> {
        let request = v1::CreateSnapshotRequest {
            parent: guest.vm(),
            snapshot: Some(v1::Snapshot { display_name: name.to_owned(), ..Default::default() }),
            storage: v1::StorageKind::External.into(),
            request_id: key(),
            ..Default::default()
        };
        let operation = self.client.done(self.client.create_as(request).await).await?;
        Ok(self.client.snapshot(&operation.snapshot).await?)
    }

    /// Goes back to a snapshot and waits until it is done.
    pub async fn return_to(&self, snapshot: &v1::Snapshot) -> Result<v1::Operation> {
        self.client.done(self.client.revert(&snapshot.name).await).await
    }

    /// Deletes and waits until it is done.
    pub async fn remove(&self, snapshot: &v1::Snapshot, scope: v1::DeleteScope) -> Result<v1::Operation> {
        self.client.done(self.client.delete(&snapshot.name, scope).await).await
    }

    /// Where snapshots of a guest can be found now.
    pub async fn traces(&self, guest: &Guest) -> Result<Traces> {
        let daemon = self.daemon()?;
        let tags = guest.disks().iter().map(|disk| images::internal_snapshots(disk.path()));
        Ok(Traces {
            catalogue: self.client.snapshots(&guest.vm()).await?,
            libvirt: daemon.snapshot_tree(guest)?,
            tags: tags.collect::<Result<_>>()?,
            state: daemon.state(guest)?,
        })
    }

    /// Fails unless the catalogue, libvirt and every image hold the same snapshots, in the same tree; returns them.
    pub async fn agreed(&self, guest: &Guest) -> Result<Vec<v1::Snapshot>> {
        let traces = self.traces(guest).await?;
        let mut told: Vec<Listed> = traces.catalogue.iter().map(as_listed).collect();
        told.sort();
        ensure!(told == traces.libvirt, "the catalogue says {told:#?}, libvirt says {:#?}", traces.libvirt);
        for (disk, mut tags) in guest.disks().iter().zip(traces.tags) {
            tags.sort();
            let names: Vec<&str> = told.iter().map(|listed| listed.name.as_str()).collect();
            ensure!(tags == names, "{} holds {tags:?} and not {names:?}", disk.path().display());
        }
        let vm = self.client.vm(&guest.vm()).await?;
        ensure!(vm.snapshot_count == i32::try_from(traces.catalogue.len())?, "{} snapshots?", vm.snapshot_count);
        let current = traces.catalogue.iter().find(|snapshot| snapshot.is_current);
        ensure!(vm.current_snapshot == current.map(|snapshot| snapshot.name.as_str()).unwrap_or_default());
        Ok(traces.catalogue)
    }

    /// As [`Lab::agreed`], once the agent has noticed what another tool did: nobody tells it.
    pub async fn agreed_soon(&self, guest: &Guest) -> Result<Vec<v1::Snapshot>> {
        let begun = Instant::now();
        loop {
            match self.agreed(guest).await {
                Err(_) if begun.elapsed() < NOTICED => tokio::time::sleep(AGAIN).await,
                result => return result,
            }
        }
    }

    /// Fails if anything of a guest's snapshots is left, in the catalogue, in libvirt, in its folder, or in an image.
    pub async fn nothing_left(&self, guest: &Guest, was: &v1::Snapshot) -> Result<()> {
        let left = self.agreed(guest).await?;
        ensure!(left.is_empty(), "left are {left:#?}");
        let gone = self.client.snapshot(&was.name).await.err().context("a deleted snapshot is still answered for")?;
        ensure!((gone.code, gone.reason.as_str()) == (Code::NotFound, "SNAPSHOT_NOT_FOUND"), "{gone}");
        let folder = self.daemon()?.snapshot_folder().join(guest.name());
        let files: Vec<_> =
            std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|file| file.path()).collect();
        ensure!(files.is_empty(), "left are {files:?}");
        Ok(())
    }
}

/// Where the snapshots of a guest can be found. Equal ones before and after mean that nothing was changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Traces {
    /// ListSnapshots.
    pub catalogue: Vec<v1::Snapshot>,
    /// What virsh lists.
    pub libvirt: Vec<Listed>,
    /// The names inside each image.
    pub tags: Vec<Vec<String>>,
    /// What the guest does, by virsh.
    pub state: String,
}

/// The last part of a snapshot's resource name: what libvirt calls it.
pub fn id(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// An idempotency key.
pub fn key() -> String {
    Uuid::new_v4().to_string()
}

/// The request for an external snapshot of the disks with the guest's file systems frozen.
pub fn quiesced(guest: &Guest) -> v1::CreateSnapshotRequest {
    v1::CreateSnapshotRequest {
        parent: guest.vm(),
        snapshot: Some(v1::Snapshot { display_name: "quiesced".to_owned(), ..Default::default() }),
        content: v1::SnapshotContent::Disks.into(),
        storage: v1::StorageKind::External.into(),
        quiesce: true,
        request_id: key(),
        ..Default::default()
    }
}

/// A snapshot of the catalogue as virsh would list it.
pub fn as_listed(snapshot: &v1::Snapshot) -> Listed {
    let state = match snapshot.vm_state() {
        v1::SnapshotVmState::Running => "running",
        v1::SnapshotVmState::Paused => "paused",
        v1::SnapshotVmState::Shutoff => "shutoff",
        // To libvirt one that was taken live is of a machine that was off.
        v1::SnapshotVmState::DiskOnly if snapshot.storage() == v1::StorageKind::Internal => "shutoff",
        v1::SnapshotVmState::DiskOnly => "disk-snapshot",
        v1::SnapshotVmState::Unspecified => "unknown",
    };
    let parent = Some(id(&snapshot.parent_snapshot)).filter(|id| !id.is_empty()).map(str::to_owned);
    let is_current = snapshot.is_current;
    Listed { name: id(&snapshot.name).to_owned(), parent, state: state.to_owned(), is_current }
}

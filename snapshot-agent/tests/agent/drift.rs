//! What other tools do, on a real daemon, with virsh and qemu-img. The agents here compare once an hour: what they know
//! within seconds, they know by what was told.

mod files;
mod images;
mod left_behind;
mod snapshots;
mod unresponsive;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proto::agent::watch_host_response::Event;
use proto::agent::{WatchHostRequest, WatchHostResponse};
use proto::convert::Inventory;
use snapshot_agent::hypervisor::Hypervisor;
use snapshot_agent::hypervisor::libvirt::Libvirt;
use snapshot_core::ids::VmId;
use snapshot_core::snapshot::SnapshotFacts;
use tonic::Streaming;

use crate::daemon::{Daemon, connected};
use crate::directory::Directory;
use crate::guest::Guest;
use crate::served::{Agent, with_token};

/// It takes a moment; a machine that is busy with other things may take longer.
const SOON: Duration = Duration::from_secs(20);

/// A daemon, an agent on it, and what the agent tells.
pub(crate) struct Scene {
    pub(crate) told: Told,
    pub(crate) agent: Agent,
    libvirt: Arc<Libvirt>,
    pub(crate) daemon: Daemon,
}

impl Scene {
    pub(crate) async fn start(name: &str) -> Self {
        Self::start_with(name, "").await
    }

    /// With more lines in the agent's configuration.
    pub(crate) async fn start_with(name: &str, more: &str) -> Self {
        let daemon = Daemon::start(name);
        let libvirt = Arc::new(Libvirt::new(&daemon.host.uri).unwrap());
        connected(&libvirt, true).await;
        // What QEMU can do takes the first daemon of a process seconds to find out, on a busy machine longer than a caller waits.
        let asked = Arc::clone(&libvirt);
        tokio::task::spawn_blocking(move || asked.versions()).await.unwrap().unwrap();
        let settings = format!("{}\n{more}", settings(&daemon));
        let agent = Agent::start_with(Arc::clone(&libvirt) as Arc<dyn Hypervisor>, &settings).await;
        Self { told: Told::by(&agent).await, agent, libvirt, daemon }
    }

    /// A machine that is known to be there.
    pub(crate) async fn guest(&mut self, disks: usize) -> Guest {
        let guest = Guest::on(&self.daemon.host, disks, "");
        self.told.until("a new machine", |told| told.vms.contains_key(&guest.vm)).await;
        guest
    }

    pub(crate) fn virsh(&self, args: &[&str]) -> String {
        self.daemon.virsh(args)
    }

    /// Stops the agent; what it has to remember stays.
    pub(crate) async fn leave(self) -> (Daemon, Arc<Directory>) {
        drop(self.told);
        (self.daemon, self.agent.stop().await)
    }

    /// Starts the next one.
    pub(crate) async fn come_back(daemon: Daemon, dir: Arc<Directory>) -> Self {
        let libvirt = Arc::new(Libvirt::new(&daemon.host.uri).unwrap());
        let hypervisor = Arc::clone(&libvirt) as Arc<dyn Hypervisor>;
        let agent = Agent::start_in(dir, hypervisor, &settings(&daemon)).await;
        Self { told: Told::by(&agent).await, agent, libvirt, daemon }
    }
}

fn settings(daemon: &Daemon) -> String {
    let folder = daemon.host.dir.join("lib/qemu/snapshot");
    format!("scan_seconds = 3600\nsnapshot_dir = \"{}\"", folder.display())
}

pub(crate) fn name(guest: &Guest) -> String {
    guest.vm.to_string()[..8].to_owned()
}

/// What an agent has told.
pub(crate) struct Told {
    stream: Streaming<WatchHostResponse>,
    pub(crate) vms: BTreeMap<VmId, Inventory>,
    left_behind: Vec<String>,
}

impl Told {
    /// Everything that it tells at first.
    async fn by(agent: &Agent) -> Self {
        let stream =
            agent.client.clone().watch_host(with_token(WatchHostRequest {}, &agent.all())).await.unwrap().into_inner();
        let mut told = Self { stream, vms: BTreeMap::new(), left_behind: Vec::new() };
        while !matches!(told.next().await, Event::Synced(_)) {}
        told
    }

    async fn next(&mut self) -> Event {
        let event = self.stream.message().await.unwrap().unwrap().event.unwrap();
        match &event {
            Event::Host(facts) => self.left_behind.clone_from(&facts.left_behind_vm_ids),
            Event::Vm(inventory) => {
                let inventory = Inventory::try_from(inventory.clone()).unwrap();
                self.vms.insert(inventory.vm.id, inventory);
            }
            Event::RemovedVmId(id) => drop(self.vms.remove(&id.parse().unwrap())),
            Event::Synced(_) => {}
        }
        event
    }

    pub(crate) async fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let wait = async {
            while !is_so(self) {
                self.next().await;
            }
        };
        let in_time = tokio::time::timeout(SOON, wait).await.is_ok();
        assert!(in_time, "{what} is not told: {:#?} {:?}", self.vms, self.left_behind);
    }

    /// Waits until the machine's snapshots are so.
    pub(crate) async fn snapshots(&mut self, what: &str, guest: &Guest, are_so: impl Fn(&[SnapshotFacts]) -> bool) {
        let vm = guest.vm;
        self.until(what, |told| told.vms.get(&vm).is_some_and(|inventory| are_so(&inventory.snapshots))).await;
    }
}

//! The world of a round: a cluster on a private daemon with small guests, ways that can be cut, and file systems that can
//! be filled.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use tokio::sync::broadcast;

use super::calm::Calm;
use super::history::History;
use super::proxy::Proxy;
use super::script::{Link, Store, Target};
use super::space::Space;
use crate::client::{Client, Curl, Grpc};
use crate::cluster::{Backend, Cluster, HostPlan, Surroundings, Way};
use crate::guest::{Disk, Format, Guest};
use crate::images;
use crate::lab::HOST;
use crate::libvirtd::Libvirtd;
use crate::processes::Process;
use crate::scratch::Scratch;
use crate::tools::run;

/// Room for the images of a round: they are sparse, and 64 MiB each when full.
const IMAGES_MIB: u32 = 768;
const JOURNAL_MIB: u32 = 16;
const CATALOGUE_MIB: u32 = 64;
/// The directory of all rooms, between the images.
const ROOMS: &str = "rooms";
/// What an agent logs when it has taken on an operation, or finds one that it was killed in.
const TAKEN_ON: [&str; 2] = ["taken on", "was interrupted"];
/// A virsh that does not come back is ended: the daemon may have been stopped.
const VIRSH_SECONDS: &str = "30";

/// The machines of a round: name, and whether other tools meddle with it.
pub const MACHINES: [(&str, Shape, bool); 4] = [
    ("one", Shape::One, false),
    ("two", Shape::Two, false),
    ("clone", Shape::Clone, false),
    ("shared", Shape::Two, true),
];

/// What disks a machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One.
    One,
    /// Two.
    Two,
    /// One, on top of a base.
    Clone,
}

/// The host that rooms use beside the first one.
pub const OTHER_HOST: &str = "beta";
/// The hosts of a world, of which the second one is there for rooms alone.
pub const NAMES_OF_HOSTS: [&str; 2] = [HOST, OTHER_HOST];

/// What lanes tell of an operation, for faults that wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// A request is being sent.
    Dispatched(Option<usize>),
    /// It is seen to run.
    Running(Option<usize>),
}

/// A machine of a round.
#[derive(Debug)]
pub struct Inhabitant {
    /// Its guest.
    pub guest: Guest,
    /// Whether others meddle with it.
    pub meddled: bool,
    /// How often its QEMU was killed, or something else was done that a guest may lose writes by.
    pub crashes: AtomicU64,
}

/// Everything that a round acts on. Fields are dropped in their order: file systems are unmounted before their folders go.
pub struct World {
    spaces: BTreeMap<u8, Space>,
    ways: BTreeMap<u8, Proxy>,
    /// The processes.
    cluster: Mutex<Cluster>,
    /// The machines.
    pub machines: Vec<Inhabitant>,
    base: (PathBuf, String),
    /// What lanes tell.
    pub phases: broadcast::Sender<Phase>,
    /// What keeps faults and other tools apart.
    pub calm: Calm,
    /// What has happened.
    pub history: History,
    /// Of each host.
    daemons: Vec<Daemon>,
    scratch: Scratch,
}

/// Where a host's libvirt is.
#[derive(Debug)]
struct Daemon {
    uri: String,
    directory: PathBuf,
}

struct Around<'a> {
    spaces: &'a mut BTreeMap<u8, Space>,
    ways: &'a mut BTreeMap<u8, Proxy>,
}

impl Surroundings for Around<'_> {
    fn journal(&mut self, folder: &Path) -> Result<()> {
        // That of the other host is not filled.
        if let Entry::Vacant(free) = self.spaces.entry(Store::Journal as u8) {
            free.insert(Space::mount(folder, JOURNAL_MIB)?);
        }
        Ok(())
    }

    fn catalogue(&mut self, folder: &Path) -> Result<()> {
        self.spaces.insert(Store::Catalogue as u8, Space::mount(folder, CATALOGUE_MIB)?);
        Ok(())
    }

    fn way(&mut self, way: Way, port: u16) -> Result<u16> {
        let link = match way {
            Way::ToApi => Link::Middle,
            Way::ToAgent if self.ways.contains_key(&(Link::Back as u8)) => Link::OtherBack,
            Way::ToAgent => Link::Back,
        };
        let proxy = Proxy::to(port)?;
        let port = proxy.port();
        self.ways.insert(link as u8, proxy);
        Ok(port)
    }
}

impl World {
    /// Brings one up, with so many machines, all of them running and booted. Where snapshots are external virsh does not meddle:
    /// its own reverts and deletions lose data of these. Rooms have a second host, which shares their directories with the first.
    pub async fn start(machines: usize, policy: &str, is_external: bool, has_rooms: bool) -> Result<Self> {
        // Mounted before the daemon starts, whose namespace is a copy of this one.
        let scratch = Scratch::new()?;
        let folder = scratch.folder("images")?;
        let (mut spaces, mut ways) = (BTreeMap::new(), BTreeMap::new());
        spaces.insert(Store::Images as u8, Space::mount(&folder, IMAGES_MIB)?);
        let rooms = folder.join(ROOMS);
        std::fs::create_dir(&rooms)?;
        let (mut daemons, mut plans) = (Vec::new(), Vec::new());
        for (number, name) in NAMES_OF_HOSTS.into_iter().take(1 + usize::from(has_rooms)).enumerate() {
            let daemon = Libvirtd::start()?;
            daemons.push(Daemon { uri: daemon.uri(), directory: daemon.folder().to_owned() });
            let images = if number == 0 { folder.clone() } else { rooms.clone() };
            let plan = HostPlan::on(name, Backend::Daemon(daemon)).policy(policy).images(images);
            plans.push(if has_rooms { plan.shares(rooms.clone()) } else { plan });
        }
        let cluster = Cluster::start_in(plans, &mut Around { spaces: &mut spaces, ways: &mut ways })?;
        ways.insert(Link::Front as u8, Proxy::to(cluster.ports().gateway)?);
        let base = Disk::boot(&folder.join("base.qcow2"), Format::Qcow2)?;
        let digest = images::sha256(base.path())?;
        let mut inhabitants = Vec::new();
        for (name, shape, meddled) in MACHINES.into_iter().cycle().take(machines) {
            let name = if inhabitants.len() < MACHINES.len() {
                name.to_owned()
            } else {
                format!("{name}{}", inhabitants.len())
            };
            let guest = match shape {
                Shape::One => Guest::new(&folder, &name)?,
                Shape::Two => Guest::with_two_disks(&folder, &name)?,
                Shape::Clone => Guest::clone_of(&folder, &name, &base)?,
            };
            cluster.host(HOST)?.libvirtd()?.define_and_start(&guest)?;
            let meddled = meddled && !is_external;
            inhabitants.push(Inhabitant { guest, meddled, crashes: AtomicU64::new(0) });
        }
        Ok(Self {
            spaces,
            ways,
            cluster: Mutex::new(cluster),
            machines: inhabitants,
            base: (base.path().to_owned(), digest),
            phases: broadcast::Sender::new(64),
            calm: Calm::default(),
            history: History::new(),
            daemons,
            scratch,
        })
    }

    /// The processes. Held for a moment only: nothing that can hang is done with it.
    pub fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Acts on one of the processes. QEMU is none of them.
    pub fn with_process<T>(&self, target: Target, act: impl FnOnce(&mut Process) -> Result<T>) -> Result<T> {
        let mut cluster = self.cluster();
        match target {
            Target::Gateway => act(cluster.gateway()),
            Target::Api => act(cluster.api()),
            Target::Agent => act(cluster.host_mut(HOST)?.agent()),
            Target::Daemon => act(cluster.host_mut(HOST)?.libvirtd_mut()?.process()),
            Target::OtherAgent => act(cluster.host_mut(OTHER_HOST)?.agent()),
            Target::OtherDaemon => act(cluster.host_mut(OTHER_HOST)?.libvirtd_mut()?.process()),
            Target::Qemu => anyhow::bail!("QEMU is libvirt's process"),
        }
    }

    /// Starts one of the processes if it does not run, as a service manager does.
    pub fn start_again(&self, target: Target) -> Result<()> {
        if target == Target::OtherDaemon && !self.with_process(target, |process| Ok(process.is_running()))? {
            self.cluster().host(OTHER_HOST)?.libvirtd()?.forget_unfinished_starts()?;
        }
        if target == Target::Daemon && !self.with_process(target, |process| Ok(process.is_running()))? {
            let said = self.cluster().host(HOST)?.libvirtd()?.forget_unfinished_starts()?;
            for (machine, inhabitant) in self.machines.iter().enumerate() {
                if said.contains(&format!("of {} was", inhabitant.guest.name())) {
                    self.crash(machine);
                    self.history.tell("FAULT", &format!("libvirt was starting {}", inhabitant.guest.name()));
                    self.history.count("starts that libvirt did not finish (docs/adr/0013)");
                }
            }
        }
        self.with_process(target, |process| if process.is_running() { Ok(()) } else { process.start_again() })
    }

    /// A way between two processes.
    pub fn way(&self, link: Link) -> Result<&Proxy> {
        self.ways.get(&(link as u8)).context("a way that was not made")
    }

    /// All of them.
    pub fn ways(&self) -> impl Iterator<Item = &Proxy> {
        self.ways.values()
    }

    /// Whether there is a second host.
    pub fn has_other_host(&self) -> bool {
        self.daemons.len() > 1
    }

    /// The numbers of the hosts whose agents have taken on the operation of this id.
    pub fn taken_on(&self, operation: &str) -> Result<BTreeSet<usize>> {
        let logs = self.cluster().logs()?;
        let has_taken_on = |host: &str| {
            let of_host = logs.iter().find(|(process, _)| *process == format!("agent-{host}"));
            of_host.is_some_and(|(_, log)| {
                log.lines().any(|line| {
                    line.contains(&format!("operation={operation} "))
                        && TAKEN_ON.iter().any(|words| line.contains(words))
                })
            })
        };
        Ok((0..self.daemons.len())
            .filter(|host| NAMES_OF_HOSTS.get(*host).is_some_and(|host| has_taken_on(host)))
            .collect())
    }

    /// The directory of all rooms, which the hosts share.
    pub fn rooms(&self) -> PathBuf {
        self.images().join(ROOMS)
    }

    /// A small file system.
    pub fn space(&self, store: Store) -> Result<&Space> {
        self.spaces.get(&(store as u8)).context("a file system that was not made")
    }

    /// A caller as JSON and one by gRPC, both through the gateway, with a token that outlives the round.
    pub fn callers(&self) -> Result<(Client, Client)> {
        let port = self.way(Link::Front)?.port();
        let token = self.cluster().identity().admin_token()?;
        let json = Client::new(Box::new(Curl::new(port)), token.clone());
        Ok((json, Client::new(Box::new(Grpc::plain(port)?), token)))
    }

    /// virsh, with a bound on how long it takes.
    pub fn virsh(&self, arguments: &[&str]) -> Result<String> {
        self.virsh_on(0, arguments)
    }

    /// The same on one of the hosts.
    pub fn virsh_on(&self, host: usize, arguments: &[&str]) -> Result<String> {
        let daemon = self.daemons.get(host).with_context(|| format!("no host {host}"))?;
        let bound = ["-k", "1", VIRSH_SECONDS, "virsh", "-q", "-c", &daemon.uri];
        run(Command::new("timeout").args(bound).args(arguments))
    }

    /// Where a host's libvirt is to be reached.
    pub fn uri(&self, host: usize) -> Result<String> {
        Ok(self.daemons.get(host).with_context(|| format!("no host {host}"))?.uri.clone())
    }

    /// Counts something by which a guest may lose what it wrote and did not flush. To be called before it is done.
    pub fn crash(&self, machine: usize) {
        self.machines[machine].crashes.fetch_add(1, Ordering::SeqCst);
    }

    /// How often a VM was cut off: by the campaign, or by libvirt, which ends a QEMU that does not answer when its daemon is started anew.
    pub fn crashes(&self, machine: usize) -> u64 {
        let machine = &self.machines[machine];
        let log = self.daemon_folder().join("log/qemu").join(format!("{}.log", machine.guest.name()));
        let log = std::fs::read_to_string(log).unwrap_or_default();
        let by_libvirt = log.lines().filter(|line| line.ends_with("shutting down, reason=daemon")).count();
        machine.crashes.load(Ordering::SeqCst) + by_libvirt as u64
    }

    /// libvirt's pid file of a machine's QEMU.
    pub fn pid_file(&self, machine: usize) -> PathBuf {
        self.daemon_folder().join("run/qemu").join(format!("{}.pid", self.machines[machine].guest.name()))
    }

    /// The folder that the command line of every QEMU of this world names.
    pub fn images(&self) -> PathBuf {
        self.scratch.path().join("images")
    }

    /// Where files of the harness may be.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// The folder of the daemon.
    pub fn daemon_folder(&self) -> &Path {
        &self.daemons[0].directory
    }

    /// The base of the clones, and its digest from before the round.
    pub fn base(&self) -> (&Path, &str) {
        (&self.base.0, &self.base.1)
    }

    /// Copies all logs into a folder.
    pub fn keep_logs(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder)?;
        for (name, text) in self.cluster().logs()? {
            std::fs::write(folder.join(format!("{name}.log")), text)?;
        }
        for (daemon, prefix) in self.daemons.iter().zip(["host", "other-host"]) {
            let mut files = vec![daemon.directory.join("libvirtd.log")];
            let qemu = std::fs::read_dir(daemon.directory.join("log/qemu")).into_iter().flatten().flatten();
            files.extend(qemu.map(|entry| entry.path()));
            for file in files {
                let name = file.file_name().map(|name| format!("{}", name.to_string_lossy())).unwrap_or_default();
                let _ = std::fs::copy(&file, folder.join(format!("{prefix}-{name}")));
            }
        }
        Ok(())
    }
}

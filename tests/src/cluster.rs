//! A whole system: one agent for every host, the API and the gateway, as the real binaries with real certificates.
//!
//! Coming up: make a CA, certificates and an issuer's key with the binaries' own subcommands; write a configuration for
//! each process; start the agents, then the API, then the gateway, and wait until each one's port takes connections and
//! the gateway answers for the API.
//! Any of them can be stopped, killed and started again; the others must cope.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::embed::EmbedRoot;
use crate::libvirtd::Libvirtd;
use crate::processes::{Launch, Process};
use crate::scratch::Scratch;
use crate::{ports, tools};

mod config;
mod identity;
mod surroundings;

pub use self::identity::{ALL_ACTIONS, Identity, Leaf, forwarded, signature_and_secret};
pub use self::surroundings::{Plain, Surroundings, Way};

/// How long a process may take until its port takes connections.
const READY: Duration = Duration::from_secs(60);

/// What runs a host's guests.
#[derive(Debug)]
pub enum Backend {
    /// A private daemon: virsh can look in, and it can be killed.
    Daemon(Libvirtd),
    /// The embedded driver, inside the agent.
    Embedded(EmbedRoot),
}

impl Backend {
    fn uri(&self) -> String {
        match self {
            Self::Daemon(daemon) => daemon.uri(),
            Self::Embedded(root) => root.uri(),
        }
    }

    /// Where libvirt keeps its records of snapshots, as this process sees it.
    fn snapshots(&self) -> PathBuf {
        match self {
            Self::Daemon(daemon) => daemon.snapshot_folder(),
            Self::Embedded(root) => root.folder().join("lib/qemu/snapshot"),
        }
    }

    fn images(&self) -> Result<PathBuf> {
        match self {
            Self::Daemon(daemon) => daemon.images(),
            Self::Embedded(root) => root.images(),
        }
    }
}

/// A host to be: its name, and what runs its guests.
#[derive(Debug)]
pub struct HostPlan {
    name: String,
    backend: Backend,
    policy: String,
    images: Option<PathBuf>,
    shared: Option<PathBuf>,
    scan_seconds: u32,
    defaults: bool,
}

impl HostPlan {
    /// A host with an empty private daemon.
    pub fn daemon(name: &str) -> Result<Self> {
        Ok(Self::on(name, Backend::Daemon(Libvirtd::start()?)))
    }

    /// A host on a given backend. Guests of an embedded one must be in its root before the cluster starts.
    pub fn on(name: &str, backend: Backend) -> Self {
        let (name, policy) = (name.to_owned(), String::new());
        Self { name, backend, policy, images: None, shared: None, scan_seconds: 10, defaults: false }
    }

    /// A host whose agent compares so seldom that what it knows it was told.
    #[must_use]
    pub fn without_scan(mut self) -> Self {
        self.scan_seconds = 24 * 60 * 60;
        self
    }

    /// Lines for the `[policy]` table of the agent's configuration.
    #[must_use]
    pub fn policy(mut self, lines: &str) -> Self {
        lines.clone_into(&mut self.policy);
        self
    }

    /// A host whose policy is the agent's own where nothing else is said: the harness adds no key, which an earlier agent might
    /// not know.
    #[must_use]
    pub fn with_defaults(mut self) -> Self {
        self.defaults = true;
        self
    }

    /// Where its images are, when that is not the backend's own folder.
    #[must_use]
    pub fn images(mut self, folder: PathBuf) -> Self {
        self.images = Some(folder);
        self
    }

    /// The same, of a directory that other hosts use as well.
    #[must_use]
    pub fn shared_images(self, directory: PathBuf) -> Self {
        self.images(directory.clone()).shares(directory)
    }

    /// Other hosts use this directory, which is one of its images' or below it, as well.
    #[must_use]
    pub fn shares(mut self, directory: PathBuf) -> Self {
        self.shared = Some(directory);
        self
    }
}

/// A host of a running cluster.
#[derive(Debug)]
pub struct Host {
    name: String,
    agent: Process,
    // Dropped after the agent, which in the embedded case holds the root open.
    backend: Backend,
    port: u16,
    metrics: u16,
}

impl Host {
    /// The host's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its agent.
    pub fn agent(&mut self) -> &mut Process {
        &mut self.agent
    }

    /// Starts the agent after it was stopped or killed, and waits until it takes connections.
    pub fn start_agent_again(&mut self) -> Result<()> {
        self.agent.start_again()?;
        wait_port(&mut self.agent, self.port)
    }

    /// Its private daemon; an error for an embedded host.
    pub fn libvirtd(&self) -> Result<&Libvirtd> {
        match &self.backend {
            Backend::Daemon(daemon) => Ok(daemon),
            Backend::Embedded(_) => anyhow::bail!("{} has no daemon", self.name),
        }
    }

    /// As [`Host::libvirtd`], to kill it and start it again.
    pub fn libvirtd_mut(&mut self) -> Result<&mut Libvirtd> {
        match &mut self.backend {
            Backend::Daemon(daemon) => Ok(daemon),
            Backend::Embedded(_) => anyhow::bail!("{} has no daemon", self.name),
        }
    }

    /// The port of its agent.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port of its agent's metrics.
    pub fn metrics_port(&self) -> u16 {
        self.metrics
    }
}

/// Where the API and the gateway listen.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// The API for the gateway: mTLS.
    pub internal: u16,
    /// The API for callers with a token: TLS.
    pub public: u16,
    /// The API's metrics.
    pub api_metrics: u16,
    /// The gateway: gRPC, gRPC-Web and JSON without TLS.
    pub gateway: u16,
    /// The gateway's metrics.
    pub gateway_metrics: u16,
}

/// A running system. Dropping it ends everything it started.
#[derive(Debug)]
pub struct Cluster {
    gateway: Process,
    api: Process,
    hosts: Vec<Host>,
    identity: Identity,
    ports: Ports,
    scratch: Scratch,
}

impl Cluster {
    /// Brings up a system with these hosts.
    pub fn start(plans: Vec<HostPlan>) -> Result<Self> {
        Self::start_in(plans, &mut Plain)
    }

    /// Brings up a system with these hosts, with something of the test's between and below its processes.
    pub fn start_in(plans: Vec<HostPlan>, surroundings: &mut dyn Surroundings) -> Result<Self> {
        let scratch = Scratch::new()?;
        let names: Vec<&str> = plans.iter().map(|plan| plan.name.as_str()).collect();
        let identity = Identity::create(&scratch, &names, surroundings.actions())?;

        let mut hosts = Vec::new();
        for plan in plans {
            hosts.push(start_agent(plan, &identity, &scratch, surroundings)?);
        }
        for host in &mut hosts {
            wait_port(&mut host.agent, host.port)?;
        }

        let ports = Ports {
            internal: ports::free()?,
            public: ports::free()?,
            api_metrics: ports::free()?,
            gateway: ports::free()?,
            gateway_metrics: ports::free()?,
        };
        let mut agents: Vec<(&str, u16)> = Vec::new();
        for host in &hosts {
            agents.push((host.name.as_str(), surroundings.way(Way::ToAgent, host.port)?));
        }
        let catalogue = scratch.folder("catalogue")?;
        surroundings.catalogue(&catalogue)?;
        let database = catalogue.join("snapshots.db");
        let api = config::api(&identity, &ports, &database, &agents);
        let mut api = start(&scratch, surroundings, "snapshot-api", &["serve"], &api)?;
        let internal = surroundings.way(Way::ToApi, ports.internal)?;
        let gateway = config::gateway(&identity, &Ports { internal, ..ports });
        let mut gateway = start(&scratch, surroundings, "snapshot-gateway", &[], &gateway)?;
        wait_port(&mut api, ports.internal)?;
        wait_port(&mut api, ports.public)?;
        wait_answer(&mut gateway, ports.gateway)?;
        Ok(Self { gateway, api, hosts, identity, ports, scratch })
    }

    /// Brings up a system whose hosts have a private daemon each.
    pub fn with_daemons(names: &[&str]) -> Result<Self> {
        Self::start(names.iter().map(|name| HostPlan::daemon(name)).collect::<Result<_>>()?)
    }

    /// One of its hosts.
    pub fn host(&self, name: &str) -> Result<&Host> {
        self.hosts.iter().find(|host| host.name == name).with_context(|| format!("no host {name}"))
    }

    /// One of its hosts, to act on its agent.
    pub fn host_mut(&mut self, name: &str) -> Result<&mut Host> {
        self.hosts.iter_mut().find(|host| host.name == name).with_context(|| format!("no host {name}"))
    }

    /// The API's process.
    pub fn api(&mut self) -> &mut Process {
        &mut self.api
    }

    /// Starts the API after it was stopped or killed, and waits until it takes connections.
    pub fn start_api_again(&mut self) -> Result<()> {
        self.api.start_again()?;
        wait_port(&mut self.api, self.ports.internal)?;
        wait_port(&mut self.api, self.ports.public)?;
        wait_answer(&mut self.gateway, self.ports.gateway)
    }

    /// The gateway's process.
    pub fn gateway(&mut self) -> &mut Process {
        &mut self.gateway
    }

    /// Starts the gateway after it was stopped or killed, and waits until it takes connections.
    pub fn start_gateway_again(&mut self) -> Result<()> {
        self.gateway.start_again()?;
        wait_answer(&mut self.gateway, self.ports.gateway)
    }

    /// Where the API and the gateway listen.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// The CA, and tokens.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// All of its services.
    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        self.hosts.iter().map(|host| &host.agent).chain([&self.api, &self.gateway])
    }

    /// What each process has logged so far, by its name.
    pub fn logs(&self) -> Result<Vec<(String, String)>> {
        self.processes()
            .map(|process| Ok((process.name().to_owned(), std::fs::read_to_string(process.log())?)))
            .collect()
    }

    /// Its folder: configurations, logs, the folder of the catalogue.
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// The catalogue's file, alone with its journals in a folder.
    pub fn catalogue(&self) -> PathBuf {
        self.scratch.path().join("catalogue/snapshots.db")
    }

    /// The configuration file of a host's agent.
    pub fn agent_config(&self, host: &str) -> PathBuf {
        self.scratch.path().join(format!("agent-{host}.toml"))
    }

    /// The API's configuration file.
    pub fn api_config(&self) -> PathBuf {
        self.scratch.path().join("snapshot-api.toml")
    }
}

fn start_agent(
    plan: HostPlan,
    identity: &Identity,
    scratch: &Scratch,
    surroundings: &mut dyn Surroundings,
) -> Result<Host> {
    let HostPlan { name, backend, policy, images, shared, scan_seconds, defaults } = plan;
    let (port, metrics) = (ports::free()?, ports::free()?);
    let state = scratch.folder(&format!("state-{name}"))?;
    surroundings.journal(&state)?;
    let agent = config::Agent {
        name: &name,
        port,
        metrics,
        uri: &backend.uri(),
        state: &state,
        images: &images.map_or_else(|| backend.images(), Ok)?,
        shared: shared.as_deref(),
        snapshots: &backend.snapshots(),
        scan_seconds,
        policy: &policy,
        defaults,
    };
    let text = config::agent(identity, &agent);
    let agent = start(scratch, surroundings, &format!("agent-{name}"), &[], &text)?;
    Ok(Host { name, agent, backend, port, metrics })
}

fn start(
    scratch: &Scratch,
    surroundings: &dyn Surroundings,
    name: &str,
    arguments: &[&str],
    config: &str,
) -> Result<Process> {
    let binary = if name.starts_with("agent-") { "snapshot-agent" } else { name };
    let file = scratch.path().join(format!("{name}.toml"));
    std::fs::write(&file, format!("{config}{}", config::telemetry(surroundings.collector())))?;
    let mut arguments: Vec<String> = arguments.iter().map(|&word| word.to_owned()).collect();
    arguments.extend(["--config".to_owned(), file.display().to_string()]);
    Process::start(Launch {
        name: name.to_owned(),
        program: surroundings.program(binary)?,
        arguments,
        environment: vec![("RUST_LOG".to_owned(), surroundings.level())],
        log: scratch.path().join(format!("{name}.log")),
    })
}

/// Waits until the gateway has found the API: on a busy machine its first attempt may run out of time.
fn wait_answer(gateway: &mut Process, port: u16) -> Result<()> {
    let health = format!("http://127.0.0.1:{port}/grpc.health.v1.Health/Check");
    let ask = ["-sf", "--max-time", "5", "-H", "content-type: application/json", "-d", "{}", &health];
    gateway.wait_ready(READY, || tools::run(Command::new("curl").args(ask)).is_ok())
}

fn wait_port(process: &mut Process, port: u16) -> Result<()> {
    process.wait_ready(READY, || TcpStream::connect(("127.0.0.1", port)).is_ok())
}

//! One run: the hosts, the faults, and what all of them share.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use capability::{IssuerConfig, Signer, Verifier};
use fastrand::Rng;
use proto::agent::agent_service_server::AgentServiceServer;
use snapshot_api::agents::Agent as Link;
use snapshot_api::app::App;
use snapshot_api::audit::Audit;
use snapshot_api::clock::Clock;
use snapshot_api::hosts::Hosts;
use snapshot_api::own_tokens::OwnTokens;
use snapshot_api::service::Services;
use snapshot_api::store::{Store, verify};
use snapshot_core::authority::{Action, Grant, VmSelector};
use snapshot_core::ids::{HostId, VmId};
use snapshot_core::quota::Limits;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::agent::{Agent, Disk};
use crate::chaos::Chaos;
use crate::client::Asked;
use crate::watcher::Mirror;
use crate::{client, judge, net, watcher};

pub const API: &str = "api";
/// The hosts, which are called like their agents.
pub const AGENTS: [&str; 2] = ["alpha", "beta"];
/// All who call the API are in one place.
pub const OUTSIDE: &str = "outside";
const CLIENTS: [&str; 3] = ["client-1", "client-2", "client-3"];
const MACHINES_EACH: u128 = 2;
const TICK: Duration = Duration::from_millis(20);
/// Far more than a run takes; the judge has a limit of its own.
const LONGEST: Duration = Duration::from_secs(900);
/// When the simulated time begins.
pub const EPOCH_MS: i64 = 1_800_000_000_000;

/// Who signs tokens: users, and the API its own.
struct Identity {
    verifier: Arc<Verifier>,
    users: Signer,
    /// The API's own key.
    own: PathBuf,
}

impl Identity {
    /// Makes the keys, in the folder of the run.
    fn new(folder: &Path) -> Self {
        let (key, jwks) = (folder.join("key.pem"), folder.join("jwks.json"));
        capability::generate_issuer_key(&key, &jwks, "k").unwrap();
        let users = IssuerConfig { any_vm: true, ..IssuerConfig::new("sim", jwks, Action::ALL) };
        let (own, jwks) = (folder.join("own.pem"), folder.join("own.jwks.json"));
        capability::generate_issuer_key(&own, &jwks, "k").unwrap();
        let service = IssuerConfig::new("own", jwks, Action::OF_SERVICE);
        let service = IssuerConfig { any_vm: true, service: true, ..service };
        let verifier = Arc::new(Verifier::load(vec![users, service]).unwrap());
        Self { verifier, users: Signer::load(&key, "k", "sim").unwrap(), own }
    }
}

/// What a run shares.
pub struct World {
    pub disks: Vec<Arc<Mutex<Disk>>>,
    pub asked: Mutex<Vec<Asked>>,
    pub mirror: Mutex<Mirror>,
    /// The API's clock is wrong by so many milliseconds.
    pub wrong_ms: AtomicI64,
    pub clients_left: AtomicUsize,
    /// How much the agents have in hand: requests that were read, and operations that run.
    pub in_hand: Arc<AtomicUsize>,
    /// All faults are over, since this time of the simulation.
    pub healed: Mutex<Option<Duration>>,
    /// The judge has seen enough.
    pub over: AtomicBool,
    identity: Identity,
    /// How many operations there were, and how many of them succeeded.
    pub counted: Mutex<(usize, usize)>,
    seed: u64,
}

impl World {
    /// Chance, of one part of the run: what others do does not change it.
    pub fn chance(&self, whose: &str) -> Rng {
        let salt = whose.bytes().fold(0u64, |salt, byte| salt.wrapping_mul(31).wrapping_add(byte.into()));
        Rng::with_seed(self.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ salt)
    }

    /// A token of the true time, that lives for a minute.
    pub fn token(&self) -> String {
        let grant = Grant { vm: VmSelector::Any, actions: Action::ALL.iter().copied().collect() };
        self.identity.users.mint("user", vec![grant], 60, true_ms() / 1000).unwrap()
    }

    /// A request with a token.
    pub fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("authorization", format!("Bearer {}", self.token()).parse().unwrap());
        request
    }

    /// All machines, those of one host together.
    pub fn machines() -> Vec<VmId> {
        (0..AGENTS.len()).flat_map(machines_of).collect()
    }
}

fn machines_of(host: usize) -> Vec<VmId> {
    (0..MACHINES_EACH).map(|number| VmId::from_uuid(uuid::Uuid::from_u128(host as u128 * 100 + number + 1))).collect()
}

fn true_ms() -> i64 {
    EPOCH_MS + i64::try_from(turmoil::sim_elapsed().unwrap_or_default().as_millis()).unwrap()
}

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Runs one seed to its end: how many operations there were, and how many succeeded. The error is a violation.
pub fn run(seed: u64) -> Result<(usize, usize), String> {
    let memory = tempfile::Builder::new().prefix("rs-").tempdir_in("/dev/shm");
    let folder = memory.or_else(|_| tempfile::tempdir()).unwrap();
    let world = Arc::new(World {
        disks: (0..AGENTS.len()).map(|host| Arc::new(Mutex::new(Disk::new(&machines_of(host))))).collect(),
        asked: Mutex::default(),
        mirror: Mutex::default(),
        wrong_ms: AtomicI64::new(0),
        clients_left: AtomicUsize::new(CLIENTS.len()),
        in_hand: Arc::default(),
        healed: Mutex::new(None),
        over: AtomicBool::new(false),
        identity: Identity::new(folder.path()),
        counted: Mutex::default(),
        seed,
    });
    let mut chance = world.chance("network");
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .tick_duration(TICK)
        .simulation_duration(LONGEST)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(chance.u64(5..400)))
        .tcp_capacity(4096)
        .build();
    for (number, name) in AGENTS.into_iter().enumerate() {
        let world = world.clone();
        let starts = AtomicUsize::new(0);
        sim.host(name, move || {
            let start = starts.fetch_add(1, Ordering::Relaxed);
            let chance = world.chance(&format!("{name} {start}"));
            let (disk, in_hand) = (world.disks[number].clone(), world.in_hand.clone());
            serve_agent(Agent::start(disk, world.identity.verifier.clone(), true_ms, chance, in_hand))
        });
    }
    let path = folder.path().join("catalogue.db");
    let (shared, starts, catalogue) = (world.clone(), AtomicUsize::new(0), path.clone());
    sim.host(API, move || {
        let start = starts.fetch_add(1, Ordering::Relaxed);
        serve_api(shared.clone(), catalogue.clone(), shared.chance(&format!("api {start}")))
    });
    let outside = world.clone();
    sim.client(OUTSIDE, async move {
        for name in CLIENTS {
            tokio::task::spawn_local(client::run(outside.clone(), name));
        }
        tokio::task::spawn_local(watcher::run(outside.clone()));
        judge::run(outside).await
    });
    let mut chaos = Chaos::new(world.clone());
    loop {
        chaos.act(&mut sim);
        match sim.step() {
            Ok(true) => {
                verify(&path, None).map_err(|error| format!("the audit trail: {error}"))?;
                return Ok(*world.counted.lock().unwrap());
            }
            Ok(false) => {}
            Err(violation) => return Err(violation.to_string()),
        }
    }
}

async fn serve_agent(agent: Agent) -> Outcome {
    let incoming = net::incoming().await?;
    let server = Server::builder().add_service(AgentServiceServer::new(agent));
    Ok(server.serve_with_incoming(incoming).await?)
}

/// The API's process, put together as `server` does it, but for TLS, signals and metrics.
async fn serve_api(world: Arc<World>, path: PathBuf, mut chance: Rng) -> Outcome {
    let (store, mut committer) = Store::open_detached(&path)?;
    // A disk that takes its time, and sometimes much of it.
    tokio::spawn(async move {
        loop {
            let millis = if chance.u8(..) == 0 { chance.u64(100..3000) } else { chance.u64(1..25) };
            tokio::time::sleep(Duration::from_millis(millis)).await;
            committer.commit_waiting();
        }
    });
    let shared = world.clone();
    let clock = Clock::from_fn(move || true_ms() + shared.wrong_ms.load(Ordering::Relaxed));
    let stopping = CancellationToken::new();
    // Short, so that streams are handed over in the time of a run.
    let life = Duration::from_secs(12);
    let own = Arc::new(OwnTokens::load(&world.identity.own, "k", "own", life, clock.clone())?);
    let link = |name: &str| {
        let (host, own): (HostId, _) = (name.parse().unwrap(), own.clone());
        (host.clone(), Link::new(host, net::channel(name), store.clone(), clock.clone(), own, stopping.clone()))
    };
    let hosts = Arc::new(Hosts::new(AGENTS.into_iter().map(link).collect()));
    let (audit, user_quota) = (Audit::new(store.clone(), clock.clone()), Limits::default());
    let (verifier, limits) = (world.identity.verifier.clone(), Arc::default());
    let app = App { store, hosts, verifier, limits, audit, user_quota, clock, stopping };
    for agent in app.hosts.all().values() {
        tokio::spawn(agent.clone().follow());
    }
    let services = Services::new(app);
    let routes = Routes::new(services.snapshots()).add_service(services.operations()).add_service(services.hosts());
    let incoming = net::incoming().await?;
    let server = Server::builder().http2_keepalive_interval(Some(net::KEEPALIVE)).add_routes(routes);
    Ok(server.serve_with_incoming(incoming).await?)
}

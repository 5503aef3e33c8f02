//! Callers over every way in, two watches, and what they met.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use proto::v1;
use tests::client::{Client, Grpc, VmWatch};
use tests::cluster::Cluster;
use tests::guest::Guest;
use tests::lab::key;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::replace::Pki;

/// How many callers there are, each a user.
pub(crate) const USERS: usize = 8;
/// Between two calls of one caller: the point is that there are always some under way, not how many fit.
const PAUSE: Duration = Duration::from_millis(20);
/// How long callers may take until each has made some more calls.
const PATIENCE: Duration = Duration::from_secs(120);

/// How a caller gets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// Through the gateway, on one connection.
    Gateway,
    /// Through the gateway, on a new connection for every call.
    GatewayAnew,
    /// By the API's public listener, on one connection.
    Public,
    /// By it, on a new connection for every call.
    PublicAnew,
}

/// What a caller does.
#[derive(Debug, Clone, Copy)]
enum Work {
    Read,
    /// Snapshots that are taken and deleted.
    Change,
    /// Plans, which the agent makes: a call over both inner hops each.
    Plan,
}

/// The end of the load, counted.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) calls: u64,
    pub(crate) by_way: BTreeMap<Way, u64>,
    pub(crate) failures: Vec<String>,
    events: u64,
}

impl Told {
    pub(crate) fn summary(&self) -> String {
        let Self { calls, by_way, failures, events } = self;
        format!("{calls} calls {by_way:?}, {events} events on two watches, {} failures", failures.len())
    }
}

struct Shared {
    ports: tests::cluster::Ports,
    roots: PathBuf,
    guests: [String; 2],
    /// A user each: what one user may do is bounded.
    tokens: RwLock<Vec<String>>,
    phase: Mutex<String>,
    failures: Mutex<Vec<String>>,
    events: AtomicU64,
    stop: AtomicBool,
}

impl Shared {
    fn failed(&self, what: impl Display) {
        let phase = self.phase.lock().unwrap().clone();
        self.failures.lock().unwrap().push(format!("{phase}: {what}"));
    }

    fn connect(&self, way: Way) -> Grpc {
        match way {
            Way::Gateway | Way::GatewayAnew => Grpc::plain(self.ports.gateway).unwrap(),
            Way::Public | Way::PublicAnew => Grpc::tls(self.ports.public, &self.roots).unwrap(),
        }
    }

    fn client(&self, face: &Grpc, user: usize) -> Client {
        Client::new(Box::new(face.clone()), self.token(user))
    }

    fn token(&self, user: usize) -> String {
        self.tokens.read().unwrap()[user].clone()
    }
}

struct Worker {
    way: Way,
    calls: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

pub(crate) struct Load {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
    watches: Vec<JoinHandle<()>>,
    renew_gateway_watch: mpsc::Sender<oneshot::Sender<()>>,
}

impl Load {
    pub(crate) fn start(cluster: &Cluster, pki: &Pki, guests: &[Guest], tokens: Vec<String>) -> Self {
        let shared = Arc::new(Shared {
            ports: cluster.ports(),
            roots: pki.bundle(),
            guests: [guests[0].vm(), guests[1].vm()],
            tokens: RwLock::new(tokens),
            phase: Mutex::default(),
            failures: Mutex::default(),
            events: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let plan: [_; USERS] = [
            (Way::Gateway, Work::Read),
            (Way::Gateway, Work::Read),
            (Way::Gateway, Work::Change),
            (Way::GatewayAnew, Work::Read),
            (Way::Public, Work::Read),
            (Way::Public, Work::Read),
            (Way::Public, Work::Plan),
            (Way::PublicAnew, Work::Read),
        ];
        let worker = |(user, (way, work))| {
            let calls = Arc::new(AtomicU64::new(0));
            let task = tokio::spawn(call(Arc::clone(&shared), user, way, work, Arc::clone(&calls)));
            Worker { way, calls, task }
        };
        let workers = plan.into_iter().enumerate().map(worker).collect();
        let (renew_gateway_watch, renewals) = mpsc::channel(1);
        let watches = vec![
            tokio::spawn(watch(Arc::clone(&shared), Way::Gateway, renewals)),
            tokio::spawn(watch(Arc::clone(&shared), Way::Public, mpsc::channel(1).1)),
        ];
        Self { shared, workers, watches, renew_gateway_watch }
    }

    /// Waits until every caller has made some more calls, and fails if any call has failed.
    pub(crate) async fn goes_on(&self, phase: &str) {
        phase.clone_into(&mut self.shared.phase.lock().unwrap());
        let count = |worker: &Worker| worker.calls.load(Ordering::Relaxed);
        let before: Vec<u64> = self.workers.iter().map(count).collect();
        let begun = Instant::now();
        while self.workers.iter().zip(&before).any(|(worker, before)| count(worker) < before + 8) {
            assert!(begun.elapsed() < PATIENCE, "{phase}: a caller does not come on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let failures = self.shared.failures.lock().unwrap().clone();
        assert!(failures.is_empty(), "{} failures, first {:#?}", failures.len(), &failures[..failures.len().min(10)]);
    }

    /// The watch over the gateway is opened again where it was, as a client does before its token ends.
    pub(crate) async fn renew_gateway_watch(&self) {
        let (done, renewed) = oneshot::channel();
        self.renew_gateway_watch.send(done).await.unwrap();
        renewed.await.unwrap();
    }

    /// Waits until a token is taken by the API and by the agent.
    pub(crate) async fn counts_everywhere(&self, token: &str) {
        let face = self.shared.connect(Way::Public);
        let client = Client::new(Box::new(face), token);
        let begun = Instant::now();
        while plan(&client, &self.shared.guests[1]).await.is_err() {
            assert!(begun.elapsed() < PATIENCE, "the new key does not count");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Calls carry these tokens from now on; returns when none with the others is under way.
    pub(crate) async fn switch_to(&self, tokens: Vec<String>) {
        *self.shared.tokens.write().unwrap() = tokens;
        self.goes_on("a token by the new key").await;
    }

    /// Goes on until there were so many calls, then ends.
    pub(crate) async fn finish(self, calls: u64) -> Told {
        let total = || self.workers.iter().map(|worker| worker.calls.load(Ordering::Relaxed)).sum::<u64>();
        let begun = Instant::now();
        while total() < calls && begun.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut by_way = BTreeMap::new();
        for worker in self.workers {
            worker.task.await.unwrap();
            *by_way.entry(worker.way).or_default() += worker.calls.load(Ordering::Relaxed);
        }
        // A watch that ended would have been a failure.
        self.watches.iter().for_each(JoinHandle::abort);
        let failures = self.shared.failures.lock().unwrap().clone();
        let events = self.shared.events.load(Ordering::Relaxed);
        Told { calls: by_way.values().sum(), by_way, failures, events }
    }
}

async fn call(shared: Arc<Shared>, user: usize, way: Way, work: Work, calls: Arc<AtomicU64>) {
    let mut face = shared.connect(way);
    let mut turn = 0_u32;
    let counted = |result: Result<(), String>| {
        calls.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = result {
            shared.failed(format_args!("{way:?} {work:?}: {error}"));
        }
    };
    while !shared.stop.load(Ordering::Relaxed) {
        if matches!(way, Way::GatewayAnew | Way::PublicAnew) {
            face = shared.connect(way);
        }
        turn += 1;
        let client = shared.client(&face, user);
        let [changed, planned] = &shared.guests;
        match work {
            Work::Read => counted(match turn % 3 {
                0 => client.vms().await.map(drop).map_err(|error| error.to_string()),
                1 => client.vm(changed).await.map(drop).map_err(|error| error.to_string()),
                _ => client.snapshots(changed).await.map(drop).map_err(|error| error.to_string()),
            }),
            Work::Plan => counted(plan(&client, planned).await),
            Work::Change => {
                let created = client.create(changed, "rotation", "").await;
                counted(created.as_ref().map(drop).map_err(ToString::to_string));
                let created = client.done(created).await;
                counted(created.as_ref().map(drop).map_err(|error| format!("{error:#}")));
                let Ok(created) = created else { continue };
                let deleted = client.delete(&created.snapshot, v1::DeleteScope::Only).await;
                counted(deleted.as_ref().map(drop).map_err(ToString::to_string));
                counted(client.done(deleted).await.map(drop).map_err(|error| format!("{error:#}")));
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn plan(client: &Client, vm: &str) -> Result<(), String> {
    let request = v1::CreateSnapshotRequest {
        parent: vm.to_owned(),
        snapshot: Some(v1::Snapshot { display_name: "a plan".to_owned(), ..Default::default() }),
        request_id: key(),
        validate_only: true,
        ..Default::default()
    };
    client.create_as(request).await.map(drop).map_err(|error| error.to_string())
}

async fn watch(shared: Arc<Shared>, way: Way, mut renewals: mpsc::Receiver<oneshot::Sender<()>>) {
    let open = async |resume: &str| {
        VmWatch::open(&shared.connect(way), &shared.token(0), &shared.guests[0], resume).await.unwrap()
    };
    let mut watch = open("").await;
    loop {
        let told = tokio::select! {
            told = watch.next() => told,
            Some(done) = renewals.recv() => {
                watch = open(watch.resume_token()).await;
                done.send(()).unwrap();
                continue;
            }
        };
        match told {
            Ok(_) => shared.events.fetch_add(1, Ordering::Relaxed),
            Err(error) => return shared.failed(format_args!("the watch by {way:?} ended: {error:#}")),
        };
    }
}

//! The agent as a whole: from its configuration to its end.
//!
//! 1. The keys, the certificates and the journal are read: what is wrong with them is found before anything is begun.
//! 2. The hypervisor is connected to, folders are watched, and the watch begins. Until it is reached, callers are told that it is not.
//! 3. What the journal has without an end is settled, with a bound; then the listener opens and health says SERVING,
//!    as long as the hypervisor is there.
//! 4. At the end nothing new is taken on, what is under way comes to a stop or is left to the journal, streams end, and
//!    the listener closes. Guests are left alone, whatever driver they run under.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use capability::Verifier;
use mtls::RequirePeer;
use mtls::expiry::Expiry;
use mtls::server::{Acceptor, ServerTls, incoming};
use proto::agent::agent_service_server::AgentServiceServer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use crate::clock;
use crate::config::Config;
use crate::execute::Executor;
use crate::folders::Folders;
use crate::hypervisor::Hypervisor;
use crate::journal::Journal;
use crate::locks::Locks;
use crate::machines::Machines;
use crate::owned::Owned;
use crate::service::Agent;
use crate::watch::Watch;

/// How long a step that is under way may take to end when the process is to end.
const STOP_WAIT: Duration = Duration::from_secs(60);
/// How long connections may take to close after that.
const CLOSE_WAIT: Duration = Duration::from_secs(5);
/// The most bytes of a request: the longest name and description fit in several times.
const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// A caller that is silent this long is asked whether it is there, and given up if it does not answer.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Why an agent cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on, or the journal not opened.
    #[error("{what}: {error}")]
    Io {
        /// The address or folder.
        what: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] mtls::TlsError),
    /// The issuers' keys.
    #[error(transparent)]
    Keys(#[from] capability::KeyError),
}

/// An agent that is ready to serve.
pub struct Started {
    agent: Agent,
    stopping: CancellationToken,
    listener: TcpListener,
    acceptor: Acceptor,
    health: HealthReporter,
}

/// Prepares an agent on this hypervisor, up to where it can be called.
pub async fn start(config: Config, hypervisor: Arc<dyn Hypervisor>) -> Result<Started, StartError> {
    let io = |what: String| move |error| StartError::Io { what, error };
    let verifier = Arc::new(Verifier::load(config.issuers.clone())?);
    let acceptor = Acceptor::new(ServerTls::Mutual { files: config.tls.clone(), allow: config.peers.clone() })?;
    tokio::spawn(Expiry::of(&config.tls)?.watch(clock::unix_now));
    let dir = config.journal_dir();
    let journal = Journal::open(&dir).map_err(io(dir.display().to_string()))?;
    let listener = TcpListener::bind(config.listen).await.map_err(io(config.listen.to_string()))?;

    let dir = config.owned_dir();
    let owned = Owned::open(&dir).map_err(io(dir.display().to_string()))?;
    let dir = config.journal_dir();
    let (locks, machines) = (Arc::new(Locks::new(config.max_operations)), Arc::new(Machines::remembering(owned)));
    let executor = Executor::new(
        Arc::clone(&hypervisor),
        journal,
        Arc::clone(&locks),
        Arc::clone(&machines),
        config.policy.clone(),
        config.silence(),
    );
    executor.settle().await.map_err(io(dir.display().to_string()))?;
    let stopping = CancellationToken::new();
    let folders = Folders::start(config.snapshot_dir()).await;
    let policy = config.policy.clone();
    let watch = Watch::new(hypervisor, policy, Arc::clone(&locks), Arc::clone(&machines), folders);
    tokio::spawn(watch.run(config.scan_interval(), stopping.clone()));
    let closing = CancellationToken::new();
    let agent = Agent { config: Arc::new(config), executor, locks, machines, verifier, closing };
    Ok(Started { agent, stopping, listener, acceptor, health: HealthReporter::new() })
}

impl Started {
    /// Where it listens; the port that was chosen if the configuration said 0.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Has files that are read again looked at now.
    pub fn reload(&self) -> impl Fn() + Send + use<> {
        let verifier = Arc::clone(&self.agent.verifier);
        move || {
            mtls::look_again();
            verifier.reload();
        }
    }

    /// Serves until `shutdown`. Returns whether everything under way came to an end in time.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> Result<bool, tonic::transport::Error> {
        let Self { agent, stopping, listener, acceptor, health } = self;
        tracing::info!(host = %agent.config.host, listen = %agent.config.listen, "serving");
        tokio::spawn(report_health(health.clone(), Arc::clone(&agent.machines), stopping.clone()));
        let service = AgentServiceServer::new(agent.clone()).max_decoding_message_size(MAX_REQUEST_BYTES);
        let router = Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE))
            .layer(RequirePeer::new(agent.config.peers.clone()))
            .add_service(HealthServer::new(HealthService::from_health_reporter(health.clone())))
            .add_service(service);
        let closing = agent.closing.clone();
        let close = async move { closing.cancelled().await };
        let mut serving = tokio::spawn(router.serve_with_incoming_shutdown(incoming(listener, acceptor), close));
        tokio::select! {
            () = shutdown => {}
            ended = &mut serving => {
                stopping.cancel();
                return ended.unwrap_or(Ok(())).map(|()| false);
            }
        }
        tracing::info!("stopping");
        stopping.cancel();
        set_health(&health, ServingStatus::NotServing).await;
        let in_time = agent.executor.stop(STOP_WAIT).await;
        if !in_time {
            tracing::warn!("an operation is still under way; the next start settles it");
        }
        agent.closing.cancel();
        let closed = tokio::time::timeout(CLOSE_WAIT, &mut serving).await;
        if closed.is_err() {
            serving.abort();
        }
        Ok(in_time)
    }
}

/// For the service by its name, and for those who ask without one.
async fn set_health(health: &HealthReporter, status: ServingStatus) {
    for name in ["", AgentServiceServer::<Agent>::NAME] {
        health.set_service_status(name, status).await;
    }
}

/// Health follows the hypervisor.
async fn report_health(health: HealthReporter, machines: Arc<Machines>, stopping: CancellationToken) {
    let mut synced = machines.synced();
    loop {
        let now = *synced.borrow_and_update();
        set_health(&health, if now { ServingStatus::Serving } else { ServingStatus::NotServing }).await;
        tokio::select! {
            changed = synced.changed() => if changed.is_err() { return },
            () = stopping.cancelled() => return,
        }
    }
}

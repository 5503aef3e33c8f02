//! An agent that is served, and callers of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use capability::{Signer, generate_issuer_key};
use mtls::TlsFiles;
use mtls::client::{ClientTimeouts, PeerChannel, channel};
use mtls::dev_ca::{self, Leaf};
use proto::agent::agent_service_client::AgentServiceClient;
use proto::agent::operation_event::{Ended, Event};
use proto::agent::{StartOperationRequest, StartOperationResponse, VmInventory};
use proto::convert::{Inventory, Spec};
use snapshot_agent::clock::unix_now;
use snapshot_agent::config::Config;
use snapshot_agent::hypervisor::Hypervisor;
use snapshot_agent::server;
use snapshot_core::authority::{Action, Grant, VmSelector};
use snapshot_core::ids::{OperationId, SnapshotId, VmId};
use snapshot_core::operation::{Create, Request};
use snapshot_core::text::{Description, DisplayName};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::metadata::MetadataValue;
use tonic::{Status, Streaming};
use uuid::Uuid;

use crate::directory::Directory;
use crate::guest::HOST;

const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) struct Agent {
    pub(crate) client: AgentServiceClient<PeerChannel>,
    dir: Arc<Directory>,
    port: u16,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<bool>,
}

fn files(dir: &Path, stem: &str) -> TlsFiles {
    let file = |name: String| dir.join("tls").join(name);
    TlsFiles {
        ca: file("ca.pem".to_owned()),
        certificate: file(format!("{stem}.pem")),
        key: file(format!("{stem}.key")),
        crl: None,
    }
}

impl Agent {
    pub(crate) async fn start() -> Self {
        Self::start_on(Arc::clone(&HOST.libvirt) as Arc<dyn Hypervisor>).await
    }

    pub(crate) async fn start_on(hypervisor: Arc<dyn Hypervisor>) -> Self {
        Self::start_with(hypervisor, "scan_seconds = 1").await
    }

    /// With these lines in its configuration.
    pub(crate) async fn start_with(hypervisor: Arc<dyn Hypervisor>, settings: &str) -> Self {
        // With RUST_LOG a test tells what the agent does.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let dir = Arc::new(Directory::new());
        let leaf = |stem: &str, path: &str| Leaf {
            file_stem: stem.to_owned(),
            spiffe_path: path.to_owned(),
            dns: vec![],
            ip_addrs: vec![],
        };
        let leaves = [leaf("agent", "agent/alpha"), leaf("api", "snapshot-api"), leaf("other", "gateway")];
        dev_ca::create(&dir.path().join("tls"), "example.test", &leaves, 1, false).unwrap();
        generate_issuer_key(&dir.path().join("ravada.pem"), &dir.path().join("ravada.jwks.json"), "k1").unwrap();
        Self::start_in(dir, hypervisor, settings).await
    }

    pub(crate) async fn start_in(dir: Arc<Directory>, hypervisor: Arc<dyn Hypervisor>, settings: &str) -> Self {
        let at = |name: &str| dir.path().join(name).display().to_string();
        let toml = format!(
            r#"
            host = "alpha"
            listen = "127.0.0.1:0"
            state_dir = "{state}"
            image_dirs = ["{state}"]
            peers = ["spiffe://example.test/snapshot-api"]
            {settings}
            [tls]
            ca = "{ca}"
            certificate = "{certificate}"
            key = "{key}"
            [[issuers]]
            issuer = "ravada"
            jwks = "{jwks}"
            actions = ["read", "create", "update", "revert", "delete", "purge", "force", "admin"]
            any_vm = true
            "#,
            state = at(""),
            ca = at("tls/ca.pem"),
            certificate = at("tls/agent.pem"),
            key = at("tls/agent.key"),
            jwks = at("ravada.jwks.json"),
        );
        std::fs::write(dir.path().join("agent.toml"), toml).unwrap();
        let config = Config::load(&dir.path().join("agent.toml")).unwrap();
        let started = server::start(config, hypervisor).await.unwrap();
        let port = started.local_addr().unwrap().port();
        let (stop, stopped) = oneshot::channel();
        let shutdown = async move { drop(stopped.await) };
        let serving = tokio::spawn(async move { started.serve(shutdown).await.unwrap() });
        let client = connect(dir.path(), port, "api");
        Self { client, dir, port, stop: Some(stop), serving }
    }

    pub(crate) fn connect_as(&self, stem: &str) -> AgentServiceClient<PeerChannel> {
        connect(self.dir.path(), self.port, stem)
    }

    /// Where it has what it remembers.
    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// Stops it; what it has to remember stays for the next.
    pub(crate) async fn stop(mut self) -> Arc<Directory> {
        drop(self.stop.take());
        assert!(tokio::time::timeout(DEADLINE, self.serving).await.unwrap().unwrap());
        self.dir
    }

    pub(crate) fn token(&self, grants: Vec<Grant>, age: i64) -> String {
        let signer = Signer::load(&self.dir.path().join("ravada.pem"), "k1", "ravada").unwrap();
        signer.mint_for_agents("alice", grants, 300, unix_now() - age).unwrap()
    }

    pub(crate) fn all(&self) -> String {
        let actions = Action::ALL.into_iter().filter(|action| *action != Action::Admin).collect();
        self.token(vec![Grant { vm: VmSelector::Any, actions }], 0)
    }

    /// A token of an administrator, who may do nothing to any VM.
    pub(crate) fn admin(&self) -> String {
        self.token(vec![Grant { vm: VmSelector::Any, actions: [Action::Admin].into() }], 0)
    }

    pub(crate) async fn begin(&self, spec: &Spec, token: &str) -> Result<Streaming<StartOperationResponse>, Status> {
        let request = with_token(StartOperationRequest { spec: Some(spec.into()) }, token);
        Ok(self.client.clone().start_operation(request).await?.into_inner())
    }

    /// Has it done, to the end.
    pub(crate) async fn run(&self, vm: VmId, request: Request) -> Result<Ended, Status> {
        let stream = self.begin(&spec(vm, request), &self.all()).await?;
        Ok(end(stream).await)
    }
}

fn connect(dir: &Path, port: u16, stem: &str) -> AgentServiceClient<PeerChannel> {
    let uri = format!("https://127.0.0.1:{port}");
    let expected = "spiffe://example.test/agent/alpha".parse().unwrap();
    AgentServiceClient::new(channel(&uri, files(dir, stem), expected, ClientTimeouts::default()).unwrap())
}

pub(crate) fn with_token<T>(message: T, token: &str) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    if !token.is_empty() {
        let value = MetadataValue::try_from(format!("Bearer {token}")).unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    request.metadata_mut().insert("x-request-id", MetadataValue::from_static("r-7"));
    request
}

pub(crate) fn spec(vm: VmId, request: Request) -> Spec {
    Spec { operation: OperationId::from_uuid(Uuid::now_v7()), vm, request }
}

/// The last event of a stream, whose first has to be `accepted`.
pub(crate) async fn end(mut stream: Streaming<StartOperationResponse>) -> Ended {
    let read = async {
        let mut first = true;
        while let Some(response) = stream.message().await.unwrap() {
            match response.event.and_then(|event| event.event).unwrap() {
                Event::Accepted(_) => assert!(std::mem::take(&mut first), "accepted twice"),
                Event::Progress(_) => assert!(!first),
                Event::Ended(ended) => {
                    assert!(!first);
                    assert!(stream.message().await.unwrap().is_none(), "something after the end");
                    return ended;
                }
            }
        }
        panic!("the stream ended before the operation");
    };
    tokio::time::timeout(DEADLINE, read).await.expect("in time")
}

pub(crate) fn inventory(wire: Option<VmInventory>) -> Inventory {
    wire.expect("an inventory").try_into().unwrap()
}

pub(crate) fn id() -> SnapshotId {
    SnapshotId::from_uuid(Uuid::now_v7())
}

pub(crate) fn create(id: &SnapshotId) -> Create {
    Create {
        snapshot: id.clone(),
        display_name: DisplayName::parse("before <exam> & \"after\"").unwrap(),
        description: Description::parse(" leading, and ümläut 🎓 ").unwrap(),
        protected: false,
        content: None,
        storage: None,
        quiesce: false,
        allow_crash_consistent: false,
    }
}

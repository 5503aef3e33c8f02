//! A CA with a few leaves, a service that tells its callers who it takes them for, and ways to call it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt, stream};
use mtls::client::{ClientTimeouts, PeerChannel, channel, contact_lost};
use mtls::dev_ca::{self, Leaf};
use mtls::server::{Acceptor, PeerInfo, ServerTls, incoming};
use mtls::{AllowList, RequirePeer, ServerFiles, SpiffeId, TlsFiles};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tower::Layer;

pub(crate) const DOMAIN: &str = "example.test";

/// A folder with a CA and the leaves `api`, `other`, `agent-a` and `agent-b`.
pub(crate) struct Ca {
    dir: TempDir,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let leaves = [("api", "api"), ("other", "other"), ("agent-a", "agent/a"), ("agent-b", "agent/b")]
            .map(|(stem, path)| leaf(stem, path));
        dev_ca::create(dir.path(), DOMAIN, &leaves, 30, false).unwrap();
        Self { dir }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn files(&self, stem: &str) -> TlsFiles {
        TlsFiles {
            ca: self.path("ca.pem"),
            certificate: self.path(&format!("{stem}.pem")),
            key: self.path(&format!("{stem}.key")),
            crl: Some(self.path("crl.pem")),
        }
    }

    /// As [`Ca::files`], from copies that stay as they are now.
    pub(crate) fn files_besides(&self, stem: &str) -> TlsFiles {
        let copy = |path: PathBuf| {
            let to = self.path(&format!("{}-besides", path.file_name().unwrap().to_str().unwrap()));
            std::fs::copy(&path, &to).unwrap();
            to
        };
        let TlsFiles { ca, certificate, key, crl } = self.files(stem);
        TlsFiles { ca: copy(ca), certificate: copy(certificate), key: copy(key), crl: crl.map(copy) }
    }

    /// Gives the files of one leaf a new certificate.
    pub(crate) fn reissue(&self, stem: &str, spiffe_path: &str) {
        dev_ca::issue(self.dir(), &leaf(stem, spiffe_path), 30).unwrap();
    }

    pub(crate) fn mutual(&self, stem: &str, allow: &[&str]) -> ServerTls {
        ServerTls::Mutual { files: self.files(stem), allow: list(allow) }
    }

    pub(crate) fn server_only(&self, stem: &str, http1: bool) -> ServerTls {
        let TlsFiles { certificate, key, .. } = self.files(stem);
        ServerTls::ServerOnly { files: ServerFiles { certificate, key }, http1 }
    }

    /// A client as others write it: no certificate, the server known by its host name.
    pub(crate) fn plain_client(&self, versions: &[&'static SupportedProtocolVersion], alpn: &[&str]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("ca.pem")).unwrap()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }
}

pub(crate) fn leaf(stem: &str, spiffe_path: &str) -> Leaf {
    Leaf {
        file_stem: stem.to_owned(),
        spiffe_path: spiffe_path.to_owned(),
        dns: vec!["localhost".to_owned()],
        ip_addrs: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
    }
}

pub(crate) fn id(path: &str) -> SpiffeId {
    format!("spiffe://{DOMAIN}/{path}").parse().unwrap()
}

pub(crate) fn list(paths: &[&str]) -> AllowList {
    paths.iter().map(|path| id(path)).collect()
}

/// The health service, with the caller's identity in the answer's `x-peer`.
struct Mirror;

fn answer<T>(request: &Request<HealthCheckRequest>, message: T) -> Response<T> {
    let peer = request.extensions().get::<PeerInfo>().unwrap();
    assert!(peer.remote_addr().ip().is_loopback());
    let name = peer.identity().map_or("nobody".to_owned(), ToString::to_string);
    let mut response = Response::new(message);
    response.metadata_mut().insert("x-peer", name.parse().unwrap());
    response
}

#[tonic::async_trait]
impl Health for Mirror {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(answer(&request, HealthCheckResponse { status: 1 }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// Says one word and is silent ever after.
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let first = stream::iter([Ok(HealthCheckResponse { status: 1 })]);
        Ok(answer(&request, first.chain(stream::pending()).boxed()))
    }
}

/// Serves the mirror on a port of the loopback interface for as long as the test runs.
pub(crate) async fn serve(tls: ServerTls, require: Option<AllowList>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = incoming(listener, Acceptor::new(tls).unwrap());
    let mirror = HealthServer::new(Mirror);
    match require {
        // Both around a service and around a server, because both must be possible.
        Some(allow) => {
            let layer = RequirePeer::new(allow);
            let router = Server::builder().layer(layer.clone()).add_service(layer.layer(mirror));
            tokio::spawn(router.serve_with_incoming(connections));
        }
        None => {
            tokio::spawn(Server::builder().add_service(mirror).serve_with_incoming(connections));
        }
    }
    address
}

pub(crate) fn timeouts() -> ClientTimeouts {
    ClientTimeouts {
        connect: Duration::from_secs(3),
        keepalive_interval: Duration::from_millis(200),
        keepalive_timeout: Duration::from_millis(200),
    }
}

pub(crate) fn connect(address: SocketAddr, files: TlsFiles, expected: &str) -> PeerChannel {
    channel(&format!("https://{address}"), files, id(expected), timeouts()).unwrap()
}

/// Who the server takes us for.
pub(crate) async fn whoami(channel: &PeerChannel) -> Result<String, Status> {
    let response = HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await?;
    Ok(response.metadata().get("x-peer").unwrap().to_str().unwrap().to_owned())
}

/// Asserts a refusal within the handshake: it shows as a transport error whose chain has these words. A client that is
/// refused may be about to write, and then learns only that the connection broke: it asks again.
pub(crate) async fn assert_refused(channel: &PeerChannel, words: &str) {
    let last = std::sync::Mutex::new(String::new());
    let told = eventually("no refusal with the words", || async {
        let status = whoami(channel).await.unwrap_err();
        let said = format!("{status:?}");
        assert!(contact_lost(&status), "{said}");
        let told = said.contains(words).then_some(());
        *last.lock().unwrap() = said;
        told
    });
    let told = tokio::time::timeout(Duration::from_secs(10), told).await;
    assert!(told.is_ok(), "{words}: {}", last.lock().unwrap());
}

/// Waits until the attempt succeeds.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut attempt: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(value) = attempt().await {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A raw TLS connection to the server as "localhost".
pub(crate) async fn raw(
    address: SocketAddr,
    config: ClientConfig,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), tcp).await
}

//! The service: one connection, and the token on every call.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use proto::v1::host_service_client::HostServiceClient;
use proto::v1::operation_service_client::OperationServiceClient;
use proto::v1::snapshot_service_client::SnapshotServiceClient;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};
use tower::service_fn;

use crate::failure::Failure;
use crate::settings::Settings;

const CONNECT: Duration = Duration::from_secs(10);
/// Without it a connection whose other end vanished without a word hangs for ever.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// The services, ready to be called.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) snapshots: SnapshotServiceClient<Authorized>,
    pub(crate) operations: OperationServiceClient<Authorized>,
    pub(crate) hosts: HostServiceClient<Authorized>,
}

/// A channel whose calls carry the token.
pub(crate) type Authorized = InterceptedService<Channel, Bearer>;

/// Puts the token on a call.
#[derive(Debug, Clone)]
pub(crate) struct Bearer(MetadataValue<Ascii>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// Connects.
pub(crate) async fn open(settings: &Settings) -> Result<Service, Failure> {
    let channel = connect(settings).await?;
    let mut value = MetadataValue::try_from(format!("Bearer {}", settings.token.0))
        .map_err(|_| Failure::usage("the token has characters in it that no token has"))?;
    value.set_sensitive(true);
    let authorized = InterceptedService::new(channel, Bearer(value));
    Ok(Service {
        snapshots: SnapshotServiceClient::new(authorized.clone()),
        operations: OperationServiceClient::new(authorized.clone()),
        hosts: HostServiceClient::new(authorized),
    })
}

/// A connection to the service.
async fn connect(settings: &Settings) -> Result<Channel, Failure> {
    let address = &settings.endpoint;
    let malformed = || Failure::usage(format!("{address} is not an address of the form https://HOST:PORT"));
    let uri: Uri = address.parse().map_err(|_| malformed())?;
    let host = uri.host().ok_or_else(malformed)?.trim_matches(['[', ']']).to_owned();
    let endpoint = Endpoint::from_shared(address.clone())
        .map_err(|_| malformed())?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE);
    let unreached = |error: &dyn Error| Failure::from(Status::unavailable(format!("{address}: {}", causes(error))));
    match uri.scheme_str() {
        Some("http") if is_this_machine(&host) => endpoint.connect().await.map_err(|error| unreached(&error)),
        Some("http") => Err(Failure::usage(format!("{address}: a token is sent in plain text to this machine only"))),
        Some("https") => {
            let tls = TlsConnector::from(Arc::new(trust(settings)?));
            let name = ServerName::try_from(host.clone()).map_err(|_| malformed())?;
            let port = uri.port_u16().unwrap_or(443);
            let connector = service_fn(move |_: Uri| {
                let (tls, name, host) = (tls.clone(), name.clone(), host.clone());
                async move {
                    let secured = async {
                        let tcp = TcpStream::connect((host.as_str(), port)).await?;
                        tcp.set_nodelay(true)?;
                        tls.connect(name, tcp).await
                    };
                    let connected = tokio::time::timeout(CONNECT, secured).await;
                    connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map(TokioIo::new)
                }
            });
            endpoint.connect_with_connector(connector).await.map_err(|error| unreached(&error))
        }
        _ => Err(malformed()),
    }
}

fn is_this_machine(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// TLS with the CAs that were asked for, and no certificate of our own.
fn trust(settings: &Settings) -> Result<rustls::ClientConfig, Failure> {
    let path = settings.ca.display();
    let unread = |why: &dyn std::fmt::Display| Failure::usage(format!("the CA certificates in {path}: {why}"));
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(&settings.ca).map_err(|error| unread(&error))? {
        // A system's collection may have one that this verifier does not take; what counts is whether any is left.
        roots.add(certificate.map_err(|error| unread(&error))?).ok();
    }
    if roots.is_empty() {
        return Err(unread(&"there is none"));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = config.map_err(|error| unread(&error))?.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// An error with what lies beneath it; `tonic` says no more than "transport error" at the top.
fn causes(error: &dyn Error) -> String {
    let mut last = error;
    while let Some(below) = last.source() {
        last = below;
    }
    last.to_string()
}

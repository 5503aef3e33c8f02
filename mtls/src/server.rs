//! The accepting side.
//!
//! [`incoming`] turns a listener into a stream of connections whose handshake is done, for tonic's
//! `serve_with_incoming_shutdown`; [`Acceptor::accept`] does the same for one connection, for hyper and axum. Handshakes
//! run side by side, each with a deadline, and one that fails concerns its connection only.
//!
//! Who the peer is lands in every request's extensions as [`PeerInfo`].

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use limits::{Places, network};
use rustls::ServerConfig;
use rustls::pki_types::UnixTime;
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::ClientCertVerifier as _;
use rustls::version::{TLS12, TLS13};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::files::Content;
use crate::guard::{Chain, Guarded};
use crate::reload::Reloader;
use crate::verify::{AllowedClients, provider};
use crate::{AllowList, ServerFiles, TlsError, TlsFiles};

mod io_stream;

pub use io_stream::{PeerInfo, TlsIo};

/// How long a client may take for its handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// The most handshakes under way on one listener of [`incoming`], in all and from one address.
const MAX_HANDSHAKES: usize = 512;
const HANDSHAKES_PER_ADDRESS: usize = 64;

/// How long to wait after the system refused to accept, as it does when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const H2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// How a listener speaks TLS.
#[derive(Debug, Clone)]
pub enum ServerTls {
    /// Between services: TLS 1.3, HTTP/2, a client certificate of our CA with a listed SPIFFE id.
    Mutual {
        /// The CA, and the server's certificate and key.
        files: TlsFiles,
        /// Who may connect.
        allow: AllowList,
    },
    /// Towards the public: TLS 1.2 and 1.3, no client certificate; who calls must show in the request.
    ServerOnly {
        /// The server's certificate and key.
        files: ServerFiles,
        /// Whether HTTP/1.1 is offered beside HTTP/2.
        http1: bool,
    },
}

/// Does handshakes, with the certificates that are on disk at the time. Clones share their state.
#[derive(Debug, Clone)]
pub struct Acceptor {
    sides: Arc<Reloader<Side>>,
}

/// What one set of files makes.
#[derive(Debug)]
struct Side {
    config: Arc<ServerConfig>,
    /// Whom it lets in; nobody is asked with server-only TLS.
    clients: Option<Arc<AllowedClients>>,
}

impl Acceptor {
    /// Reads the certificates. At this point a broken set is an error; later on the set from before stays in use.
    pub fn new(tls: ServerTls) -> Result<Self, TlsError> {
        let sides = match tls {
            ServerTls::Mutual { files, allow } => {
                Reloader::new(files.paths(), move |contents| mutual(contents, &allow))?
            }
            ServerTls::ServerOnly { files, http1 } => {
                let paths = vec![files.certificate, files.key];
                Reloader::new(paths, move |contents| server_only(contents, http1))?
            }
        };
        Ok(Self { sides: Arc::new(sides) })
    }

    /// Does the handshake on a connection, within [`HANDSHAKE_TIMEOUT`].
    pub async fn accept(&self, tcp: TcpStream) -> io::Result<TlsIo> {
        self.accept_within(tcp, HANDSHAKE_TIMEOUT).await
    }

    /// As [`Acceptor::accept`], within another time-out.
    pub async fn accept_within(&self, tcp: TcpStream, limit: Duration) -> io::Result<TlsIo> {
        tcp.set_nodelay(true)?;
        let remote_addr = tcp.peer_addr()?;
        let side = self.sides.current();
        let tls = timeout(limit, TlsAcceptor::from(Arc::clone(&side.config)).accept(tcp))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake took too long"))??;
        let tls = match tls.get_ref().1.peer_certificates() {
            Some(chain) if side.clients.is_some() => {
                let chain = chain.to_vec();
                Guarded::new(tls, chain, Arc::clone(&self.sides), passes)
            }
            _ => Guarded::free(tls),
        };
        TlsIo::new(tls, remote_addr)
    }
}

/// The connections of a listener, handshake done. The stream neither fails nor ends: what goes wrong with one connection
/// is logged, and when the system cannot accept it tries again. A connection is closed at once while as many handshakes of
/// its address are under way as may be, so that no address delays another.
pub fn incoming(listener: TcpListener, acceptor: Acceptor) -> impl Stream<Item = io::Result<TlsIo>> + Send {
    let slots = Places::new(MAX_HANDSHAKES, HANDSHAKES_PER_ADDRESS);
    let accepted = stream::unfold((listener, slots), |(listener, slots)| async {
        loop {
            match listener.accept().await {
                Ok((tcp, remote_addr)) => match slots.take(network(remote_addr.ip())) {
                    Some(slot) => return Some(((tcp, remote_addr, slot), (listener, slots))),
                    None => tracing::debug!(%remote_addr, "too many TLS handshakes"),
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    accepted
        .map(move |(tcp, remote_addr, slot)| {
            let acceptor = acceptor.clone();
            // A task each: the arithmetic of a handshake must not hold up the others.
            let handshake = tokio::spawn(async move {
                let _slot = slot;
                acceptor.accept(tcp).await
            });
            async move { (remote_addr, handshake.await.unwrap_or_else(|error| Err(io::Error::other(error)))) }
        })
        // As many as there are slots, and one, so that the next connection is accepted, to be closed.
        .buffer_unordered(MAX_HANDSHAKES + 1)
        .filter_map(|(remote_addr, outcome)| async move {
            match outcome {
                Ok(io) => Some(Ok(io)),
                Err(error) => {
                    tracing::info!(%remote_addr, %error, "TLS handshake failed");
                    None
                }
            }
        })
}

/// Whether a client that was let in would be let in again.
fn passes(side: &Side, chain: &Chain) -> Result<(), rustls::Error> {
    let (Some(clients), [leaf, intermediates @ ..]) = (&side.clients, chain.as_slice()) else {
        return Err(rustls::Error::NoCertificatesPresented);
    };
    clients.verify_client_cert(leaf, intermediates, UnixTime::now()).map(|_| ())
}

fn mutual(contents: &[Content<'_>], allow: &AllowList) -> Result<Side, TlsError> {
    let [certificate, key, ca, crl @ ..] = contents else { return Err(incomplete()) };
    let crls = crl.first().map(Content::crls).transpose()?.unwrap_or_default();
    let clients = Arc::new(AllowedClients::new(ca.roots()?, crls, allow.clone())?);
    let verifier = Arc::clone(&clients);
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificate.certificates()?, key.private_key()?)?;
    config.alpn_protocols = vec![H2.to_vec()];
    // A resumed session would carry on an identity that was verified against an older CA or an earlier date.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Side { config: Arc::new(config), clients: Some(clients) })
}

fn server_only(contents: &[Content<'_>], http1: bool) -> Result<Side, TlsError> {
    let [certificate, key] = contents else { return Err(incomplete()) };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_no_client_auth()
        .with_single_cert(certificate.certificates()?, key.private_key()?)?;
    config.alpn_protocols = if http1 { vec![H2.to_vec(), HTTP1.to_vec()] } else { vec![H2.to_vec()] };
    Ok(Side { config: Arc::new(config), clients: None })
}

fn incomplete() -> TlsError {
    TlsError::Mismatch(rustls::Error::General("a file is missing from the set".to_owned()))
}

//! The calling side: a channel to one peer.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::version::TLS13;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::Endpoint;
use tonic::{Code, Status};
use tower::service_fn;

use crate::expiry::time_left;
use crate::files::Content;
use crate::guard::{Chain, Guarded};
use crate::reload::Reloader;
use crate::verify::{ExpectedServer, provider};
use crate::{SpiffeId, TlsError, TlsFiles};

mod peer_channel;

use peer_channel::Due;
pub use peer_channel::PeerChannel;

const H2: &[u8] = b"h2";

/// How long a channel waits for signs of life. Deadlines of calls are the callers' business.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientTimeouts {
    /// For the TCP connection and the TLS handshake together.
    pub connect: Duration,
    /// How often the peer is asked whether it is still there. It is asked while the channel is idle, too: without this
    /// a channel whose peer vanished without a word hangs forever.
    pub keepalive_interval: Duration,
    /// How long it may take to answer that.
    pub keepalive_timeout: Duration,
}

impl Default for ClientTimeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(3),
            keepalive_interval: Duration::from_secs(5),
            keepalive_timeout: Duration::from_secs(5),
        }
    }
}

/// A channel to the server `expected` at `uri` (`https://host:port`), over TLS 1.3 with our certificate.
///
/// It connects when it is first used and again whenever the connection was lost, each time with the certificates that
/// are on disk then; calls made while it cannot connect fail at once. When the files change it moves to a new connection
/// without losing a call. The server must have a certificate of our CA with exactly this SPIFFE id; its host name does not
/// matter. There is no way to do without TLS. Must be called inside a tokio runtime.
pub fn channel(
    uri: &str,
    files: TlsFiles,
    expected: SpiffeId,
    timeouts: ClientTimeouts,
) -> Result<PeerChannel, TlsError> {
    let malformed = || TlsError::Uri { uri: uri.to_owned() };
    let target = Target::parse(uri).ok_or_else(malformed)?;
    let endpoint = Endpoint::from_shared(uri.to_owned())
        .map_err(|_| malformed())?
        .http2_keep_alive_interval(timeouts.keepalive_interval)
        .keep_alive_timeout(timeouts.keepalive_timeout)
        .keep_alive_while_idle(true);
    let sides = Arc::new(Reloader::new(files.paths(), move |contents| side(contents, &expected))?);
    let due = Arc::new(Due::default());
    let (connecting, age) = (Arc::clone(&sides), Arc::clone(&due));
    let connector = service_fn(move |_: Uri| {
        let (target, sides, age) = (target.clone(), Arc::clone(&connecting), Arc::clone(&age));
        Box::pin(async move {
            // Endpoint has a time-out for this, but calls then fail as UNKNOWN: it sits outside of what tonic takes for
            // an error of connecting, which is UNAVAILABLE.
            let connected = timeout(timeouts.connect, target.connect(&sides, &age)).await;
            connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map(TokioIo::new)
        })
    });
    let first = endpoint.connect_with_connector_lazy(connector.clone());
    let make = move || {
        let (endpoint, connector) = (endpoint.clone(), connector.clone());
        async move { endpoint.connect_with_connector(connector).await }
    };
    Ok(peer_channel::renewing(first, sides, due, make))
}

/// Whether a call failed because there was no talking to the peer, rather than by the peer's own answer.
///
/// tonic gives calls that a broken connection took down, and those of a client whose certificate was refused (with TLS
/// 1.3 it learns of that after its handshake), the code UNKNOWN, and those that were about to go out on it CANCELLED. What
/// tells them from a peer's own is the error behind them, which a status that came over the wire never has.
pub fn contact_lost(status: &Status) -> bool {
    let code = matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled);
    code && status.source().is_some()
}

#[derive(Debug, Clone)]
struct Target {
    host: String,
    port: u16,
    name: ServerName<'static>,
}

impl Target {
    fn parse(uri: &str) -> Option<Self> {
        let uri: Uri = uri.parse().ok()?;
        if uri.scheme_str() != Some("https") || !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return None;
        }
        // An IPv6 address is in brackets in a URI, and nowhere else.
        let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host.clone()).ok()?;
        Some(Self { host, port: uri.port_u16()?, name })
    }

    async fn connect(&self, sides: &Arc<Reloader<Side>>, due: &Due) -> io::Result<Guarded<TlsStream<TcpStream>>> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        tcp.set_nodelay(true)?;
        let config = Arc::clone(&sides.current().config);
        let tls = TlsConnector::from(config).connect(self.name.clone(), tcp).await?;
        let session = tls.get_ref().1;
        if session.alpn_protocol() != Some(H2) {
            return Err(io::Error::other("the server does not speak HTTP/2"));
        }
        let chain = session.peer_certificates().map(<[_]>::to_vec).unwrap_or_default();
        if let Some(left) = chain.first().and_then(time_left) {
            due.connected(left);
        }
        Ok(Guarded::new(tls, chain, Arc::clone(sides), passes))
    }
}

/// What one set of files makes.
#[derive(Debug)]
struct Side {
    config: Arc<ClientConfig>,
    server: Arc<ExpectedServer>,
    name: ServerName<'static>,
}

/// Whether a server that was accepted would be accepted again.
fn passes(side: &Side, chain: &Chain) -> Result<(), rustls::Error> {
    let [leaf, intermediates @ ..] = chain.as_slice() else { return Err(rustls::Error::NoCertificatesPresented) };
    side.server.verify_server_cert(leaf, intermediates, &side.name, &[], UnixTime::now()).map(|_| ())
}

fn side(contents: &[Content<'_>], expected: &SpiffeId) -> Result<Side, TlsError> {
    let [certificate, key, ca, crl @ ..] = contents else {
        return Err(TlsError::Mismatch(rustls::Error::General("a file is missing from the set".to_owned())));
    };
    let crls = crl.first().map(Content::crls).transpose()?.unwrap_or_default();
    let server = Arc::new(ExpectedServer::new(ca.roots()?, crls, expected.clone())?);
    let verifier = Arc::clone(&server);
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(certificate.certificates()?, key.private_key()?)?;
    config.alpn_protocols = vec![H2.to_vec()];
    // Every connection shows and checks certificates: connections are few and live long.
    config.resumption = Resumption::disabled();
    // The verifier does not look at it: who is meant is told by the SPIFFE id.
    let name = ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
    Ok(Side { config: Arc::new(config), server, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_with_a_port_is_an_address() {
        let parsed = |uri| Target::parse(uri).map(|target| (target.host, target.port));
        assert_eq!(parsed("https://host-1.example.test:7443"), Some(("host-1.example.test".to_owned(), 7443)));
        assert_eq!(parsed("https://[::1]:7443"), Some(("::1".to_owned(), 7443)));
        assert_eq!(parsed("https://10.0.0.1:7443/"), Some(("10.0.0.1".to_owned(), 7443)));
        for other in ["", "host:7443", "http://host:7443", "https://host", "https://host:7443/x", "https://:7443"] {
            assert!(parsed(other).is_none(), "{other}");
        }
    }
}

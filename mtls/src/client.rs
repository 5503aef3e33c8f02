//! The calling side: a channel to one peer.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::version::TLS13;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tower::service_fn;

use crate::files::Content;
use crate::reload::Reloader;
use crate::verify::{ExpectedServer, provider};
use crate::{SpiffeId, TlsError, TlsFiles};

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
/// are on disk then; calls made while it cannot connect fail at once. The server must have a certificate of our CA with
/// exactly this SPIFFE id; its host name does not matter. There is no way to do without TLS.
pub fn channel(uri: &str, files: TlsFiles, expected: SpiffeId, timeouts: ClientTimeouts) -> Result<Channel, TlsError> {
    let malformed = || TlsError::Uri { uri: uri.to_owned() };
    let target = Target::parse(uri).ok_or_else(malformed)?;
    let endpoint = Endpoint::from_shared(uri.to_owned())
        .map_err(|_| malformed())?
        .http2_keep_alive_interval(timeouts.keepalive_interval)
        .keep_alive_timeout(timeouts.keepalive_timeout)
        .keep_alive_while_idle(true);
    let paths = vec![files.certificate, files.key, files.ca];
    let configs = Arc::new(Reloader::new(paths, move |contents| config(contents, &expected))?);
    Ok(endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| {
        let (target, configs) = (target.clone(), Arc::clone(&configs));
        async move {
            // Endpoint has a time-out for this, but calls then fail as UNKNOWN: it sits outside of what tonic takes for
            // an error of connecting, which is UNAVAILABLE.
            let connected = timeout(timeouts.connect, target.connect(configs.current())).await;
            connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map(TokioIo::new)
        }
    })))
}

/// Whether a call failed because there was no talking to the peer, rather than by the peer's own answer.
///
/// tonic gives calls that a broken connection took down, and those of a client whose certificate was refused (with TLS
/// 1.3 it learns of that after its handshake), the code UNKNOWN. What tells them from a peer's UNKNOWN is the error
/// behind them, which a status that came over the wire never has.
pub fn contact_lost(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal) && status.source().is_some()
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

    async fn connect(&self, config: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await?;
        tcp.set_nodelay(true)?;
        let tls = TlsConnector::from(config).connect(self.name.clone(), tcp).await?;
        if tls.get_ref().1.alpn_protocol() != Some(H2) {
            return Err(io::Error::other("the server does not speak HTTP/2"));
        }
        Ok(tls)
    }
}

fn config(contents: &[Content<'_>], expected: &SpiffeId) -> Result<ClientConfig, TlsError> {
    let [certificate, key, ca] = contents else {
        return Err(TlsError::Mismatch(rustls::Error::General("a file is missing from the set".to_owned())));
    };
    let server = ExpectedServer::new(ca.roots()?, expected.clone());
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(server))
        .with_client_auth_cert(certificate.certificates()?, key.private_key()?)?;
    config.alpn_protocols = vec![H2.to_vec()];
    // Every connection shows and checks certificates: connections are few and live long.
    config.resumption = Resumption::disabled();
    Ok(config)
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

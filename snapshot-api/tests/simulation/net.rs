//! gRPC over the simulated network, without TLS: it would bring its own clock and its own chance.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;
use turmoil::net::{TcpListener, TcpStream};

/// Everybody listens here; each has an address of its own.
pub const PORT: u16 = 7000;

/// A channel to a host by its name, with the times that `mtls::client` has.
pub fn channel(host: &str) -> Channel {
    let times = mtls::client::ClientTimeouts::default();
    let endpoint = Endpoint::from_shared(format!("http://{host}:{PORT}")).unwrap();
    let endpoint = endpoint
        .http2_keep_alive_interval(times.keepalive_interval)
        .keep_alive_timeout(times.keepalive_timeout)
        .keep_alive_while_idle(true);
    let host = host.to_owned();
    endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| {
        let host = host.clone();
        async move {
            let connected = tokio::time::timeout(times.connect, TcpStream::connect((host.as_str(), PORT))).await;
            connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map(TokioIo::new)
        }
    }))
}

/// How often a server asks whether a client is still there, as the API's server does.
pub const KEEPALIVE: Duration = Duration::from_secs(20);

/// The connections that come in.
pub async fn incoming() -> io::Result<impl Stream<Item = io::Result<Connection>>> {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    Ok(futures_util::stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(stream, _)| Connection(stream));
        Some((accepted, listener))
    }))
}

/// A connection as tonic's server takes it.
pub struct Connection(TcpStream);

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

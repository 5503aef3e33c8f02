//! The listener: accepts, finds slots, does handshakes, and ends what is open when the service stops.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use limits::FORGET_EVERY;
use mtls::server::{Acceptor, TlsIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::util::MapRequest;
use tower::{Service, ServiceExt};

use crate::connection::{self, Connection};
use crate::notices::{Limit, Notices};
use crate::slots::Slots;
use crate::{BoxError, Received, Settings};

/// How long to wait after the system refused to accept, as it does when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long connections may take to end beyond the time that their calls have.
const CLOSE: Duration = Duration::from_secs(1);
/// How often the other side of an HTTP/2 connection is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Bytes and number of the headers of a request.
const HEAD_BYTES: u32 = 32 * 1024;
const HEADERS: usize = 64;
/// Bytes of request bodies that a client may send ahead, of one request and of one connection. A request has no more.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// Serves connections of a listener, in plain text or with TLS, until `stopping` is cancelled, and then until their calls
/// have ended, for at most [`Settings::drain`]. Every request has its [`Connection`] in its extensions, and with TLS
/// `mtls::server::PeerInfo`.
pub async fn serve<S, B>(
    listener: TcpListener,
    acceptor: Option<Acceptor>,
    settings: Settings,
    service: S,
    stopping: CancellationToken,
) where
    S: Service<Request<Received>, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let notices = Arc::new(Notices::default());
    let port = Arc::new(Port {
        slots: Slots::new(&settings, Arc::clone(&notices)),
        builder: builder(&settings),
        settings: Arc::new(settings),
        notices,
        acceptor,
        stopping,
    });
    let tasks = TaskTracker::new();
    let mut forget = tokio::time::interval(FORGET_EVERY);
    loop {
        tokio::select! {
            () = port.stopping.cancelled() => break,
            _ = forget.tick() => {
                port.slots.forget_quiet();
                port.notices.forget_quiet();
            }
            accepted = listener.accept() => match accepted {
                Ok((tcp, peer)) => {
                    tasks.spawn(Arc::clone(&port).connection(tcp, peer, service.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    tasks.close();
    if timeout(port.settings.drain + CLOSE, tasks.wait()).await.is_err() {
        tracing::warn!(connections = tasks.len(), "stopped with calls under way");
    }
}

struct Port {
    slots: Slots,
    builder: Builder<TokioExecutor>,
    settings: Arc<Settings>,
    notices: Arc<Notices>,
    acceptor: Option<Acceptor>,
    stopping: CancellationToken,
}

impl Port {
    async fn connection<S, B>(self: Arc<Self>, tcp: TcpStream, peer: SocketAddr, service: S)
    where
        S: Service<Request<Received>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let Some(slot) = self.slots.connect(peer.ip()) else { return };
        let _open = Open::new();
        let connection = Connection::new(peer, slot.over_limit, Arc::clone(&self.settings));
        let (builder, notices, stopping) = (&self.builder, Arc::clone(&self.notices), &self.stopping);
        match &self.acceptor {
            None => match tcp.set_nodelay(true) {
                Ok(()) => connection::run(tcp, connection, builder, service, notices, stopping).await,
                Err(error) => tracing::debug!(%peer, %error, "a connection was lost at once"),
            },
            Some(acceptor) => {
                let handshake = tokio::select! {
                    done = timeout(self.settings.handshake, self.handshake(acceptor, tcp, peer)) => done,
                    () = self.stopping.cancelled() => return,
                };
                match handshake {
                    Ok(Ok(tls)) => {
                        let info = tls.peer_info().clone();
                        let service: MapRequest<S, _> = service.map_request(move |mut request: Request<Received>| {
                            request.extensions_mut().insert(info.clone());
                            request
                        });
                        connection::run(tls, connection, builder, service, notices, stopping).await;
                    }
                    Ok(Err(error)) if error.kind() != ErrorKind::TimedOut => {
                        tracing::debug!(%peer, %error, "a TLS handshake failed")
                    }
                    _ => self.notices.reached(Limit::Handshake, peer.ip(), self.settings.handshake.as_secs()),
                }
            }
        }
    }

    /// The handshake, in a slot from the first byte on.
    async fn handshake(&self, acceptor: &Acceptor, tcp: TcpStream, peer: SocketAddr) -> std::io::Result<TlsIo> {
        // `readable` may be told without a byte.
        tcp.peek(&mut [0]).await?;
        let _slot = self.slots.handshake(peer.ip()).await;
        acceptor.accept_within(tcp, self.settings.handshake).await
    }
}

/// Counts an open connection until it is dropped.
struct Open;

impl Open {
    fn new() -> Self {
        metrics::gauge!("snapshot_port_connections").increment(1);
        Self
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        metrics::gauge!("snapshot_port_connections").decrement(1);
    }
}

fn builder(settings: &Settings) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    if !settings.http1 {
        builder = builder.http2_only();
    }
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(settings.receive)
        .max_headers(HEADERS)
        .max_buf_size(usize::try_from(HEAD_BYTES).unwrap_or(usize::MAX));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(settings.streams_per_connection)
        .max_header_list_size(HEAD_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(settings.receive.min(KEEP_ALIVE));
    builder
}

//! The listener: connections, TLS, and how long any of them may take.
//!
//! A connection must begin its first call within `receive_seconds` and is closed after `idle_seconds` without one, so
//! that one which says nothing, or says it a byte at a time, costs little. On a stop no connection is taken any more,
//! streams end at once with an error that says to come back, and calls have `drain_seconds` to end.

use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Method, Request};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use limits::FORGET_EVERY;
use mtls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tower::{Layer, Service, ServiceExt};
use tower_http::cors::CorsLayer;

use crate::config::{Config, Limits};
use crate::edge::Gateway;
use crate::upstream::BoxError;

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const HEAD_BYTES: usize = 32 * 1024;
const HEADERS: usize = 64;
const PREFLIGHT_AGE: Duration = Duration::from_secs(2 * 60 * 60);

/// Serves the gateway on a listener until `stopping` is cancelled, and then until its calls have ended.
pub async fn serve(
    listener: TcpListener,
    acceptor: Option<Acceptor>,
    config: &Config,
    gateway: Gateway,
    stopping: CancellationToken,
) {
    let server = Arc::new(Server {
        builder: builder(&config.limits),
        cors: cors(&config.allowed_origins),
        limits: config.limits.clone(),
        acceptor,
        gateway,
        stopping,
    });
    let tasks = TaskTracker::new();
    let mut forget = tokio::time::interval(FORGET_EVERY);
    loop {
        tokio::select! {
            () = server.stopping.cancelled() => break,
            _ = forget.tick() => server.gateway.limiter().forget_quiet(),
            accepted = listener.accept() => match accepted {
                Ok((tcp, peer)) => {
                    tasks.spawn(Arc::clone(&server).connection(tcp, peer));
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
    if timeout(server.limits.drain() + CLOSE_TIMEOUT, tasks.wait()).await.is_err() {
        tracing::warn!(connections = tasks.len(), "stopped with calls under way");
    }
}

struct Server {
    builder: Builder<TokioExecutor>,
    cors: Option<CorsLayer>,
    limits: Limits,
    acceptor: Option<Acceptor>,
    gateway: Gateway,
    stopping: CancellationToken,
}

impl Server {
    async fn connection(self: Arc<Self>, tcp: TcpStream, peer: SocketAddr) {
        let Some(_place) = self.gateway.limiter().connect(peer.ip()) else {
            tracing::debug!(%peer, "too many connections");
            return;
        };
        metrics::gauge!("snapshot_gateway_connections").increment(1);
        match &self.acceptor {
            None => match tcp.set_nodelay(true) {
                Ok(()) => self.http(tcp, peer.ip()).await,
                Err(error) => tracing::debug!(%peer, %error, "a connection was lost at once"),
            },
            Some(acceptor) => match acceptor.accept(tcp).await {
                Ok(tls) => self.http(tls, peer.ip()).await,
                Err(error) => tracing::debug!(%peer, %error, "a TLS handshake failed"),
            },
        }
        metrics::gauge!("snapshot_gateway_connections").decrement(1);
    }

    async fn http<I: AsyncRead + AsyncWrite + Unpin + Send + 'static>(&self, io: I, peer: IpAddr) {
        let (active, mut idle) = watch::channel(0_usize);
        let gateway = self.gateway.clone();
        let inner = tower::service_fn(move |request| gateway.clone().answer(peer, request));
        let service = match &self.cors {
            None => inner.boxed_clone(),
            Some(cors) => cors.layer(inner).boxed_clone(),
        };
        let service = service_fn(move |request: Request<Incoming>| {
            let (mut service, busy) = (service.clone(), Busy::new(active.clone()));
            async move { service.call(request).await.map(|response| response.map(|body| Held { body, _busy: busy })) }
        });
        let mut connection = pin!(self.builder.serve_connection(TokioIo::new(io), service));
        let grace = tokio::select! {
            ended = connection.as_mut() => return log_end(ended),
            () = self.stopping.cancelled() => self.limits.drain(),
            () = unused(&mut idle, self.limits.receive(), self.limits.idle()) => CLOSE_TIMEOUT,
        };
        connection.as_mut().graceful_shutdown();
        if let Ok(ended) = timeout(grace, connection).await {
            log_end(ended);
        }
    }
}

fn log_end(ended: Result<(), BoxError>) {
    if let Err(error) = ended {
        tracing::debug!(error, "a connection ended");
    }
}

/// Returns once nothing has been going on for too long: `first` before the first call, `later` after it.
async fn unused(active: &mut watch::Receiver<usize>, first: Duration, later: Duration) {
    let mut limit = first;
    loop {
        let busy = *active.borrow_and_update() > 0;
        let changed = if busy { Ok(active.changed().await) } else { timeout(limit, active.changed()).await };
        match changed {
            Err(_) => return,
            // The connection itself holds the other end; when that is gone there is nothing to wait for.
            Ok(Err(_)) => return,
            Ok(Ok(())) => limit = later,
        }
    }
}

/// Counts as a call under way until it is dropped.
struct Busy(watch::Sender<usize>);

impl Busy {
    fn new(active: watch::Sender<usize>) -> Self {
        active.send_modify(|count| *count += 1);
        Self(active)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// A body that keeps its connection busy until it has been sent.
struct Held {
    body: Body,
    _busy: Busy,
}

impl http_body::Body for Held {
    type Data = bytes::Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn builder(limits: &Limits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.receive())
        .max_headers(HEADERS)
        .max_buf_size(HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.calls_per_connection)
        .max_header_list_size(u32::try_from(HEAD_BYTES).unwrap_or(u32::MAX))
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(limits.receive());
    builder
}

/// Lets pages of the named origins call, and none when there is no name. Tokens are in a header and never in a cookie,
/// so no credentials are allowed.
fn cors(origins: &[String]) -> Option<CorsLayer> {
    let origins: Vec<_> = origins.iter().filter_map(|origin| HeaderValue::try_from(origin.as_str()).ok()).collect();
    if origins.is_empty() {
        return None;
    }
    let name = HeaderName::from_static;
    let layer = CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::POST])
        .allow_headers([
            AUTHORIZATION,
            CONTENT_TYPE,
            name("connect-protocol-version"),
            name("connect-timeout-ms"),
            name("grpc-timeout"),
            name("traceparent"),
            name("x-grpc-web"),
            name("x-request-id"),
            name("x-user-agent"),
        ])
        .expose_headers([
            name("grpc-message"),
            name("grpc-status"),
            name("grpc-status-details-bin"),
            name("retry-after"),
            name("x-request-id"),
        ])
        .max_age(PREFLIGHT_AGE);
    Some(layer)
}

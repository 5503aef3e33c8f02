//! The life of one connection, from its first byte to its end.
//!
//! It must begin its first call within `receive`, and is asked to go after `idle` without calls, at its maximum age, and
//! when the service stops: GOAWAY in HTTP/2, `connection: close` in HTTP/1. Calls that are under way go on meanwhile:
//! until the end of the grace at the maximum age, for `drain` at a stop. A connection without calls is not waited for.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt};

use crate::guarded_io::GuardedIo;
use crate::notices::{Limit, Notices};
use crate::received::Received;
use crate::unread::{Answer, Unread};
use crate::{BoxError, Settings};

/// How long a connection without calls may take to end when the service stops.
const QUIET: Duration = Duration::from_secs(2);
/// How long a connection beyond a limit may take for its only request, at most.
const SPARE_RECEIVE: Duration = Duration::from_secs(5);
/// How long an answer may stay unread before its connection ends.
const UNREAD: Duration = Duration::from_secs(30);
/// How long calls go on after their connection has reached its maximum age: longer than a token lives (15 min), with
/// which every call ends.
const AGE_GRACE: Duration = Duration::from_secs(16 * 60);

/// The connection that a request came by; in the extensions of every request.
#[derive(Debug, Clone)]
pub struct Connection {
    peer: SocketAddr,
    over_limit: Option<Limit>,
    settings: Arc<Settings>,
}

impl Connection {
    pub(crate) fn new(peer: SocketAddr, over_limit: Option<Limit>, settings: Arc<Settings>) -> Self {
        Self { peer, over_limit, settings }
    }

    /// The address at its other end, which may be a proxy's.
    pub fn peer(&self) -> IpAddr {
        self.peer.ip()
    }

    /// The limit that the connection is beyond. Its requests are to be refused, unless they ask for the service's health.
    pub fn over_limit(&self) -> Option<Limit> {
        self.over_limit
    }

    /// The address of the client: the peer's, or what a trusted proxy names.
    pub fn client(&self, headers: &HeaderMap) -> IpAddr {
        self.settings.trusted_proxies.client(self.peer.ip(), headers)
    }
}

/// Why a connection is asked to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    Unused,
    Age,
    Stop,
}

/// Serves one connection until its end.
pub(crate) async fn run<I, S, B>(
    io: I,
    connection: Connection,
    builder: &Builder<TokioExecutor>,
    service: S,
    notices: Arc<Notices>,
    stopping: &CancellationToken,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Received>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let settings = Arc::clone(&connection.settings);
    let io = GuardedIo::new(io, connection.peer(), &settings, Arc::clone(&notices));
    let (active, mut idle) = watch::channel(0_usize);
    let (first, later) = match connection.over_limit {
        Some(_) => (settings.receive.min(SPARE_RECEIVE), Duration::ZERO),
        None => (settings.receive, settings.idle),
    };
    let receive = settings.receive;
    let unread = Arc::new(Unread::default());
    let (answers, told, peer) = (Arc::clone(&unread), Arc::clone(&notices), connection.peer());
    let mut unread = pin!(unread.for_too_long(UNREAD));
    let service = service_fn(move |request: Request<Incoming>| {
        let (service, busy, unread) = (service.clone(), Busy::new(active.clone()), Arc::clone(&answers));
        let mut request = request.map(|body| Received::new(body, receive, connection.peer(), Arc::clone(&notices)));
        request.extensions_mut().insert(connection.clone());
        async move {
            let answer = service.oneshot(request).await;
            answer.map(|answer| answer.map(|body| Held { body: Box::pin(body), answer: unread.answer(), _busy: busy }))
        }
    });
    let mut served = pin!(builder.serve_connection(TokioIo::new(io), service));
    let mut leave = tokio::select! {
        ended = served.as_mut() => return log_end(ended),
        () = stopping.cancelled() => Leave::Stop,
        () = unused(&mut idle, first, later) => Leave::Unused,
        () = sleep(jittered(settings.age)) => Leave::Age,
        () = unread.as_mut() => return told.reached(Limit::Answer, peer, UNREAD.as_secs()),
    };
    served.as_mut().graceful_shutdown();
    loop {
        let grace = match leave {
            // A call may have crossed the GOAWAY of a connection that had none.
            Leave::Unused | Leave::Age => AGE_GRACE,
            Leave::Stop => settings.drain,
        };
        // What an answer had was given to hyper whole, which may still be sending it.
        let sending = if leave == Leave::Stop { QUIET } else { settings.receive };
        tokio::select! {
            ended = served.as_mut() => return log_end(ended),
            () = unused(&mut idle, sending, sending) => return,
            () = unread.as_mut() => return told.reached(Limit::Answer, peer, UNREAD.as_secs()),
            () = sleep(grace) => {
                tracing::debug!(?leave, "a connection was closed with calls under way");
                return;
            }
            () = stopping.cancelled(), if leave != Leave::Stop => leave = Leave::Stop,
        }
    }
}

fn log_end(ended: Result<(), BoxError>) {
    if let Err(error) = ended {
        tracing::debug!(error, "a connection ended");
    }
}

/// Up to a tenth less.
fn jittered(age: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(()) % 100;
    age - age / 1000 * u32::try_from(random).unwrap_or(0)
}

/// Returns once nothing has been going on for too long: `first` before the first call, `later` after it.
async fn unused(active: &mut watch::Receiver<usize>, first: Duration, later: Duration) {
    let mut limit = first;
    loop {
        let busy = *active.borrow_and_update() > 0;
        let changed = if busy { Ok(active.changed().await) } else { timeout(limit, active.changed()).await };
        match changed {
            // The connection itself holds the other end; when that is gone there is nothing to wait for.
            Err(_) | Ok(Err(_)) => return,
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
struct Held<B> {
    body: Pin<Box<B>>,
    answer: Answer,
    _busy: Busy,
}

impl<B: Body> Body for Held<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.answer.is_read();
        let frame = self.body.as_mut().poll_frame(cx);
        if matches!(frame, Poll::Ready(Some(Ok(_)))) {
            self.answer.has_more();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

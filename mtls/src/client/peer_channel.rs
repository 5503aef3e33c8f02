//! A channel that moves to a new connection without losing a call.
//!
//! A connection shows the certificates of the day it was made. When ours change, or the peer's grows old, a second
//! connection is made first; new calls then go there, and the old one closes when its last call has ended. Nothing is
//! closed under a call, and as long as the second one cannot be made the first stays.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tonic::body::Body;
use tonic::transport::channel::ResponseFuture;
use tonic::transport::{Channel, Error};
use tower::Service;

use crate::reload::{LOOK_INTERVAL, Reloader};

/// The soonest that a connection is replaced for its peer's certificate alone.
const SOONEST: Duration = Duration::from_secs(60);

/// A gRPC channel to one peer. Clones share its connections.
#[derive(Debug, Clone)]
pub struct PeerChannel {
    channel: Channel,
    channels: watch::Receiver<Channel>,
}

impl PeerChannel {
    /// Ends when calls go over another connection than they do now. Whoever has a stream open that never ends by itself opens
    /// it again then: on the old connection it would be cut when the certificates there stop to count.
    pub fn renewal(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut channels = self.channels.clone();
        channels.mark_unchanged();
        async move {
            if channels.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// A channel that is never renewed: for what has no certificates, such as a simulated network.
impl From<Channel> for PeerChannel {
    fn from(channel: Channel) -> Self {
        let (_, channels) = watch::channel(channel.clone());
        Self { channel, channels }
    }
}

impl Service<Request<Body>> for PeerChannel {
    type Response = Response<Body>;
    type Error = Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if self.channels.has_changed().unwrap_or(false) {
            self.channel = self.channels.borrow_and_update().clone();
        }
        self.channel.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> ResponseFuture {
        self.channel.call(request)
    }
}

/// When the connection that was made last should be replaced for the peer's certificate: with two thirds of its time gone.
/// By then a peer that is looked after shows a new one.
#[derive(Debug, Default)]
pub(super) struct Due(Mutex<Option<Instant>>);

impl Due {
    /// A connection was made, to a peer whose certificate is good for this long.
    pub(super) fn connected(&self, left: Duration) {
        let due = Instant::now() + (left * 2 / 3).max(SOONEST);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(due);
    }

    fn has_come(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|due| due <= Instant::now())
    }
}

/// A channel that begins with `first`. A task makes the next ones, until nobody has the channel any more.
pub(super) fn renewing<T, M, F>(first: Channel, configs: Arc<Reloader<T>>, due: Arc<Due>, make: M) -> PeerChannel
where
    T: Send + Sync + 'static,
    M: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = Result<Channel, Error>> + Send,
{
    let (sender, channels) = watch::channel(first.clone());
    let mut used = configs.current();
    tokio::spawn(async move {
        while !sender.is_closed() {
            sleep(LOOK_INTERVAL).await;
            let now = configs.current();
            if Arc::ptr_eq(&now, &used) && !due.has_come() {
                continue;
            }
            match make().await {
                Ok(channel) => {
                    sender.send_replace(channel);
                    used = now;
                }
                Err(error) => tracing::debug!(%error, "no new connection yet; the one from before stays"),
            }
        }
    });
    PeerChannel { channel: first, channels }
}

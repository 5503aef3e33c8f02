//! The public listener has no gateway in front of it: requests are counted by the address they come from, before anything
//! else is done for them, unless they come with a token that was taken before.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, Request, Response};
use limits::network;
use public_port::Connection;
use tonic::body::Body;
use tower::{Layer, Service};

use super::{Limits, WAIT, limited};
use crate::telemetry;

/// Beyond the limits of connections, health is answered, and nothing else.
const HEALTH: &str = "/grpc.health.v1.Health/";

/// The services that count what they are asked for by the caller of its token.
const OURS: &str = "/ravada.snapshot.";

/// The value of the only header with a token.
fn one_token(headers: &HeaderMap) -> Option<&[u8]> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    all.next().filter(|_| all.next().is_none()).map(HeaderValue::as_bytes)
}

/// The layer that counts.
#[derive(Clone)]
pub struct Strangers(Arc<Limits>);

impl Strangers {
    /// Counts with the others.
    pub fn new(limits: Arc<Limits>) -> Self {
        Self(limits)
    }

    fn admit(&self, request: &Request<Body>) -> Result<(), snapshot_core::Error> {
        let Some(connection) = request.extensions().get::<Connection>() else { return Ok(()) };
        if connection.over_limit().is_some() {
            let health = request.uri().path().starts_with(HEALTH);
            return if health { Ok(()) } else { Err(limited("too many connections", WAIT)) };
        }
        // Health and reflection count for nobody's token.
        let is_ours = request.uri().path().starts_with(OURS);
        if is_ours
            && one_token(request.headers()).is_some_and(|token| self.0.seen.is_good(self.0.seen.fingerprint(token)))
        {
            return Ok(());
        }
        let admitted = self.0.addresses.admit(&network(connection.client(request.headers())));
        admitted.map_err(|wait| limited("too many requests from this address", wait))
    }
}

impl<S> Layer<S> for Strangers {
    type Service = Admitting<S>;

    fn layer(&self, inner: S) -> Admitting<S> {
        Admitting { inner, strangers: self.clone() }
    }
}

/// A service behind [`Strangers`].
#[derive(Clone)]
pub struct Admitting<S> {
    inner: S,
    strangers: Strangers,
}

impl<S> Service<Request<Body>> for Admitting<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self.strangers.admit(&request) {
            Ok(()) => Box::pin(self.inner.call(request)),
            Err(error) => {
                telemetry::refused(&error);
                let limits = Arc::clone(&self.strangers.0);
                Box::pin(async move {
                    limits.linger(&error).await;
                    Ok(proto::status::to_status(&error).into_http())
                })
            }
        }
    }
}

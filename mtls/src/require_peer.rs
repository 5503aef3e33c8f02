//! A layer that admits listed peers only, and tells the others so in gRPC's terms.
//!
//! A mutual listener's own list decides who may connect at all. This one decides, for one service or a whole server, who
//! of those may call.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::{Either, Ready, ready};
use http::{Request, Response};
use tonic::Status;
use tonic::server::NamedService;
use tower::{Layer, Service};

use crate::AllowList;
use crate::server::PeerInfo;

/// Admits the peers on a list: others get PERMISSION_DENIED, and where there is no peer identity, UNAUTHENTICATED.
#[derive(Debug, Clone)]
pub struct RequirePeer {
    allow: Arc<AllowList>,
}

impl RequirePeer {
    /// Admits these peers.
    pub fn new(allow: AllowList) -> Self {
        Self { allow: Arc::new(allow) }
    }
}

impl<S> Layer<S> for RequirePeer {
    type Service = RequirePeerService<S>;

    fn layer(&self, inner: S) -> RequirePeerService<S> {
        RequirePeerService { inner, allow: Arc::clone(&self.allow) }
    }
}

/// A service behind [`RequirePeer`].
#[derive(Debug, Clone)]
pub struct RequirePeerService<S> {
    inner: S,
    allow: Arc<AllowList>,
}

impl<S: NamedService> NamedService for RequirePeerService<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B, ResBody> Service<Request<B>> for RequirePeerService<S>
where
    S: Service<Request<B>, Response = Response<ResBody>>,
    ResBody: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let peer = request.extensions().get::<PeerInfo>().and_then(PeerInfo::identity);
        let refusal = match peer {
            None => Status::unauthenticated("a client certificate is required"),
            Some(peer) if !self.allow.admits(peer) => {
                tracing::warn!(%peer, path = request.uri().path(), "peer not admitted");
                Status::permission_denied("this peer may not call this service")
            }
            Some(_) => return Either::Left(self.inner.call(request)),
        };
        Either::Right(ready(Ok(refusal.into_http())))
    }
}

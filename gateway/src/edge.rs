//! The front of the gateway: where a request goes, and what is refused before it goes anywhere.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use connectrpc::{ConnectRpcBody, ConnectRpcService, Dispatcher as _, Limits, MethodKind};
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::{BodyExt, Full};
use public_port::{Connection, ReceiveError, Received};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tower::ServiceExt;

use crate::config::Config;
use crate::descriptors::{self, Methods};
use crate::dispatcher::Dispatcher;
use crate::errors::Refusal;
use crate::grpc_web_text;
use crate::headers::{self, REQUEST_ID};
use crate::limits::{Caller, Limiter};
use crate::page::Page;
use crate::request;
use crate::upstream::{Upstream, Upstreams};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// How long the API may take to say that it is well.
const READY_TIMEOUT: Duration = Duration::from_secs(1);
/// How much of a request that is too large is still read, so that its sender gets to see the answer.
const DISCARD_BYTES: usize = 4 * 1024 * 1024;
/// How much more connectrpc takes than a request may have: it refuses without a reason, and so must have nothing to refuse.
const ROOM: usize = 8;

/// The gateway without its listener. Clones are the same gateway.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    connect: ConnectRpcService<Dispatcher>,
    methods: Methods,
    api: Upstream,
    page: Page,
    limiter: Arc<Limiter>,
    request_bytes: usize,
}

impl Gateway {
    /// A gateway to this API, which ends its streams once `stopping` is cancelled.
    ///
    /// # Errors
    /// When the built-in descriptors cannot be used, which a test rules out.
    pub fn new(config: &Config, api: Upstream, stopping: CancellationToken) -> Result<Self, descriptors::Error> {
        let methods = Methods::load()?;
        let limiter = Arc::new(Limiter::new(&config.limits));
        let request_bytes = config.limits.request_bytes;
        let dispatcher = Dispatcher {
            methods: methods.clone(),
            upstreams: Upstreams::new(api.clone())?,
            limiter: Arc::clone(&limiter),
            request_bytes,
            response_bytes: config.limits.response_bytes,
            call_limit: config.limits.call(),
            stopping,
        };
        let most = request_bytes.saturating_mul(ROOM);
        let limits = Limits::default().with_max_request_body_size(most).with_max_message_size(most);
        Ok(Self(Arc::new(Inner {
            connect: ConnectRpcService::new(dispatcher).with_limits(limits),
            methods,
            api,
            page: Page::new(&config.page),
            limiter,
            request_bytes,
        })))
    }

    pub(crate) fn limiter(&self) -> &Arc<Limiter> {
        &self.0.limiter
    }

    /// Answers a request. One without a [`Connection`] has not come by the port, and is refused.
    pub(crate) async fn answer(self, request: Request<Received>) -> Result<Response<Body>, Infallible> {
        let inner = &*self.0;
        let path = request.uri().path();
        let name = path.strip_prefix('/').unwrap_or(path);
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        if is_read && name == "healthz" {
            return Ok(plain(StatusCode::OK, "ok\n"));
        }
        let connection = request.extensions().get::<Connection>();
        let Some(connection) = connection else { return Ok(inner.refuse(Refusal::Overloaded, request.headers())) };
        let caller = inner.limiter.caller(connection.client(request.headers()), request.headers());
        // Nothing but health is answered beyond the limits of connections.
        if connection.over_limit().is_some() && !(is_read && name == "readyz") {
            return Ok(inner.refuse(Refusal::Overloaded, request.headers()));
        }
        if let Err(refusal) = inner.limiter.admit(caller) {
            inner.limiter.linger(&refusal).await;
            return Ok(inner.refuse(refusal, request.headers()));
        }
        Ok(match name {
            "readyz" if is_read => inner.ready().await,
            _ if is_read && inner.methods.get(name).is_none() => {
                inner.page.answer(request.method(), path, request.headers())
            }
            _ => inner.rpc(caller, request).await,
        })
    }
}

impl Inner {
    /// A call, in whatever protocol: the answer has the request's id and is in text if the request was.
    async fn rpc(&self, caller: Caller, mut request: Request<Received>) -> Response<Body> {
        let id = headers::request_id(request.headers());
        request.headers_mut().insert(REQUEST_ID, id.clone());
        request.extensions_mut().insert(caller);
        let text = grpc_web_text::take(request.headers_mut());
        let mut response = self.dispatch(caller, text, request).await;
        let headers = response.headers_mut();
        headers.insert(REQUEST_ID, id);
        // connectrpc tells the status of a gRPC error in the head, without its details, and again in the trailers, with
        // them. A client that finds it in the head looks no further.
        headers.remove(GRPC_STATUS);
        headers.remove(GRPC_MESSAGE);
        if text {
            headers.insert(CONTENT_TYPE, grpc_web_text::TEXT_PROTO);
            response = response.map(|body| Body::new(grpc_web_text::Encoded(body)));
        }
        response
    }

    async fn dispatch(&self, caller: Caller, text: bool, request: Request<Received>) -> Response<Body> {
        let path = request.uri().path();
        let name = path.strip_prefix('/').unwrap_or(path);
        let kind = self.connect.dispatcher().lookup(name).map(|method| method.kind);
        // A place for as long as the request is received and until the answer begins.
        let place = self.limiter.call(caller);
        let (mut parts, body) = request.into_parts();
        let form = match (kind, &place) {
            (None, _) => Err(Refusal::UnknownMethod(parts.uri.path().to_owned())),
            (Some(_), Err(refusal)) => Err(refusal.clone()),
            (Some(kind), Ok(_)) => request::form(&parts, kind),
        };
        let form = match form {
            Ok(form) => form,
            Err(refusal) => return self.refuse(refusal, &parts.headers),
        };
        // Only reflection streams both ways. Its messages are bounded one by one, and all of them by the body's time-out.
        if kind == Some(MethodKind::BidiStreaming) {
            return self.call(Request::from_parts(parts, body)).await;
        }
        let body = self.receive(body, text).await;
        match body.and_then(|body| form.unpack(&mut parts.headers, body, self.request_bytes)) {
            Ok(body) => self.call(Request::from_parts(parts, Full::new(body))).await,
            Err(refusal) => self.refuse(refusal, &parts.headers),
        }
    }

    async fn call<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        match self.connect.clone().oneshot(request).await {
            Ok(response) => response.map(body),
            Err(never) => match never {},
        }
    }

    /// The whole body of a request, within the limits of size and time.
    async fn receive(&self, body: Received, text: bool) -> Result<Bytes, Refusal> {
        // Base64 makes three bytes four, and pads the last.
        let limit = if text { self.request_bytes / 3 * 4 + 8 } else { self.request_bytes };
        let body = collect(body, limit).await.map_err(|refusal| match refusal {
            Refusal::TooLarge { .. } => Refusal::TooLarge { limit: self.request_bytes },
            other => other,
        })?;
        if text { grpc_web_text::decode(&body) } else { Ok(body) }
    }

    fn refuse(&self, refusal: Refusal, headers: &http::HeaderMap) -> Response<Body> {
        tracing::debug!(%refusal, "refused");
        refusal.into_connect(self.methods.pool()).into_http_response(&request::answerable(headers)).map(body)
    }

    async fn ready(&self) -> Response<Body> {
        let mut health = HealthClient::new(self.api.clone());
        match timeout(READY_TIMEOUT, health.check(tonic_health::pb::HealthCheckRequest::default())).await {
            Ok(Ok(answer)) if answer.get_ref().status() == ServingStatus::Serving => plain(StatusCode::OK, "ready\n"),
            Ok(Ok(_)) => plain(StatusCode::SERVICE_UNAVAILABLE, "the API does not serve\n"),
            Ok(Err(_)) | Err(_) => plain(StatusCode::SERVICE_UNAVAILABLE, "the API cannot be reached\n"),
        }
    }
}

async fn collect(mut body: Received, limit: usize) -> Result<Bytes, Refusal> {
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > limit.saturating_add(DISCARD_BYTES) {
        return Err(Refusal::TooLarge { limit });
    }
    let mut received = BytesMut::with_capacity(announced.min(limit));
    let mut size = 0_usize;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| match error {
            ReceiveError::TimedOut(_) => Refusal::RequestTimeout,
            ReceiveError::Failed(_) => Refusal::Malformed("the request ended early".to_owned()),
        })?;
        let Ok(data) = frame.into_data() else { continue };
        size = size.saturating_add(data.len());
        if size <= limit {
            received.extend_from_slice(&data);
        } else if size > limit.saturating_add(DISCARD_BYTES) {
            break;
        }
    }
    if size > limit { Err(Refusal::TooLarge { limit }) } else { Ok(received.freeze()) }
}

/// A body that is there as a whole tells its length, which connectrpc's own type does not pass on.
fn body(body: ConnectRpcBody) -> Body {
    match body {
        ConnectRpcBody::Full(whole) => Body::new(whole),
        other => Body::new(other),
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::new(Bytes::from_static(text.as_bytes()))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

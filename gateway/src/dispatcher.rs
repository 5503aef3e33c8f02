//! Any call of any method to the API and back, with no code for any one of them.
//!
//! connectrpc speaks the caller's protocol and hands over one message as bytes, protobuf or JSON; what goes to the API is
//! the protobuf form over gRPC, by a codec that leaves bytes alone. A unary call ends by the caller's deadline or the
//! gateway's own limit, whichever comes first; a stream by the caller's deadline, if it set one, or when the gateway stops.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use connectrpc::dispatcher::{RequestStream, StreamingResult, UnaryResult};
use connectrpc::{
    CodecFormat, ConnectError, EncodedBody, EncodedStream, MethodDescriptor, Payload, Protocol, RequestContext,
    Response,
};
use futures_util::{StreamExt, stream};
use tokio_util::sync::CancellationToken;
use tonic::client::Grpc;
use tonic::metadata::MetadataMap;
use tonic::{Status, Streaming};
use tracing::Instrument;

use crate::codec::RawCodec;
use crate::descriptors::{Method, Methods};
use crate::errors::{self, Refusal};
use crate::headers;
use crate::limits::{Caller, Limiter, Share};
use crate::telemetry::CallRecord;
use crate::transcode;
use crate::upstream::{Upstream, Upstreams};

/// How close to a deadline an end counts as being due to it: timers are rounded to a millisecond on both sides.
const DEADLINE_SLACK: Duration = Duration::from_millis(20);

const OWN_SERVICES: &str = "ravada.snapshot.";

/// Finds the method of a path and calls it.
pub(crate) struct Dispatcher {
    pub(crate) methods: Methods,
    pub(crate) upstreams: Upstreams,
    pub(crate) limiter: Arc<Limiter>,
    pub(crate) request_bytes: usize,
    pub(crate) response_bytes: usize,
    pub(crate) call_limit: Duration,
    pub(crate) stopping: CancellationToken,
}

/// One call, with all that it needs after the dispatcher is out of reach.
struct Call {
    method: Arc<Method>,
    methods: Methods,
    client: Grpc<Upstream>,
    metadata: MetadataMap,
    format: CodecFormat,
    deadline: Option<Instant>,
    request_bytes: usize,
    stopping: CancellationToken,
    record: CallRecord,
    limiter: Arc<Limiter>,
    /// The fingerprint of the token that the API will look at.
    token: Option<u64>,
    /// A stream's place among the streams. It is given back with the last message, not when the caller has read it.
    _place: Option<Share>,
}

impl connectrpc::Dispatcher for Dispatcher {
    fn lookup(&self, path: &str) -> Option<MethodDescriptor> {
        self.methods.get(path).map(|method| MethodDescriptor::from_kind(method.kind))
    }

    fn call_unary(&self, path: &str, ctx: RequestContext, request: Payload, format: CodecFormat) -> UnaryResult {
        let limit = Instant::now() + self.call_limit;
        match self.begin(path, &ctx, format, false) {
            Ok((mut call, span)) => {
                call.deadline = Some(call.deadline.map_or(limit, |deadline| deadline.min(limit)));
                Box::pin(async move { call.unary(request.bytes().clone()).await }.instrument(span))
            }
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn call_server_streaming(
        &self,
        path: &str,
        ctx: RequestContext,
        request: Bytes,
        format: CodecFormat,
    ) -> StreamingResult {
        match self.begin(path, &ctx, format, true) {
            Ok((call, span)) => Box::pin(async move { call.server_streaming(request).await }.instrument(span)),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn call_client_streaming(
        &self,
        path: &str,
        _ctx: RequestContext,
        _requests: RequestStream,
        _format: CodecFormat,
    ) -> UnaryResult {
        // No method of the API is of this kind.
        Box::pin(std::future::ready(Err(self.unknown(path))))
    }

    fn call_bidi_streaming(
        &self,
        path: &str,
        ctx: RequestContext,
        requests: RequestStream,
        format: CodecFormat,
    ) -> StreamingResult {
        match self.begin(path, &ctx, format, true) {
            Ok((call, span)) => Box::pin(async move { call.bidi_streaming(requests).await }.instrument(span)),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }
}

impl Dispatcher {
    fn unknown(&self, path: &str) -> ConnectError {
        Refusal::UnknownMethod(path.to_owned()).into_connect(self.methods.pool())
    }

    fn begin(
        &self,
        path: &str,
        ctx: &RequestContext,
        format: CodecFormat,
        stream: bool,
    ) -> Result<(Call, tracing::Span), ConnectError> {
        let method = self.methods.get(path).ok_or_else(|| self.unknown(path))?;
        let refuse = |refusal: Refusal| refusal.into_connect(self.methods.pool());
        let caller = ctx.extensions().get::<Caller>().filter(|_| stream);
        let place = caller.map(|caller| self.limiter.stream(*caller)).transpose().map_err(refuse)?;
        // Only our own services look at tokens.
        let ours = method.name.starts_with(OWN_SERVICES);
        let token = ours.then(|| self.limiter.token(ctx.headers())).flatten();
        let mut headers = headers::upstream(ctx.headers());
        let request_id =
            headers.get(headers::REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
        let span = tracing::info_span!("call", request_id, method = &*method.name);
        let trace = ours.then(|| traces::Call::begin(&method.name, &headers, &request_id));
        if let Some(trace) = &trace {
            trace.inject(&mut headers);
        }
        let client = Grpc::new(self.upstreams.of(method.answerer)).max_decoding_message_size(self.response_bytes);
        let call = Call {
            record: CallRecord::begin(Arc::clone(&method.name), request_id, protocol(ctx), stream, trace),
            method: Arc::clone(method),
            methods: self.methods.clone(),
            client,
            metadata: MetadataMap::from_headers(headers),
            format,
            deadline: ctx.deadline(),
            request_bytes: self.request_bytes,
            stopping: self.stopping.clone(),
            limiter: Arc::clone(&self.limiter),
            token,
            _place: place,
        };
        Ok((call, span))
    }
}

fn protocol(ctx: &RequestContext) -> &'static str {
    match ctx.protocol() {
        Some(Protocol::Grpc) => "grpc",
        Some(Protocol::GrpcWeb) => "grpc-web",
        _ => "connect",
    }
}

impl Call {
    async fn unary(mut self, body: Bytes) -> Result<Response<EncodedBody>, ConnectError> {
        let result = self.try_unary(body).await;
        self.record.end(result.as_ref().map_or_else(|error| error.code.as_str(), |_| "ok"));
        result.map(Response::new)
    }

    async fn try_unary(&mut self, body: Bytes) -> Result<EncodedBody, ConnectError> {
        let request = self.request(self.decode(body)?);
        let (path, deadline) = (self.method.path.clone(), self.deadline);
        let client = &mut self.client;
        let answer = within(deadline, async move {
            ready(client).await?;
            client.unary(request, path, RawCodec).await
        });
        let answer = answer.await;
        self.learn(&answer);
        self.encode(answer.map_err(|end| self.failed(end))?.into_inner())
    }

    async fn server_streaming(mut self, body: Bytes) -> Result<Response<EncodedStream>, ConnectError> {
        let result = match self.decode(body) {
            Ok(message) => {
                let request = self.request(message);
                let (path, deadline) = (self.method.path.clone(), self.deadline);
                let client = &mut self.client;
                let answer = within(deadline, async move {
                    ready(client).await?;
                    client.server_streaming(request, path, RawCodec).await
                });
                let answer = answer.await;
                self.learn(&answer);
                answer.map_err(|end| self.failed(end))
            }
            Err(error) => Err(error),
        };
        self.forward(result)
    }

    /// What the API thinks of the token.
    fn learn<T>(&self, answer: &Result<T, End>) {
        let refusal = match answer {
            Ok(_) => None,
            Err(End::Status(status)) if std::error::Error::source(&**status).is_none() => Some(&**status),
            Err(End::Status(_) | End::Late) => return,
        };
        if let Some(token) = self.token {
            self.limiter.answered(token, refusal);
        }
    }

    /// Reflection only. A message that cannot be read ends the caller's side of the stream.
    async fn bidi_streaming(mut self, bodies: RequestStream) -> Result<Response<EncodedStream>, ConnectError> {
        let (format, input) = (self.format, self.method.input.clone());
        let messages = bodies
            .map(move |body| body.ok().and_then(|body| transcode::request(format, &input, body).ok()))
            .take_while(|message| std::future::ready(message.is_some()))
            .filter_map(std::future::ready);
        let request = self.request(messages);
        let (path, deadline) = (self.method.path.clone(), self.deadline);
        let client = &mut self.client;
        let answer = within(deadline, async move {
            ready(client).await?;
            client.streaming(request, path, RawCodec).await
        });
        let result = answer.await.map_err(|end| self.failed(end));
        self.forward(result)
    }

    /// The API's messages as they come, until they end, the deadline passes, or the gateway stops.
    fn forward(
        mut self,
        answer: Result<tonic::Response<Streaming<Bytes>>, ConnectError>,
    ) -> Result<Response<EncodedStream>, ConnectError> {
        let messages = match answer {
            Ok(answer) => answer.into_inner(),
            Err(error) => {
                self.record.end(error.code.as_str());
                return Err(error);
            }
        };
        let forwarded = stream::unfold(Some((self, messages)), |state| async move {
            let (mut call, mut messages) = state?;
            match call.next(&mut messages).await {
                Ok(Some(body)) => Some((Ok(body), Some((call, messages)))),
                Ok(None) => {
                    call.record.end("ok");
                    None
                }
                Err(error) => {
                    call.record.end(error.code.as_str());
                    Some((Err(error), None))
                }
            }
        });
        let body: EncodedStream = Box::pin(forwarded);
        Ok(Response::new(body))
    }

    async fn next(&self, messages: &mut Streaming<Bytes>) -> Result<Option<EncodedBody>, ConnectError> {
        let message = tokio::select! {
            biased;
            () = self.stopping.cancelled() => return Err(Refusal::ShuttingDown.into_connect(self.methods.pool())),
            message = within(self.deadline, messages.message()) => message.map_err(|end| self.failed(end))?,
        };
        message.map(|message| self.encode(message)).transpose()
    }

    fn decode(&self, body: Bytes) -> Result<Bytes, ConnectError> {
        // The body was measured as it came in; this is its size after decompression.
        let message = if body.len() > self.request_bytes {
            Err(Refusal::TooLarge { limit: self.request_bytes })
        } else {
            transcode::request(self.format, &self.method.input, body)
        };
        message.map_err(|refusal| refusal.into_connect(self.methods.pool()))
    }

    fn encode(&self, body: Bytes) -> Result<EncodedBody, ConnectError> {
        transcode::response(self.format, &self.method.output, body).map(EncodedBody::from).map_err(|refusal| {
            tracing::error!(%refusal, "an answer does not fit its descriptor");
            refusal.into_connect(self.methods.pool())
        })
    }

    fn request<T>(&mut self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        *request.metadata_mut() = std::mem::take(&mut self.metadata);
        if let Some(deadline) = self.deadline {
            request.set_timeout(headers::remaining(deadline));
        }
        request
    }

    fn failed(&self, end: End) -> ConnectError {
        match end {
            End::Late => Refusal::DeadlineExceeded.into_connect(self.methods.pool()),
            End::Status(status) => {
                let late = self.deadline.is_some_and(|deadline| Instant::now() + DEADLINE_SLACK >= deadline);
                errors::from_upstream(&status, late, self.methods.pool())
            }
        }
    }
}

/// Why a call has no answer.
enum End {
    Late,
    Status(Box<Status>),
}

async fn ready(client: &mut Grpc<Upstream>) -> Result<(), Status> {
    client.ready().await.map_err(|error| Status::from_error(error.into()))
}

async fn within<T>(deadline: Option<Instant>, call: impl Future<Output = Result<T, Status>>) -> Result<T, End> {
    let result = match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline.into(), call).await.map_err(|_| End::Late)?,
        None => call.await,
    };
    result.map_err(|status| End::Status(Box::new(status)))
}

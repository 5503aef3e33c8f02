//! The services: a table of contents. Every method decodes and authenticates, calls its own file in `rpc/`, and encodes.

mod audit;
mod host;
mod operation;
mod snapshot;
pub mod too_large;

#[cfg(test)]
mod no_oracle;

use std::sync::Arc;
use std::time::Instant;

use mtls::server::PeerInfo;
use proto::v1::audit_service_server::AuditServiceServer;
use proto::v1::host_service_server::HostServiceServer;
use proto::v1::operation_service_server::OperationServiceServer;
use proto::v1::snapshot_service_server::SnapshotServiceServer;
use snapshot_core::Error;
use tonic::{Code, Request, Response, Status};
use tracing::Instrument as _;

use crate::app::{App, Call};
use crate::audit::{Trail, peer};

/// The largest request in bytes: a name, a description and room to spare.
const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// The gRPC services over one [`App`].
#[derive(Clone)]
pub struct Services(App);

impl Services {
    /// All of them.
    pub fn new(app: App) -> Self {
        Self(app)
    }

    /// SnapshotService, ready to be served.
    pub fn snapshots(&self) -> SnapshotServiceServer<Self> {
        SnapshotServiceServer::new(self.clone()).max_decoding_message_size(MAX_REQUEST_BYTES)
    }

    /// OperationService, ready to be served.
    pub fn operations(&self) -> OperationServiceServer<Self> {
        OperationServiceServer::new(self.clone()).max_decoding_message_size(MAX_REQUEST_BYTES)
    }

    /// HostService, ready to be served.
    pub fn hosts(&self) -> HostServiceServer<Self> {
        HostServiceServer::new(self.clone()).max_decoding_message_size(MAX_REQUEST_BYTES)
    }

    /// AuditService, ready to be served.
    pub fn audit(&self) -> AuditServiceServer<Self> {
        AuditServiceServer::new(self.clone()).max_decoding_message_size(MAX_REQUEST_BYTES)
    }

    /// Runs one call within its span: authenticates, acts, tells the audit trail, measures, and turns an error into a status.
    async fn call<T, R, F>(
        &self,
        method: &'static str,
        request: Request<T>,
        act: impl FnOnce(App, Call<T>) -> F + Send,
    ) -> Result<Response<R>, Status>
    where
        T: Send,
        R: Send,
        F: Future<Output = Result<R, Error>> + Send,
    {
        let app = self.0.clone();
        let request_id = crate::telemetry::request_id(request.metadata().as_ref());
        let trail = Trail::begin(method, &request_id, peer(request.extensions()));
        let span = tracing::info_span!("rpc", method, request_id, actor = tracing::field::Empty);
        // Within the log's span, of whose fields none is exported: that of the actor names a person.
        let trace = span.in_scope(|| traces::Call::begin(method, request.metadata().as_ref(), &request_id));
        let (log, traced) = (span.clone(), trace.span());
        let run = async move {
            let begun = Instant::now();
            // In the gateway a refusal that is held back would keep a place; it counts by token and holds its own back.
            let direct = request.extensions().get::<PeerInfo>().is_none_or(|peer| peer.identity().is_none());
            let (limits, audit, clock) = (Arc::clone(&app.limits), app.audit.clone(), app.clock.clone());
            let admitted = app.authenticate(request, request_id, trail.clone()).and_then(|call| {
                span.record("actor", tracing::field::display(call.caller.actor()));
                let place = limits.call(call.caller.actor())?;
                Ok((call, place))
            });
            let result = match admitted {
                Ok((call, _place)) => act(app, call).await,
                Err(error) => Err(error),
            };
            if let Some(event) = trail.event(result.as_ref().err(), clock.now_ms()) {
                audit.tell(event);
            }
            if let (Err(error), true) = (&result, direct) {
                limits.linger(error).await;
            }
            let status = result.map_err(|error| {
                tracing::info!(reason = %error.reason(), why = error.message(), "refused");
                proto::status::to_status(&error)
            });
            let code = status.as_ref().map_or_else(Status::code, |_| Code::Ok);
            let labels = [("method", method.to_owned()), ("code", format!("{code:?}"))];
            trace.end(&labels[1].1);
            metrics::counter!("snapshot_api_requests_total", &labels).increment(1);
            metrics::histogram!("snapshot_api_request_seconds", "method" => method).record(begun.elapsed());
            status.map(Response::new)
        };
        run.instrument(traced).instrument(log).await
    }
}

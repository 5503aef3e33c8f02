//! The gRPC service: a table of contents.

use std::pin::Pin;
use std::sync::Arc;

use capability::Verifier;
use proto::agent::agent_service_server::AgentService;
use proto::agent::{
    AttachOperationRequest, AttachOperationResponse, CancelOperationRequest, CancelOperationResponse,
    DeleteOrphanRequest, DeleteOrphanResponse, ListOrphansRequest, ListOrphansResponse, PlanOperationRequest,
    PlanOperationResponse, StartOperationRequest, StartOperationResponse, WatchHostRequest, WatchHostResponse,
};
use proto::status::to_status;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};
use tracing::{Instrument as _, Span};

use crate::config::Config;
use crate::execute::Executor;
use crate::locks::Locks;
use crate::machines::Machines;
use crate::rpc;

/// What the calls work with. Clones share everything.
#[derive(Clone)]
pub struct Agent {
    /// What the agent was told about itself.
    pub config: Arc<Config>,
    /// Carries operations out.
    pub executor: Executor,
    /// The machines that operations have.
    pub locks: Arc<Locks>,
    /// What is known of the machines.
    pub machines: Arc<Machines>,
    /// Verifies tokens.
    pub verifier: Arc<Verifier>,
    /// Cancelled when streams are to end.
    pub closing: CancellationToken,
}

impl Agent {
    /// The call in the log, and within it that in the trace.
    fn call<T>(method: &'static str, request: &Request<T>) -> Traced {
        let request_id = rpc::request_id(request.metadata());
        let log = tracing::info_span!("call", method, request_id);
        let trace = log.in_scope(|| traces::Call::begin(method, request.metadata().as_ref(), &request_id));
        Traced { log, trace }
    }
}

struct Traced {
    log: Span,
    trace: traces::Call,
}

impl Traced {
    async fn run<R>(&self, answer: impl Future<Output = R>) -> R {
        answer.instrument(self.trace.span()).instrument(self.log.clone()).await
    }

    /// When a stream begins its call has been answered.
    fn ended<R>(&self, answer: Result<R, Status>) -> Result<R, Status> {
        let code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
        self.trace.end(&format!("{code:?}"));
        answer
    }
}

type Stream<T> = Pin<Box<dyn futures_util::Stream<Item = Result<T, Status>> + Send>>;

fn streaming<T: Send + 'static>(
    result: Result<ReceiverStream<Result<T, Status>>, snapshot_core::Error>,
) -> Result<Response<Stream<T>>, Status> {
    match result {
        Ok(stream) => Ok(Response::new(Box::pin(stream))),
        Err(error) => Err(to_status(&error)),
    }
}

fn unary<T>(result: Result<T, snapshot_core::Error>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|error| to_status(&error))
}

#[tonic::async_trait]
impl AgentService for Agent {
    type WatchHostStream = Stream<WatchHostResponse>;
    type StartOperationStream = Stream<StartOperationResponse>;
    type AttachOperationStream = Stream<AttachOperationResponse>;

    async fn watch_host(&self, request: Request<WatchHostRequest>) -> Result<Response<Self::WatchHostStream>, Status> {
        let call = Self::call("WatchHost", &request);
        call.ended(streaming(call.run(rpc::watch_host::handle(self, request)).await))
    }

    async fn plan_operation(
        &self,
        request: Request<PlanOperationRequest>,
    ) -> Result<Response<PlanOperationResponse>, Status> {
        let call = Self::call("PlanOperation", &request);
        call.ended(unary(call.run(rpc::plan_operation::handle(self, request)).await))
    }

    async fn start_operation(
        &self,
        request: Request<StartOperationRequest>,
    ) -> Result<Response<Self::StartOperationStream>, Status> {
        let call = Self::call("StartOperation", &request);
        call.ended(streaming(call.run(rpc::start_operation::handle(self, request)).await))
    }

    async fn attach_operation(
        &self,
        request: Request<AttachOperationRequest>,
    ) -> Result<Response<Self::AttachOperationStream>, Status> {
        let call = Self::call("AttachOperation", &request);
        call.ended(streaming(call.run(rpc::attach_operation::handle(self, request)).await))
    }

    async fn cancel_operation(
        &self,
        request: Request<CancelOperationRequest>,
    ) -> Result<Response<CancelOperationResponse>, Status> {
        let call = Self::call("CancelOperation", &request);
        call.ended(unary(call.run(rpc::cancel_operation::handle(self, request)).await))
    }

    async fn list_orphans(
        &self,
        request: Request<ListOrphansRequest>,
    ) -> Result<Response<ListOrphansResponse>, Status> {
        let call = Self::call("ListOrphans", &request);
        call.ended(unary(call.run(rpc::list_orphans::handle(self, request)).await))
    }

    async fn delete_orphan(
        &self,
        request: Request<DeleteOrphanRequest>,
    ) -> Result<Response<DeleteOrphanResponse>, Status> {
        let call = Self::call("DeleteOrphan", &request);
        call.ended(unary(call.run(rpc::delete_orphan::handle(self, request)).await))
    }
}

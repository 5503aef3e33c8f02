//! StartOperation: takes an operation on and follows it to its end: what a token began is not kept from who began it.

use proto::agent::{StartOperationRequest, StartOperationResponse};
use snapshot_core::Error;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};

use crate::events;
use crate::service::Agent;

pub(crate) async fn handle(
    agent: &Agent,
    request: Request<StartOperationRequest>,
) -> Result<ReceiverStream<Result<StartOperationResponse, Status>>, Error> {
    let (metadata, _, message) = request.into_parts();
    let (permit, spec) = super::permitted(agent, &metadata, message.spec)?;
    traces::about(&spec.operation, &spec.vm);
    let operation = agent.executor.start(&permit, spec, super::request_id(&metadata)).await?;
    let wrap = |event| StartOperationResponse { event: Some(event) };
    Ok(events::follow(operation, agent.machines.clone(), agent.closing.clone(), None, wrap))
}

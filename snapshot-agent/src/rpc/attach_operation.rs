//! AttachOperation: follows an operation that was taken on before.
//!
//! No token is asked for: the one it was begun with may have ended, and what is told goes to the API, which knows who may
//! see it.

use proto::agent::{AttachOperationRequest, AttachOperationResponse};
use snapshot_core::Error;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};

use crate::events;
use crate::service::Agent;

pub(crate) async fn handle(
    agent: &Agent,
    request: Request<AttachOperationRequest>,
) -> Result<ReceiverStream<Result<AttachOperationResponse, Status>>, Error> {
    let operation = agent.executor.find_again(super::operation_id(&request.get_ref().operation_id)?)?;
    let wrap = |event| AttachOperationResponse { event: Some(event) };
    Ok(events::follow(operation, agent.machines.clone(), agent.closing.clone(), wrap))
}

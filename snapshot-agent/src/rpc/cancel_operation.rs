//! CancelOperation: asks for an operation to be stopped between two steps.

use proto::agent::{CancelOperationRequest, CancelOperationResponse};
use snapshot_core::Error;
use tonic::Request;

use crate::service::Agent;

pub(crate) async fn handle(
    agent: &Agent,
    request: Request<CancelOperationRequest>,
) -> Result<CancelOperationResponse, Error> {
    agent.executor.cancel(super::operation_id(&request.get_ref().operation_id)?)?;
    Ok(CancelOperationResponse {})
}

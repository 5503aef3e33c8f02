//! CancelOperation: asks for an operation to be stopped between two steps.
//!
//! The token is that of who wants it stopped, and has to grant what the operation does.

use proto::agent::{CancelOperationRequest, CancelOperationResponse};
use snapshot_core::Error;
use tonic::Request;

use crate::service::Agent;
use crate::{auth, clock};

pub(crate) async fn handle(
    agent: &Agent,
    request: Request<CancelOperationRequest>,
) -> Result<CancelOperationResponse, Error> {
    let caller = auth::authenticate(&agent.verifier, request.metadata(), clock::unix_now())?;
    let id = super::operation_id(&request.get_ref().operation_id)?;
    let permit = auth::permit_cancel(&caller, &*agent.executor.get(id)?)?;
    agent.executor.cancel(&permit, id)?;
    Ok(CancelOperationResponse {})
}

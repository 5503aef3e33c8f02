//! PlanOperation: what an operation would do.

use proto::agent::{PlanOperationRequest, PlanOperationResponse};
use snapshot_core::Error;
use tonic::Request;

use crate::service::Agent;

pub(crate) async fn handle(
    agent: &Agent,
    request: Request<PlanOperationRequest>,
) -> Result<PlanOperationResponse, Error> {
    let (metadata, _, message) = request.into_parts();
    let (permit, spec) = super::permitted(agent, &metadata, message.spec)?;
    let vm = spec.vm;
    let plan = agent.executor.plan(&permit, spec).await?;
    Ok(PlanOperationResponse { plan: Some(proto::convert::plan(vm, &plan)) })
}

//! DeleteOrphan: deletes the state that an orphan holds, for good, for an administrator who was shown what it is.

use proto::agent::{DeleteOrphanRequest, DeleteOrphanResponse};
use snapshot_core::Error;
use tonic::Request;

use super::orphan::wire;
use crate::execute::orphans::OrphanDeletion;
use crate::service::Agent;
use crate::{auth, clock};

pub(crate) async fn handle(
    agent: &Agent,
    request: Request<DeleteOrphanRequest>,
) -> Result<DeleteOrphanResponse, Error> {
    let caller = auth::authenticate(&agent.verifier, request.metadata(), clock::unix_now())?;
    let permit = auth::permit_admin(&caller)?;
    let DeleteOrphanRequest { orphan_id, etag, validate_only } = request.into_inner();
    let id = orphan_id.parse().map_err(|error| Error::invalid("orphan_id", error))?;
    if etag.is_empty() {
        return Err(Error::invalid("etag", "is required: what was shown is what is deleted"));
    }
    let deleted = agent.executor.delete_orphan(&permit, OrphanDeletion { id, etag, validate_only }).await?;
    Ok(DeleteOrphanResponse { orphan: Some(wire(&agent.config.host, &deleted)) })
}

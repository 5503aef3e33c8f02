//! AttachOperation: follows an operation that was taken on before, until its token ends.
//!
//! The token it was begun with may have ended, so this takes any that may see the machine: the API's own, as a rule. One that may
//! not is answered as if there were no such operation.

use proto::agent::{AttachOperationRequest, AttachOperationResponse};
use snapshot_core::Error;
use snapshot_core::authority::{Action, authorize, authorize_inventory};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};

use crate::execute::unknown;
use crate::service::Agent;
use crate::{auth, clock, events};

pub(crate) async fn handle(
    agent: &Agent,
    request: Request<AttachOperationRequest>,
) -> Result<ReceiverStream<Result<AttachOperationResponse, Status>>, Error> {
    let now = clock::unix_now();
    let caller = auth::authenticate(&agent.verifier, request.metadata(), now)?;
    let id = super::operation_id(&request.get_ref().operation_id)?;
    // Only who sees everything can tell that there is none, so only that answer is a promise that there will be none. Anybody
    // else could make it for an operation of a machine that is none of theirs.
    let operation = match authorize_inventory(&caller) {
        Ok(_) => agent.executor.find_again(id)?,
        Err(_) => agent.executor.get(id)?,
    };
    authorize(&caller, operation.vm(), Action::Read).map_err(|_| unknown(id))?;
    let wrap = |event| AttachOperationResponse { event: Some(event) };
    let until = Some(auth::end_of_token(caller.expires_at_unix(), now));
    Ok(events::follow(operation, agent.machines.clone(), agent.closing.clone(), until, wrap))
}

//! ListOrphans: files of ours that hold a state and that nothing uses any more, for administrators.

use proto::agent::{ListOrphansRequest, ListOrphansResponse};
use snapshot_core::Error;
use snapshot_core::ids::OrphanId;
use tonic::Request;

use super::orphan::wire;
use crate::service::Agent;
use crate::{auth, clock};

const DEFAULT_SIZE: usize = 100;
const MAX_SIZE: usize = 1000;

pub(crate) async fn handle(agent: &Agent, request: Request<ListOrphansRequest>) -> Result<ListOrphansResponse, Error> {
    let caller = auth::authenticate(&agent.verifier, request.metadata(), clock::unix_now())?;
    let permit = auth::permit_admin(&caller)?;
    let message = request.into_inner();
    let after = match message.after_orphan_id.as_str() {
        "" => None,
        id => Some(id.parse::<OrphanId>().map_err(|error| Error::invalid("after_orphan_id", error))?),
    };
    let count = match usize::try_from(message.page_size).unwrap_or(MAX_SIZE) {
        0 => DEFAULT_SIZE,
        count => count.min(MAX_SIZE),
    };
    let found = agent.executor.list_orphans(&permit, after, count).await?;
    Ok(ListOrphansResponse { orphans: found.iter().map(|orphan| wire(&agent.config.host, orphan)).collect() })
}

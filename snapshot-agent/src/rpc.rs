//! The calls, one a file.

pub(crate) mod attach_operation;
pub(crate) mod cancel_operation;
pub(crate) mod delete_orphan;
pub(crate) mod list_orphans;
mod orphan;
pub(crate) mod plan_operation;
pub(crate) mod start_operation;
pub(crate) mod watch_host;

use proto::agent::OperationSpec;
use proto::convert::Spec;
use snapshot_core::Error;
use snapshot_core::authority::Permit;
use snapshot_core::ids::OperationId;
use tonic::metadata::MetadataMap;

use crate::service::Agent;
use crate::{auth, clock};

/// The most characters of a caller's request id that are taken over.
const REQUEST_ID_CHARS: usize = 128;

/// Verifies the token, reads the spec, and checks that the one permits the other, in this order: who shows no token
/// learns nothing of what is wrong with the rest.
fn permitted(agent: &Agent, metadata: &MetadataMap, spec: Option<OperationSpec>) -> Result<(Permit, Spec), Error> {
    let caller = auth::authenticate(&agent.verifier, metadata, clock::unix_now())?;
    let spec = Spec::try_from(spec.ok_or_else(|| Error::invalid("spec", "is required"))?)?;
    let permit = auth::permit(&caller, spec.vm, &spec.request)?;
    Ok((permit, spec))
}

fn operation_id(text: &str) -> Result<OperationId, Error> {
    text.parse().map_err(|error| Error::invalid("operation_id", error))
}

/// The caller's id of a request, for the log alone.
pub(crate) fn request_id(metadata: &MetadataMap) -> String {
    let text = metadata.get("x-request-id").and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.chars().filter(char::is_ascii_graphic).take(REQUEST_ID_CHARS).collect()
}

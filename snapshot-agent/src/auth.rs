//! From the token in a request to a permit.
//!
//! The API sends the user's own token along, and the agent verifies it with its own copy of the issuers' keys: an API
//! that has been taken over can act only for those whose tokens pass through it at that moment.

use capability::{Verifier, bearer};
use snapshot_core::Error;
use snapshot_core::authority::{Action, Caller, Permit, authorize};
use snapshot_core::ids::VmId;
use snapshot_core::operation::Request;
use tonic::metadata::MetadataMap;

/// Who asks. An error says no more than that the token does not count, and why.
pub fn authenticate(verifier: &Verifier, metadata: &MetadataMap, now_unix: i64) -> Result<Caller, Error> {
    let verified = bearer(metadata.as_ref()).and_then(|token| verifier.verify(token, now_unix));
    verified.map_err(|error| {
        tracing::info!(%error, "a token was refused");
        error.into()
    })
}

/// Whether the caller may have this done to this machine.
pub fn permit(caller: &Caller, vm: VmId, request: &Request) -> Result<Permit, Error> {
    if let Request::Revert { save_current: Some(_), .. } = request {
        authorize(caller, vm, Action::Create).map_err(|denied| denied.about(vm))?;
    }
    authorize(caller, vm, request.kind().into()).map_err(|denied| denied.about(vm))
}

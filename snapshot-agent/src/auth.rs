//! From the token in a request to a permit.
//!
//! The API sends the user's own token along, without the secret that it is bound to: an agent could not use it at the API, and
//! refuses a credential that has a secret. The agent verifies the token with its own copy of the issuers' keys: an API
//! that has been taken over can act only for those whose tokens pass through it at that moment. What it does on its own, which is
//! to read, it does by tokens of an issuer of its own: the certificate alone opens nothing.
//!
//! A stream of what is seen ends when its token does. The token's end is turned into a moment of the monotonic clock once.

use std::time::Duration;

use capability::{Verifier, bearer};
use snapshot_core::authority::{
    AdminPermit, Caller, Denied, Permit, authorize_admin, authorize_cancel, authorize_request,
};
use snapshot_core::ids::VmId;
use snapshot_core::operation::Request;
use snapshot_core::{Error, Reason};
use tokio::time::Instant;
use tonic::metadata::MetadataMap;

use crate::execute::operation::Operation;
use crate::execute::unknown;

/// Who asks. An error says no more than that the token does not count, and why.
pub fn authenticate(verifier: &Verifier, metadata: &MetadataMap, now_unix: i64) -> Result<Caller, Error> {
    let verified = bearer(metadata.as_ref()).and_then(|token| verifier.verify_token(token, now_unix));
    verified.map_err(|error| {
        tracing::info!(%error, "a token was refused");
        error.into()
    })
}

/// Whether the caller may have this done to this machine.
pub fn permit(caller: &Caller, vm: VmId, request: &Request) -> Result<Permit, Error> {
    authorize_request(caller, vm, request).map_err(|denied| denied.about(vm))
}

/// Whether the caller is an administrator: what concerns a host and no single VM is for them alone.
pub fn permit_admin(caller: &Caller) -> Result<AdminPermit, Error> {
    authorize_admin(caller).map_err(Denied::over_hosts)
}

/// Whether the caller may stop this operation: as the API decides it. One that may not be seen is not there.
pub fn permit_cancel(caller: &Caller, operation: &Operation) -> Result<Permit, Error> {
    authorize_cancel(caller, operation.vm(), operation.kind()).map_err(|denied| match denied {
        Denied::Invisible => unknown(operation.id()),
        Denied::Forbidden { .. } => denied.about(operation.vm()),
    })
}

/// When a token with this end has ended.
pub fn end_of_token(expires_at_unix: i64, now_unix: i64) -> Instant {
    Instant::now() + Duration::from_secs(u64::try_from(expires_at_unix.saturating_sub(now_unix)).unwrap_or(0))
}

/// What the reader of a stream is told whose token has ended.
pub fn expired() -> Error {
    Error::new(Reason::TokenExpired, "the token has expired: go on with a new one")
}

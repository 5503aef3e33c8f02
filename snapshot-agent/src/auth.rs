//! From the token in a request to a permit.
//!
//! The API sends the user's own token along, and the agent verifies it with its own copy of the issuers' keys: an API
//! that has been taken over can act only for those whose tokens pass through it at that moment.

use capability::{TokenError, Verifier, bearer};
use snapshot_core::authority::{Action, Caller, Denied, Permit, authorize};
use snapshot_core::ids::VmId;
use snapshot_core::operation::{OperationKind, Request};
use snapshot_core::{Error, Reason};
use tonic::metadata::MetadataMap;

/// Who asks. An error says no more than that the token does not count, and why.
pub fn authenticate(verifier: &Verifier, metadata: &MetadataMap, now_unix: i64) -> Result<Caller, Error> {
    let verified = bearer(metadata.as_ref()).and_then(|token| verifier.verify(token, now_unix));
    verified.map_err(|error| {
        tracing::info!(%error, "a token was refused");
        Error::new(reason(error), error.to_string())
    })
}

/// Whether the caller may have this done to this machine.
pub fn permit(caller: &Caller, vm: VmId, request: &Request) -> Result<Permit, Error> {
    let denied = |denied| match denied {
        Denied::Invisible => Error::vm_not_found(vm),
        Denied::Forbidden { action } => {
            Error::new(Reason::ActionNotGranted, format!("the token does not grant {action}"))
                .with("action", action.as_str())
                .with("vm", proto::names::vm(vm))
        }
    };
    if let Request::Revert { save_current: Some(_), .. } = request {
        authorize(caller, vm, Action::Create).map_err(denied)?;
    }
    authorize(caller, vm, action(request.kind())).map_err(denied)
}

fn action(kind: OperationKind) -> Action {
    match kind {
        OperationKind::Create => Action::Create,
        OperationKind::Update => Action::Update,
        OperationKind::Revert => Action::Revert,
        OperationKind::Delete => Action::Delete,
        OperationKind::Purge => Action::Purge,
    }
}

fn reason(error: TokenError) -> Reason {
    match error {
        TokenError::Missing => Reason::TokenMissing,
        TokenError::Expired | TokenError::NotYetValid => Reason::TokenExpired,
        TokenError::Ambiguous
        | TokenError::NotBearer
        | TokenError::TooLong
        | TokenError::Malformed
        | TokenError::WrongAlgorithm
        | TokenError::UnknownIssuer
        | TokenError::UnknownKey
        | TokenError::BadSignature
        | TokenError::WrongAudience
        | TokenError::BadIdentity
        | TokenError::BadLifetime
        | TokenError::AboveCeiling(_) => Reason::TokenInvalid,
    }
}

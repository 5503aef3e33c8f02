//! The one mapping between [`Error`] and [`tonic::Status`].
//!
//! Every status carries a `google.rpc.ErrorInfo` (AIP-193) with the reason and the facts of the case, and what else its
//! kind calls for: BadRequest, PreconditionFailure, QuotaFailure, RetryInfo.

use std::collections::HashMap;
use std::time::Duration;

use snapshot_core::error::{Class, Error, Reason};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, QuotaViolation, StatusExt as _};

use crate::v1;

/// `google.rpc.ErrorInfo.domain` of every error of this service.
pub const ERROR_DOMAIN: &str = "snapshots.ravada";

/// How long a client should wait before it asks again, where asking again can help.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// The gRPC code of a reason.
pub fn code(reason: Reason) -> Code {
    match reason.class() {
        Class::InvalidArgument => Code::InvalidArgument,
        Class::Unauthenticated => Code::Unauthenticated,
        Class::PermissionDenied => Code::PermissionDenied,
        Class::NotFound => Code::NotFound,
        Class::AlreadyExists => Code::AlreadyExists,
        Class::Aborted => Code::Aborted,
        Class::FailedPrecondition => Code::FailedPrecondition,
        Class::ResourceExhausted => Code::ResourceExhausted,
        Class::Unavailable => Code::Unavailable,
        Class::Cancelled => Code::Cancelled,
        Class::Internal => Code::Internal,
    }
}

/// The status of an error, with its details.
pub fn to_status(error: &Error) -> Status {
    let reason = error.reason();
    let metadata: HashMap<String, String> = error.metadata().clone().into_iter().collect();
    let subject = metadata.get("vm").or_else(|| metadata.get("user")).cloned().unwrap_or_default();
    let (metric, limit) = (metadata.get("quota").cloned(), metadata.get("limit").and_then(|limit| limit.parse().ok()));
    let field = metadata.get("field").cloned().unwrap_or_default();
    let mut details = ErrorDetails::with_error_info(reason.as_str(), ERROR_DOMAIN, metadata);
    match reason.class() {
        Class::InvalidArgument => {
            details.add_bad_request_violation(field, error.message());
        }
        Class::FailedPrecondition => {
            details.add_precondition_failure_violation(reason.as_str(), subject, error.message());
        }
        Class::ResourceExhausted => {
            let mut violation = QuotaViolation::new(subject, error.message());
            violation.quota_metric = metric.unwrap_or_default();
            violation.quota_value = limit.unwrap_or_default();
            details.set_quota_failure(vec![violation]);
        }
        Class::Unauthenticated
        | Class::PermissionDenied
        | Class::NotFound
        | Class::AlreadyExists
        | Class::Aborted
        | Class::Unavailable
        | Class::Cancelled
        | Class::Internal => {}
    }
    if error.retryable() {
        let asked = error.metadata().get("retry_after_ms").and_then(|wait| wait.parse().ok());
        details.set_retry_info(Some(asked.map_or(RETRY_DELAY, Duration::from_millis)));
    }
    Status::with_error_details(code(reason), error.message(), details)
}

/// The reason in a status of this service's making.
pub fn reason(status: &Status) -> Option<Reason> {
    let info = status.get_details_error_info().filter(|info| info.domain == ERROR_DOMAIN)?;
    Reason::parse(&info.reason)
}

/// Reads an error back from a status. A status that is not of this service's making, such as one that the transport
/// made, becomes `foreign`.
pub fn from_status(status: &Status, foreign: Reason) -> Error {
    let info = status.get_details_error_info().filter(|info| info.domain == ERROR_DOMAIN);
    let reason = info.as_ref().and_then(|info| Reason::parse(&info.reason));
    let mut error = match reason {
        Some(reason) => Error::new(reason, status.message()),
        None => Error::new(foreign, status.message()).with("grpc_code", status.code().description()),
    };
    for (key, value) in info.map(|info| info.metadata).unwrap_or_default() {
        error = error.with(&key, value);
    }
    error
}

impl From<&Error> for v1::OperationError {
    fn from(error: &Error) -> Self {
        Self {
            code: code(error.reason()) as i32,
            message: error.message().to_owned(),
            reason: error.reason().as_str().to_owned(),
            metadata: error.metadata().clone().into_iter().collect(),
            retryable: error.retryable(),
        }
    }
}

impl From<&v1::OperationError> for Error {
    fn from(wire: &v1::OperationError) -> Self {
        let reason = Reason::parse(&wire.reason).unwrap_or(Reason::HostProtocol);
        let mut error = Error::new(reason, wire.message.clone());
        for (key, value) in &wire.metadata {
            error = error.with(key, value.clone());
        }
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_crosses_the_wire_unchanged() {
        for reason in Reason::ALL {
            let error = Error::new(*reason, "why").with("vm", "vms/x").with("field", "name");
            let status = to_status(&error);
            assert_eq!(from_status(&status, Reason::HostProtocol), error);
            assert_eq!(status.get_details_retry_info().is_some(), reason.retryable(), "{reason}");
            assert_eq!(Error::from(&v1::OperationError::from(&error)), error);
        }
    }

    #[test]
    fn a_quota_is_told_as_one() {
        let error = Error::new(Reason::QuotaExceeded, "too many")
            .with("user", "ravada/alice")
            .with("quota", "snapshots_per_user")
            .with("limit", "3");
        let failure = to_status(&error).get_details_quota_failure().unwrap();
        let told = &failure.violations[0];
        assert_eq!((told.subject.as_str(), told.description.as_str()), ("ravada/alice", "too many"));
        assert_eq!((told.quota_metric.as_str(), told.quota_value), ("snapshots_per_user", 3));
    }

    #[test]
    fn a_status_of_the_transport_is_told_apart() {
        let error = from_status(&Status::unavailable("connection refused"), Reason::HostUnreachable);
        assert_eq!(error.reason(), Reason::HostUnreachable);
    }
}

//! Errors, the gateway's own and the API's, as the caller gets them.
//!
//! Both begin as a `tonic::Status` with `google.rpc` details and take one way out, so that an error of the gateway looks
//! like one of the API: an `ErrorInfo` with a reason always, a `RetryInfo` where asking again may help.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use connectrpc::{ConnectError, ErrorCode, ErrorDetail};
use http::header::{ACCEPT_ENCODING, ALLOW, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use http::{HeaderValue, Method, StatusCode};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

const DOMAIN: &str = "snapshots.ravada";
const TYPE_PREFIX: &str = "type.googleapis.com/";
const RETRY: Duration = Duration::from_secs(1);

/// Why the gateway itself refuses or ends a call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the snapshot service cannot be reached at the moment")]
    ApiUnavailable,
    #[error("the snapshot service gave an answer that cannot be read: {0}")]
    BadAnswer(String),
    #[error("the call was not answered in time")]
    DeadlineExceeded,
    #[error("the request did not arrive in time")]
    RequestTimeout,
    #[error("the request is larger than {limit} bytes")]
    TooLarge { limit: usize },
    #[error("the request cannot be read: {0}")]
    Malformed(String),
    #[error("the key {path} is in the request twice, or in two spellings")]
    DuplicateKey { path: String },
    #[error(
        "the content type {0:?} is none of this method's: application/json, application/proto, or one of gRPC or gRPC-Web"
    )]
    ContentType(String),
    #[error("the request is encoded as {told:?} ({header}), which is not known here: send it as gzip, or as it is")]
    Encoding { header: HeaderName, told: String },
    #[error("there is no method {0}")]
    UnknownMethod(String),
    #[error("methods are called by POST, not by {0}")]
    HttpMethod(Method),
    #[error("the request carries several authorization headers")]
    Tokens,
    #[error("too many requests from this address")]
    RateLimited { wait: Duration },
    #[error("the gateway has as many calls as it can handle")]
    Overloaded,
    #[error("the gateway is shutting down")]
    ShuttingDown,
}

impl Refusal {
    /// For programs, as `google.rpc.ErrorInfo.reason`.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::ApiUnavailable => "API_UNAVAILABLE",
            Self::BadAnswer(_) => "API_ANSWER_UNREADABLE",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::RequestTimeout => "REQUEST_TIMEOUT",
            Self::TooLarge { .. } => "REQUEST_TOO_LARGE",
            Self::Malformed(_) | Self::DuplicateKey { .. } | Self::ContentType(_) | Self::Encoding { .. } => {
                "REQUEST_MALFORMED"
            }
            Self::UnknownMethod(_) | Self::HttpMethod(_) => "METHOD_UNKNOWN",
            // As the API answers it.
            Self::Tokens => "TOKEN_INVALID",
            Self::RateLimited { .. } => "RATE_LIMITED",
            Self::Overloaded => "GATEWAY_OVERLOADED",
            Self::ShuttingDown => "GATEWAY_SHUTTING_DOWN",
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::ApiUnavailable | Self::Overloaded | Self::ShuttingDown => Code::Unavailable,
            Self::BadAnswer(_) => Code::Internal,
            Self::DeadlineExceeded | Self::RequestTimeout => Code::DeadlineExceeded,
            Self::TooLarge { .. } | Self::RateLimited { .. } => Code::ResourceExhausted,
            Self::Malformed(_) | Self::DuplicateKey { .. } | Self::ContentType(_) | Self::Encoding { .. } => {
                Code::InvalidArgument
            }
            Self::UnknownMethod(_) | Self::HttpMethod(_) => Code::Unimplemented,
            Self::Tokens => Code::Unauthenticated,
        }
    }

    /// The HTTP status of a Connect error, where the one that follows from the code says less.
    fn http_status(&self) -> Option<StatusCode> {
        match self {
            Self::TooLarge { .. } => Some(StatusCode::PAYLOAD_TOO_LARGE),
            Self::RequestTimeout => Some(StatusCode::REQUEST_TIMEOUT),
            Self::UnknownMethod(_) => Some(StatusCode::NOT_FOUND),
            Self::HttpMethod(_) => Some(StatusCode::METHOD_NOT_ALLOWED),
            Self::ContentType(_) | Self::Encoding { .. } => Some(StatusCode::UNSUPPORTED_MEDIA_TYPE),
            _ => None,
        }
    }

    /// How long to wait before asking again, where that may help.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::ApiUnavailable | Self::Overloaded | Self::ShuttingDown => Some(RETRY),
            Self::RateLimited { wait } => Some(*wait),
            _ => None,
        }
    }

    fn status(&self) -> Status {
        let mut facts = HashMap::new();
        let mut details = ErrorDetails::new();
        let mut fact = |key: &str, value: String| facts.insert(key.to_owned(), value);
        match self {
            Self::TooLarge { limit } => _ = fact("max_bytes", limit.to_string()),
            Self::ContentType(_) => _ = fact("header", CONTENT_TYPE.to_string()),
            Self::Encoding { header, .. } => _ = fact("header", header.to_string()),
            Self::Tokens => _ = fact("cause", "TOKEN_AMBIGUOUS".to_owned()),
            Self::DuplicateKey { path } => {
                fact("field", path.clone());
                details.add_bad_request_violation(path, self.to_string());
            }
            _ => {}
        }
        details.set_error_info(self.reason(), DOMAIN, facts);
        if let Some(wait) = self.retry_after() {
            details.set_retry_info(Some(wait));
        }
        if let Self::RateLimited { .. } = self {
            details.add_quota_failure_violation("address", "requests in a second");
        }
        Status::with_error_details(self.code(), self.to_string(), details)
    }

    /// As the caller gets it; the types of `pool` make the details readable.
    pub(crate) fn into_connect(self, pool: &DescriptorPool) -> ConnectError {
        metrics::counter!("snapshot_gateway_refused_total", "reason" => self.reason()).increment(1);
        let mut error = encode(&self.status(), pool);
        if let Some(status) = self.http_status() {
            error = error.with_http_status(status);
        }
        let headers = error.response_headers_mut();
        match self {
            Self::RateLimited { wait } => _ = headers.insert(RETRY_AFTER, whole_seconds(wait)),
            Self::HttpMethod(_) => _ = headers.insert(ALLOW, HeaderValue::from_static("POST")),
            Self::Encoding { .. } => _ = headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip")),
            _ => {}
        }
        error
    }
}

/// What a call to the API failed with, as the caller gets it.
///
/// A status that has a source was made on this side, by the transport: its words are for the log alone.
pub(crate) fn from_upstream(status: &Status, late: bool, pool: &DescriptorPool) -> ConnectError {
    if let Some(source) = std::error::Error::source(status) {
        // tonic ends a call whose time is over with CANCELLED.
        if late {
            return Refusal::DeadlineExceeded.into_connect(pool);
        }
        tracing::warn!(code = ?status.code(), error = %status.message(), %source, "the API cannot be reached");
        return Refusal::ApiUnavailable.into_connect(pool);
    }
    match status.code() {
        Code::Cancelled | Code::DeadlineExceeded if late => Refusal::DeadlineExceeded.into_connect(pool),
        Code::Unavailable if status.details().is_empty() => {
            tracing::warn!(error = %status.message(), "the API is unavailable");
            Refusal::ApiUnavailable.into_connect(pool)
        }
        // The API counts by user and answers as the gateway does.
        Code::ResourceExhausted => {
            let mut error = encode(status, pool);
            if let Some(wait) = status.get_details_retry_info().and_then(|info| info.retry_delay) {
                error.response_headers_mut().insert(RETRY_AFTER, whole_seconds(wait));
            }
            error
        }
        _ => encode(status, pool),
    }
}

/// Rounded up, so that whoever waits as long is not refused for it.
fn whole_seconds(wait: Duration) -> HeaderValue {
    HeaderValue::from(wait.as_secs() + u64::from(wait.subsec_nanos() > 0))
}

fn encode(status: &Status, pool: &DescriptorPool) -> ConnectError {
    let code = ErrorCode::from_grpc_code(i32::from(status.code()).unsigned_abs()).unwrap_or(ErrorCode::Internal);
    let mut error = ConnectError::new(code, status.message());
    match tonic_types::Status::decode(status.details()) {
        Ok(details) => error.details.extend(details.details.into_iter().map(|detail| describe(detail, pool))),
        Err(reason) => tracing::warn!(%reason, "the details of an error cannot be read"),
    }
    error
}

fn describe(detail: prost_types::Any, pool: &DescriptorPool) -> ErrorDetail {
    let name = detail.type_url.strip_prefix(TYPE_PREFIX).unwrap_or(&detail.type_url);
    let debug = pool
        .get_message_by_name(name)
        .and_then(|message| DynamicMessage::decode(message, detail.value.as_slice()).ok())
        .and_then(|message| serde_json::to_value(message).ok());
    ErrorDetail { type_url: name.to_owned(), value: Some(STANDARD_NO_PAD.encode(&detail.value)), debug }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptors::Methods;

    #[test]
    fn a_refusal_has_a_reason_and_says_when_to_ask_again() {
        let methods = Methods::load().expect("the built-in descriptors");
        let error = Refusal::RateLimited { wait: Duration::from_millis(1500) }.into_connect(methods.pool());
        assert_eq!(error.http_status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(error.response_headers()[RETRY_AFTER], "2");
        let json: serde_json::Value = serde_json::from_slice(&error.to_json()).expect("JSON");
        assert_eq!(json["code"], "resource_exhausted");
        let debug = |name: &str| {
            let details = json["details"].as_array().expect("details");
            details.iter().find(|detail| detail["type"] == name).map(|detail| detail["debug"].clone()).expect(name)
        };
        assert_eq!(debug("google.rpc.ErrorInfo")["reason"], "RATE_LIMITED");
        assert_eq!(debug("google.rpc.RetryInfo")["retryDelay"], "1.500s");
    }

    #[test]
    fn every_reason_is_documented() {
        let page = include_str!("../../docs/errors.md");
        for refusal in [
            Refusal::ApiUnavailable,
            Refusal::BadAnswer(String::new()),
            Refusal::DeadlineExceeded,
            Refusal::RequestTimeout,
            Refusal::TooLarge { limit: 0 },
            Refusal::Malformed(String::new()),
            Refusal::DuplicateKey { path: String::new() },
            Refusal::ContentType(String::new()),
            Refusal::Encoding { header: CONTENT_TYPE, told: String::new() },
            Refusal::UnknownMethod(String::new()),
            Refusal::HttpMethod(Method::GET),
            Refusal::Tokens,
            Refusal::RateLimited { wait: RETRY },
            Refusal::Overloaded,
            Refusal::ShuttingDown,
        ] {
            assert!(page.contains(&format!("| `{}` |", refusal.reason())), "docs/errors.md lacks {}", refusal.reason());
        }
    }

    #[test]
    fn the_words_of_the_transport_stay_here() {
        let methods = Methods::load().expect("the built-in descriptors");
        let status = Status::from_error(Box::new(std::io::Error::other("connect to 10.0.0.7 failed")));
        let error = from_upstream(&status, false, methods.pool());
        assert_eq!(error.code, ErrorCode::Unavailable);
        assert!(!error.to_string().contains("10.0.0.7"));
    }
}

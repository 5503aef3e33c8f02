//! Which headers pass: a list of those that do, so that no other can.

use std::time::{Duration, Instant};

use http::header::{AUTHORIZATION, HeaderName};
use http::{HeaderMap, HeaderValue};
use uuid::Uuid;

/// The name that a call has in the logs of every process it passes.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const REQUEST_ID_MAX: usize = 64;
const TRACEPARENT_LENGTH: usize = 55;

/// The caller's request id, or a new one where there is none or it is no plain name.
pub(crate) fn request_id(headers: &HeaderMap) -> HeaderValue {
    let usable = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        !bytes.is_empty()
            && bytes.len() <= REQUEST_ID_MAX
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
    };
    headers.get(REQUEST_ID).filter(usable).cloned().unwrap_or_else(|| {
        let mut buffer = Uuid::encode_buffer();
        let id = Uuid::now_v7().hyphenated().encode_lower(&mut buffer);
        // A UUID is made of hexadecimal digits and hyphens, which are always a header's value.
        HeaderValue::from_str(id).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
    })
}

/// The headers of the call to the API: the token, the request id, the trace.
pub(crate) fn upstream(headers: &HeaderMap) -> HeaderMap {
    let mut out = HeaderMap::with_capacity(4);
    if let Some(token) = headers.get(AUTHORIZATION) {
        let mut token = token.clone();
        token.set_sensitive(true);
        out.insert(AUTHORIZATION, token);
    }
    if let Some(id) = headers.get(REQUEST_ID) {
        out.insert(REQUEST_ID, id.clone());
    }
    let well_formed = |value: &&HeaderValue| {
        value.len() == TRACEPARENT_LENGTH && value.as_bytes().iter().all(|b| b.is_ascii_hexdigit() || *b == b'-')
    };
    if let Some(trace) = headers.get(TRACEPARENT).filter(well_formed) {
        out.insert(TRACEPARENT, trace.clone());
    }
    out
}

/// The time left until a deadline, for `grpc-timeout`.
pub(crate) fn remaining(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().expect("a value"));
        headers
    }

    #[test]
    fn a_plain_request_id_is_kept_and_any_other_replaced() {
        assert_eq!(request_id(&with("x-request-id", "abc-123")), "abc-123");
        for bad in ["", "a b", "a\"b", "a_b", "ä", &"x".repeat(65)] {
            let id = request_id(&with("x-request-id", bad));
            assert_ne!(id, bad);
            assert_eq!(Uuid::parse_str(id.to_str().expect("text")).expect("a UUID").get_version_num(), 7);
        }
    }

    #[test]
    fn a_trace_passes_only_where_it_is_one() {
        let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(upstream(&with("traceparent", trace)).len(), 1);
        assert!(upstream(&with("traceparent", "00-x")).is_empty());
        assert!(upstream(&with("cookie", "a=b")).is_empty());
    }
}

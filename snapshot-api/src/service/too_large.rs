//! A request that is larger than it may be is refused by tonic, before any code of ours, with a status that has no
//! details. It is given the ones that every error has.

use http::Response;
use snapshot_core::{Error, Reason};
use tonic::Code;
use tonic::body::Body;

use super::MAX_REQUEST_BYTES;

/// Replaces tonic's OUT_OF_RANGE, a code that nothing else here answers with, by REQUEST_TOO_LARGE.
pub fn typed(response: Response<Body>) -> Response<Body> {
    let headers = response.headers();
    let code = headers.get("grpc-status").map(|value| Code::from_bytes(value.as_bytes()));
    if code != Some(Code::OutOfRange) || headers.contains_key("grpc-status-details-bin") {
        return response;
    }
    let message = format!("the request is larger than {MAX_REQUEST_BYTES} bytes");
    let error = Error::new(Reason::RequestTooLarge, message).with("max_bytes", MAX_REQUEST_BYTES.to_string());
    proto::status::to_status(&error).into_http()
}

//! An error of the API, the same whichever face it came through.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use prost::Message as _;
use serde_json::Value;
use tonic::{Code, Status};
use tonic_types::pb;

const TYPE_PREFIX: &str = "type.googleapis.com/";

/// What a call was refused with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The gRPC code.
    pub code: Code,
    /// For people.
    pub message: String,
    /// `google.rpc.ErrorInfo.reason`; empty when there is none.
    pub reason: String,
    /// `google.rpc.ErrorInfo.metadata`.
    pub metadata: BTreeMap<String, String>,
    /// The full names of the details' types, in their order, such as `google.rpc.RetryInfo`.
    pub details: Vec<String>,
    /// `google.rpc.RetryInfo.retry_delay`.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    /// A fault of the harness or of the way, not of the API: its code is Unknown and its details say `harness`.
    pub(super) fn harness(message: impl fmt::Display) -> Self {
        let details = vec!["harness".to_owned()];
        let (reason, metadata) = (String::new(), BTreeMap::new());
        Self { code: Code::Unknown, message: message.to_string(), reason, metadata, details, retry_after: None }
    }

    /// An answer that did not come: it may have been sent and lost.
    pub fn lost(message: impl fmt::Display) -> Self {
        Self::harness(message)
    }

    /// From `google.rpc.Status`-like parts with encoded details: (type, bytes).
    pub(super) fn from_parts(code: Code, message: &str, details: &[(String, Vec<u8>)]) -> Self {
        let info = details.iter().find(|(name, _)| name == "google.rpc.ErrorInfo");
        let info = info.and_then(|(_, bytes)| pb::ErrorInfo::decode(bytes.as_slice()).ok()).unwrap_or_default();
        Self {
            code,
            message: message.to_owned(),
            reason: info.reason,
            metadata: info.metadata.into_iter().collect(),
            details: details.iter().map(|(name, _)| name.clone()).collect(),
            retry_after: retry_after(details),
        }
    }

    /// From `google.rpc.Status` in protobuf's JSON, where each detail is spelt out.
    pub(super) fn from_json(status: &Value) -> Self {
        let code = status.get("code").and_then(Value::as_i64).and_then(|code| i32::try_from(code).ok());
        let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let details = status.get("details").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let name = |detail: &Value| text(detail, "@type").trim_start_matches(TYPE_PREFIX).to_owned();
        let info = details.iter().find(|detail| name(detail) == "google.rpc.ErrorInfo");
        let metadata = info.and_then(|info| info.get("metadata")).and_then(Value::as_object);
        let pairs = metadata.into_iter().flatten();
        Self {
            code: code.map_or(Code::Unknown, Code::from_i32),
            message: text(status, "message"),
            reason: info.map(|info| text(info, "reason")).unwrap_or_default(),
            metadata: pairs.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect(),
            details: details.iter().map(name).collect(),
            retry_after: details
                .iter()
                .find_map(|detail| text(detail, "retryDelay").strip_suffix('s')?.parse().ok())
                .map(Duration::from_secs_f64),
        }
    }
}

fn retry_after(details: &[(String, Vec<u8>)]) -> Option<Duration> {
    let (_, bytes) = details.iter().find(|(name, _)| name == "google.rpc.RetryInfo")?;
    let delay = pb::RetryInfo::decode(bytes.as_slice()).ok()?.retry_delay?;
    Duration::try_from(delay).ok()
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        let details = pb::Status::decode(status.details()).unwrap_or_default().details;
        let part =
            |detail: prost_types::Any| (detail.type_url.trim_start_matches(TYPE_PREFIX).to_owned(), detail.value);
        let details: Vec<(String, Vec<u8>)> = details.into_iter().map(part).collect();
        Self::from_parts(status.code(), status.message(), &details)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}: {} {:?} {:?}", self.code, self.reason, self.message, self.metadata, self.details)
    }
}

impl std::error::Error for Refusal {}

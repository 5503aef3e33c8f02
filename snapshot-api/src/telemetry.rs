//! Metrics, and the request id that follows a call through the processes.

use std::net::SocketAddr;

use http::HeaderMap;
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder};

/// The longest request id that is taken over from a caller.
const REQUEST_ID_MAX_BYTES: usize = 64;

/// Serves metrics in Prometheus' text format.
pub fn metrics(address: SocketAddr) -> Result<(), BuildError> {
    PrometheusBuilder::new().with_http_listener(address).install()?;
    metrics::describe_counter!("snapshot_api_requests_total", "Calls, by method and gRPC code.");
    metrics::describe_counter!("snapshot_api_refused_total", "Requests refused before they were calls, by reason.");
    metrics::describe_histogram!(
        "snapshot_api_request_seconds",
        metrics::Unit::Seconds,
        "How long calls took, by method; of a watch, until it began."
    );
    metrics::describe_counter!("snapshot_api_operations_ended_total", "Operations that ended, by kind and state.");
    metrics::describe_gauge!("snapshot_api_audit_sequence", "The number of the last event of the audit trail.");
    metrics::describe_counter!(
        "snapshot_api_audit_unwritten_total",
        "Events that could not be written and were counted until they could."
    );
    metrics::describe_counter!(
        "snapshot_api_host_not_understood_total",
        "VMs told in a way that makes no sense, by host."
    );
    metrics::describe_gauge!("snapshot_api_vm_conflicts", "VMs that two connected hosts report as active.");
    metrics::describe_counter!("snapshot_api_vm_moves_total", "VMs that are on another host now, by that host.");
    metrics::describe_gauge!("snapshot_api_catalogue_writable", "Whether the catalogue can be written.");
    metrics::describe_counter!(
        "snapshot_api_writer_panics_total",
        "Changes that met a fault of the service's own while they were written, and were rolled back."
    );
    metrics::describe_gauge!("snapshot_api_host_reachable", "Whether a host's agent is connected, by host.");
    mtls::expiry::describe();
    Ok(())
}

/// Counts a request that was refused before it was a call.
pub fn refused(error: &snapshot_core::Error) {
    metrics::counter!("snapshot_api_refused_total", "reason" => error.reason().as_str()).increment(1);
    tracing::debug!(reason = %error.reason(), "refused at the door");
}

/// The caller's request id, or a new one where it has none that is fit to be logged.
pub fn request_id(headers: &HeaderMap) -> String {
    let sound = |id: &&str| {
        !id.is_empty() && id.len() <= REQUEST_ID_MAX_BYTES && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    match headers.get("x-request-id").and_then(|value| value.to_str().ok()).filter(sound) {
        Some(id) => id.to_owned(),
        None => uuid::Uuid::now_v7().to_string(),
    }
}

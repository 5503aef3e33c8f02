//! Metrics, and the record of a call, which feeds them, the log, and the trace.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics_exporter_prometheus::{BuildError, PrometheusBuilder};

/// Seconds; a unary call through the gateway and the API takes about one millisecond.
const LATENCY_BUCKETS: [f64; 12] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

/// Serves the metrics to Prometheus. Must be called inside a tokio runtime.
///
/// # Errors
/// When the address cannot be listened on.
pub fn serve_metrics(address: SocketAddr) -> Result<(), BuildError> {
    PrometheusBuilder::new().set_buckets(&LATENCY_BUCKETS)?.with_http_listener(address).install()?;
    mtls::expiry::describe();
    Ok(())
}

/// A call from its begin to its end: in flight meanwhile, then counted, timed and logged once.
///
/// A call whose record is dropped before its end was given up by the caller.
pub(crate) struct CallRecord {
    method: Arc<str>,
    request_id: String,
    protocol: &'static str,
    kind: &'static str,
    started: Instant,
    ended: bool,
    trace: Option<traces::Call>,
}

impl CallRecord {
    pub(crate) fn begin(
        method: Arc<str>,
        request_id: String,
        protocol: &'static str,
        stream: bool,
        trace: Option<traces::Call>,
    ) -> Self {
        let kind = if stream { "stream" } else { "unary" };
        metrics::gauge!("snapshot_gateway_in_flight", "kind" => kind).increment(1);
        Self { method, request_id, protocol, kind, started: Instant::now(), ended: false, trace }
    }

    /// The call ended with this code, such as `ok` or `not_found`.
    pub(crate) fn end(&mut self, code: &'static str) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let took = self.started.elapsed();
        if let Some(trace) = self.trace.take() {
            trace.end(code);
        }
        let method = metrics::SharedString::from(Arc::clone(&self.method));
        metrics::gauge!("snapshot_gateway_in_flight", "kind" => self.kind).decrement(1);
        metrics::counter!("snapshot_gateway_calls_total", "method" => method.clone(), "code" => code).increment(1);
        if self.kind == "unary" {
            metrics::histogram!("snapshot_gateway_call_seconds", "method" => method).record(took);
        }
        let (method, request_id, protocol) = (&*self.method, self.request_id.as_str(), self.protocol);
        let ms = milliseconds(took);
        // Health checks come every few seconds from every balancer and would hide the rest.
        if method.starts_with("grpc.health.") {
            tracing::debug!(request_id, method, protocol, code, ms, "call");
        } else {
            tracing::info!(request_id, method, protocol, code, ms, "call");
        }
    }
}

impl Drop for CallRecord {
    fn drop(&mut self) {
        self.end("canceled");
    }
}

fn milliseconds(took: Duration) -> f64 {
    (took.as_secs_f64() * 1e6).round() / 1e3
}

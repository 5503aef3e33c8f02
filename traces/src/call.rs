//! The span of a call, and how it gets from one service to the next.

use std::fmt::Display;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::KeyValue;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::TARGET;

/// A call that this service answers. Its span ends with the last clone of it.
#[derive(Debug, Clone)]
pub struct Call(Span);

impl Call {
    /// Begins the span of a call, as a child of what `headers` say. `method` is one that there is, never what a caller wrote;
    /// `request_id` is what follows the call through the logs.
    #[must_use]
    pub fn begin(method: &str, headers: &HeaderMap, request_id: &str) -> Self {
        let span = tracing::info_span!(
            target: TARGET,
            "call",
            otel.name = method,
            otel.kind = "server",
            rpc.system = "grpc",
            rpc.method = method,
            rpc.code = Empty,
            request_id,
        );
        if !span.is_disabled() {
            // The flags of a later version, and its other headers, are not for us: only the one header is read.
            let parent = TraceContextPropagator::new().extract(&Headers(headers));
            if parent.span().span_context().is_valid()
                && let Err(error) = span.set_parent(parent)
            {
                tracing::debug!(?error, "a span is without its parent");
            }
        }
        Self(span)
    }

    /// The span, for a future to run in.
    #[must_use]
    pub fn span(&self) -> Span {
        self.0.clone()
    }

    /// Puts the call into the headers of another that is made for it. Without a collector they stay as they are.
    pub fn inject(&self, headers: &mut HeaderMap) {
        if !self.0.is_disabled() {
            TraceContextPropagator::new().inject_context(&self.0.context(), &mut HeadersMut(headers));
        }
    }

    /// The call ended with this code, such as `ok` or `NotFound`.
    pub fn end(&self, code: &str) {
        self.0.record("rpc.code", code);
        if !code.eq_ignore_ascii_case("ok") && !self.0.is_disabled() {
            self.0.set_status(opentelemetry::trace::Status::error(code.to_owned()));
        }
    }
}

/// Puts the call that is being answered here into the headers of one that is made for it; nothing where there is none.
pub fn inject(headers: &mut HeaderMap) {
    let now = opentelemetry::Context::current();
    if now.span().span_context().is_valid() {
        TraceContextPropagator::new().inject_context(&now, &mut HeadersMut(headers));
    }
}

const TRACEPARENT: &str = "traceparent";

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    /// `tracestate` is for what vendors say to each other, through us, of what we did not make: it is left.
    fn get(&self, key: &str) -> Option<&str> {
        (key == TRACEPARENT).then(|| self.0.get(key)?.to_str().ok()).flatten()
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT]
    }
}

struct HeadersMut<'a>(&'a mut HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        if key == TRACEPARENT
            && let Ok(value) = HeaderValue::try_from(value)
        {
            self.0.insert(HeaderName::from_static(TRACEPARENT), value);
        }
    }
}

/// Says which operation on which machine the call that is being answered here is about.
pub fn about(operation: &dyn Display, vm: &dyn Display) {
    let now = opentelemetry::Context::current();
    let span = now.span();
    if span.is_recording() {
        span.set_attribute(KeyValue::new("ravada.operation", operation.to_string()));
        span.set_attribute(KeyValue::new("ravada.vm", vm.to_string()));
    }
}

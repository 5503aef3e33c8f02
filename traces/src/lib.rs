//! The log of a service, and the spans of its calls for a collector of OpenTelemetry (`docs/adr/0028`).
//!
//! Without `[telemetry]` no span is made and nothing is connected to. With it:
//!
//! - a [`Call`] is a span, with those attributes that are written down in this crate and no others: what the log says
//!   beside it stays in the log;
//! - spans that have ended wait in a queue with a bound. What does not fit is dropped and counted, and nobody waits;
//! - the trace goes from one service to the next by the header `traceparent` (<https://www.w3.org/TR/trace-context/>).

mod call;
mod export;

use std::net::SocketAddr;

use serde::Deserialize;
use tracing_subscriber::filter::{FilterExt as _, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

pub use self::call::{Call, about, inject};
pub use self::export::{Export, Exporting};

/// The target of spans that are for the collector, which has these alone, and the log all others.
const TARGET: &str = "ravada_trace";

/// `[telemetry]` of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Telemetry {
    /// Where the collector takes OTLP over gRPC, such as `http://127.0.0.1:4317`.
    pub endpoint: Endpoint,
}

/// A collector on this host: what goes there is neither encrypted nor is it known who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Endpoint(SocketAddr);

impl Endpoint {
    /// Its TCP port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.0.port()
    }
}

impl TryFrom<String> for Endpoint {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let address = text.strip_prefix("http://").map(|rest| rest.trim_end_matches('/').parse::<SocketAddr>());
        match address {
            Some(Ok(address)) if address.ip().is_loopback() && address.port() != 0 => Ok(Self(address)),
            _ => Err(format!("{text:?} is no address of this host such as \"http://127.0.0.1:4317\"")),
        }
    }
}

/// Sends log lines to standard error, by `RUST_LOG`, or from `info` on, as text or as JSON; and spans of calls to the
/// collector, where there is one. Nothing happens where this was done before in the process.
pub fn log(json: bool, export: Option<&Export>) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let filter = filter.and(filter_fn(|metadata| metadata.target() != TARGET));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = if json { lines.json().boxed() } else { lines.with_ansi(false).boxed() };
    let registry = tracing_subscriber::registry().with(lines.with_filter(filter));
    let begun = match export {
        None => registry.try_init(),
        Some(export) => registry.with(export.layer()).try_init(),
    };
    if let Err(error) = begun {
        tracing::debug!(%error, "there is a log already");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(endpoint: &str) -> Result<Telemetry, toml::de::Error> {
        toml::from_str(&format!("endpoint = \"{endpoint}\""))
    }

    #[test]
    fn a_collector_is_on_this_host() {
        for good in ["http://127.0.0.1:4317", "http://[::1]:4317/"] {
            assert_eq!(parse(good).unwrap().endpoint.port(), 4317, "{good}");
        }
        for bad in [
            "https://127.0.0.1:4317",
            "127.0.0.1:4317",
            "http://localhost:4317",
            "http://192.0.2.1:4317",
            "http://127.0.0.1",
            "http://127.0.0.1:0",
            "http://127.0.0.1:4317/v1/traces",
            "",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}

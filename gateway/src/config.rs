//! The configuration file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mtls::{ServerFiles, SpiffeId, TlsFiles};
use public_port::{Network, Settings, TrustedProxies};
use serde::Deserialize;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is no such TOML.
    #[error("{path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why not; boxed for its size.
        source: Box<toml::de::Error>,
    },
    /// A value is of the right type and yet makes no sense.
    #[error("{field}: {problem}")]
    Value {
        /// The field, with its section.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where callers connect.
    pub listen: SocketAddr,
    /// Where Prometheus reads the metrics; nowhere when absent.
    pub metrics: Option<SocketAddr>,
    /// The collector of traces; none when absent.
    pub telemetry: Option<traces::Telemetry>,
    /// How log lines look.
    #[serde(default)]
    pub log_format: LogFormat,
    /// The gateway's certificate towards callers. Without it they connect in plain text, which is for loopback or for a
    /// proxy in front that does TLS.
    pub tls: Option<ServerFiles>,
    /// The API.
    pub api: Api,
    /// What a caller may use.
    #[serde(default)]
    pub limits: Limits,
    /// The page.
    #[serde(default)]
    pub page: Page,
    /// The other origins, such as `https://ravada.example.org`, whose pages may call the gateway; none by default.
    #[serde(default)]
    pub allowed_origins: Vec<String>,
    /// The proxies in front, addresses and networks: their `X-Forwarded-For` or `Forwarded` names the client that limits
    /// count for, and their connections count for `limits.connections_per_proxy`.
    #[serde(default)]
    pub trusted_proxies: Vec<Network>,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The API and how it is reached.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Api {
    /// Such as `https://127.0.0.1:7443`.
    pub uri: String,
    /// Who must answer there, such as `spiffe://example.org/snapshot-api`.
    pub peer: SpiffeId,
    /// The gateway's certificate towards it, and the authority that signed its own.
    pub tls: TlsFiles,
}

/// What a caller may use. Every bound is on memory or time that a caller could otherwise take without end.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of a request.
    pub request_bytes: usize,
    /// Bytes of a message that the API answers.
    pub response_bytes: usize,
    /// Connections in all.
    pub connections: usize,
    /// Connections from one address.
    pub connections_per_address: usize,
    /// Connections from one trusted proxy.
    pub connections_per_proxy: usize,
    /// HTTP/2 control frames of one connection at once, beyond those that responses allow for.
    pub control_frame_burst: u32,
    /// The same in a second, in the long run.
    pub control_frames_per_second: u32,
    /// Calls and streams at a time on one HTTP/2 connection.
    pub calls_per_connection: u32,
    /// Calls at a time, each until its answer begins.
    pub calls: usize,
    /// Calls at a time from one address.
    pub calls_per_address: usize,
    /// Calls at a time with one token that the API has taken.
    pub calls_per_token: usize,
    /// Streams at a time.
    pub streams: usize,
    /// Streams at a time to one address.
    pub streams_per_address: usize,
    /// Streams at a time with one token that the API has taken.
    pub streams_per_token: usize,
    /// Requests in a second from one address, in the long run; 0 for no limit. Those with a token that the API has taken
    /// count for that instead.
    pub requests_per_second: u32,
    /// Requests from one address at once.
    pub request_burst: u32,
    /// Requests in a second with one such token, in the long run; 0 for no limit.
    pub token_requests_per_second: u32,
    /// Requests with one such token at once.
    pub token_request_burst: u32,
    /// Time-out of the TLS handshake, in seconds.
    pub handshake_seconds: u64,
    /// Time-out of the HTTP/2 preface, of the head of a request, and of its body, in seconds.
    pub receive_seconds: u64,
    /// How long a connection without any call is kept.
    pub idle_seconds: u64,
    /// The age in seconds at which a connection is asked to go; its calls go on.
    pub connection_age_seconds: u64,
    /// How long a unary call may take at most.
    pub call_seconds: u64,
    /// How long unary calls may take to end when the gateway stops.
    pub drain_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_bytes: 64 * 1024,
            response_bytes: 32 * 1024 * 1024,
            connections: 8192,
            connections_per_address: 1024,
            connections_per_proxy: 4096,
            control_frame_burst: 1000,
            control_frames_per_second: 100,
            calls_per_connection: 512,
            calls: 2048,
            calls_per_address: 512,
            calls_per_token: 64,
            streams: 4096,
            streams_per_address: 2048,
            streams_per_token: 512,
            requests_per_second: 2000,
            request_burst: 4000,
            token_requests_per_second: 200,
            token_request_burst: 400,
            handshake_seconds: 5,
            receive_seconds: 15,
            idle_seconds: 120,
            connection_age_seconds: 3600,
            call_seconds: 60,
            drain_seconds: 10,
        }
    }
}

impl Limits {
    pub(crate) fn call(&self) -> Duration {
        Duration::from_secs(self.call_seconds)
    }

    fn check(&self) -> Result<(), Error> {
        let sizes = [
            ("limits.request_bytes", self.request_bytes),
            ("limits.response_bytes", self.response_bytes),
            ("limits.connections", self.connections),
            ("limits.connections_per_address", self.connections_per_address),
            ("limits.connections_per_proxy", self.connections_per_proxy),
            ("limits.control_frame_burst", self.control_frame_burst as usize),
            ("limits.control_frames_per_second", self.control_frames_per_second as usize),
            ("limits.calls_per_connection", self.calls_per_connection as usize),
            ("limits.calls", self.calls),
            ("limits.calls_per_address", self.calls_per_address),
            ("limits.streams", self.streams),
            ("limits.streams_per_address", self.streams_per_address),
            ("limits.calls_per_token", self.calls_per_token),
            ("limits.streams_per_token", self.streams_per_token),
            ("limits.request_burst", self.request_burst as usize),
            ("limits.token_request_burst", self.token_request_burst as usize),
        ];
        let times = [
            ("limits.handshake_seconds", self.handshake_seconds),
            ("limits.receive_seconds", self.receive_seconds),
            ("limits.idle_seconds", self.idle_seconds),
            ("limits.connection_age_seconds", self.connection_age_seconds),
            ("limits.call_seconds", self.call_seconds),
            ("limits.drain_seconds", self.drain_seconds),
        ];
        // A day is more than any of these can mean, and keeps every sum of times in range.
        for (field, seconds) in times {
            if !(1..=86_400).contains(&seconds) {
                return Err(value(field, "must be 1 to 86400"));
            }
        }
        match sizes.iter().find(|(_, size)| *size == 0) {
            Some((field, _)) => Err(value(field, "must not be 0")),
            None => Ok(()),
        }
    }
}

/// The page.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Page {
    /// The origins whose pages may show this one in a frame, such as `https://ravada.example.org`; none by default.
    pub frame_ancestors: Vec<String>,
}

impl Config {
    /// Reads a file and checks it.
    ///
    /// # Errors
    /// When it cannot be read, has a field that is not known, or a value that makes no sense.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Reads the text of a file and checks it; `path` is for what there is to say about it.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        let config: Self =
            toml::from_str(text).map_err(|source| Error::Parse { path: path.to_owned(), source: Box::new(source) })?;
        config.check()?;
        Ok(config)
    }

    /// The limits of the port.
    pub(crate) fn port(&self) -> Settings {
        let limits = &self.limits;
        Settings {
            handshake: Duration::from_secs(limits.handshake_seconds),
            receive: Duration::from_secs(limits.receive_seconds),
            idle: Duration::from_secs(limits.idle_seconds),
            age: Duration::from_secs(limits.connection_age_seconds),
            drain: Duration::from_secs(limits.drain_seconds),
            http1: true,
            streams_per_connection: limits.calls_per_connection,
            connections: limits.connections,
            connections_per_address: limits.connections_per_address,
            connections_per_proxy: limits.connections_per_proxy,
            control_frame_burst: limits.control_frame_burst,
            control_frames_per_second: limits.control_frames_per_second,
            trusted_proxies: TrustedProxies::new(self.trusted_proxies.clone()),
        }
    }

    fn check(&self) -> Result<(), Error> {
        self.limits.check()?;
        let uri: http::Uri = self.api.uri.parse().map_err(|_| value("api.uri", "is no URI"))?;
        if uri.scheme_str() != Some("https") || uri.host().is_none() {
            return Err(value("api.uri", "must be https://host:port"));
        }
        for origin in &self.allowed_origins {
            check_origin("allowed_origins", origin)?;
        }
        for origin in &self.page.frame_ancestors {
            check_origin("page.frame_ancestors", origin)?;
        }
        Ok(())
    }
}

/// An origin goes into headers as it is, so it must be nothing but scheme, host and port.
fn check_origin(field: &'static str, origin: &str) -> Result<(), Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']');
    let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
    match host {
        Some(host) if !host.is_empty() && host.chars().all(plain) => Ok(()),
        _ => Err(value(field, format!("{origin:?} is no origin such as \"https://ravada.example.org\""))),
    }
}

fn value(field: &'static str, problem: impl Into<String>) -> Error {
    Error::Value { field, problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = r#"
        listen = "127.0.0.1:8080"
        [api]
        uri = "https://127.0.0.1:7443"
        peer = "spiffe://example.org/snapshot-api"
        [api.tls]
        ca = "ca.pem"
        certificate = "gateway.pem"
        key = "gateway.key"
    "#;

    fn parse(text: &str) -> Result<Config, Error> {
        Config::parse(text, Path::new("gateway.toml"))
    }

    #[test]
    fn the_example_says_what_holds_without_it() {
        let config = parse(include_str!("../../examples/gateway.toml")).unwrap();
        assert_eq!(format!("{:?}", config.limits), format!("{:?}", Limits::default()));
        assert!(config.tls.is_none() && config.allowed_origins.is_empty() && config.telemetry.is_none());
    }

    #[test]
    fn the_least_is_enough() {
        let config = parse(LEAST).expect("a configuration");
        assert_eq!(config.limits.request_bytes, 65_536);
        assert!(config.allowed_origins.is_empty() && config.tls.is_none() && config.metrics.is_none());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (from, to) in [
            ("listen =", "lisen ="),
            ("https://127", "http://127"),
            ("spiffe://", "https://"),
            ("ca =", "authority ="),
            ("[api]", "allowed_origins = [\"*\"]\n[api]"),
            ("[api]", "allowed_origins = [\"https://a.example/; script-src *\"]\n[api]"),
            ("[api]", "[page]\nframe_ancestors = [\"'self'; x\"]\n[api]"),
            ("[api]", "[telemetry]\nendpoint = \"http://collector:4317\"\n[api]"),
            ("[api]", "trusted_proxies = [\"10.0.0.0/33\"]\n[api]"),
            ("[api]", "[limits]\nrequest_bytes = 0\n[api]"),
            ("[api]", "[limits]\nconnection_age_seconds = 0\n[api]"),
            ("[api]", "[limits]\ncall_seconds = 100000\n[api]"),
        ] {
            assert!(parse(&LEAST.replacen(from, to, 1)).is_err(), "{from} -> {to}");
        }
    }
}

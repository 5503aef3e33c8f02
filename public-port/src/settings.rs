//! The limits of one port.

use std::time::Duration;

use crate::TrustedProxies;

/// The limits of one port. Numbers are at least 1.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Time-out of the TLS handshake, from the accepted connection to its end.
    pub handshake: Duration,
    /// Time-out of the HTTP/2 preface, of the head of a request, of its body, and of the first request of a connection.
    pub receive: Duration,
    /// How long a connection without calls is kept.
    pub idle: Duration,
    /// The age at which a connection is asked to go; each connection's is up to a tenth shorter, so that those that
    /// began together do not end together.
    pub age: Duration,
    /// How long calls may take to end when the service stops.
    pub drain: Duration,
    /// Whether HTTP/1.1 is served beside HTTP/2.
    pub http1: bool,
    /// Calls and streams at a time on one HTTP/2 connection.
    pub streams_per_connection: u32,
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
    /// The proxies in front.
    pub trusted_proxies: TrustedProxies,
}

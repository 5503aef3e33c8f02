//! What callers may use.

use std::time::Duration;

use public_port::{Network, Settings, TrustedProxies};
use serde::Deserialize;

/// The most calls at once on one connection to the public listener.
const CALLS_PER_CONNECTION: u32 = 256;

/// The longest time-out, in seconds: more than any of them can mean.
const DAY: u64 = 24 * 60 * 60;

/// What callers may use; 0 is no limit. A user is whom an issuer names, with whichever token.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Requests of one user in a second, in the long run.
    pub user_requests_per_second: u32,
    /// Requests of one user at once.
    pub user_request_burst: u32,
    /// Calls of one user at a time.
    pub user_calls: usize,
    /// Watches of one user at a time.
    pub user_watches: usize,
    /// Operations of one user at a time on one host, fewer than the agents' `max_operations`, so that one user cannot have
    /// all of a host's.
    pub user_operations_per_host: usize,
    /// Requests in a second from one address at the public listener, of those without a token that was taken before.
    pub address_requests_per_second: u32,
    /// The same at once.
    pub address_request_burst: u32,
    /// Connections to the public listener.
    pub connections: usize,
    /// Connections to it from one address.
    pub connections_per_address: usize,
    /// Connections to it from one trusted proxy.
    pub connections_per_proxy: usize,
    /// HTTP/2 control frames of one connection to it at once, beyond those that responses allow for.
    pub control_frame_burst: u32,
    /// The same in a second, in the long run.
    pub control_frames_per_second: u32,
    /// Time-out of the TLS handshake, in seconds.
    pub handshake_seconds: u64,
    /// Time-out of the HTTP/2 preface, of the head of a request, and of its body, in seconds.
    pub receive_seconds: u64,
    /// How long a connection without calls is kept, in seconds.
    pub idle_seconds: u64,
    /// The age in seconds at which a connection is asked to go; its calls go on.
    pub connection_age_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            user_requests_per_second: 100,
            user_request_burst: 300,
            user_calls: 64,
            user_watches: 512,
            user_operations_per_host: 3,
            address_requests_per_second: 500,
            address_request_burst: 1000,
            connections: 4096,
            connections_per_address: 1024,
            connections_per_proxy: 2048,
            control_frame_burst: 1000,
            control_frames_per_second: 100,
            handshake_seconds: 5,
            receive_seconds: 15,
            idle_seconds: 300,
            connection_age_seconds: 3600,
        }
    }
}

impl Limits {
    /// What is wrong with it.
    pub(super) fn problem(&self) -> Option<String> {
        let times = [
            ("handshake_seconds", self.handshake_seconds),
            ("receive_seconds", self.receive_seconds),
            ("idle_seconds", self.idle_seconds),
            ("connection_age_seconds", self.connection_age_seconds),
        ];
        let wrong = times.iter().find(|(_, seconds)| !(1..=DAY).contains(seconds));
        wrong.map(|(name, seconds)| format!("limits.{name} is {seconds}, and must be from 1 to {DAY}"))
    }

    /// The limits of the public listener, whose calls have `drain` when the service stops.
    pub fn port(&self, trusted_proxies: &[Network], drain: Duration) -> Settings {
        let most = |limit: usize| if limit == 0 { usize::MAX } else { limit };
        let frames = |limit: u32| if limit == 0 { u32::MAX } else { limit };
        Settings {
            handshake: Duration::from_secs(self.handshake_seconds),
            receive: Duration::from_secs(self.receive_seconds),
            idle: Duration::from_secs(self.idle_seconds),
            age: Duration::from_secs(self.connection_age_seconds),
            drain,
            http1: false,
            streams_per_connection: CALLS_PER_CONNECTION,
            connections: most(self.connections),
            connections_per_address: most(self.connections_per_address),
            connections_per_proxy: most(self.connections_per_proxy),
            control_frame_burst: frames(self.control_frame_burst),
            control_frames_per_second: frames(self.control_frames_per_second),
            trusted_proxies: TrustedProxies::new(trusted_proxies.to_vec()),
        }
    }
}

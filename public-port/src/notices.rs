//! The log and the metric of limits that are reached.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use limits::network;
use tokio::time::Instant;

/// How often a line is written for one limit and one address.
const EVERY: Duration = Duration::from_secs(60);
/// The maximum number of pairs of address and limit that are logged separately. Further ones only increment the metric.
const MOST: usize = 256;

/// A limit of a public port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limit {
    /// Connections in all.
    Connections,
    /// Connections from one address.
    ConnectionsPerAddress,
    /// Connections from one trusted proxy.
    ConnectionsPerProxy,
    /// The time-out of the TLS handshake.
    Handshake,
    /// The time-out of the HTTP/2 preface, and of the first byte of HTTP/1.
    Preface,
    /// The time-out of a block of headers.
    Headers,
    /// The time-out of a request body.
    Body,
    /// The budget of HTTP/2 control frames.
    ControlFrames,
    /// The time that an answer may stay unread.
    Answer,
}

impl Limit {
    /// The name in the log and of the metric's label `limit`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::ConnectionsPerAddress => "connections_per_address",
            Self::ConnectionsPerProxy => "connections_per_proxy",
            Self::Handshake => "handshake",
            Self::Preface => "preface",
            Self::Headers => "headers",
            Self::Body => "body",
            Self::ControlFrames => "control_frames",
            Self::Answer => "answer",
        }
    }
}

/// Counts each time that a limit is reached, and logs a line a minute for each limit and address.
#[derive(Debug, Default)]
pub(crate) struct Notices(Mutex<HashMap<(Limit, IpAddr), Told>>);

#[derive(Debug)]
struct Told {
    at: Instant,
    since: u64,
}

impl Notices {
    /// The peer has reached a limit, which is `most` connections, seconds or frames.
    pub(crate) fn reached(&self, limit: Limit, peer: IpAddr, most: u64) {
        metrics::counter!("snapshot_port_limits_total", "limit" => limit.as_str()).increment(1);
        let address = network(peer);
        if let Some(repeated) = self.count(limit, address) {
            let limit = limit.as_str();
            tracing::warn!(%address, limit, most, repeated, "a limit of the public port was reached");
        }
    }

    /// How often it was reached since the last line, if it is time for another.
    fn count(&self, limit: Limit, address: IpAddr) -> Option<u64> {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(told) = told.get_mut(&(limit, address)) {
            if told.at.elapsed() < EVERY {
                told.since = told.since.saturating_add(1);
                return None;
            }
            let repeated = std::mem::take(&mut told.since);
            told.at = Instant::now();
            return Some(repeated);
        }
        if told.len() >= MOST {
            return None;
        }
        told.insert((limit, address), Told { at: Instant::now(), since: 0 });
        Some(0)
    }

    /// Forgets addresses that have not reached a limit for a while.
    pub(crate) fn forget_quiet(&self) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|_, told| told.at.elapsed() < EVERY * 2);
        told.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_and_an_address_have_one_line_a_minute_and_memory_has_a_bound() {
        let notices = Notices::default();
        let address = |number: u8| IpAddr::from([192, 0, 2, number]);
        assert_eq!(notices.count(Limit::Preface, address(1)), Some(0));
        assert_eq!(notices.count(Limit::Preface, address(1)), None);
        assert_eq!(notices.count(Limit::Body, address(1)), Some(0), "each limit has its own");
        assert_eq!(notices.count(Limit::Preface, address(2)), Some(0), "each address has its own");
        let lines = (0..=255).filter(|number| notices.count(Limit::Handshake, address(*number)).is_some()).count();
        assert_eq!(lines, MOST - 3);
        for told in notices.0.lock().unwrap().values_mut() {
            told.at -= EVERY;
        }
        assert_eq!(notices.count(Limit::Preface, address(1)), Some(1), "what was not told is counted");
        for told in notices.0.lock().unwrap().values_mut() {
            told.at -= EVERY * 2;
        }
        notices.forget_quiet();
        assert!(notices.0.lock().unwrap().is_empty());
    }
}

//! Conversions between the wire and the domain, in one place, for the API and the agent alike.
//!
//! What comes in is checked here; an enum value that this version does not know is an error and never a default.

mod enums;
mod inventory;
mod plan;
mod request;

use std::time::Duration;

pub use inventory::Inventory;
pub use plan::plan;
use prost_types::{Duration as WireDuration, Timestamp};
pub use request::Spec;
use snapshot_core::{Error, Reason};

/// A message from the other side that breaks the contract.
pub(crate) fn protocol(what: &str) -> Error {
    Error::new(Reason::HostProtocol, format!("a message between API and agent is malformed: {what}"))
}

/// A wire timestamp of whole seconds of the Unix epoch.
pub fn timestamp(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanos: 0 }
}

/// A wire timestamp of milliseconds of the Unix epoch.
pub fn timestamp_millis(millis: i64) -> Timestamp {
    let nanos = i32::try_from(millis.rem_euclid(1000) * 1_000_000).unwrap_or(0);
    Timestamp { seconds: millis.div_euclid(1000), nanos }
}

/// A wire duration of milliseconds.
pub fn duration_millis(millis: u64) -> WireDuration {
    let seconds = i64::try_from(millis / 1000).unwrap_or(i64::MAX);
    WireDuration { seconds, nanos: i32::try_from(millis % 1000 * 1_000_000).unwrap_or(0) }
}

/// Whole milliseconds of a wire duration; negative ones count as nothing.
pub fn millis(duration: &WireDuration) -> u64 {
    Duration::try_from(*duration).map_or(0, |duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

//! Conversions between the wire and the domain, in one place, for the API and the agent alike.
//!
//! What comes in is checked here; an enum value that this version does not know is an error and never a default.

mod enums;
mod inventory;
mod note;
mod plan;
mod request;
mod restriction;

use std::time::Duration;

pub use inventory::{Inventory, orphans};
pub use plan::plan;
use prost_types::{Duration as WireDuration, Timestamp};
pub use request::Spec;
use snapshot_core::{Error, Reason};

/// A message from the other side that breaks the contract.
pub(crate) fn protocol(what: &str) -> Error {
    Error::new(Reason::HostProtocol, format!("a message between API and agent is malformed: {what}"))
}

/// A text, unless it is empty, which on the wire means that there is none.
fn present(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
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

/// Whole milliseconds of the Unix epoch of a wire timestamp, rounded up: what is before the one is before the other. `None` for one
/// that is malformed or out of range.
pub fn unix_millis(time: Timestamp) -> Option<i64> {
    let nanos = Some(i64::from(time.nanos)).filter(|nanos| (0..1_000_000_000).contains(nanos))?;
    time.seconds.checked_mul(1000)?.checked_add((nanos + 999_999) / 1_000_000)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_back_to_the_millisecond() {
        for millis in [-1, 0, 1, 999, 1_800_000_000_123] {
            assert_eq!(unix_millis(timestamp_millis(millis)), Some(millis));
        }
        assert_eq!(unix_millis(Timestamp { seconds: 1, nanos: 1 }), Some(1001));
        for (seconds, nanos) in [(0, -1), (0, 1_000_000_000), (i64::MAX, 0)] {
            assert_eq!(unix_millis(Timestamp { seconds, nanos }), None);
        }
    }
}

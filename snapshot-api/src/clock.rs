//! The wall clock: what is shown to people, and nothing that is waited for.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds of the Unix epoch.
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Seconds of the Unix epoch.
pub fn now_s() -> i64 {
    now_ms().div_euclid(1000)
}

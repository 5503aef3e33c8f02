//! Time that survives the process: since the host was booted, with which boot that was.
//!
//! The wall clock may jump while an operation is under way, and a process that starts again has no other clock in common
//! with the one before.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A moment of one boot of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// The kernel's id of the boot; empty where it has none.
    boot: String,
    /// Milliseconds since then, counted on while the host sleeps.
    millis: u64,
}

impl Moment {
    /// Now.
    pub fn now() -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self { boot: boot.trim().to_owned(), millis: since_boot() }
    }

    /// How long ago this was; `None` when the host was booted since.
    pub fn elapsed(&self) -> Option<Duration> {
        let now = Self::now();
        let same_boot = !self.boot.is_empty() && self.boot == now.boot;
        same_boot.then(|| Duration::from_millis(now.millis.saturating_sub(self.millis)))
    }
}

/// Milliseconds since the host was booted, counted on while it sleeps.
pub(crate) fn since_boot() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1000 + u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000
}

/// The wall clock, in seconds of the Unix epoch: for people and for tokens.
pub fn unix_now() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_of_another_boot_has_no_distance() {
        let now = Moment::now();
        assert!(now.elapsed().is_some_and(|elapsed| elapsed < Duration::from_secs(5)));
        assert_eq!(Moment { boot: "another".to_owned(), ..now.clone() }.elapsed(), None);
        assert_eq!(Moment { boot: String::new(), ..now }.elapsed(), None);
    }
}

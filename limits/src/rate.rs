//! So many requests in a second.

use std::hash::Hash;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

/// A rate for each caller.
pub struct Rate<K: Hash + Eq + Clone> {
    limiter: Option<DefaultKeyedRateLimiter<K>>,
    clock: DefaultClock,
}

impl<K: Hash + Eq + Clone> Rate<K> {
    /// So many in a second in the long run, and so many at once; no limit when `per_second` is 0.
    pub fn new(per_second: u32, burst: u32) -> Self {
        let limiter = NonZeroU32::new(per_second).map(|rate| {
            let burst = NonZeroU32::new(burst).unwrap_or(rate);
            RateLimiter::keyed(Quota::per_second(rate).allow_burst(burst))
        });
        Self { limiter, clock: DefaultClock::default() }
    }

    /// Counts a request, or says how long its caller has to wait.
    pub fn admit(&self, caller: &K) -> Result<(), Duration> {
        let Some(limiter) = &self.limiter else { return Ok(()) };
        limiter.check_key(caller).map_err(|until| until.wait_time_from(self.clock.now()))
    }

    /// Forgets callers that have been quiet, so that the table does not grow with everybody ever seen.
    pub fn forget_quiet(&self) {
        if let Some(limiter) = &self.limiter {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
    }

    /// How many callers are remembered.
    pub fn remembered(&self) -> usize {
        self.limiter.as_ref().map_or(0, |limiter| limiter.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_caller_has_a_rate_of_their_own_and_is_forgotten_when_quiet() {
        let rate = Rate::new(1000, 2);
        assert_eq!((rate.admit(&"a"), rate.admit(&"a")), (Ok(()), Ok(())));
        let wait = rate.admit(&"a").unwrap_err();
        assert!(wait <= Duration::from_millis(1), "{wait:?}");
        assert_eq!(rate.admit(&"b"), Ok(()));
        assert_eq!(rate.remembered(), 2);
        // Each is at its full burst again within two milliseconds: there is nothing left to remember of them.
        let begun = std::time::Instant::now();
        while rate.remembered() > 0 {
            assert!(begun.elapsed() < Duration::from_secs(30), "{} are remembered", rate.remembered());
            rate.forget_quiet();
        }
    }

    #[test]
    fn no_rate_is_no_limit() {
        let rate = Rate::new(0, 1);
        assert!((0..1000).all(|_| rate.admit(&1).is_ok()));
    }
}

//! The wall clock: shown to people and held against tokens, and nothing is waited for or ordered by it.
//!
//! It may be wrong and it may jump. What is waited for goes by tokio's clock, which is monotonic; what is ordered goes by
//! numbers that the catalogue counts; how long an operation has been kept goes by how long the service has run.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Where the time is read.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> i64 + Send + Sync>);

impl fmt::Debug for Clock {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Clock").field(&self.now_ms()).finish()
    }
}

impl Clock {
    /// The machine's own.
    pub fn system() -> Self {
        Self::from_fn(|| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
        })
    }

    /// Another one, in milliseconds of the Unix epoch.
    pub fn from_fn(now_ms: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(now_ms))
    }

    /// Milliseconds of the Unix epoch.
    pub fn now_ms(&self) -> i64 {
        (self.0)()
    }

    /// Seconds of the Unix epoch.
    pub fn now_s(&self) -> i64 {
        self.now_ms().div_euclid(1000)
    }
}

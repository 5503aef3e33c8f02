//! Refusals that take their time.
//!
//! Whoever is refused for asking too often and asks again at once costs as much as one who is served. Most such programs ask
//! one thing after the other, so an answer that comes late slows them down to what costs little, without anybody else
//! having to wait.

use std::time::Duration;

use tokio::sync::Semaphore;

/// The longest that a refusal is held back.
const LONGEST: Duration = Duration::from_secs(1);

/// Holds refusals back, so many at a time: those beyond it are given at once.
#[derive(Debug)]
pub struct Lingering(Semaphore);

impl Lingering {
    /// So many at a time.
    pub fn new(places: usize) -> Self {
        Self(Semaphore::new(places))
    }

    /// Waits, if there is a place: as long as the caller is told to wait, within reason.
    pub async fn linger(&self, wait: Duration) {
        if let Ok(_place) = self.0.try_acquire() {
            tokio::time::sleep(wait.min(LONGEST)).await;
        }
    }
}

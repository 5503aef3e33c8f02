//! What is done from time to time: counting how long the service runs, and forgetting what ended long ago.

use std::time::Duration;

use tokio::time::Instant;

use crate::store::{Retention, Store};

/// How often.
const PERIOD: Duration = Duration::from_secs(60);

/// Looks after the catalogue until this is dropped.
pub async fn run(store: Store, retention: Retention) {
    let mut counted = Instant::now();
    loop {
        tokio::time::sleep(PERIOD).await;
        let more = counted.elapsed();
        match store.served(more).await {
            Ok(()) => counted += more,
            // It is added the next time.
            Err(error) => {
                tracing::warn!(%error, "the time of service could not be written down");
                continue;
            }
        }
        match store.prune(retention).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "operations that ended long ago are forgotten"),
            Err(error) => tracing::warn!(%error, "operations that ended long ago could not be forgotten"),
        }
    }
}

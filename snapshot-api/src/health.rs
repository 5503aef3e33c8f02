//! Whether the service can do its work: gRPC health, and by it the gateway's `/readyz`; the service manager's watchdog; a metric.
//!
//! That the catalogue can be read is not enough: a service that cannot write it takes on no change.
//!
//! 1. The writer says after each batch whether it could be written. When it had nothing to do for [`PERIOD`], it is given a row to
//!    write.
//! 2. Health is SERVING while the last batch was written, for every service. It is NOT_SERVING when that failed, and when the writer
//!    has not answered for [`ANSWER`]. It is SERVING again when a batch was written and the file system has [`ROOM`]: on a full disk
//!    a small one may fit into the part of the journal that is used again.
//! 3. The service is alive while the writer answers, whatever it answers: reading goes on when the disk is full, and a restart makes
//!    no room. A writer that has not answered for [`SILENCE`] hangs.
//! 4. A service that stops is NOT_SERVING until its listeners are closed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::store::{Beat, Store};

/// How long the writer may be idle before it is given something to write.
const PERIOD: Duration = Duration::from_secs(5);
/// The same while nothing can be written.
const AGAIN: Duration = Duration::from_secs(1);
/// How long the writer may take. Another process's lock alone is waited for for five seconds.
const ANSWER: Duration = Duration::from_secs(10);
/// After how long without an answer the writer counts as hung.
const SILENCE: Duration = Duration::from_secs(20);
/// Free bytes that there must be before a catalogue that could not be written counts as writable again.
const ROOM: u64 = 256 << 10;

/// Follows the writer and tells of it.
pub struct Health {
    store: Store,
    directory: PathBuf,
    reporter: HealthReporter,
    beat: watch::Receiver<Beat>,
    /// Whether the writer was given something to write and has not answered since.
    asked: bool,
    serving: Option<bool>,
    answered: watch::Sender<Instant>,
}

impl Health {
    /// Has the writer write once, and tells what came of it.
    pub async fn begin(store: Store, catalogue: &Path, reporter: HealthReporter) -> Self {
        let (beat, directory) = (store.beat(), catalogue.parent().unwrap_or(Path::new("/")).to_owned());
        let (answered, serving) = (watch::Sender::new(Instant::now()), None);
        let mut health = Self { store, directory, reporter, beat, asked: false, serving, answered };
        health.look(Duration::ZERO).await;
        health
    }

    /// Whether the writer answers.
    pub fn alive(&self) -> impl Fn() -> bool + Clone + Send + Sync + use<> {
        let answered = self.answered.subscribe();
        move || answered.borrow().elapsed() < SILENCE
    }

    /// Follows the writer until it ends or this is dropped.
    pub async fn follow(mut self) {
        loop {
            let idle = if self.serving == Some(true) { PERIOD } else { AGAIN };
            self.look(idle).await;
            if self.beat.has_changed().is_err() {
                return;
            }
        }
    }

    /// Waits for the writer to be idle for as long, has it write, and tells what came of it.
    async fn look(&mut self, idle: Duration) {
        let mut heard = timeout(idle, self.beat.changed()).await;
        if heard.is_err() {
            if !self.asked {
                self.store.prove_writing();
                self.asked = true;
            }
            heard = timeout(ANSWER, self.beat.changed()).await;
        }
        let works = match heard {
            Ok(Ok(())) => {
                self.asked = false;
                self.answered.send_replace(Instant::now());
                let written = !self.beat.borrow_and_update().failing;
                written && (self.serving != Some(false) || self.has_room().await)
            }
            Ok(Err(_)) => false,
            Err(_) => {
                if self.serving != Some(false) {
                    tracing::warn!("the catalogue's writer does not answer; health is NOT_SERVING until it does");
                }
                false
            }
        };
        if self.serving != Some(works) {
            self.serving = Some(works);
            metrics::gauge!("snapshot_api_catalogue_writable").set(if works { 1.0 } else { 0.0 });
            tell(&self.reporter, works).await;
        }
    }

    async fn has_room(&self) -> bool {
        let directory = self.directory.clone();
        let look = tokio::task::spawn_blocking(move || rustix::fs::statvfs(&directory));
        match timeout(ANSWER, look).await {
            Ok(Ok(Ok(found))) => found.f_bavail.saturating_mul(found.f_frsize) >= ROOM,
            // What does not say how much room it has is judged by what was written.
            Ok(Ok(Err(_))) => true,
            Ok(Err(_)) | Err(_) => false,
        }
    }
}

/// Tells it of every service, and of all together.
pub async fn tell(reporter: &HealthReporter, serving: bool) {
    let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in proto::SERVICES.into_iter().chain([""]) {
        reporter.set_service_status(service, status).await;
    }
}

#[cfg(test)]
mod tests;

//! What a service says to the service manager that started it, and hears from it: systemd's protocol
//! (<https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html>) and SIGHUP.
//!
//! Where nobody asks (no `NOTIFY_SOCKET`, no `WATCHDOG_USEC`) nothing is said. What cannot be said is logged, and no reason to
//! end: a manager that hears nothing acts by itself.

use std::future::Future;
use std::io;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How often a service says that it is alive, within the time after which it is taken for dead.
const BEATS: u32 = 3;

/// It serves: its listeners are open, and what it had to settle before is settled.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// It has begun to stop.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Says that the service is alive for as long as `look` finds it so, and never ends; where nobody asks it ends at once.
///
/// Each look is a task of its own, so that what is proven is that the runtime takes up tasks, beside what the look itself
/// does. A look that does not come back is followed by none.
pub async fn watchdog<Looked>(look: impl Fn() -> Looked + Send)
where
    Looked: Future<Output = bool> + Send + 'static,
{
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    // At least a millisecond: a timer takes no zero.
    let mut beats = tokio::time::interval((limit / BEATS).max(std::time::Duration::from_millis(1)));
    loop {
        beats.tick().await;
        match tokio::spawn(look()).await {
            Ok(true) => tell(&[NotifyState::Watchdog]),
            Ok(false) | Err(_) => {
                tracing::error!("the service manager is not told that this service is alive: it is not")
            }
        }
    }
}

/// The wish, by SIGHUP, that files are read again. Without one of these a SIGHUP ends the process.
#[derive(Debug)]
pub struct Reloads(Signal);

impl Reloads {
    /// From now on. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the system does not let signals be handled.
    pub fn begin() -> io::Result<Self> {
        signal(SignalKind::hangup()).map(Self)
    }

    /// Calls `reload` each time, and says so to the manager. Never ends.
    pub async fn each(mut self, reload: impl Fn() + Send) {
        while self.next().await {
            reload();
            ready();
        }
    }

    /// Waits for the next wish, and says to the manager that it is being done: [`ready`] says that it was. `false` when there will be none.
    pub async fn next(&mut self) -> bool {
        if self.0.recv().await.is_none() {
            return false;
        }
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(error) => tracing::warn!(%error, "no monotonic clock"),
        }
        tracing::info!(
            "certificates, revocation lists, issuers' keys and the API's list of hosts are looked at; other settings need a restart"
        );
        true
    }
}

fn tell(what: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(what) {
        tracing::warn!(%error, ?what, "the service manager could not be told");
    }
}

//! libvirt's event loop: one for the whole process, registered before the first connection is opened.
//!
//! Events, keepalive and the embedded driver's monitors all run on it. It is never stopped.

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::super::Failure;

static STARTED: Mutex<bool> = Mutex::new(false);

/// How long to wait when an iteration failed, so that a fault that lasts does not keep a core busy.
const PAUSE: Duration = Duration::from_millis(100);

/// Starts the loop unless it runs.
pub(super) fn start() -> Result<(), Failure> {
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    if *started {
        return Ok(());
    }
    // Without this, libvirt writes every error to stderr, where nobody can tell whose it was.
    virt::error::clear_error_callback();
    virt::event::event_register_default_impl()?;
    thread::Builder::new().name("libvirt-events".to_owned()).spawn(run)?;
    *started = true;
    Ok(())
}

fn run() {
    loop {
        if let Err(error) = virt::event::event_run_default_impl() {
            tracing::warn!(%error, "libvirt's event loop failed");
            thread::sleep(PAUSE);
        }
    }
}

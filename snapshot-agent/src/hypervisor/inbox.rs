//! Where news from the hypervisor waits to be read.
//!
//! News is only "something changed about this machine"; whoever reads it looks for himself. So a hundred events about
//! one machine are one, and what waits here is bounded by the number of machines.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use snapshot_core::ids::VmId;
use tokio::sync::{Notify, watch};

/// News of machines, and whether the hypervisor is there at all. It may be told of from any thread.
#[derive(Debug)]
pub struct Inbox {
    changed: Mutex<BTreeSet<VmId>>,
    arrived: Notify,
    connected: watch::Sender<bool>,
}

impl Default for Inbox {
    fn default() -> Self {
        Self { changed: Mutex::default(), arrived: Notify::new(), connected: watch::Sender::new(false) }
    }
}

impl Inbox {
    /// Something changed about this machine; it may be new or gone.
    pub fn tell(&self, vm: VmId) {
        self.lock().insert(vm);
        self.arrived.notify_one();
    }

    /// The hypervisor was reached or lost. What happened while it was away was not told.
    pub fn set_connected(&self, connected: bool) {
        self.connected.send_if_modified(|now| std::mem::replace(now, connected) != connected);
    }

    /// Whether the hypervisor is there.
    pub fn is_connected(&self) -> bool {
        *self.connected.borrow()
    }

    /// Follows whether the hypervisor is there.
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.connected.subscribe()
    }

    /// Waits until there is news and takes all of it. To be called by one reader at a time.
    pub async fn take(&self) -> BTreeSet<VmId> {
        loop {
            let changed = std::mem::take(&mut *self.lock());
            if !changed.is_empty() {
                return changed;
            }
            self.arrived.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<VmId>> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Which hosts are connected now: what they say of VMs counts before what others said last.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use snapshot_core::ids::HostId;

/// The hosts that are connected; clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Connected(Arc<Mutex<BTreeSet<HostId>>>);

impl Connected {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<HostId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether that is news.
    pub(super) fn set(&self, host: &HostId, is_connected: bool) -> bool {
        match is_connected {
            true => self.lock().insert(host.clone()),
            false => self.lock().remove(host),
        }
    }

    pub(super) fn has(&self, host: &HostId) -> bool {
        self.lock().contains(host)
    }
}

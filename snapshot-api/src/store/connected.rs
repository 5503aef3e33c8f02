//! Which hosts are connected now: what they say of VMs counts before what others said last.
//!
//! A host that is away for a moment, because its agent or this service was started anew, counts as connected: otherwise another host could
//! get its VMs by claiming them in that moment. It is lost after [`GRACE`].

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use snapshot_core::ids::HostId;

/// How long a host may be away before it is lost.
pub const GRACE: Duration = Duration::from_secs(15);

/// The hosts that are lost; clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Connected(Arc<Mutex<BTreeSet<HostId>>>);

impl Connected {
    fn lost(&self) -> MutexGuard<'_, BTreeSet<HostId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, host: &HostId, is_connected: bool) {
        match is_connected {
            true => self.lost().remove(host),
            false => self.lost().insert(host.clone()),
        };
    }

    pub(super) fn has(&self, host: &HostId) -> bool {
        !self.lost().contains(host)
    }
}

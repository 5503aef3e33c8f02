//! Finding out which images depend on those of VMs, when files come, go or are written beside those, and at intervals.

use std::sync::Arc;
use std::time::Duration;

use super::{Done, Watch};

/// How long after a search another one is begun, at the earliest.
const PAUSE: Duration = Duration::from_secs(1);

/// Whether there is anything to find out.
#[derive(Debug, Default)]
pub(super) struct Dependents {
    is_due: bool,
    is_searching: bool,
}

impl Dependents {
    /// Images may have come or gone, or depend on others now.
    pub(super) fn changed(&mut self) {
        self.is_due = true;
    }

    /// Another search may be begun.
    pub(super) fn searched(&mut self) {
        self.is_searching = false;
    }
}

impl Watch {
    pub(super) fn begin_finding_dependents(&mut self) {
        if self.dependents.is_searching || !std::mem::take(&mut self.dependents.is_due) {
            return;
        }
        self.dependents.is_searching = true;
        let (hypervisor, machines) = (Arc::clone(&self.hypervisor), Arc::clone(&self.machines));
        self.tasks.spawn(async move {
            let search = tokio::task::spawn_blocking(move || machines.find_dependents(hypervisor.folders()));
            if let Err(error) = search.await {
                tracing::error!(%error, "the search for images that depend on others panicked");
            }
            tokio::time::sleep(PAUSE).await;
            Done::FoundDependents
        });
    }
}

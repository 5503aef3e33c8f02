//! What is left of a machine's snapshots outside of what libvirt lists: the machine may be gone, or have been defined anew
//! without them, or have lost a disk that holds some.
//!
//! A purge takes them, too. Of a machine that is gone it is planned by what is remembered ([`crate::owned`]), so that the
//! same rules hold; whichever of its steps finds that there is no such machine removes all of it from the images.

use snapshot_core::Reason;
use snapshot_core::description::Label;
use snapshot_core::ids::SnapshotId;
use snapshot_core::operation::Request;

use proto::convert::Spec;

use super::work::{Halt, Work};
use super::{Shared, needed, steps};
use crate::hypervisor::{Failure, Observed};
use crate::journal::Entry;
use crate::owned;

impl Shared {
    /// The machine as it is; for a purge of one that is gone, what is remembered of it.
    pub(super) fn look_or_recall(&self, spec: &Spec) -> Result<Observed, Failure> {
        match self.hypervisor.observe(spec.vm, needed(&spec.request)) {
            Err(Failure::VmGone) if matches!(spec.request, Request::Purge { .. }) => {
                let record = self.machines.owned().and_then(|owned| owned.get(spec.vm));
                record.map(|record| record.recalled()).ok_or(Failure::VmGone)
            }
            seen => seen,
        }
    }

    /// Remembers a snapshot that is about to be taken: the machine may vanish before it is seen.
    pub(super) fn expect(&self, seen: &Observed, entry: &Entry) {
        let (Some(owned), Some(create)) = (self.machines.owned(), create(&entry.request)) else { return };
        let label = Label {
            display_name: create.display_name.clone(),
            description: create.description.clone(),
            protected: create.protected,
            actor: entry.actor.clone(),
        };
        owned.expect(seen, &create.snapshot, &label);
    }
}

fn create(request: &Request) -> Option<&snapshot_core::operation::Create> {
    match request {
        Request::Create(create) => Some(create),
        Request::Revert { save_current, .. } => save_current.as_ref(),
        Request::Update { .. } | Request::Delete { .. } | Request::Purge { .. } => None,
    }
}

impl Work<'_> {
    pub(super) fn is_purge(&self) -> bool {
        matches!(self.entry.request, Request::Purge { .. })
    }

    /// The machine is gone: removes all that it left.
    pub(super) fn clear_left_behind(&mut self) -> Result<(), Halt> {
        // What was believed of the machine is no machine.
        (self.seen, self.stale) = (None, true);
        match self.shared.machines.owned() {
            Some(owned) => Ok(owned::clear(&*self.shared.hypervisor, owned, self.entry.vm)?),
            None => Ok(()),
        }
    }

    /// After the last step of a purge: nothing of ours may be left in an image of the machine, listed or not.
    pub(super) fn clear_purged(&mut self) -> Result<(), Halt> {
        let seen = match self.seen() {
            Err(Halt::Failed(error)) if error.reason() == Reason::VmNotFound => return self.clear_left_behind(),
            seen => seen?,
        };
        let record = self.shared.machines.owned().and_then(|owned| owned.get(self.entry.vm));
        let mut ours: Vec<SnapshotId> = self.entry.steps.iter().filter_map(steps::deleted).cloned().collect();
        ours.extend(record.iter().flat_map(|record| record.snapshots.keys().cloned()));
        ours.sort_unstable();
        ours.dedup();
        for id in ours.iter().filter(|id| seen.has_stray(id)) {
            tracing::warn!(%id, "a snapshot that is not listed is still in an image; removing it");
            self.clear_remains(id, false)?;
        }
        // An image that the machine no longer has is out of libvirt's reach.
        let elsewhere = record.is_some_and(|record| record.images.keys().any(|image| !seen.images.contains_key(image)));
        match self.shared.machines.owned() {
            Some(owned) if elsewhere => Ok(owned::clear(&*self.shared.hypervisor, owned, self.entry.vm)?),
            _ => Ok(()),
        }
    }
}

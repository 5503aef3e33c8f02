//! The record of a VM after a look, found out before it is written: what it takes to know is read from storage, which may hang,
//! and the task that publishes looks must not.

use std::fs;

use snapshot_core::ids::VmId;

use super::orphans::Weighed;
use super::{Owned, Record};
use crate::hypervisor::Observed;

/// What a look makes of the record of a VM.
#[derive(Debug)]
pub(crate) struct Prepared {
    before: Option<Record>,
    after: Option<Record>,
    orphans: Weighed,
}

impl Owned {
    /// The record as it will be after this look; what it takes to know that is read from storage.
    pub(crate) fn prepare(&self, seen: &Observed) -> Prepared {
        let before = self.get(seen.vm.id);
        let after = Record::after(before.as_ref(), seen);
        let orphans = Weighed::of(after.as_ref(), Some(seen));
        Prepared { before, after, orphans }
    }

    /// The same as [`Owned::saw`], without touching any storage but this. A record that was changed since it was prepared stays.
    pub(crate) fn saw_prepared(&self, vm: VmId, prepared: &Prepared) {
        self.change(vm, |record| match record == prepared.before.as_ref() {
            true => prepared.after.clone(),
            false => record.cloned(),
        });
        self.set_orphans(vm, prepared.orphans.clone());
    }

    /// Returns whether anything was changed. What the change is made of may be read from storage that hangs, so it is found out
    /// without the lock, and once more where somebody else has changed the record meanwhile.
    pub(super) fn change(&self, vm: VmId, change: impl Fn(Option<&Record>) -> Option<Record>) -> bool {
        let (mut records, after) = loop {
            let before = self.get(vm);
            let after = change(before.as_ref());
            let records = self.lock();
            if records.get(&vm) == before.as_ref() {
                break (records, after);
            }
        };
        if records.get(&vm) == after.as_ref() {
            return false;
        }
        let written = match &after {
            Some(record) => self.write(record),
            None => fs::remove_file(self.path(vm)),
        };
        if let Err(error) = written {
            tracing::error!(%vm, %error, "what is in the images of a machine could not be written down");
        }
        match after {
            Some(record) => records.insert(vm, record),
            None => records.remove(&vm),
        };
        true
    }
}

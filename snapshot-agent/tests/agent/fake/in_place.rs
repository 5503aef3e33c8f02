//! Reverts in place on the host of variables.

use super::*;

impl Machine {
    /// QEMU and what it remembers are gone.
    pub(super) fn end_run(&mut self) {
        self.loads.clear();
        (self.vm.state, self.instance, self.paused_by) = (VmState::Shutoff, None, None);
    }

    pub(super) fn start(&mut self, run: u32) {
        if self.instance.is_none() {
            (self.vm.state, self.instance) = (VmState::Running, Some(run));
        }
    }

    pub(super) fn suspend(&mut self) -> Result<(), Failure> {
        match self.vm.state {
            VmState::Running => {}
            VmState::Paused => return Ok(()),
            _ => return Err(Failure::Refused { code: 55, message: "it does not run".to_owned() }),
        }
        (self.vm.state, self.paused_by) = (VmState::Paused, Some(PausedBy::Somebody));
        Ok(())
    }

    /// A guest of which some was loaded writes who knows what.
    pub(super) fn resume(&mut self) {
        (self.vm.state, self.paused_by) = (VmState::Running, None);
        // A second load that is done replaces all of the first.
        let has = |wanted: Load| self.loads.values().any(|load| *load == wanted);
        if has(Load::Failed) && !has(Load::Done) {
            self.disks.fill('?');
        }
    }

    pub(super) fn make_current(&mut self, id: &SnapshotId) -> Result<(), Failure> {
        self.listed(id)?;
        if self.runs_on_unmarked {
            return Err(Failure::Refused { code: 1, message: "it cannot be marked".to_owned() });
        }
        self.snapshots.iter_mut().for_each(|snapshot| snapshot.is_current = snapshot.id == *id);
        Ok(())
    }

    /// A job that there is is waited for.
    pub(super) fn load(&mut self, id: &SnapshotId, job: &str) -> Result<(), Failure> {
        let refused = |message: &str| Err(Failure::Refused { code: 9, message: message.to_owned() });
        match self.loads.get(job) {
            Some(Load::Failed) => return refused("it failed"),
            Some(_) => return Ok(()),
            None => assert_eq!(self.vm.state, VmState::Paused, "a guest that is loaded stands still"),
        }
        if self.images.iter().any(|image| !image.contains_key(id)) {
            return refused("not every disk has it");
        }
        self.disks = self.images.iter().map(|image| image[id]).collect();
        self.loads.insert(job.to_owned(), Load::Done);
        if self.runs_on_unmarked {
            self.resume();
        }
        Ok(())
    }

    /// The first disk is the snapshot's; the second, and the memory, are as they were.
    pub(super) fn load_halfway(&mut self, id: &SnapshotId, job: &str) {
        self.disks[0] = self.images[0].get(id).copied().unwrap_or('?');
        self.loads.insert(job.to_owned(), Load::Failed);
    }
}

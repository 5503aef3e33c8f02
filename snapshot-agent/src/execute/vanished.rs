//! What is left of a machine's snapshots outside of what libvirt lists: the machine may be gone, or have been defined anew
//! without them, or have lost a disk that holds some.
//!
//! A purge takes them, too. Of a machine that is gone it is planned by what is remembered ([`crate::owned`]), so that
//! protected snapshots are; whichever of its steps finds that there is no such machine removes all that is left of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use snapshot_core::authority::Permit;
use snapshot_core::description::Label;
use snapshot_core::ids::SnapshotId;
use snapshot_core::layers::{memory_path, overlay_paths};
use snapshot_core::operation::Request;
use snapshot_core::plan::{Plan, Situation, Step, id_in_use, plan, purge_left_behind};
use snapshot_core::tree::SnapshotTree;
use snapshot_core::{Error, Reason};

use proto::convert::Spec;

use super::work::{Halt, Work};
use super::{Shared, needed, steps};
use crate::beneath::{Beneath, out_of_reach};
use crate::bounded::files::resolved;
use crate::hypervisor::{Failure, Observed, Versions};
use crate::journal::Entry;
use crate::{owned, revert_plan};

/// How long a VM is waited for that is listed and was not looked at yet.
const NEW_VM_WAIT: Duration = Duration::from_secs(2);
const NEW_VM_POLL: Duration = Duration::from_millis(10);

impl Shared {
    /// What runs here, as the watch found it last, which is what hosts and machines are told by; until then it is asked.
    fn versions(&self) -> Versions {
        let found = self.machines.versions();
        if found == Versions::default() { self.hypervisor.versions().unwrap_or_default() } else { found }
    }

    /// Plans by the machine as it is; a purge of one that is gone, by what is remembered of it. A plan that goes beyond the permit
    /// is refused.
    pub(super) fn look_and_plan(&self, spec: &Spec, permit: &Permit) -> Result<(Observed, Plan), Error> {
        let (seen, force) = self.look_or_recall(spec).map_err(|failure| {
            tracing::info!(%failure, "the machine could not be read");
            failure.to_error(spec.vm, None, "the machine could not be read")
        })?;
        if matches!(spec.request, Request::Revert { .. }) {
            self.await_new_vms();
            self.machines.find_dependents(self.hypervisor.folders());
        }
        let found = self.machines.restrict(&seen);
        let tree = SnapshotTree::new(found.snapshots)
            .map_err(|error| Error::new(Reason::HypervisorFailed, format!("libvirt lists what is no tree: {error}")))?;
        check_reach(self.hypervisor.folders(), &seen, &spec.request)?;
        // Without its version QEMU is asked for nothing that an old one could not do.
        let policy = self.versions().limit(&self.policy);
        let situation = Situation { vm: &found.vm, tree: &tree, layers: &seen.layers, policy: &policy };
        let mut plan = match force {
            Some(force) => purge_left_behind(situation, force)?,
            None => plan(situation, &spec.request)?,
        };
        revert_plan::complete(&*self.hypervisor, situation, &mut plan, permit.is_administrator())?;
        permit.check_plan(&tree, &plan)?;
        self.check_neighbours(&seen, &plan)?;
        self.check_left(&seen, &spec.request)?;
        if let Some(create) = create(&spec.request)
            && seen.has_stray(&create.snapshot)
        {
            return Err(id_in_use(&create.snapshot));
        }
        Ok((seen, plan))
    }

    /// What others keep has to be known before a snapshot is marked as deleted: from then on nobody sees it any more.
    fn check_neighbours(&self, seen: &Observed, plan: &Plan) -> Result<(), Error> {
        if !plan.steps.iter().any(|step| matches!(step, Step::MarkDeleted { .. })) || seen.layers.live.is_empty() {
            return Ok(());
        }
        let elsewhere = self.hypervisor.elsewhere(seen.vm.id);
        elsewhere.map_err(|failure| failure.to_error(seen.vm.id, None, "what other VMs use could not be found out"))?;
        owned::kept_by_strangers(self.hypervisor.folders(), seen, &BTreeSet::new()).map(drop)
    }

    /// A purge removes snapshots also from images that the VM does not have any more, unless somebody else may use those.
    fn check_left(&self, seen: &Observed, request: &Request) -> Result<(), Error> {
        let Some(owned) = self.machines.owned().filter(|_| is_purge(request)) else {
            return Ok(());
        };
        match owned.get(seen.vm.id).is_some_and(|record| has_left(seen, record.images.keys())) {
            true => owned::check_images(&*self.hypervisor, owned, seen.vm.id),
            false => Ok(()),
        }
    }

    /// The machine; where it is recalled, also whether protected snapshots go.
    fn look_or_recall(&self, spec: &Spec) -> Result<(Observed, Option<bool>), Failure> {
        match (self.hypervisor.observe(spec.vm, needed(&spec.request)), &spec.request) {
            (Err(Failure::VmGone), Request::Purge { force }) => {
                let record = self.machines.owned().and_then(|owned| owned.get(spec.vm)).ok_or(Failure::VmGone)?;
                Ok((record.recalled(), Some(*force)))
            }
            (seen, _) => seen.map(|seen| (self.with_record(seen), None)),
        }
    }

    /// A VM that was defined a moment ago may use an image that a revert changes: the watch is on its way to look at it. One that
    /// cannot be read is waited for once, so that it is in nobody's way.
    fn await_new_vms(&self) {
        if !*self.machines.synced().borrow() {
            return;
        }
        let (all, since) = (self.hypervisor.vms().unwrap_or_default(), Instant::now());
        while self.machines.has_new(&all) {
            if since.elapsed() > NEW_VM_WAIT {
                tracing::warn!("it is not known of every VM which images it uses");
                return self.machines.no_longer_new(&all);
            }
            std::thread::sleep(NEW_VM_POLL);
        }
    }

    /// With what is on record of the machine beside what the host tells.
    pub(super) fn with_record(&self, mut seen: Observed) -> Observed {
        if let Some(owned) = self.machines.owned() {
            seen.layers.ours = owned.overlays(seen.vm.id);
            seen.layers.discarded = owned.discarded(seen.vm.id);
            for lost in owned.lost_states(&seen) {
                // Nothing is merged into it, nor is it merged into what it lies on: nobody can be told that it is there now.
                if let Some(layer) = seen.layers.files.get_mut(&lost) {
                    layer.pinned = true;
                }
                seen.layers.kept.insert(lost);
            }
            let known = owned.restrictions(seen.vm.id);
            seen.vm.restrictions.retain(|restriction| restriction.reason != Reason::DisksMixed);
            seen.vm.restrictions.extend(known);
            let mut snapshots = std::mem::take(&mut seen.snapshots);
            owned.mark_replaced(&seen, &mut snapshots);
            seen.snapshots = snapshots;
        }
        seen
    }

    /// Remembers a snapshot that is about to be taken: the machine may vanish before it is seen.
    pub(super) fn expect(&self, seen: &Observed, entry: &Entry) {
        let (Some(owned), Some(create)) = (self.machines.owned(), create(&entry.request)) else { return };
        let label = Label {
            display_name: create.display_name.clone(),
            description: create.description.clone(),
            protected: create.protected,
            actor: entry.actor.clone(),
            issuer: entry.issuer.clone(),
            disks: None,
        };
        let taking = entry.steps.iter().find(|step| step.stores().is_some());
        match taking {
            Some(Step::CreateExternal { snapshot, memory, .. }) => {
                let disks = || seen.vm.writable_disks().map(|disk| (disk.target.as_str(), disk.path.as_str()));
                let memory = disks().next().filter(|_| *memory).map(|(_, path)| memory_path(path, snapshot));
                owned.expect_files(seen, snapshot, &label, &overlay_paths(disks(), snapshot), memory.as_deref());
            }
            _ => owned.expect(seen, &create.snapshot, &label),
        }
    }
}

/// Whether it is of all that a VM has of ours, also of what it left when it does not exist any more.
pub(super) fn is_purge(request: &Request) -> bool {
    matches!(request, Request::Purge { .. })
}

/// Whether an operation that fails so removes all that the VM left. Only a purge asks for that, and only of a VM that does not exist.
fn clears_left_behind(request: &Request, error: &Error) -> bool {
    is_purge(request) && error.reason() == Reason::VmNotFound
}

/// Whether one of these images is none of the VM's disks, nor has its UEFI variables.
fn has_left<'a>(seen: &Observed, mut images: impl Iterator<Item = &'a PathBuf>) -> bool {
    let own: BTreeSet<PathBuf> = seen.vm.disks.iter().map(|disk| resolved(Path::new(&disk.path))).collect();
    images.any(|image| !own.contains(&resolved(image)) && seen.nvram.as_ref() != Some(image))
}

/// Whether all images of the machine are where they may be touched, or read where others lie on them. What is only written
/// about a snapshot is in no image. Disks that are devices are left to libvirt.
fn check_reach(folders: &Beneath, seen: &Observed, request: &Request) -> Result<(), Error> {
    if matches!(request, Request::Update { .. }) {
        return Ok(());
    }
    match out_of_reach::refusal(folders, &seen.layers) {
        Some(refusal) => Err(refusal.with("vm", proto::names::vm(seen.vm.id))),
        None => Ok(()),
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
    /// One step, or what a purge does instead where it finds that there is no such machine any more. What it changed of our
    /// files is remembered.
    pub(super) fn step_or_clear(&mut self, step: &Step) -> Result<(), Halt> {
        match self.step(step) {
            Err(Halt::Failed(error)) if clears_left_behind(&self.entry.request, &error) => {
                return self.clear_left_behind();
            }
            done => done?,
        }
        match (self.shared.machines.owned(), step) {
            // Gone for everybody who could ask for it; its files may be needed for longer.
            (Some(owned), Step::MarkDeleted { snapshot }) => owned.deleted(self.entry.vm, snapshot),
            (_, Step::RevertExternal { snapshot, .. }) => {
                let seen = self.seen()?;
                self.remember_reverted(&seen, snapshot);
            }
            _ => {}
        }
        Ok(())
    }

    /// The machine lies on new overlays, which libvirt has named.
    pub(super) fn remember_reverted(&self, seen: &Observed, id: &SnapshotId) {
        if let Some(owned) = self.shared.machines.owned().filter(|_| seen.layers.snapshots.contains_key(id)) {
            owned.reverted(seen, id);
        }
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
            Err(Halt::Failed(error)) if clears_left_behind(&self.entry.request, &error) => {
                return self.clear_left_behind();
            }
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
        self.clear_spare();
        if let Some(owned) = self.shared.machines.owned() {
            let cleared = owned.clear_safety(&*self.shared.hypervisor, self.entry.vm);
            cleared
                .map_err(|failure| self.error(&failure, None, "the safety tags of a revert could not be removed"))?;
        }
        // An image that the machine no longer has is out of libvirt's reach.
        let elsewhere = record.is_some_and(|record| record.images.keys().any(|image| !seen.images.contains_key(image)));
        match self.shared.machines.owned() {
            Some(owned) if elsewhere => Ok(owned::clear(&*self.shared.hypervisor, owned, self.entry.vm)?),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;

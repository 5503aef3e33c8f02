//! Deleting snapshots, so that an interruption leaves a whole, smaller tree.
//!
//! Internal ones leaf first, one step each. External ones are marked first, all of them, and are gone for the user; then
//! each disk's files are merged in as few passes as can be, and what nothing reaches is removed ([`crate::layers`]).

use super::{Loss, Plan, Situation, Step};
use crate::error::{Error, Reason};
use crate::ids::SnapshotId;
use crate::layers::Merge;
use crate::operation::{DeleteScope, Method};
use crate::policy::HostPolicy;
use crate::restriction::RestrictedOperation;
use crate::snapshot::{SnapshotFacts, Storage};
use crate::vm::VmState;

use std::collections::{BTreeMap, BTreeSet};

pub(super) fn plan(situation: Situation<'_>, id: &SnapshotId, scope: DeleteScope, force: bool) -> Result<Plan, Error> {
    situation.snapshot(id)?;
    let doomed = match scope {
        DeleteScope::Only => vec![id.clone()],
        DeleteScope::Descendants => situation.tree.descendants_leaf_first(id),
        DeleteScope::Subtree => {
            let mut all = situation.tree.descendants_leaf_first(id);
            all.push(id.clone());
            all
        }
    };
    delete_all(situation, &doomed, force)
}

pub(super) fn purge(situation: Situation<'_>, force: bool) -> Result<Plan, Error> {
    let all: Vec<SnapshotId> = situation.tree.iter().rev().map(|snapshot| snapshot.id.clone()).collect();
    delete_all(situation, &all, force)
}

/// Of a machine that is gone: what its host remembers. Nothing is merged and nothing keeps the path of an image, because
/// there is nobody left to read the disks; only the protection of snapshots holds as ever.
pub(super) fn purge_left_behind(situation: Situation<'_>, force: bool) -> Result<Plan, Error> {
    let mut plan = Plan { method: Some(Method::Libvirt), ..Plan::default() };
    for snapshot in situation.tree.iter().rev() {
        check_protection(situation, snapshot, force)?;
        plan.losses.push(Loss::Snapshot(Box::new(snapshot.clone())));
        plan.steps.push(deletion(snapshot));
    }
    Ok(plan)
}

fn check_protection(situation: Situation<'_>, snapshot: &SnapshotFacts, force: bool) -> Result<(), Error> {
    if !snapshot.label.protected || force {
        return Ok(());
    }
    let message = format!("snapshot \u{201c}{}\u{201d} is protected", snapshot.label.display_name);
    Err(situation
        .refuse(Reason::SnapshotProtected, message)
        .with("snapshot", format!("vms/{}/snapshots/{}", situation.vm.id, snapshot.id)))
}

fn deletion(snapshot: &SnapshotFacts) -> Step {
    let id = snapshot.id.clone();
    match snapshot.storage {
        Storage::External => Step::MarkDeleted { snapshot: id },
        Storage::Internal => Step::DeleteInternal { snapshot: id },
    }
}

fn delete_all(situation: Situation<'_>, doomed: &[SnapshotId], force: bool) -> Result<Plan, Error> {
    situation.check_no_block_job()?;
    let mut plan = Plan { method: Some(Method::Libvirt), ..Plan::default() };
    // What an earlier deletion had to leave is finished with this one.
    let mut has_external = !situation.policy.stable_paths && !situation.layers.deleted().is_empty();
    for id in doomed {
        let snapshot = situation.snapshot(id)?;
        situation.check_handled(snapshot)?;
        situation.check_name_for_delete(snapshot)?;
        situation.check_restrictions(RestrictedOperation::Delete, Some(snapshot))?;
        check_protection(situation, snapshot, force)?;
        plan.losses.push(Loss::Snapshot(Box::new(snapshot.clone())));
        has_external |= snapshot.storage == Storage::External;
        plan.steps.push(deletion(snapshot));
    }
    if has_external {
        collect(situation, doomed, &mut plan)?;
    }
    Ok(plan)
}

/// The merging and the cleaning up after external snapshots are marked. Which files others on the host use is not known
/// here: where they turn out to, less is merged.
fn collect(situation: Situation<'_>, doomed: &[SnapshotId], plan: &mut Plan) -> Result<(), Error> {
    if let Some(path) = &situation.layers.unreadable {
        let message = "an image of the machine cannot be read, so it is not known which of them are needed";
        return Err(situation.refuse(Reason::HypervisorFailed, message).with("path", path));
    }
    if situation.vm.has_managed_save {
        return Err(situation.refuse(
            Reason::VmHibernated,
            "the machine is hibernated: its saved memory belongs to the images as they are now; start it first",
        ));
    }
    // There is a process that has the images open, and that does not do as it is told.
    if matches!(situation.vm.state, VmState::Crashed | VmState::Suspended | VmState::Unknown) {
        let message = "the VM is crashed, asleep or in a state that is not known, and its QEMU process has the images open: the files \
                       of external snapshots are merged when it runs or is shut off";
        return Err(situation.refuse(Reason::VmStateUnsupported, message));
    }
    let gone: BTreeSet<SnapshotId> = doomed.iter().cloned().chain(situation.layers.deleted()).collect();
    let mut bytes: BTreeMap<String, u64> = BTreeMap::new();
    for merge in situation.layers.merges(&gone, &BTreeSet::new()) {
        *bytes.entry(merge.disk).or_default() += merge.bytes;
    }
    for (disk, bytes) in bytes {
        check_space(situation, &disk, bytes)?;
        plan.bytes_written += bytes;
        plan.steps.push(Step::MergeLayers { disk });
    }
    plan.steps.push(Step::CleanUp);
    Ok(())
}

/// The base takes in what is above before that can go.
fn check_space(situation: Situation<'_>, target: &str, bytes: u64) -> Result<(), Error> {
    let disk = situation.vm.disks.iter().find(|disk| disk.target == target);
    let place = format!("where disk {target} is");
    match has_room(disk.and_then(|disk| disk.free_bytes), bytes, situation.policy, &place) {
        Err(error) => Err(error.with("disk", target).with("vm", format!("vms/{}", situation.vm.id))),
        Ok(()) => Ok(()),
    }
}

/// Whether a merge may begin, with so many bytes free where its base is; `None`, where that is not known, is not enough. A plan is made
/// of several, and what was free when it was made may be gone by then.
pub fn check_merge(merge: &Merge, free: Option<u64>, policy: &HostPolicy) -> Result<(), Error> {
    let place = format!("where {} is", merge.base);
    has_room(free, merge.bytes, policy, &place).map_err(|error| error.with("disk", &merge.disk))
}

fn has_room(free: Option<u64>, bytes: u64, policy: &HostPolicy, place: &str) -> Result<(), Error> {
    let needed = bytes.saturating_add(policy.space_margin_bytes);
    let Some(free) = free else {
        let message = format!("the free space {place} is not known, and merging needs {} MiB", needed >> 20);
        return Err(Error::new(Reason::SpaceLow, message).with("needed_bytes", needed.to_string()));
    };
    if free >= needed {
        return Ok(());
    }
    let message = format!("{} MiB are free {place}, and merging needs {} MiB", free >> 20, needed >> 20);
    Err(Error::new(Reason::SpaceLow, message)
        .with("free_bytes", free.to_string())
        .with("needed_bytes", needed.to_string()))
}

//! Taking a snapshot.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Freeze, Loss, Plan, Situation, Step};
use crate::error::{Error, Reason};
use crate::ids::SnapshotId;
use crate::operation::{Create, Method};
use crate::quota::{self, Limits, Owner, Usage};
use crate::restriction::RestrictedOperation;
use crate::snapshot::{Content, Storage};
use crate::vm::{DiskFacts, Nvram, VmState};

/// Bytes of RAM that QEMU saves in a second, for the prediction alone: 256 MiB were measured to take about 740 ms.
const SAVED_BYTES_PER_SECOND: u64 = 350 << 20;

pub(super) fn plan(situation: Situation<'_>, create: &Create) -> Result<Plan, Error> {
    plan_beyond(situation, create, 0)
}

/// The same, where so many snapshots more than the limit may be there afterwards.
fn plan_beyond(situation: Situation<'_>, create: &Create, beyond: u32) -> Result<Plan, Error> {
    check_id(situation, create)?;
    let mut memory = memory_wanted(situation, create.content)?;
    situation.check_changeable()?;
    // Nobody asked for the running state: a guest that runs is not held up for it.
    let unasked = create.content.is_none() && situation.vm.state == VmState::Running;
    let mut other_way = None;
    if unasked && storage(situation, create, false) == Ok(Storage::Internal) {
        match check_live(situation) {
            Ok(()) => memory = false,
            Err(why) => other_way = Some(why.message().to_owned()),
        }
    }
    let storage = storage(situation, create, memory)?;
    let live = !memory && situation.vm.is_active() && storage == Storage::Internal;
    if live {
        check_live(situation)?;
    }
    let may_freeze = (live || storage == Storage::External && !memory) && situation.vm.state == VmState::Running;
    if create.quiesce && !may_freeze && !create.allow_crash_consistent {
        return Err(situation.refuse(
            Reason::QuiesceUnsupported,
            "file systems can only be frozen for a snapshot of the disks alone of a running machine",
        ));
    }
    let quiesce = create.quiesce && may_freeze;
    situation.check_restrictions(operation(situation, storage, memory), None)?;
    if memory && storage == Storage::External {
        situation.check_restrictions(RestrictedOperation::CreateExternalMemory, None)?;
    }
    let limit = situation.policy.max_snapshots_per_vm;
    if situation.tree.len() >= limit.saturating_add(beyond) as usize {
        let saved = if beyond > 0 { ", and one more that saves the present before a revert" } else { "" };
        let message = format!("the machine has {} snapshots, the most is {limit}{saved}", situation.tree.len());
        return Err(situation
            .refuse(Reason::SnapshotLimit, message)
            .with("quota", "snapshots_per_vm")
            .with("limit", limit.to_string()));
    }
    let snapshot = create.snapshot.clone();
    let step = match storage {
        Storage::Internal if live => {
            let quiesce = match (quiesce, create.allow_crash_consistent) {
                (false, _) => Freeze::No,
                (true, true) => Freeze::IfPossible,
                (true, false) => Freeze::Required,
            };
            check_disks(situation, memory)?;
            Step::CreateLive { snapshot, quiesce }
        }
        Storage::Internal => {
            check_disks(situation, memory)?;
            Step::CreateInternal { snapshot, memory }
        }
        Storage::External => {
            check_files(situation)?;
            Step::CreateExternal { snapshot, memory, quiesce }
        }
    };
    let bytes = if memory { situation.vm.memory_bytes } else { 0 };
    check_quota(situation, bytes)?;
    check_space(situation, bytes)?;
    // A paused guest stands still already, so saving it costs no pause of its own.
    let pauses = memory && situation.vm.state == VmState::Running;
    Ok(Plan {
        steps: vec![step],
        bytes_written: bytes,
        predicted_pause_ms: pauses.then(|| predicted_pause_ms(bytes)),
        losses: Vec::new(),
        method: Some(if live { Method::Live } else { Method::Libvirt }),
        other_way,
    })
}

/// The operation that a restriction names, for a snapshot of this kind.
fn operation(situation: Situation<'_>, storage: Storage, memory: bool) -> RestrictedOperation {
    match storage {
        Storage::External => RestrictedOperation::CreateExternal,
        Storage::Internal if memory => RestrictedOperation::CreateWithMemory,
        Storage::Internal if situation.vm.is_active() => RestrictedOperation::CreateLive,
        Storage::Internal => RestrictedOperation::CreateOffline,
    }
}

/// Why the memory of a VM cannot be saved, now or later, although its disks may be.
const MEMORY_NOT_SAVEABLE: [Reason; 3] = [Reason::NvramUnsupported, Reason::FeatureUnsupported, Reason::DiskEncrypted];

/// The same for the present of a machine that is about to go back. What runs is lost with it, so a machine that is on has
/// its running state kept, unless something else was asked for. Where that cannot be, the disks are kept, and the running state is
/// among the losses. One snapshot more than the limit is allowed: a full list must not stand in the way of a revert that loses
/// nothing (ADR 30).
pub(super) fn plan_present(situation: Situation<'_>, create: &Create) -> Result<Plan, Error> {
    if create.content.is_some() || !situation.vm.is_active() {
        return plan_beyond(situation, create, 1);
    }
    let planned = |content| plan_beyond(situation, &Create { content: Some(content), ..create.clone() }, 1);
    let refusal = match planned(Content::DisksAndMemory) {
        Err(refusal) if MEMORY_NOT_SAVEABLE.contains(&refusal.reason()) => refusal,
        planned => return planned,
    };
    let Ok(mut disks) = planned(Content::Disks) else { return Err(refusal) };
    disks.losses.push(Loss::RunningState);
    disks.other_way = Some(format!("the running state is not saved: {}", refusal.message()));
    Ok(disks)
}

/// Whether QEMU can take the disks alone while the machine is on.
fn check_live(situation: Situation<'_>) -> Result<(), Error> {
    let refuse = |why: &str| {
        let message = format!("{why}: take the running state too, or switch the machine off");
        Err(situation.refuse(Reason::LiveDisksUnsupported, message))
    };
    if !situation.policy.live_snapshots {
        return refuse(
            "the disks alone of a running machine cannot be captured on this host, by its policy or its QEMU",
        );
    }
    situation.check_restrictions(RestrictedOperation::CreateLive, None)?;
    // libvirt goes back to such a snapshot in this file, too, and QEMU's transaction has put nothing there.
    if situation.vm.nvram == Nvram::Qcow2 {
        return refuse("the UEFI variables are in a qcow2 file, and cannot be captured with the disks while they run");
    }
    match situation.vm.writable_disks().find(|disk| disk.format != "qcow2" || !disk.path.starts_with('/')) {
        None => Ok(()),
        Some(disk) => {
            let why =
                format!("disk {} is no qcow2 image in a local file, which live snapshots are kept in", disk.target);
            refuse(&why).map_err(|error| error.with("disk", &disk.target))
        }
    }
}

/// A snapshot is new. Under the id of one that there is, what is left of that one would be taken for remains of this when it is
/// broken, and be removed, by somebody who may take snapshots and not delete any.
fn check_id(situation: Situation<'_>, create: &Create) -> Result<(), Error> {
    let id = &create.snapshot;
    if situation.tree.get(id).is_none() && !situation.layers.deleted().contains(id) {
        return Ok(());
    }
    Err(id_in_use(id))
}

/// The refusal of a new snapshot under the id of another one.
pub fn id_in_use(id: &SnapshotId) -> Error {
    Error::invalid("snapshot", format!("{id} is the id of another snapshot"))
}

fn check_quota(situation: Situation<'_>, bytes: u64) -> Result<(), Error> {
    let limits = Limits { snapshots: 0, bytes: situation.policy.max_snapshot_bytes_per_vm };
    let used = situation.tree.iter().fold(0, |sum: u64, snapshot| sum.saturating_add(snapshot.size_bytes));
    quota::admit(Owner::Vm(situation.vm.id), limits, Usage { snapshots: 0, bytes: used }, bytes)
}

fn predicted_pause_ms(bytes: u64) -> u64 {
    (bytes * 1000).div_ceil(SAVED_BYTES_PER_SECOND)
}

/// Decides what the snapshot holds: what was asked, or by what the machine is doing.
fn memory_wanted(situation: Situation<'_>, content: Option<Content>) -> Result<bool, Error> {
    match (content, situation.vm.state) {
        (_, VmState::Unknown | VmState::Crashed | VmState::Suspended) => Err(situation.refuse(
            Reason::VmStateUnsupported,
            "the machine is crashed, asleep or in a state that is not known: start it or switch it off first",
        )),
        (None, VmState::Shutoff) | (Some(Content::Disks), _) => Ok(false),
        (None | Some(Content::DisksAndMemory), VmState::Running | VmState::Paused) => Ok(true),
        (Some(Content::DisksAndMemory), VmState::Shutoff) => {
            Err(situation.refuse(Reason::VmNotRunning, "the machine is off: there is no running state to save"))
        }
    }
}

/// How it is stored: as was asked, as the machine's other snapshots are, or as the disks and the policy have it. The two
/// kinds do not go together: an internal snapshot on top of external ones cannot be deleted without destroying data.
fn storage(situation: Situation<'_>, create: &Create, memory: bool) -> Result<Storage, Error> {
    let policy = situation.policy;
    let external = create.storage == Some(Storage::External);
    if external && policy.stable_paths {
        let message =
            "the host's policy keeps the paths of images as they are, and an external snapshot would move them";
        return Err(situation.refuse(Reason::ExternalUnsupported, message));
    }
    let there = |storage| situation.tree.iter().find(move |snapshot| snapshot.storage == storage);
    let mixed = |message: String| Err(situation.refuse(Reason::SnapshotStorageUnsupported, message));
    match (there(Storage::Internal), there(Storage::External)) {
        (Some(internal), None) if external => {
            mixed(format!("the machine has the internal snapshot {}: the two kinds cannot be mixed", internal.id))
        }
        (_, Some(other)) if policy.stable_paths || create.storage == Some(Storage::Internal) => {
            mixed(format!("the machine has the external snapshot {}: the two kinds cannot be mixed", other.id))
        }
        (Some(internal), Some(other)) => {
            mixed(format!("snapshot {} is internal and {} is external: another would lose data", internal.id, other.id))
        }
        (None, Some(_)) => Ok(Storage::External),
        // One that is deleted and that libvirt still has counts as well.
        (None, None) if !situation.layers.snapshots.is_empty() && !policy.stable_paths => match create.storage {
            Some(Storage::Internal) => mixed("an external snapshot was deleted and is not removed yet".to_owned()),
            _ => Ok(Storage::External),
        },
        (Some(_), None) => Ok(Storage::Internal),
        (None, None) => Ok(create.storage.unwrap_or_else(|| automatic(situation, memory))),
    }
}

fn automatic(situation: Situation<'_>, memory: bool) -> Storage {
    let policy = situation.policy;
    let live_disks = !memory && situation.vm.is_active();
    let restricted = situation.restriction(operation(situation, Storage::Internal, memory), None).is_some();
    let impossible =
        restricted || if live_disks { check_live(situation).is_err() } else { check_disks(situation, memory).is_err() };
    if !policy.stable_paths && (policy.prefer_short_pauses || impossible) {
        Storage::External
    } else {
        Storage::Internal
    }
}

/// An overlay lies beside a file, and a disk that is spread over many files makes the machine slow and at last unable to
/// start.
fn check_files(situation: Situation<'_>) -> Result<(), Error> {
    let Some(first) = situation.vm.writable_disks().next() else {
        return Err(situation.refuse(Reason::NoWritableDisk, "the machine has no disk to take a snapshot of"));
    };
    if let Some(disk) = situation.vm.writable_disks().find(|disk| !disk.path.starts_with('/')) {
        let message = format!("disk {} is not in a file: an overlay has no place beside it", disk.target);
        return Err(situation.refuse(Reason::ExternalUnsupported, message).with("disk", &disk.target));
    }
    if let Some(disk) = situation.vm.writable_disks().find(|disk| disk.path.starts_with("/dev/")) {
        let message = format!("disk {} is a block device: an overlay has no place beside it", disk.target);
        return Err(situation.refuse(Reason::ExternalUnsupported, message).with("disk", &disk.target));
    }
    let (depth, limit) = (situation.layers.depth(), situation.policy.max_layers);
    if depth >= limit as usize {
        let message = format!("disk {} lies on {depth} files, the most is {limit}", first.target);
        return Err(situation.refuse(Reason::LayerLimit, message).with("limit", limit.to_string()));
    }
    Ok(())
}

/// libvirt takes an internal snapshot of every writable disk or of none.
fn check_disks(situation: Situation<'_>, memory: bool) -> Result<(), Error> {
    let mut disks = situation.vm.writable_disks().peekable();
    if disks.peek().is_none() {
        return Err(situation.refuse(Reason::NoWritableDisk, "the machine has no disk to take a snapshot of"));
    }
    if let Some(disk) = disks.find(|disk| disk.format != "qcow2") {
        let message = format!("disk {} is {}: only qcow2 images hold snapshots", disk.target, disk.format);
        return Err(situation
            .refuse(Reason::DiskFormatUnsupported, message)
            .with("disk", &disk.target)
            .with("format", &disk.format));
    }
    // Running, libvirt refuses with [84]. Off, it leaves the variables as they are, which a revert survives.
    if memory && situation.vm.nvram == Nvram::Raw {
        return Err(situation.refuse(
            Reason::NvramUnsupported,
            "the machine keeps its UEFI variables in a raw file, which a snapshot cannot hold: convert it to qcow2",
        ));
    }
    Ok(())
}

/// What is kept free. A block device is for one disk alone, so that a part of that disk's size is enough.
fn margin(disk: &DiskFacts, of_file_system: u64) -> u64 {
    if disk.path.starts_with("/dev/") { of_file_system.min(disk.capacity_bytes / 16) } else { of_file_system }
}

/// The running state goes into the first disk; each file system keeps the margin.
fn check_space(situation: Situation<'_>, state_bytes: u64) -> Result<(), Error> {
    let mut needed: BTreeMap<Option<&Path>, (u64, &DiskFacts)> = BTreeMap::new();
    for (index, disk) in situation.vm.writable_disks().enumerate() {
        let folder = Path::new(&disk.path).parent();
        let entry = needed.entry(folder).or_insert((margin(disk, situation.policy.space_margin_bytes), disk));
        if index == 0 {
            entry.0 += state_bytes;
        }
        // What is not known is less than anything.
        if disk.free_bytes.unwrap_or(0) < entry.1.free_bytes.unwrap_or(0) {
            entry.1 = disk;
        }
    }
    for (bytes, disk) in needed.into_values() {
        let Some(free) = disk.free_bytes else {
            let message =
                format!("the free space where disk {} is cannot be determined: nothing was changed", disk.target);
            return Err(situation.refuse(Reason::ImageUnavailable, message).with("disk", &disk.target));
        };
        if free < bytes {
            let message = format!(
                "{} MiB are free where disk {} is, and {} MiB are needed",
                free >> 20,
                disk.target,
                bytes >> 20
            );
            return Err(situation
                .refuse(Reason::SpaceLow, message)
                .with("disk", &disk.target)
                .with("free_bytes", free.to_string())
                .with("needed_bytes", bytes.to_string()));
        }
    }
    Ok(())
}

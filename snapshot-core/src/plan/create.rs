//! Taking a snapshot.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Plan, Situation, Step};
use crate::error::{Error, Reason};
use crate::operation::{Create, Method};
use crate::snapshot::{Content, Storage};
use crate::vm::{DiskFacts, Nvram, VmState};

/// Bytes of RAM that QEMU saves in a second, for the prediction alone: 256 MiB were measured to take about 740 ms.
const SAVED_BYTES_PER_SECOND: u64 = 350 << 20;

pub(super) fn plan(situation: Situation<'_>, create: &Create) -> Result<Plan, Error> {
    let memory = memory_wanted(situation, create.content)?;
    situation.check_changeable()?;
    check_storage(situation, create.storage)?;
    if create.quiesce {
        return Err(situation.refuse(
            Reason::QuiesceUnsupported,
            "file systems can only be frozen for a snapshot of the disks of a running machine",
        ));
    }
    let limit = situation.policy.max_snapshots_per_vm;
    if situation.tree.len() >= limit as usize && situation.tree.get(&create.snapshot).is_none() {
        let message = format!("the machine has {} snapshots, the most is {limit}", situation.tree.len());
        return Err(situation.refuse(Reason::SnapshotLimit, message).with("limit", limit.to_string()));
    }
    check_disks(situation, memory)?;
    let bytes = if memory { situation.vm.memory_bytes } else { 0 };
    check_space(situation, bytes)?;
    // A paused guest stands still already, so saving it costs no pause of its own.
    let pauses = memory && situation.vm.state == VmState::Running;
    Ok(Plan {
        steps: vec![Step::CreateInternal { snapshot: create.snapshot.clone(), memory }],
        bytes_written: bytes,
        predicted_pause_ms: pauses.then(|| predicted_pause_ms(bytes)),
        losses: Vec::new(),
        method: Some(Method::Libvirt),
    })
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
        (None | Some(Content::Disks), VmState::Shutoff) => Ok(false),
        (None | Some(Content::DisksAndMemory), VmState::Running | VmState::Paused) => Ok(true),
        (Some(Content::DisksAndMemory), VmState::Shutoff) => {
            Err(situation.refuse(Reason::VmNotRunning, "the machine is off: there is no running state to save"))
        }
        (Some(Content::Disks), VmState::Running | VmState::Paused) => Err(situation.refuse(
            Reason::LiveDisksUnsupported,
            "the disks alone of a running machine cannot be captured on this host: take the running state too, or \
             switch the machine off",
        )),
    }
}

fn check_storage(situation: Situation<'_>, storage: Option<Storage>) -> Result<(), Error> {
    match storage {
        None | Some(Storage::Internal) => {}
        Some(Storage::External) => {
            let message = if situation.policy.stable_paths {
                "the host's policy keeps the paths of images as they are, and an external snapshot would move them"
            } else {
                "this host takes internal snapshots only"
            };
            return Err(situation.refuse(Reason::ExternalUnsupported, message));
        }
    }
    // An internal snapshot on top of external ones cannot be deleted without destroying data, so one kind per machine.
    match situation.tree.iter().find(|snapshot| snapshot.storage == Storage::External) {
        Some(external) => Err(situation.refuse(
            Reason::SnapshotStorageUnsupported,
            format!("the machine has the external snapshot {}: the two kinds cannot be mixed", external.id),
        )),
        None => Ok(()),
    }
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

/// The running state goes into the first disk; each file system keeps the margin.
fn check_space(situation: Situation<'_>, state_bytes: u64) -> Result<(), Error> {
    let mut needed: BTreeMap<Option<&Path>, (u64, &DiskFacts)> = BTreeMap::new();
    for (index, disk) in situation.vm.writable_disks().enumerate() {
        let folder = Path::new(&disk.path).parent();
        let entry = needed.entry(folder).or_insert((situation.policy.space_margin_bytes, disk));
        if index == 0 {
            entry.0 += state_bytes;
        }
        if disk.free_bytes.unwrap_or(u64::MAX) < entry.1.free_bytes.unwrap_or(u64::MAX) {
            entry.1 = disk;
        }
    }
    for (bytes, disk) in needed.into_values() {
        if let Some(free) = disk.free_bytes
            && free < bytes
        {
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

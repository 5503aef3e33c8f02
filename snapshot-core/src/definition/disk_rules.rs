//! What about a disk, as it is defined, makes operations unavailable.

use super::rules::{at, is};
use super::{Finding, Revert};
use crate::error::Reason;
use crate::hardware::Element;
use crate::restriction::RestrictedOperation::{
    self, CreateExternal, CreateLive, CreateOffline, CreateWithMemory, RevertInPlace,
};

const CREATE_AND_REVERT: &[RestrictedOperation] = &RestrictedOperation::CREATE_AND_REVERT;
const MEMORY: &[RestrictedOperation] = &RestrictedOperation::MEMORY;
const INTERNAL: &[RestrictedOperation] = &[CreateOffline, CreateWithMemory, CreateLive];
const CREATE_AND_IN_PLACE: &[RestrictedOperation] =
    &[CreateOffline, CreateWithMemory, CreateLive, CreateExternal, RevertInPlace];
const NODES: &[RestrictedOperation] = &[CreateLive, RevertInPlace];

/// A rule about a disk: `{}` in the message stands for the target.
struct Rule {
    when: fn(&Element) -> bool,
    operations: &'static [RestrictedOperation],
    revert: Revert,
    reason: Reason,
    message: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        when: is_encrypted,
        operations: CREATE_AND_REVERT,
        revert: Revert::Always,
        reason: Reason::DiskEncrypted,
        message: "disk {} is encrypted by QEMU: snapshots of it cannot be reverted to, or would hold clear text; \
                  encrypt it within the guest instead",
    },
    rule(
        |disk| has(disk, "transient"),
        CREATE_AND_REVERT,
        Revert::Always,
        "disk {} is transient: what is written to it is discarded when the VM is switched off, and snapshots with it; \
         remove <transient/> first",
    ),
    rule(
        |disk| has(disk, "shareable"),
        CREATE_AND_REVERT,
        Revert::Always,
        "disk {} is shared with other VMs (<shareable/>): a revert would change it under them; remove <shareable/> first",
    ),
    rule(
        |disk| !is_removable(disk) && !has(disk, "readonly") && is(disk, "snapshot", &["no", "manual"]),
        CREATE_AND_REVERT,
        Revert::Never,
        "disk {} is excluded from snapshots by its definition (snapshot='no' or 'manual'), and a snapshot of the VM \
         holds all disks; remove the attribute, or make the disk read-only",
    ),
    rule(
        |disk| !is_removable(disk) && !has(disk, "readonly") && is(disk, "snapshot", &["external"]),
        INTERNAL,
        Revert::Never,
        "disk {} is to have external snapshots by its definition (snapshot='external'); remove the attribute to have \
         snapshots inside its image",
    ),
    rule(
        |disk| !is(disk, "type", &["file", "block", "volume"]) && (has(disk, "source") || !is_removable(disk)),
        CREATE_AND_IN_PLACE,
        Revert::Always,
        "disk {} is not in a file, a block device or a volume of this host: whether it is there at a revert cannot be \
         known; detach it, or eject its medium, first",
    ),
    rule(
        |disk| is(disk, "type", &["volume"]) && !is_removable(disk),
        &[CreateExternal],
        Revert::Never,
        "disk {} is a volume of a storage pool: external snapshots of volumes are not supported, internal ones are",
    ),
    rule(
        |disk| is(disk, "device", &["lun"]),
        CREATE_AND_REVERT,
        Revert::Always,
        "disk {} is a SCSI device of the host that is passed through (device='lun'), whose data snapshots cannot hold",
    ),
    rule(
        has_unknown_layout,
        CREATE_AND_REVERT,
        Revert::Always,
        "the data of disk {} is in a part of a file, in several files, or passed as an open file (<slices>, <dataStore>, \
         <reservations>, fdgroup): snapshots inside it are not supported",
    ),
    rule(
        |disk| at(disk, "target").iter().any(|target| is(target, "bus", &["nvme"])),
        MEMORY,
        Revert::WithMemory,
        "disk {} is on an NVMe controller, which QEMU cannot save: take a snapshot of the disks alone, switch the VM off \
         first, or move the disk to another bus",
    ),
    rule(
        |disk| at(disk, "driver").iter().any(|driver| is(driver, "copy_on_read", &["on"])),
        NODES,
        Revert::Never,
        "disk {} has copy_on_read, which hides its image from live snapshots and reverts in place; take a snapshot with \
         memory, or switch the VM off first",
    ),
    rule(
        |disk| has(disk, "throttlefilters"),
        NODES,
        Revert::Never,
        "disk {} has throttle filters, which hide its image from live snapshots and reverts in place; use <iotune>, take a \
         snapshot with memory, or switch the VM off first",
    ),
    rule(
        |disk| is(disk, "device", &["floppy"]) && has(disk, "source") && !has(disk, "readonly"),
        CREATE_AND_IN_PLACE,
        Revert::Never,
        "floppy {} is writable: eject it, or make it read-only, before a snapshot",
    ),
    Rule {
        when: |disk| has(disk, "mirror"),
        operations: CREATE_AND_REVERT,
        revert: Revert::Never,
        reason: Reason::BlockJobActive,
        message: "disk {} is being copied or committed by a block job: retry when it has ended",
    },
];

const fn rule(
    when: fn(&Element) -> bool,
    operations: &'static [RestrictedOperation],
    revert: Revert,
    message: &'static str,
) -> Rule {
    Rule { when, operations, revert, reason: Reason::FeatureUnsupported, message }
}

/// Disks whose snapshots cannot be deleted while the VM is on, or while it is off.
struct DeletionRule {
    when: fn(&Element) -> bool,
    is_on: bool,
    reason: Reason,
    message: &'static str,
}

const DELETION_RULES: &[DeletionRule] = &[
    // libvirt says that it is done, and leaves the snapshot in the image (11.3).
    DeletionRule {
        when: is_encrypted,
        is_on: false,
        reason: Reason::DiskEncrypted,
        message: "disk {} is encrypted by QEMU, and its key is not at hand while the VM is off: start the VM to delete a \
                  snapshot",
    },
    // "is not the same as disk image currently used by VM" (libvirt 11.3).
    DeletionRule {
        when: |disk| has(disk, "transient"),
        is_on: true,
        reason: Reason::FeatureUnsupported,
        message: "disk {} is transient, and the VM is on a copy of it now: switch the VM off to delete a snapshot",
    },
];

pub(super) fn find(disk: &Element, is_on: bool, findings: &mut Vec<Finding>) {
    let target = target(disk);
    for rule in DELETION_RULES.iter().filter(|rule| rule.is_on == is_on && (rule.when)(disk)) {
        findings.push(Finding {
            operations: &[RestrictedOperation::Delete],
            revert: Revert::Never,
            reason: rule.reason,
            message: rule.message.replace("{}", &target),
            disk: Some(target.clone()),
        });
    }
    for rule in RULES.iter().filter(|rule| (rule.when)(disk)) {
        findings.push(Finding {
            operations: rule.operations,
            revert: rule.revert,
            reason: rule.reason,
            message: rule.message.replace("{}", &target),
            disk: Some(target.clone()),
        });
    }
}

/// The target of a disk, such as `vda`.
pub(super) fn target(disk: &Element) -> String {
    let target = at(disk, "target").into_iter().find_map(|target| target.attributes.get("dev"));
    target.cloned().unwrap_or_default()
}

fn has(element: &Element, name: &str) -> bool {
    element.children.iter().any(|child| child.name == name)
}

/// Whether the guest takes it as a drive whose medium may be changed.
fn is_removable(disk: &Element) -> bool {
    is(disk, "device", &["cdrom", "floppy"])
}

/// Whether it, or anything in the chain of its backing files, is encrypted.
fn is_encrypted(disk: &Element) -> bool {
    disk.children.iter().any(|child| child.name == "encryption" || is_encrypted(child))
}

fn has_unknown_layout(element: &Element) -> bool {
    let is_it = |child: &Element| matches!(child.name.as_str(), "slices" | "dataStore" | "reservations");
    element.attributes.contains_key("fdgroup")
        || element.children.iter().any(|child| is_it(child) || has_unknown_layout(child))
}

//! What the header of a qcow2 image says, and what that makes unavailable. Format: docs/interop/qcow2.rst in QEMU's source.

use crate::error::Reason;
use crate::restriction::RestrictedOperation::{self, CreateLive, CreateOffline, CreateWithMemory, Delete, Revert};

/// The incompatible features that are known: dirty, corrupt, external data file, compression type, extended L2 entries.
const KNOWN: u64 = 0x1f;
/// QEMU has found it to be wrong.
const CORRUPT: u64 = 1 << 1;
/// The guest's data is in another file.
const DATA_FILE: u64 = 1 << 2;

/// What the header of a qcow2 image says, as far as operations depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    /// 2 or 3.
    pub version: u32,
    /// The bits of incompatible features; 0 in version 2.
    pub incompatible: u64,
    /// 0 when it is not encrypted, 1 for AES, 2 for LUKS.
    pub crypt_method: u32,
    /// Each cluster is counted in a number of 2^this bits; 4 in version 2.
    pub refcount_order: u32,
    /// The number of persistent dirty bitmaps in it.
    pub bitmaps: u32,
    /// The name of the file with the guest's data, where that is another.
    pub data_file: Option<String>,
    /// Whether its header extensions could not be read to their end.
    pub unknown_extensions: bool,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            version: 2,
            incompatible: 0,
            crypt_method: 0,
            refcount_order: 4,
            bitmaps: 0,
            data_file: None,
            unknown_extensions: false,
        }
    }
}

impl Features {
    /// The most references to a cluster that can be counted.
    fn most_references(&self) -> u64 {
        let bits = 1_u32.checked_shl(self.refcount_order).unwrap_or(0);
        1_u64.checked_shl(bits).map_or(u64::MAX, |above| above - 1)
    }
}

/// What an image is to the VM.
#[derive(Debug, Clone, Copy)]
pub(super) struct Role {
    /// Whether the guest writes it: snapshots are in it.
    pub(super) writable: bool,
    /// Whether the VM is on.
    pub(super) is_on: bool,
}

type Found = (Vec<RestrictedOperation>, Reason, String);

pub(super) fn restrictions(features: &Features, snapshots: usize, role: Role) -> Vec<Found> {
    let reopening = || super::reopening(role.is_on);
    let opened = || if role.writable { RestrictedOperation::ALL.to_vec() } else { reopening() };
    let mut found: Vec<Found> = Vec::new();
    let unknown = features.incompatible & !KNOWN;
    if unknown != 0 {
        let what = format!("has features that this host's agent does not know (bits {unknown:#x})");
        found.push((opened(), Reason::FeatureUnsupported, what));
    }
    if features.unknown_extensions {
        let what = "has header extensions that cannot be read to their end".to_owned();
        found.push((opened(), Reason::FeatureUnsupported, what));
    }
    if features.incompatible & CORRUPT != 0 {
        let what = "is marked as corrupt: repair it with qemu-img check -r all first".to_owned();
        found.push((opened(), Reason::ImageUnavailable, what));
    }
    if features.crypt_method != 0 {
        let method = match features.crypt_method {
            1 => "AES".to_owned(),
            2 => "LUKS".to_owned(),
            other => format!("method {other}"),
        };
        let mut operations = RestrictedOperation::CREATE_AND_REVERT.to_vec();
        operations.extend((!role.is_on).then_some(Delete));
        let what = format!("is encrypted by QEMU ({method}): encrypt inside the guest instead");
        found.push((operations, Reason::DiskEncrypted, what));
    }
    if role.writable {
        found.extend(snapshots_in_it(features, snapshots));
    }
    found
}

/// What concerns the image that snapshots are in.
fn snapshots_in_it(features: &Features, snapshots: usize) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    let internal = || vec![CreateOffline, CreateWithMemory, CreateLive];
    if features.bitmaps > 0 {
        let what = format!(
            "has {} persistent dirty bitmaps, with which QEMU reverts no image: delete the checkpoints of the backup tool first",
            features.bitmaps
        );
        found.push((RestrictedOperation::CREATE_AND_REVERT.to_vec(), Reason::CheckpointsPresent, what));
    }
    if features.incompatible & DATA_FILE != 0 {
        let mut operations = internal();
        operations.extend(RestrictedOperation::REVERT);
        let what = "has an external data file, which holds no snapshots: convert it with qemu-img convert".to_owned();
        found.push((operations, Reason::FeatureUnsupported, what));
    }
    // One reference is the active state's, one is each snapshot's, one is that of what a revert keeps of the present until it is done,
    // and QEMU counts one more before it takes one back.
    let (most, there) = (features.most_references(), snapshots as u64);
    let bits = 1_u32.checked_shl(features.refcount_order).unwrap_or(0);
    if there.saturating_add(4) > most {
        let what = format!(
            "counts references in {bits} bits (refcount_bits), and has {there} snapshots: one more could not be reverted to"
        );
        found.push((internal(), Reason::FeatureUnsupported, what));
    }
    if there > 0 && there.saturating_add(3) > most {
        let mut operations = vec![Revert];
        operations.push(RestrictedOperation::RevertInPlace);
        let what = format!(
            "counts references in {bits} bits (refcount_bits), and has {there} snapshots: delete some before a revert"
        );
        found.push((operations, Reason::FeatureUnsupported, what));
    }
    found
}

//! Whether all images of a VM are in directories that the agent may touch, or read where others are backed by them: one
//! answer for what is offered and for what is refused.

use std::collections::BTreeSet;
use std::path::Path;

use snapshot_core::layers::Layers;
use snapshot_core::restriction::{RestrictedOperation, Restriction};
use snapshot_core::{Error, Reason};

use super::{Beneath, out_of_reach};

/// The refusal of what needs the images of a VM; `None` where all are within reach. Block devices are left to libvirt.
pub(crate) fn refusal(folders: &Beneath, layers: &Layers) -> Option<Error> {
    let frozen = layers.snapshots.values().flat_map(|parts| parts.frozen.values().chain(parts.overlays.values()));
    let touched: BTreeSet<&str> = layers.live.values().chain(frozen).map(String::as_str).collect();
    let read = layers.files.keys().map(String::as_str).filter(|path| !touched.contains(path));
    let is_file = |path: &&str| !Path::new(path).starts_with("/dev");
    let touched = touched.iter().copied().filter(is_file).find(|path| !folders.has(Path::new(path)));
    let (path, key) = match touched {
        Some(path) => (path, "image_dirs"),
        None => (read.filter(is_file).find(|path| !folders.may_read(Path::new(path)))?, "read_dirs"),
    };
    Some(out_of_reach(Path::new(path), key))
}

/// The same as a restriction among the facts of the VM, in the place of an earlier one. It is the first: that an image out of reach
/// cannot be read, either, says less.
pub(crate) fn restrict(restrictions: &mut Vec<Restriction>, folders: &Beneath, layers: &Layers) {
    restrictions.retain(|restriction| restriction.reason != Reason::ImageOutOfReach);
    if let Some(refusal) = refusal(folders, layers) {
        restrictions.insert(0, Restriction::new(RestrictedOperation::ALL, refusal.reason(), refusal.message()));
    }
}

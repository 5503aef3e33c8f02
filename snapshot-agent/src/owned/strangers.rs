//! Images that no VM of this host names: clones that are not defined, or on another host of shared storage; copies; disks that were
//! detached. What they depend on stays, whoever created it; and so does what other hosts say that they use.

use std::collections::BTreeSet;
use std::path::Path;

use snapshot_core::ids::VmId;
use snapshot_core::{Error, Reason};

use crate::beneath::{Beneath, out_of_reach};
use crate::hypervisor::directory_images::dependencies;
use crate::hypervisor::{GUARDED, Observed};

/// The files that images in the directories of a VM's images, or in those of the host, depend on. `own` are the files of the VM that may
/// be merged or removed: they keep nothing.
pub(super) fn reached_by_strangers<'a>(
    vm: VmId,
    directories: &Beneath,
    files: impl IntoIterator<Item = &'a str>,
    own: &BTreeSet<String>,
) -> Result<BTreeSet<String>, Error> {
    let beside: BTreeSet<_> = files.into_iter().filter_map(|path| Some(Path::new(path).parent()?.to_owned())).collect();
    let elsewhere = match directories.shared() {
        Some(shared) => shared.used_elsewhere(&beside).map_err(|error| error.with("vm", proto::names::vm(vm)))?,
        None => BTreeSet::new(),
    };
    let images = dependencies(&beside, &directories.directories()).map_err(|(path, error)| {
        if !directories.may_read(&path) {
            return out_of_reach(&path, "read_dirs").with("vm", proto::names::vm(vm));
        }
        let message = format!(
            "{} cannot be read ({error}), so it is not known which images depend on those of the VM; nothing was removed; make it \
             readable, and ask again",
            path.display()
        );
        Error::new(Reason::ImageUnavailable, message)
            .with("vm", proto::names::vm(vm))
            .with("path", path.display().to_string())
    })?;
    let is_own = |path: &Path| {
        let path = path.to_string_lossy();
        // A file may have a second name during a revert.
        own.contains(path.strip_suffix(GUARDED).unwrap_or(&path))
    };
    let strangers = images.into_iter().filter(|(path, _)| !is_own(path));
    let below = strangers.flat_map(|(_, below)| below).map(|path| path.to_string_lossy().into_owned());
    Ok(below.chain(elsewhere).collect())
}

/// The same for a VM as it was seen. What it and its snapshots reach, and what was given up, nobody but the VM keeps.
pub(crate) fn kept_by_strangers(
    directories: &Beneath,
    seen: &Observed,
    given_up: &BTreeSet<String>,
) -> Result<BTreeSet<String>, Error> {
    let layers = &seen.layers;
    let reached = layers.reached(&BTreeSet::new()).into_iter().map(str::to_owned);
    let given_up = given_up.union(&layers.discarded).filter(|path| layers.is_created(path)).cloned();
    reached_by_strangers(seen.vm.id, directories, layers.paths(), &reached.chain(given_up).collect())
}

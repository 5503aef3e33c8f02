//! Removing an orphan, after everything that may need it was asked anew.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::Path;

use snapshot_core::Error;

use super::super::abandoned::{numbers, stays_open, text};
use super::super::files::{Standing, guarded, states};
use super::super::spare::needed;
use super::{OnRecord, Orphan, Surroundings, changed, etag, examine, images_around, silent_around, unreadable};
use crate::bounded::files;
use crate::hypervisor::{Hypervisor, Observed};
use crate::owned::Owned;

/// Files in use. Another path may lead to one: a hard link, or a directory that is mounted twice.
struct Used {
    paths: BTreeSet<String>,
    /// Their devices and inodes.
    numbers: BTreeSet<(u64, u64)>,
}

impl Used {
    fn of(paths: BTreeSet<String>) -> Result<Self, Error> {
        let numbers = numbers(&paths).map_err(|(path, error)| unreadable(path.as_ref(), &error))?;
        Ok(Self { paths, numbers })
    }

    fn has(&self, path: &str, number: (u64, u64)) -> bool {
        self.paths.contains(path) || self.numbers.contains(&number)
    }
}

/// What a VM itself uses, as it was seen. What libvirt's record of a snapshot names as its overlay is used only if something else leads
/// to it.
fn used_by_itself(seen: &Observed) -> BTreeSet<String> {
    let overlays: BTreeSet<&String> =
        seen.layers.snapshots.values().flat_map(|parts| parts.overlays.values()).collect();
    let others = seen.uses.reached.iter().filter(|path| path.starts_with('/') && !overlays.contains(path));
    needed(seen).into_iter().chain(states(seen)).chain(others.cloned()).collect()
}

/// Looks at an orphan; `seen` is its VM, if it exists. Every other VM is asked. `name_of` tells which of them uses a path, where that is
/// known.
pub(crate) fn examine_anew(
    hypervisor: &dyn Hypervisor,
    on_record: OnRecord,
    seen: Option<&Observed>,
    name_of: &dyn Fn(&str) -> Option<String>,
) -> Result<Orphan, Error> {
    let vm = on_record.vm;
    let elsewhere = hypervisor.elsewhere(vm).map_err(|failure| {
        failure.to_error(vm, None, "what other VMs use could not be found out; nothing was deleted")
    })?;
    let (own, others) = (Used::of(seen.map(used_by_itself).unwrap_or_default())?, Used::of(elsewhere)?);
    let user = |path: &str, number: (u64, u64)| {
        if own.has(path, number) {
            return Some(seen.map(|seen| seen.vm.name.clone()).unwrap_or_default());
        }
        others.has(path, number).then(|| name_of(path).unwrap_or_default())
    };
    let directories = hypervisor.folders();
    let images = images_around(directories, [&on_record]);
    let silent = silent_around(directories, [&on_record]);
    let around = Surroundings { directories, images: &images, silent: &silent, user: &user, is_open: stays_open };
    Ok(examine(on_record, &around))
}

impl Orphan {
    /// Removes the file, if it is the one that was shown. The directory is synced before the record forgets the file, so that a power cut
    /// leaves no file that nobody knows.
    pub(crate) fn remove(&self, hypervisor: &dyn Hypervisor, owned: &Owned, shown: &str) -> Result<(), Error> {
        let OnRecord { vm, path, made, .. } = &self.on_record;
        let failed = |error: io::Error| unreadable(path, &error);
        let (place, _) = self.on_record.find().map_err(failed)?;
        let found = files::symlink_metadata(&place).map_err(failed)?;
        if etag(self.on_record.id, &found) != shown {
            return Err(changed(self.on_record.id, path));
        }
        let second = guarded(path);
        let is_there = |path: &Path| made.standing(path).is_ok_and(|standing| standing == Standing::Ours);
        let names: Vec<String> =
            [path, &second].into_iter().filter(|path| is_there(path)).map(|path| text(path)).collect();
        let unlinked = hypervisor.unlink(&names);
        unlinked.map_err(|failure| failure.to_error(*vm, None, "the file of the orphan could not be removed"))?;
        let sync = |directory: &Path| files::with(directory, || File::open(directory)?.sync_all());
        if let Err(error) = path.parent().map_or(Ok(()), sync) {
            // It stays on record until a look finds it gone.
            tracing::warn!(%vm, path = %path.display(), %error, "the directory of a deleted orphan could not be synced");
            return Ok(());
        }
        owned.strike_file(*vm, path);
        owned.sync(*vm);
        Ok(())
    }
}

#[cfg(test)]
mod tests;

//! What the use of its images by other hosts makes unavailable to a VM.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use snapshot_core::Reason;
use snapshot_core::restriction::{RestrictedOperation, Restriction};
use snapshot_core::snapshot::Storage;

use super::Observed;
use crate::shared_storage::{SharedStorage, Standing, unknown};

/// External snapshots make files whose paths other hosts have to know.
const EXTERNAL: [RestrictedOperation; 2] =
    [RestrictedOperation::CreateExternal, RestrictedOperation::CreateExternalMemory];

/// Adds it to a VM that was looked at, and to its snapshots.
pub(crate) fn restrict(shared: &SharedStorage, seen: &mut Observed) {
    let directories: BTreeSet<PathBuf> =
        seen.layers.paths().into_iter().filter_map(|path| Some(Path::new(path).parent()?.to_owned())).collect();
    for refusal in directories.iter().filter_map(|directory| refusal(shared, directory)) {
        seen.vm.restrictions.push(Restriction { operations: EXTERNAL.to_vec(), ..refusal.clone() });
        for snapshot in seen.snapshots.iter_mut().filter(|snapshot| snapshot.storage == Storage::External) {
            snapshot.restrictions.push(refusal.clone());
        }
    }
    let found = of_files(shared, seen, &seen.uses.changed);
    seen.vm.restrictions.extend(found);
    for number in 0..seen.snapshots.len() {
        let Some(files) = seen.uses.changed_by.get(&seen.snapshots[number].id) else { continue };
        let found = of_files(shared, seen, files);
        seen.snapshots[number].restrictions.extend(found);
    }
}

/// Why external snapshots in a directory are neither taken nor deleted.
fn refusal(shared: &SharedStorage, directory: &Path) -> Option<Restriction> {
    let of = |reason, message: String| Restriction::new([RestrictedOperation::Delete], reason, message);
    match shared.standing(directory) {
        Ok(Standing::Local) => None,
        Ok(Standing::Unknown) => {
            let error = unknown(directory);
            Some(of(error.reason(), error.message().to_owned()))
        }
        Ok(Standing::Shared) => shared.unwritten(directory).map(|why| {
            let message = format!(
                "the agent cannot tell other hosts which images of {} this one uses ({why}): external snapshots are unavailable there; let \
                 it write in that directory",
                directory.display()
            );
            of(Reason::ImageUnavailable, message)
        }),
        Err(error) => Some(of(Reason::ImageUnavailable, format!("{} cannot be read ({error})", directory.display()))),
    }
}

/// A revert changes these files; who else uses them would find other data in them. The same VM on another host is no other: where it
/// runs, QEMU has its images locked.
fn of_files(shared: &SharedStorage, seen: &Observed, files: &BTreeMap<String, String>) -> Vec<Restriction> {
    let mut found: BTreeMap<(&str, String), Restriction> = BTreeMap::new();
    for (path, target) in files.iter().filter(|(path, _)| path.starts_with('/')) {
        let restriction =
            |reason, message: String| Restriction::new(RestrictedOperation::REVERT, reason, message).on_disk(target);
        match shared.other_users(Path::new(path)) {
            Err(error) => {
                let unread = restriction(error.reason(), error.message().to_owned());
                found.entry((target, String::new())).or_insert(unread);
            }
            Ok(users) => {
                for user in users.into_iter().filter(|user| user.vm != Some(seen.vm.id.as_uuid())) {
                    let (name, host) = (&user.name, &user.host);
                    let message = format!(
                        "VM {name} of host {host} uses the image of disk {target}, as a disk, in a snapshot or as a backing file, and a revert \
                         would change its data: remove that VM, or copy the image for it"
                    );
                    let key = (target.as_str(), format!("{host} {:?}", user.vm));
                    found.entry(key).or_insert_with(|| restriction(Reason::ImageInUse, message));
                }
            }
        }
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests;

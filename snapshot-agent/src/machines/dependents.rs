//! The images in the directories of the host that depend on those of VMs, whether a VM uses them or not, as they were last found.
//!
//! Each directory is looked through by a job of its own. Of one whose storage does not respond counts what was found in it before.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use snapshot_core::images::Dependents;

use super::Machines;
use crate::beneath::Beneath;
use crate::bounded::jobs;
use crate::hypervisor::directory_images::{Dependencies, readable_dependencies};

/// What was found in each directory, and the number of the search that found it.
#[derive(Debug, Default)]
pub(super) struct Found {
    searches: AtomicU64,
    directories: Mutex<BTreeMap<PathBuf, (u64, Dependencies)>>,
}

impl Machines {
    /// Looks through the directories of the host and those of the images that VMs use. What is found counts when this returns.
    pub(crate) fn find_dependents(&self, places: &Beneath) {
        let number = self.dependents.searches.fetch_add(1, Ordering::Relaxed) + 1;
        let whole = places.directories();
        let used: BTreeSet<PathBuf> =
            self.files().into_iter().filter_map(|(path, ..)| Some(path.parent()?.to_owned())).collect();
        let is_within = |directory: &PathBuf| whole.iter().any(|root| directory.starts_with(root));
        let alone = used.into_iter().filter(|directory| !is_within(directory)).map(|directory| (directory, false));
        let directories: Vec<(PathBuf, bool)> = whole.iter().cloned().map(|root| (root, true)).chain(alone).collect();
        let mut found = Vec::new();
        for (directory, is_whole) in &directories {
            let (looked_through, is_whole) = (directory.clone(), *is_whole);
            let about = format!("images in {}", directory.display());
            match jobs::run(&about, move || readable_dependencies(&looked_through, is_whole)) {
                Ok(Ok(one)) => found.push((directory, one)),
                Ok(Err((path, error))) => {
                    tracing::warn!(path = %path.display(), %error, "it is not known which images depend on those of VMs");
                }
                Err(stuck) => tracing::debug!(?stuck, "it is not known which images depend on those of VMs"),
            }
        }
        let spare = self.owned.as_ref().map(|owned| owned.spare_files()).unwrap_or_default();
        let mut known = self.dependents.directories.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|directory, _| directories.iter().any(|(other, _)| other == directory));
        for (directory, (mut now, unread)) in found {
            let before = known.remove(directory).unwrap_or_default();
            if before.0 > number {
                known.insert(directory.clone(), before);
                continue;
            }
            now.extend(before.1.into_iter().filter(|(image, _)| unread.contains(image)));
            known.insert(directory.clone(), (number, now));
        }
        // A VM of another host is told of by its name (`hypervisor/other_hosts.rs`).
        let is_elsewhere = |image: &Path| {
            places.shared().is_some_and(|shared| shared.other_users(image).is_ok_and(|users| !users.is_empty()))
        };
        let unused = |image: &Path| !spare.contains(image) && !is_elsewhere(image);
        let dependents = by_file(known.values().flat_map(|(_, found)| found).filter(|(image, _)| unused(image)));
        self.set_dependents(dependents);
    }

    fn set_dependents(&self, dependents: Dependents) {
        let mut state = self.lock();
        let affected = state.sharing.set_dependents(dependents);
        affected.into_iter().for_each(|vm| state.renew(vm));
    }
}

/// The images that depend on each file.
fn by_file<'a>(images: impl Iterator<Item = (&'a PathBuf, &'a BTreeSet<PathBuf>)>) -> Dependents {
    let mut found = Dependents::new();
    for (image, below) in images {
        for file in below.iter().filter(|file| *file != image) {
            let image = image.to_string_lossy().into_owned();
            found.entry(file.to_string_lossy().into_owned()).or_default().insert(image);
        }
    }
    found
}

#[cfg(test)]
mod tests;

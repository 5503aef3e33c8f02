//! Telling other hosts which images this one uses, by the notes of [`crate::shared_storage`].

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use snapshot_core::ids::VmId;

use super::{Done, Watch};
use crate::beneath::Beneath;
use crate::bounded::jobs;
use crate::shared_storage::SharedStorage;
use crate::shared_storage::note::Images;

/// The images that a host uses, by directory.
type Used = BTreeMap<PathBuf, Images>;

/// Whether there is anything new to tell.
#[derive(Debug, Default)]
pub(super) struct Notes {
    is_changed: bool,
    is_publishing: bool,
    has_failed: bool,
}

impl Notes {
    /// What VMs use may have changed.
    pub(super) fn changed(&mut self) {
        self.is_changed = true;
    }

    /// What could not be written is tried again.
    pub(super) fn retry(&mut self) {
        self.is_changed |= std::mem::take(&mut self.has_failed);
    }

    /// They were written, all of them or not.
    pub(super) fn published(&mut self, all: bool) {
        (self.is_publishing, self.has_failed) = (false, !all);
    }
}

impl Watch {
    pub(super) fn begin_publishing(&mut self) {
        let is_shared = self.hypervisor.folders().shared().is_some_and(SharedStorage::is_any);
        if !is_shared || self.notes.is_publishing || !std::mem::take(&mut self.notes.is_changed) {
            return;
        }
        self.notes.is_publishing = true;
        let all_known = *self.machines.synced().borrow() && self.unresponsive.is_empty() && self.unreadable.is_empty();
        let (hypervisor, machines) = (Arc::clone(&self.hypervisor), Arc::clone(&self.machines));
        self.tasks.spawn_blocking(move || {
            let written = jobs::run("notes for other hosts", move || {
                let places = hypervisor.folders();
                let Some(shared) = places.shared() else { return true };
                publish(places, shared, &in_shared(shared, machines.files()), all_known)
            });
            Done::Published(written.unwrap_or(false))
        });
    }
}

/// Of the files that VMs use, those in directories that are shared.
fn in_shared(shared: &SharedStorage, used: impl IntoIterator<Item = (PathBuf, VmId, String)>) -> Used {
    let mut found = Used::new();
    for (path, vm, name) in used {
        let (Some(directory), Some(image)) = (path.parent(), path.file_name().and_then(|image| image.to_str())) else {
            continue;
        };
        if shared.is_shared(directory) {
            let images = found.entry(directory.to_owned()).or_default();
            images.entry(image.to_owned()).or_default().insert(vm.as_uuid(), name);
        }
    }
    found
}

/// Writes the notes of these directories, and removes those of others, of which this host uses no image any more. Whether all could be
/// written.
fn publish(places: &Beneath, shared: &SharedStorage, used: &Used, complete: bool) -> bool {
    let nothing = Images::new();
    let mut directories = shared.noted();
    directories.extend(used.keys().cloned());
    let mut all = true;
    for directory in directories {
        let images = used.get(&directory).unwrap_or(&nothing);
        let written = write(places, shared, &directory, images, complete);
        all &= written.is_ok();
        shared.wrote(&directory, written);
    }
    all
}

fn write(
    places: &Beneath,
    shared: &SharedStorage,
    directory: &Path,
    images: &Images,
    complete: bool,
) -> io::Result<()> {
    let Some(draft) = shared.draft(directory, images, complete)? else { return Ok(()) };
    match draft.bytes {
        // Remembered first: what is forgotten here would be honoured by others for ever.
        Some(bytes) => {
            shared.remember(directory, true)?;
            places.write_note(&draft.path, &bytes)
        }
        None => {
            places.remove_note(&draft.path)?;
            shared.remember(directory, false)
        }
    }
}

//! Telling other hosts which images this one uses, by the notes of [`crate::shared_storage`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use snapshot_core::ids::VmId;

use super::{Done, Watch};
use crate::beneath::Beneath;
use crate::bounded::jobs;
use crate::shared_storage::note::Images;
use crate::shared_storage::{SharedStorage, renewal};

/// The images that a host uses, by directory.
type Used = BTreeMap<PathBuf, Images>;

/// Whether there is anything new to tell.
#[derive(Debug, Default)]
pub(super) struct Notes {
    is_changed: bool,
    is_publishing: bool,
    has_failed: bool,
    /// Whether it is not known what the notes say: their storage does not respond.
    is_stuck: bool,
    /// Shared directories in which it was just said that the notes are complete.
    renewed: BTreeSet<PathBuf>,
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

    /// They were written, all of them or not; `None` where that did not end.
    pub(super) fn published(&mut self, all: Option<bool>) {
        (self.is_publishing, self.has_failed, self.is_stuck) = (false, all != Some(true), all.is_none());
    }

    /// It may be said again that those in a directory are complete.
    pub(super) fn renewal_due(&mut self, root: &Path) {
        self.renewed.remove(root);
    }

    /// Whether they say all that is known.
    fn are_written(&self) -> bool {
        !self.is_changed && !self.is_publishing && !self.is_stuck
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
            Done::Published(written.ok())
        });
    }

    /// Says that the notes are complete, where everything that libvirt has told is in them.
    pub(super) fn begin_renewing(&mut self) {
        let Some(shared) = self.hypervisor.folders().shared().filter(|shared| shared.is_any()) else { return };
        if !self.notes.are_written() || !self.is_all_known() {
            return;
        }
        let due = shared.roots().iter().filter(|root| !self.notes.renewed.contains(*root));
        for root in due.cloned().collect::<Vec<_>>() {
            self.notes.renewed.insert(root.clone());
            let (hypervisor, about) = (Arc::clone(&self.hypervisor), format!("notes in {}", root.display()));
            self.tasks.spawn(async move {
                let of = root.clone();
                let renew = move || {
                    jobs::run(&about, move || {
                        let places = hypervisor.folders();
                        places.shared().map(|shared| shared.renew(places, &of))
                    })
                };
                match tokio::task::spawn_blocking(renew).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(stuck)) => tracing::debug!(?stuck, "a shared directory does not respond"),
                    Err(error) => tracing::warn!(%error, "telling other hosts what this one uses panicked"),
                }
                tokio::time::sleep(renewal::PAUSE).await;
                Done::RenewalDue(root)
            });
        }
    }

    /// Whether it is known of every VM which files it uses. One that does not respond uses what it used before, if that is known and libvirt
    /// has told nothing new of it. What an operation does to its VM is in the note when it has ended.
    fn is_all_known(&self) -> bool {
        let is_known = |vm: &VmId| self.unresponsive.contains(vm) && self.machines.has_files_of(*vm);
        *self.machines.synced().borrow()
            && self.hypervisor.inbox().is_connected()
            && self.news.iter().all(|vm| self.locks.stamp(*vm).is_none())
            && self.queue.iter().chain(self.looking.keys()).all(is_known)
            && self.unreadable.iter().chain(&self.unresponsive).all(|vm| self.machines.has_files_of(*vm))
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

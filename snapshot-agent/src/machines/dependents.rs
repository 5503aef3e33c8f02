//! The images in the directories of the host that depend on those of VMs, whether a VM uses them or not, as they were last found.
//!
//! 1. Each directory is looked through by a job of its own, which touches all of its storage; nothing else here touches any.
//! 2. A file that hangs ends the job that met it. The next one leaves that file out.
//! 3. Where a directory of the host cannot be looked through, those in it that VMs have images in are, each by itself.
//! 4. Of what cannot be read, or does not respond, counts what was found before. Where nothing was, or there are too many files to be
//!    searched, nobody knows what a revert would change: VMs with images there are not reverted to internal snapshots.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use snapshot_core::images::{Dependent, Dependents};

use super::Machines;
use crate::beneath::Beneath;
use crate::bounded::{Doing, files, jobs};
use crate::hypervisor::directory_images::{Dependencies, readable_dependencies};
use crate::owned::Files;

/// How many files that hang are left out in one search of a directory.
const TRIES: usize = 3;

/// What was found in each directory, and the number of the search that found it.
#[derive(Debug, Default)]
pub(super) struct Found {
    searches: AtomicU64,
    directories: Mutex<BTreeMap<PathBuf, (u64, Images)>>,
}

/// By the path of an image without links: its other name, and all names of the files that it depends on, itself not included.
type Images = BTreeMap<PathBuf, (Option<String>, BTreeSet<String>)>;

/// What a search of a directory has found, the paths of what it could not read, and why directories among those cannot be listed.
type Searched = (Images, BTreeSet<PathBuf>, BTreeMap<PathBuf, String>);

/// Why a directory could not be searched.
struct Unsearched {
    why: String,
    /// Whether what an earlier search found still counts: it is storage that does not respond now.
    is_for_now: bool,
}

impl Machines {
    /// Looks through the directories of the host and those of the images that VMs use. What is found counts when this returns.
    pub(crate) fn find_dependents(&self, places: &Beneath) {
        let number = self.dependents.searches.fetch_add(1, Ordering::Relaxed) + 1;
        let whole = places.directories();
        let used: BTreeSet<PathBuf> =
            self.files().into_iter().filter_map(|(path, ..)| Some(path.parent()?.to_owned())).collect();
        let spare = Arc::new(self.owned.as_ref().map(|owned| owned.unwanted_files()).unwrap_or_default());
        let mut found: BTreeMap<PathBuf, Result<Searched, Unsearched>> =
            whole.iter().map(|root| (root.clone(), search(root, true, &spare))).collect();
        for directory in used {
            let is_found = found.iter().any(|(root, one)| one.is_ok() && directory.starts_with(root));
            if !is_found {
                let one = search(&directory, false, &spare);
                found.insert(directory, one);
            }
        }
        let mut known = self.dependents.directories.lock().unwrap_or_else(PoisonError::into_inner);
        if known.values().all(|(newest, _)| *newest < number) {
            known.retain(|directory, _| found.contains_key(directory));
        }
        let mut unsearched = BTreeMap::new();
        for (directory, one) in found {
            let (mut now, unread) = match one {
                Ok((now, unread, unlisted)) => {
                    let unlisted = unlisted.into_iter();
                    unsearched.extend(unlisted.map(|(path, why)| (path.to_string_lossy().into_owned(), why)));
                    (now, unread)
                }
                Err(unsearched_now) => {
                    if !unsearched_now.is_for_now || !known.contains_key(&directory) {
                        unsearched.insert(directory.to_string_lossy().into_owned(), unsearched_now.why);
                    }
                    continue;
                }
            };
            let before = known.remove(&directory).unwrap_or_default();
            if before.0 > number {
                known.insert(directory, before);
                continue;
            }
            let is_unread = |image: &Path| image.ancestors().any(|part| unread.contains(part));
            for (image, (name, below)) in before.1.into_iter().filter(|(image, _)| is_unread(image)) {
                now.entry(image).or_insert_with(|| (name, BTreeSet::new())).1.extend(below);
            }
            known.insert(directory, (number, now));
        }
        let by_file = by_file(known.values().flat_map(|(_, found)| found));
        self.set_dependents(Dependents { by_file, unsearched });
    }

    fn set_dependents(&self, dependents: Dependents) {
        let mut state = self.lock();
        let affected = state.sharing.set_dependents(dependents);
        affected.into_iter().for_each(|vm| state.renew(vm));
    }
}

/// Looks through a directory. `spare` are files on record that hold nothing which anybody may want: if
/// they are what the record says, they depend on others for no purpose.
fn search(directory: &Path, is_whole: bool, spare: &Arc<Files>) -> Result<Searched, Unsearched> {
    let mut about = format!("images in {}", directory.display());
    for _ in 0..=TRIES {
        let (looked_through, spare) = (directory.to_owned(), Arc::clone(spare));
        let job = move || {
            let found = readable_dependencies(&looked_through, is_whole)?;
            Ok::<_, (PathBuf, std::io::Error)>((named(found.images, &spare), found.unread, found.unlisted))
        };
        match jobs::run(&about, job) {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err((path, error))) => {
                tracing::warn!(path = %path.display(), %error, "it is not known which images depend on those of VMs");
                return Err(Unsearched { why: error.to_string(), is_for_now: error.kind() == ErrorKind::TimedOut });
            }
            // It is refused to the next one.
            Err(stuck) => match stuck.doing {
                Doing::File(path) => about = format!("{about} beside {}", path.display()),
                Doing::Nothing | Doing::Libvirt(_) | Doing::Slot => break,
            },
        }
    }
    Err(Unsearched { why: "its storage does not respond".to_owned(), is_for_now: true })
}

fn named(found: Dependencies, spare: &Files) -> Images {
    let number = |path: &Path| files::metadata(path).ok().map(|found| format!("{}:{}", found.dev(), found.ino()));
    let is_spare = |path: &Path| spare.get(path).is_some_and(|made| made.is_there(path));
    let wanted = found.into_iter().filter(|(image, _)| !is_spare(image));
    let images = wanted.map(|(image, below)| {
        let below = below.into_iter().filter(|file| *file != image);
        let names = below.flat_map(|file| number(&file).into_iter().chain([file.to_string_lossy().into_owned()]));
        let names = names.collect();
        (image.clone(), (number(&image), names))
    });
    images.collect()
}

/// The images that depend on each file.
fn by_file<'a>(
    images: impl Iterator<Item = (&'a PathBuf, &'a (Option<String>, BTreeSet<String>))>,
) -> BTreeMap<String, BTreeSet<Dependent>> {
    let mut found: BTreeMap<String, BTreeSet<Dependent>> = BTreeMap::new();
    for (image, (number, below)) in images {
        let path = image.to_string_lossy().into_owned();
        let dependent = Dependent { number: number.clone().unwrap_or_else(|| path.clone()), path };
        for file in below {
            found.entry(file.clone()).or_default().insert(dependent.clone());
        }
    }
    found
}

#[cfg(test)]
mod tests;

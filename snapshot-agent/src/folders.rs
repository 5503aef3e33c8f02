//! What other tools change on disk: libvirt's folder of snapshots, and the images of machines.
//!
//! libvirt has no event for a snapshot, and nobody tells of an image that is replaced. But libvirt writes a file for each
//! snapshot into a folder for each machine, and images are files in folders. So:
//!
//! 1. libvirt's folder is watched, and in it the folder of each machine that has one; new ones are watched as they come.
//! 2. The directories of the images that machines use are watched. Of other files in them is told only that there is news: one may be
//!    an image that depends on those.
//! 3. News is gathered for a moment, because one change is many events, and handed on as [`Hints`]: where to look closer.
//!    A hint is never more than that.
//! 4. A folder that cannot be watched is tried again until it can, also one whose storage does not respond ([`adding`]). What happened meanwhile was not told, so when it
//!    succeeds, everything in that folder is hinted at. The same goes for everything when the kernel's queue runs over.
//!
//! The cost is by changes; it does not grow with the machines or with what their guests write. Symbolic links are not
//! followed: what changes behind one is found by the comparison at intervals, as everything is where nothing can be
//! watched.

mod adding;
mod inotify;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep_until, timeout};

use self::adding::{Added, add};
use self::inotify::{Inotify, Told};

/// How long news is gathered.
const GATHER: Duration = Duration::from_millis(100);
/// How long until a folder that could not be watched is tried again; longer where there are many.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_MANY: Duration = Duration::from_secs(30);
const MANY: usize = 64;
/// The most folders that are watched.
const MOST: usize = 16_384;
/// How long the start waits for the folders that are known then.
const START_WAIT: Duration = Duration::from_secs(5);

/// Where to look closer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hints {
    /// By libvirt's name of the machine: of which snapshots the record was changed, by their names; `None` when any of
    /// them may have been.
    pub snapshots: BTreeMap<String, Option<BTreeSet<String>>>,
    /// Images that were written, replaced, moved or removed.
    pub images: BTreeSet<PathBuf>,
    /// Folders in which any image may have been.
    pub folders: BTreeSet<PathBuf>,
    /// Other files came, went or were written beside images.
    pub files_beside: bool,
    /// Anything may have changed anywhere.
    pub anything: bool,
}

impl Hints {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn snapshot(&mut self, domain: &str, name: Option<&str>) {
        let known = self.snapshots.entry(domain.to_owned()).or_insert_with(|| Some(BTreeSet::new()));
        match (known, name) {
            (Some(names), Some(name)) => _ = names.insert(name.to_owned()),
            (known, None) => *known = None,
            (None, Some(_)) => {}
        }
    }
}

/// A folder, by what it is watched for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// libvirt's, with a folder for each machine.
    Root,
    /// A machine's, by libvirt's name of the machine.
    Domain(String),
    /// One with images.
    Images(PathBuf),
}

/// The folders, and what was told of them.
pub struct Folders {
    inotify: Option<Inotify>,
    root: Option<PathBuf>,
    images: BTreeSet<PathBuf>,
    /// To be watched as soon as possible.
    wanted: BTreeSet<Place>,
    /// Those that could not be, and when they are tried again.
    failed: BTreeSet<Place>,
    again: Instant,
    /// Those of them that were told of in the log.
    reported: BTreeSet<Place>,
    adding: Option<JoinHandle<Vec<Added>>>,
    watches: BTreeMap<Place, i32>,
    /// Two paths may lead to one folder, which has one watch.
    places: HashMap<i32, BTreeSet<Place>>,
    hints: Hints,
    due: Option<Instant>,
}

impl Folders {
    /// Watches libvirt's folder of snapshots, if it is known, and returns when that has begun.
    pub async fn start(root: Option<PathBuf>) -> Self {
        let inotify = Inotify::new();
        if let Err(error) = &inotify {
            tracing::warn!(%error, "no folder can be watched: what other tools change is found by the scan alone");
        }
        if root.is_none() {
            tracing::warn!(
                "libvirt's folder of snapshots is not known: what other tools do to snapshots is found by the scan alone"
            );
        }
        let mut folders = Self { inotify: inotify.ok(), ..Self::none() };
        folders.wanted.extend(root.as_ref().map(|_| Place::Root));
        folders.root = root;
        let settled = async {
            while folders.begin_adding() {
                folders.finish_adding().await;
            }
        };
        if timeout(START_WAIT, settled).await.is_err() {
            tracing::warn!("watching libvirt's folder of snapshots takes long; going on without it meanwhile");
        }
        // Nothing was looked at yet, so nothing was missed.
        (folders.hints, folders.due) = (Hints::default(), None);
        folders
    }

    /// Watches nothing, ever.
    pub fn none() -> Self {
        Self {
            inotify: None,
            root: None,
            images: BTreeSet::new(),
            wanted: BTreeSet::new(),
            failed: BTreeSet::new(),
            again: Instant::now(),
            reported: BTreeSet::new(),
            adding: None,
            watches: BTreeMap::new(),
            places: HashMap::new(),
            hints: Hints::default(),
            due: None,
        }
    }

    /// These are the images, by absolute paths, that matter from now on.
    pub fn set_images(&mut self, images: BTreeSet<PathBuf>) {
        if images == self.images {
            return;
        }
        let places: BTreeSet<Place> =
            images.iter().filter_map(|image| image.parent()).map(|folder| Place::Images(folder.to_owned())).collect();
        let is_stale = |place: &&Place| matches!(place, Place::Images(_)) && !places.contains(*place);
        for stale in self.watches.keys().filter(is_stale).cloned().collect::<Vec<_>>() {
            self.unwatch(&stale);
        }
        self.failed.retain(|place| !is_stale(&place));
        self.wanted.retain(|place| !is_stale(&place));
        let known = |place: &Place| self.watches.contains_key(place) || self.failed.contains(place);
        self.wanted.extend(places.into_iter().filter(|place| !known(place)));
        self.images = images;
    }

    /// Waits for news. Nothing is lost when the wait is given up.
    pub async fn next(&mut self) -> Hints {
        loop {
            self.begin_adding();
            let inotify = self.inotify.clone();
            let told = async {
                match &inotify {
                    Some(inotify) => inotify.told().await,
                    None => std::future::pending().await,
                }
            };
            let (due, again) = (self.due, self.again);
            let has_failed = !self.failed.is_empty();
            tokio::select! {
                () = sleep_until(due.unwrap_or(again)), if due.is_some() => {
                    self.due = None;
                    let hints = std::mem::take(&mut self.hints);
                    if !hints.is_empty() {
                        return hints;
                    }
                }
                () = sleep_until(again), if has_failed => self.wanted.append(&mut self.failed),
                () = self.finish_adding() => {}
                told = told => match told {
                    Ok(told) => told.into_iter().for_each(|told| self.hear(told)),
                    Err(error) => {
                        tracing::error!(%error, "folders cannot be watched any more; the scan goes on");
                        self.inotify = None;
                    }
                },
            }
            self.gather();
        }
    }

    /// Starts the moment in which news is gathered, if there is any.
    fn gather(&mut self) {
        if self.due.is_none() && !self.hints.is_empty() {
            self.due = Some(Instant::now() + GATHER);
        }
    }

    /// Returns whether anything is being added.
    fn begin_adding(&mut self) -> bool {
        if self.adding.is_none()
            && !self.wanted.is_empty()
            && let Some(inotify) = self.inotify.clone()
        {
            let room = MOST.saturating_sub(self.watches.len());
            let wanted = std::mem::take(&mut self.wanted);
            let all: Vec<(Place, Option<PathBuf>)> =
                wanted.into_iter().map(|place| (place.clone(), self.path(&place))).collect();
            self.adding = Some(spawn_blocking(move || {
                let folders = all.into_iter().enumerate();
                folders.filter_map(|(number, (place, path))| Some(add(&inotify, place, path?, number < room))).collect()
            }));
        }
        self.adding.is_some()
    }

    async fn finish_adding(&mut self) {
        let Some(adding) = &mut self.adding else { return std::future::pending().await };
        let added = adding.await;
        self.adding = None;
        for Added { place, result, domains } in added.unwrap_or_default() {
            match result {
                Ok(watch) => self.added(place, watch, domains),
                Err(error) => self.fail(place, &error),
            }
        }
        self.measure();
    }

    fn added(&mut self, place: Place, watch: i32, domains: Vec<String>) {
        if self.reported.remove(&place) {
            tracing::info!(path = ?self.path(&place), "the folder can be watched now");
        }
        match &place {
            // Whatever happened before the watch was not told.
            Place::Root => self.hints.anything = true,
            Place::Domain(domain) => self.hints.snapshot(domain, None),
            Place::Images(folder) => _ = self.hints.folders.insert(folder.clone()),
        }
        self.wanted.extend(domains.into_iter().map(Place::Domain).filter(|place| !self.watches.contains_key(place)));
        self.watches.insert(place.clone(), watch);
        self.places.entry(watch).or_default().insert(place);
    }

    fn fail(&mut self, place: Place, error: &io::Error) {
        // A machine's folder goes with the machine, or with its last snapshot.
        if matches!(place, Place::Domain(_)) && error.kind() == io::ErrorKind::NotFound {
            return;
        }
        if self.reported.insert(place.clone()) {
            let path = self.path(&place);
            tracing::warn!(?path, %error, "a folder cannot be watched: what changes in it is found by the scan alone");
        }
        self.failed.insert(place);
        let pause = if self.failed.len() > MANY { AGAIN_MANY } else { AGAIN };
        self.again = Instant::now() + pause;
    }

    fn path(&self, place: &Place) -> Option<PathBuf> {
        match place {
            Place::Root => self.root.clone(),
            Place::Domain(name) => self.root.as_ref().map(|root| root.join(name)),
            Place::Images(folder) => Some(folder.clone()),
        }
    }

    fn hear(&mut self, told: Told) {
        if told.is_loss() {
            metrics::counter!("snapshot_agent_folder_news_lost_total").increment(1);
            self.hints.anything = true;
            // Folders of machines may have come and gone meanwhile.
            self.wanted.extend(self.root.as_ref().map(|_| Place::Root));
            return;
        }
        for place in self.places.get(&told.watch).cloned().unwrap_or_default() {
            if told.is_end() || told.is_dropped() {
                self.lose(&place);
                continue;
            }
            match &place {
                Place::Root if told.is_folder() => self.hear_domain(told.name.to_string_lossy().into_owned(), &told),
                Place::Root => {}
                Place::Domain(domain) => {
                    if let Some(name) = record_of(&told.name) {
                        self.hints.snapshot(domain, Some(&name));
                    }
                }
                Place::Images(folder) => {
                    let path = folder.join(&told.name);
                    match self.images.contains(&path) {
                        true => _ = self.hints.images.insert(path),
                        false => self.hints.files_beside = true,
                    }
                }
            }
        }
    }

    /// A machine's folder came or went; a renamed machine's does both.
    fn hear_domain(&mut self, name: String, told: &Told) {
        let place = Place::Domain(name);
        if told.is_arrival() {
            self.wanted.insert(place);
        } else {
            self.wanted.remove(&place);
            self.failed.remove(&place);
            self.unwatch(&place);
            if let Place::Domain(name) = place {
                self.hints.snapshot(&name, None);
            }
        }
    }

    /// A folder is not what it was. It is looked for again, but a machine's is told of when it comes.
    fn lose(&mut self, place: &Place) {
        self.unwatch(place);
        match place {
            Place::Root => {
                self.hints.anything = true;
                self.wanted.insert(Place::Root);
            }
            Place::Domain(name) => self.hints.snapshot(name, None),
            Place::Images(folder) => {
                self.hints.folders.insert(folder.clone());
                self.wanted.insert(place.clone());
            }
        }
    }

    fn unwatch(&mut self, place: &Place) {
        let Some(watch) = self.watches.remove(place) else { return };
        let Some(places) = self.places.get_mut(&watch) else { return };
        places.remove(place);
        if places.is_empty() {
            self.places.remove(&watch);
            if let Some(inotify) = &self.inotify {
                inotify.remove(watch);
            }
        }
        self.measure();
    }

    fn measure(&self) {
        metrics::gauge!("snapshot_agent_folders_watched").set(self.watches.len() as f64);
        metrics::gauge!("snapshot_agent_folders_unwatched").set(self.failed.len() as f64);
    }
}

/// The name of the snapshot that a file of libvirt's is the record of. While it is written it has another ending.
fn record_of(file: &OsStr) -> Option<String> {
    file.to_string_lossy().strip_suffix(".xml").map(str::to_owned)
}

#[cfg(test)]
mod tests;

//! What this service has put into images, remembered on disk by machine, for the day on which a machine is gone.
//!
//! libvirt knows of a machine's snapshots as long as it knows of the machine. Who removes the machine behind our back
//! leaves what is inside its images, and with nothing but an image nobody can tell whose snapshots those are: images are
//! copied, cloned and given to other machines. So for each machine with snapshots of ours there is a small file,
//! `<uuid>.json`, beside the journal: which of them are in which image, and which files this service made for external ones
//! ([`files`]).
//!
//! - It is written before a snapshot is taken, and again whenever a look at the machine tells something else. What an image
//!   no longer holds is struck out; an image that cannot be read, or that was taken out of the machine, is kept.
//! - When the machine vanishes the file stays, synced now, and says since when. PurgeVm finds what is left by it
//!   ([`removal`]). If a machine of the same UUID is defined again, the file goes on being its own.
//! - When nothing of it is left in any image, and no file, the record goes.
//!
//! Only snapshots whose names have the form of ours are in here, and only those that libvirt listed for this machine.

mod abandoned;
mod files;
mod lease;
mod older;
pub(crate) mod orphans;
mod prepared;
mod recalled;
mod removal;
mod replaced;
mod safety;
mod spare;
mod strangers;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use snapshot_core::description::Label;
use snapshot_core::ids::{SnapshotId, VmId};
use snapshot_core::snapshot::{SnapshotFacts, Storage};
use snapshot_core::vm::VmFacts;

use crate::clock::unix_now;
use crate::hypervisor::Observed;
use crate::qcow2::Stamp;
use crate::safety::{Mixed, Safety};
pub(crate) use files::Files;
pub use files::{Identity, Kind, Made};
pub(crate) use prepared::Prepared;
pub(crate) use removal::{check_images, clear, sweep};
pub use replaced::Tags;
pub(crate) use spare::clear_spare;
pub(crate) use strangers::kept_by_strangers;

const EXTENSION: &str = "json";
const SET_ASIDE: &str = "unreadable";

/// What of ours is in the images of one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The machine.
    pub vm: VmId,
    /// libvirt's last name of it.
    pub name: String,
    /// When it was found to be gone, in seconds of the Unix epoch; `None` while it is there.
    #[serde(default)]
    pub vanished: Option<i64>,
    /// The snapshots.
    pub snapshots: BTreeMap<SnapshotId, Kept>,
    /// Which of them are in which image.
    #[serde(deserialize_with = "older::images")]
    pub images: Tags,
    /// The files that this service made for external ones.
    #[serde(default)]
    pub files: Files,
    /// Those that were never whole and could not be removed yet, because a disk was full, say.
    #[serde(default)]
    pub remains: BTreeSet<SnapshotId>,
    /// Safety tags that an operation could not remove, or that are needed as long as the disks are mixed.
    #[serde(default)]
    pub safety: Vec<Safety>,
    /// Set while its disks hold states of different moments.
    #[serde(default)]
    pub mixed: Option<Mixed>,
}

/// What is remembered of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// What the user wrote, and whether it is protected.
    pub label: Label,
    /// When it was taken, in seconds of the Unix epoch.
    pub create_time: i64,
}

/// The records of a host.
#[derive(Debug)]
pub struct Owned {
    dir: PathBuf,
    records: Mutex<BTreeMap<VmId, Record>>,
    /// The orphans of each VM, as they were found last.
    orphans: Mutex<BTreeMap<VmId, orphans::Weighed>>,
}

impl Record {
    fn empty(vm: &VmFacts) -> Self {
        Self { name: vm.name.clone(), ..Self::nothing(vm.id) }
    }

    fn nothing(vm: VmId) -> Self {
        Self {
            vm,
            name: String::new(),
            vanished: None,
            snapshots: BTreeMap::new(),
            images: BTreeMap::new(),
            files: Files::new(),
            remains: BTreeSet::new(),
            safety: Vec::new(),
            mixed: None,
        }
    }

    /// The record after a look at the machine; `None` when nothing of ours is left.
    fn after(previous: Option<&Self>, seen: &Observed) -> Option<Self> {
        let files = files::after(previous, seen);
        Self::with_files(previous, seen, files)
    }

    fn with_files(previous: Option<&Self>, seen: &Observed, files: Files) -> Option<Self> {
        let listed: BTreeMap<&SnapshotId, &SnapshotFacts> =
            seen.snapshots.iter().filter(|one| one.id.is_ours()).map(|snapshot| (&snapshot.id, snapshot)).collect();
        let is_inside = |id: &SnapshotId| listed.get(id).is_some_and(|one| one.storage == Storage::Internal);
        let before = |id: &SnapshotId| previous.and_then(|record| record.snapshots.get(id));
        let mut images = previous.map(|record| record.images.clone()).unwrap_or_default();
        for (path, names) in &seen.images {
            let Some(names) = names else { continue };
            let found = names.iter().filter_map(|(name, stamp)| Some((name.parse::<SnapshotId>().ok()?, *stamp)));
            let is_known = |id: &SnapshotId| is_inside(id) || before(id).is_some();
            let known = images.get(path).cloned().unwrap_or_default();
            // The first that was listed is the one that was taken; what has its name later may be another one.
            let stamped = found.filter(|(id, _)| id.is_ours() && is_known(id)).map(|(id, stamp)| {
                let first = known.get(&id).copied().flatten().or_else(|| is_inside(&id).then_some(stamp));
                (id, first)
            });
            images.insert(path.clone(), stamped.collect());
        }
        images.retain(|_, ids: &mut BTreeMap<SnapshotId, Option<Stamp>>| !ids.is_empty());
        let ids: BTreeSet<&SnapshotId> = images.values().flat_map(BTreeMap::keys).collect();
        // A file may outlive its snapshot: another branch lies on it, or its deletion is not finished.
        let is_deleted = |id: &SnapshotId| seen.layers.snapshots.get(id).is_some_and(|parts| parts.deleted);
        let outside = files.values().map(|made| &made.snapshot).filter(|id| !is_deleted(id));
        let kept = |id: &SnapshotId| match listed.get(id) {
            Some(facts) => Some(Kept { label: facts.label.clone(), create_time: facts.create_time }),
            None => before(id).cloned(),
        };
        let all = ids.iter().copied().chain(outside);
        let snapshots = all.filter_map(|id| Some((id.clone(), kept(id)?))).collect();
        let mut remains = previous.map(|record| record.remains.clone()).unwrap_or_default();
        remains.retain(|id| ids.contains(id) && !listed.contains_key(id));
        let (safety, mixed) = previous.map(|record| (record.safety.clone(), record.mixed.clone())).unwrap_or_default();
        let record = Self { snapshots, images, files, remains, safety, mixed, ..Self::empty(&seen.vm) };
        (!record.is_empty()).then_some(record)
    }

    fn is_empty(&self) -> bool {
        self.images.is_empty() && self.files.is_empty() && self.safety.is_empty() && self.mixed.is_none()
    }

    /// Strikes out snapshots of an image, and all that is then in no image.
    fn strike(&mut self, image: &Path, gone: impl Fn(&SnapshotId) -> bool) {
        if let Some(ids) = self.images.get_mut(image) {
            ids.retain(|id, _| !gone(id));
        }
        self.images.retain(|_, ids| !ids.is_empty());
        self.forget_the_gone();
    }

    fn forget_the_gone(&mut self) {
        let outside = self.files.values().map(|made| &made.snapshot);
        let left: BTreeSet<&SnapshotId> = self.images.values().flat_map(BTreeMap::keys).chain(outside).collect();
        self.snapshots.retain(|id, _| left.contains(id));
    }
}

impl Owned {
    /// Opens the folder and makes it if there is none.
    pub fn open(dir: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut records = BTreeMap::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != EXTENSION) {
                continue;
            }
            match fs::read(&path).and_then(|text| Ok(serde_json::from_slice::<Record>(&text)?)) {
                Ok(record) => _ = records.insert(record.vm, record),
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "a record makes no sense; set aside");
                    fs::rename(&path, path.with_extension(SET_ASIDE))?;
                }
            }
        }
        Ok(Self { dir: dir.to_owned(), records: Mutex::new(records), orphans: Mutex::default() })
    }

    /// A machine was looked at.
    pub fn saw(&self, seen: &Observed) {
        self.change(seen.vm.id, |record| Record::after(record, seen));
        self.weigh(seen.vm.id, Some(seen));
    }

    /// A snapshot is about to be taken inside the images.
    pub fn expect(&self, seen: &Observed, id: &SnapshotId, label: &Label) {
        self.change(seen.vm.id, |record| {
            let mut record = Record::after(record, seen).unwrap_or_else(|| Record::empty(&seen.vm));
            record.snapshots.insert(id.clone(), Kept { label: label.clone(), create_time: unix_now() });
            for disk in seen.vm.writable_disks().filter(|disk| disk.format == "qcow2" && !disk.path.is_empty()) {
                record.images.entry(PathBuf::from(&disk.path)).or_default().insert(id.clone(), None);
            }
            Some(record)
        });
    }

    /// An external snapshot is about to be taken: by target its overlays, and where its running state goes. When this
    /// returns, a power cut does not forget it: libvirt makes the files before it has a record of its own.
    pub fn expect_files(
        &self,
        seen: &Observed,
        id: &SnapshotId,
        label: &Label,
        overlays: &BTreeMap<String, String>,
        memory: Option<&str>,
    ) {
        let changed = self.change(seen.vm.id, |record| {
            let mut record = Record::after(record, seen).unwrap_or_else(|| Record::empty(&seen.vm));
            for disk in seen.vm.writable_disks() {
                let Some(overlay) = overlays.get(&disk.target) else { continue };
                files::expect(&mut record.files, overlay, id, Kind::Overlay, Some(&disk.path));
            }
            memory.into_iter().for_each(|path| files::expect(&mut record.files, path, id, Kind::Memory, None));
            record.snapshots.insert(id.clone(), Kept { label: label.clone(), create_time: unix_now() });
            record.forget_the_gone();
            (!record.is_empty()).then_some(record)
        });
        if changed {
            self.sync(seen.vm.id);
        }
    }

    /// The machine was taken back to an external snapshot: libvirt has laid new overlays.
    pub fn reverted(&self, seen: &Observed, id: &SnapshotId) {
        self.change(seen.vm.id, |record| {
            let files = files::after_revert(record, seen, id);
            Record::with_files(record, seen, files)
        });
    }

    /// An external snapshot is deleted for everybody; its files may be needed for longer.
    pub fn deleted(&self, vm: VmId, id: &SnapshotId) {
        self.change(vm, |record| {
            let mut record = record?.clone();
            record.snapshots.remove(id);
            Some(record)
        });
    }

    /// A snapshot that is not whole could not be removed from the images of its machine.
    pub fn remains(&self, vm: VmId, id: &SnapshotId) {
        self.change(vm, |record| {
            let mut record = record?.clone();
            record.remains.insert(id.clone());
            Some(record)
        });
    }

    /// There is no such machine any more.
    pub fn vanished(&self, vm: VmId) {
        let marked = self.change(vm, |record| {
            let vanished = record?.vanished.or_else(|| Some(unix_now()));
            record.map(|record| Record { vanished, ..record.clone() })
        });
        // From now on nothing but the file knows.
        if marked {
            self.sync(vm);
        }
    }

    /// The machines that are gone and of which something is left here.
    pub fn left_behind(&self) -> Vec<VmId> {
        self.lock().values().filter(|record| record.vanished.is_some()).map(|record| record.vm).collect()
    }

    /// The machines that are there, as far as is known, and have something here.
    pub fn present(&self) -> Vec<VmId> {
        self.lock().values().filter(|record| record.vanished.is_none()).map(|record| record.vm).collect()
    }

    /// What is remembered of a machine.
    pub fn get(&self, vm: VmId) -> Option<Record> {
        self.lock().get(&vm).cloned()
    }

    /// The files on record as made for a machine.
    fn files(&self, vm: VmId) -> Files {
        self.lock().get(&vm).map(|record| record.files.clone()).unwrap_or_default()
    }

    /// Snapshots are no longer in an image.
    fn strike(&self, vm: VmId, image: &Path, gone: impl Fn(&SnapshotId) -> bool) {
        self.change(vm, |record| {
            let mut record = record?.clone();
            record.strike(image, &gone);
            (!record.is_empty()).then_some(record)
        });
    }

    /// A file is gone, or is not ours.
    fn strike_file(&self, vm: VmId, path: &Path) {
        self.change(vm, |record| {
            let mut record = record?.clone();
            record.files.remove(path);
            record.forget_the_gone();
            (!record.is_empty()).then_some(record)
        });
    }

    fn sync(&self, vm: VmId) {
        let synced = match File::open(self.path(vm)) {
            // Nothing was left to remember.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            file => file.and_then(|file| file.sync_all()),
        };
        if let Err(error) = synced.and_then(|()| File::open(&self.dir)?.sync_all()) {
            tracing::warn!(%vm, %error, "the record of what a machine has of ours could not be synced");
        }
    }

    /// Not synced: as long as the machine is there, a look at it tells all of this again.
    fn write(&self, record: &Record) -> io::Result<()> {
        let path = self.path(record.vm);
        let new = path.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(record)?)?;
        fs::rename(&new, &path)
    }

    fn path(&self, vm: VmId) -> PathBuf {
        self.dir.join(format!("{vm}.{EXTENSION}"))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VmId, Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(crate) mod tests;

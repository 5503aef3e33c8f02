//! Orphans: files on record that hold a state which nothing uses any more. Which they are, what is found of each, and the removal of one.
//!
//! A file is an orphan when the record says so ([`Holds::Orphaned`]), or when it holds a state of a snapshot whose metadata libvirt has lost
//! and the VM needs it no more. The latter is known only of a VM that exists, by a look at it.
//!
//! [`examine`] reads what there is to know of one, for a listing and for a deletion alike; `snapshot_core::orphan` decides by it. They differ
//! in where the knowledge of other VMs comes from, and in how long an open file is waited for: see [`Surroundings`].

mod removal;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::SystemTime;

use snapshot_core::ids::{OrphanId, SnapshotId, VmId};
use snapshot_core::orphan::{OrphanState, OrphanUse, refusal};
use snapshot_core::vm::OrphanSummary;
use snapshot_core::{Error, Reason};
use uuid::Uuid;

pub(crate) use super::abandoned::is_in_use;
use super::abandoned::text;
use super::files::{Holds, Kind, Made, Standing, guarded};
use super::spare::needed;
use super::strangers::{images, silent_host, user_on_other_host};
use super::{EXTENSION, Owned, Record};
use crate::beneath::Beneath;
use crate::bounded::files::{self, resolved};
use crate::hypervisor::Observed;
use crate::qcow2;
pub(crate) use removal::examine_anew;

/// The orphans of a VM, and how much they take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Weighed {
    paths: BTreeSet<PathBuf>,
    bytes: u64,
}

/// An orphan as it is on record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OnRecord {
    pub(crate) id: OrphanId,
    pub(crate) vm: VmId,
    pub(crate) vm_name: String,
    pub(crate) vm_exists: bool,
    pub(crate) snapshot_name: String,
    pub(crate) path: PathBuf,
    made: Made,
}

/// An orphan, and what was found of its file.
#[derive(Debug, Clone)]
pub(crate) struct Orphan {
    pub(crate) on_record: OnRecord,
    pub(crate) state: OrphanState,
    /// Bytes that it takes on the host.
    pub(crate) allocation_bytes: u64,
    /// The size that a guest sees, in bytes; 0 for a running state.
    pub(crate) capacity_bytes: u64,
    pub(crate) created: Option<SystemTime>,
    pub(crate) written: Option<SystemTime>,
    /// Which file it is, and of which content; empty when there is none.
    pub(crate) etag: String,
    /// Why it cannot be deleted.
    pub(crate) refusal: Option<Error>,
}

/// Images that depend on others, each with what it depends on; an error where that could not be found out.
pub(crate) type Images = Result<BTreeMap<PathBuf, BTreeSet<PathBuf>>, Error>;

/// The name of a VM that uses a file, by its path without links and by its device and inode; empty when the name is not known.
pub(crate) type User<'a> = dyn Fn(&str, (u64, u64)) -> Option<String> + 'a;

/// What may need an orphan.
pub(crate) struct Surroundings<'a> {
    /// The directories of images.
    pub(crate) directories: &'a Beneath,
    /// The images that depend on others.
    pub(crate) images: &'a Images,
    /// A host that does not say now what it uses.
    pub(crate) silent: &'a Result<Option<String>, Error>,
    /// Which VM uses a file.
    pub(crate) user: &'a User<'a>,
    /// Whether a process has a file open, and not only for a moment.
    pub(crate) is_open: fn(&Beneath, &Path) -> io::Result<bool>,
}

impl Weighed {
    /// Of a VM as it was seen, or of one that does not exist any more. Storage is read.
    pub(super) fn of(record: Option<&Record>, seen: Option<&Observed>) -> Self {
        let paths = record.map(|record| record.orphans(seen)).unwrap_or_default();
        let allocated = |path: &PathBuf| files::symlink_metadata(path).map(|found| found.blocks() * 512).ok();
        let bytes = paths.iter().filter_map(allocated).sum();
        Self { paths, bytes }
    }
}

impl Record {
    /// The paths of its orphans.
    fn orphans(&self, seen: Option<&Observed>) -> BTreeSet<PathBuf> {
        let lost = |made: &Made, seen: &Observed| made.holds == Holds::State && self.has_lost(seen, &made.snapshot);
        let seen =
            seen.filter(|seen| seen.layers.unreadable.is_none() && self.files.values().any(|made| lost(made, seen)));
        let needed = seen.map(needed).unwrap_or_default();
        let is_unused = |path: &Path, made: &Made| {
            seen.is_some_and(|seen| lost(made, seen)) && !needed.contains(&*path.to_string_lossy())
        };
        let orphans = self.files.iter().filter(|(path, made)| made.holds == Holds::Orphaned || is_unused(path, made));
        orphans.map(|(path, _)| path.clone()).collect()
    }

    fn on_record(&self, path: &Path) -> Option<OnRecord> {
        let made = self.files.get(path)?.clone();
        let snapshot = self.snapshots.get(&made.snapshot);
        Some(OnRecord {
            id: OrphanId::of(self.vm, path.as_os_str().as_bytes()),
            vm: self.vm,
            vm_name: self.name.clone(),
            vm_exists: self.vanished.is_none(),
            snapshot_name: snapshot.map(|kept| kept.label.display_name.to_string()).unwrap_or_default(),
            path: path.to_owned(),
            made,
        })
    }
}

impl Owned {
    /// All orphans of the host, by their ids, as they were found last.
    pub(crate) fn orphans(&self) -> BTreeMap<OrphanId, OnRecord> {
        let found = self.orphans.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let records = self.lock();
        let of = |record: &Record| {
            let paths = found.get(&record.vm).map(|weighed| weighed.paths.clone()).unwrap_or_default();
            let all = record.orphans(None).into_iter().chain(paths).collect::<BTreeSet<_>>();
            all.iter().filter_map(|path| record.on_record(path)).collect::<Vec<_>>()
        };
        records.values().flat_map(of).map(|orphan| (orphan.id, orphan)).collect()
    }

    /// How many orphans a VM has, as they were found last.
    pub(crate) fn orphan_summary(&self, vm: VmId) -> OrphanSummary {
        let found = self.orphans.lock().unwrap_or_else(PoisonError::into_inner);
        let summary = |weighed: &Weighed| OrphanSummary {
            count: u32::try_from(weighed.paths.len()).unwrap_or(u32::MAX),
            allocation_bytes: weighed.bytes,
        };
        found.get(&vm).map(summary).unwrap_or_default()
    }

    /// Finds the orphans of a VM anew.
    pub(crate) fn weigh(&self, vm: VmId, seen: Option<&Observed>) {
        self.set_orphans(vm, Weighed::of(self.get(vm).as_ref(), seen));
    }

    pub(super) fn set_orphans(&self, vm: VmId, found: Weighed) {
        let mut all = self.orphans.lock().unwrap_or_else(PoisonError::into_inner);
        match found.paths.is_empty() {
            true => _ = all.remove(&vm),
            false => _ = all.insert(vm, found),
        }
        metrics::gauge!("snapshot_agent_orphans").set(all.values().map(|one| one.paths.len()).sum::<usize>() as f64);
        metrics::gauge!("snapshot_agent_orphan_bytes").set(all.values().map(|one| one.bytes).sum::<u64>() as f64);
    }
}

/// The number of orphans in a directory of records, and the bytes that they take, for who must not change a record. Those whose snapshots
/// libvirt has lost are not counted: it takes a look at their VMs to know them.
pub(crate) fn on_record_in(dir: &Path) -> io::Result<(usize, u64)> {
    let mut all = (0, 0);
    let entries = match files::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(all),
        entries => entries?,
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_none_or(|extension| extension != EXTENSION) {
            continue;
        }
        // One that makes no sense is told of, and set aside, by the agent.
        let record = files::open(&path).and_then(|file| Ok(serde_json::from_reader::<_, Record>(file)?));
        let Ok(record) = record else { continue };
        let weighed = Weighed::of(Some(&record), None);
        all = (all.0 + weighed.paths.len(), all.1 + weighed.bytes);
    }
    Ok(all)
}

/// The images that depend on others, around these orphans.
pub(crate) fn images_around<'a>(directories: &Beneath, orphans: impl IntoIterator<Item = &'a OnRecord>) -> Images {
    let paths: Vec<String> = orphans.into_iter().map(|orphan| text(&orphan.path)).collect();
    images(directories, paths.iter().map(String::as_str))
}

/// A host that does not say now what it uses of the directories of orphans.
pub(crate) fn silent_around<'a>(
    directories: &Beneath,
    orphans: impl IntoIterator<Item = &'a OnRecord>,
) -> Result<Option<String>, Error> {
    silent_host(directories, orphans.into_iter().map(|orphan| orphan.path.as_path()))
}

/// Looks at an orphan, and finds out whether it can be deleted.
pub(crate) fn examine(on_record: OnRecord, around: &Surroundings<'_>) -> Orphan {
    let mut orphan = Orphan::unknown(on_record, None);
    orphan.refusal = orphan.look(around).unwrap_or_else(Some);
    orphan
}

impl OnRecord {
    pub(crate) fn snapshot(&self) -> &SnapshotId {
        &self.made.snapshot
    }

    pub(crate) fn kind(&self) -> Kind {
        self.made.kind
    }

    pub(crate) fn backing(&self) -> Option<&Path> {
        self.made.backing.as_deref()
    }

    /// Where the file is, and how it was found there. An interrupted revert may have left it with its second name alone.
    fn find(&self) -> io::Result<(PathBuf, OrphanState)> {
        let second = guarded(&self.path);
        let state = match self.made.standing(&self.path)? {
            Standing::Ours => OrphanState::Ready,
            Standing::Other => OrphanState::Replaced,
            Standing::Gone if self.made.standing(&second)? == Standing::Ours => {
                return Ok((second, OrphanState::Ready));
            }
            Standing::Gone | Standing::Away => OrphanState::Missing,
        };
        Ok((self.path.clone(), state))
    }
}

impl Orphan {
    /// One of which nothing is found out.
    pub(crate) fn unknown(on_record: OnRecord, refusal: Option<Error>) -> Self {
        Self {
            on_record,
            state: OrphanState::Unknown,
            allocation_bytes: 0,
            capacity_bytes: 0,
            created: None,
            written: None,
            etag: String::new(),
            refusal,
        }
    }

    /// Why it cannot be deleted; an error where that cannot be found out.
    fn look(&mut self, around: &Surroundings<'_>) -> Result<Option<Error>, Error> {
        let (place, state) = self.on_record.find().map_err(|error| unreadable(&self.on_record.path, &error))?;
        if state == OrphanState::Missing {
            self.state = state;
            return Ok(self.decide(&OrphanUse::default()));
        }
        let metadata = files::symlink_metadata(&place).map_err(|error| unreadable(&place, &error))?;
        self.state = state;
        self.describe(&place, &metadata);
        if state != OrphanState::Ready {
            return Ok(self.decide(&OrphanUse::default()));
        }
        let path = resolved(&self.on_record.path);
        let images = around.images.as_ref().map_err(Clone::clone)?;
        let image = images.iter().find(|(image, below)| **image != path && below.contains(&path));
        let vm = match (around.user)(&text(&path), (metadata.dev(), metadata.ino())) {
            Some(vm) => Some(vm),
            None => {
                user_on_other_host(around.directories, &path, around.silent.as_ref().map_err(Clone::clone)?.as_ref())?
            }
        };
        let mut used = OrphanUse { vm, image: image.map(|(image, _)| text(image)), is_open: false };
        if self.decide(&used).is_none() {
            let is_open = (around.is_open)(around.directories, &place);
            used.is_open = is_open.map_err(|error| unreadable(&place, &error))?;
        }
        Ok(self.decide(&used))
    }

    fn decide(&self, used: &OrphanUse) -> Option<Error> {
        refusal(&text(&self.on_record.path), self.state, used)
    }

    fn describe(&mut self, place: &Path, found: &Metadata) {
        self.allocation_bytes = found.blocks() * 512;
        (self.created, self.written) = (found.created().ok(), found.modified().ok());
        if self.on_record.made.kind != Kind::Memory {
            self.capacity_bytes = qcow2::read(place).map(|image| image.capacity_bytes).unwrap_or_default();
        }
        self.etag = etag(self.on_record.id, found);
    }
}

/// The refusal of a file that is not the one that was shown.
pub(crate) fn changed(id: OrphanId, path: &Path) -> Error {
    let message =
        "the file of the orphan was changed since its etag was read; nothing was deleted; list the orphans again";
    Error::new(Reason::EtagMismatch, message).with("orphan", id.to_string()).with("path", text(path))
}

fn unreadable(path: &Path, error: &io::Error) -> Error {
    let (reason, what) = match error.kind() {
        io::ErrorKind::TimedOut => {
            (Reason::StorageUnresponsive, "the storage of the orphan does not respond".to_owned())
        }
        _ => (Reason::ImageUnavailable, format!("the file of the orphan cannot be accessed: {error}")),
    };
    Error::new(reason, format!("{what}; nothing was deleted")).with("path", text(path))
}

/// The device is left out: its number may change with a boot.
fn etag(id: OrphanId, found: &Metadata) -> String {
    let since_epoch = |time: io::Result<SystemTime>| {
        let time = time.ok().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        time.map(|time| time.as_nanos()).unwrap_or_default()
    };
    let (born, written) = (since_epoch(found.created()), since_epoch(found.modified()));
    let identity = format!("{} {born} {written} {}", found.ino(), found.len());
    Uuid::new_v5(&id.as_uuid(), identity.as_bytes()).simple().to_string()
}

#[cfg(test)]
pub(super) mod tests;

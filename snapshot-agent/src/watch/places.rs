//! Where on disk machines have what is told of them: to find the machines that a hint is about.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use snapshot_core::Reason;
use snapshot_core::ids::VmId;
use snapshot_core::restriction::Restriction;

use crate::hypervisor::Observed;

/// The most names of machines that nobody knows of yet.
const UNPLACED: usize = 1000;

/// The machines by what is theirs.
#[derive(Debug, Default)]
pub(super) struct Places {
    machines: BTreeMap<VmId, Place>,
    names: BTreeMap<String, VmId>,
    images: BTreeMap<PathBuf, BTreeSet<VmId>>,
    /// Names that were hinted at before a machine was known by them.
    unplaced: BTreeSet<String>,
}

#[derive(Debug, PartialEq, Eq)]
struct Place {
    name: String,
    images: BTreeSet<PathBuf>,
}

impl Places {
    /// A machine is there. Returns whether the images that matter may have changed, and whether there was a hint about
    /// the machine before it was known by this name.
    pub(super) fn set(&mut self, seen: &Observed) -> (bool, bool) {
        let vm = seen.vm.id;
        let disks = seen.vm.disks.iter().map(|disk| PathBuf::from(&disk.path));
        // Backing files that are no qcow2 images as well.
        let below = seen.layers.files.keys().map(PathBuf::from);
        let images = disks.chain(seen.images.keys().cloned()).chain(below);
        let images = images.filter(|path| path.is_absolute()).collect();
        let place = Place { name: seen.vm.name.clone(), images };
        let hinted = self.unplaced.remove(&place.name);
        if self.machines.get(&vm) == Some(&place) {
            return (false, hinted);
        }
        self.remove(vm);
        self.names.insert(place.name.clone(), vm);
        for image in &place.images {
            self.images.entry(image.clone()).or_default().insert(vm);
        }
        self.machines.insert(vm, place);
        (true, hinted)
    }

    /// A machine is gone. Returns whether the images that matter may have changed.
    pub(super) fn remove(&mut self, vm: VmId) -> bool {
        let Some(place) = self.machines.remove(&vm) else { return false };
        if self.names.get(&place.name) == Some(&vm) {
            self.names.remove(&place.name);
        }
        for image in place.images {
            if let Some(users) = self.images.get_mut(&image) {
                users.remove(&vm);
                if users.is_empty() {
                    self.images.remove(&image);
                }
            }
        }
        true
    }

    /// The images that matter.
    pub(super) fn images(&self) -> BTreeSet<PathBuf> {
        self.images.keys().cloned().collect()
    }

    /// The machine of this name. The hint is kept until there is one.
    pub(super) fn named(&mut self, name: &str) -> Option<VmId> {
        let known = self.names.get(name).copied();
        if known.is_none() {
            // Mostly names of machines that are gone.
            if self.unplaced.len() >= UNPLACED {
                self.unplaced.clear();
            }
            self.unplaced.insert(name.to_owned());
        }
        known
    }

    /// The machines that have something in an image.
    pub(super) fn users(&self, image: &Path) -> impl Iterator<Item = VmId> {
        self.images.get(image).into_iter().flatten().copied()
    }

    /// The machines that have something in an image in this folder.
    pub(super) fn users_below(&self, folder: &Path) -> impl Iterator<Item = VmId> {
        let images = self.images.range(folder.to_owned()..).take_while(move |(path, _)| path.starts_with(folder));
        images.flat_map(|(_, users)| users.iter().copied())
    }
}

/// The machine, where an image of it is locked or cannot be read or written: nothing tells when that ends.
pub(super) fn look_again(seen: &Observed) -> Option<VmId> {
    let passes =
        |restriction: &Restriction| matches!(restriction.reason, Reason::ImageInUse | Reason::ImageUnavailable);
    seen.vm.restrictions.iter().any(passes).then_some(seen.vm.id)
}

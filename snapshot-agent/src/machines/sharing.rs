//! Which machines of the host use each other's images, and what that makes unavailable.
//!
//! A restriction of this kind is about two machines. So it is no part of what a look at one of them finds: it is added to that, from
//! what was found of all the others, when a machine is published and when it is planned for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use proto::convert::Inventory;
use snapshot_core::Reason;
use snapshot_core::ids::VmId;
use snapshot_core::images::{Dependents, Users, Uses};
use snapshot_core::snapshot::Storage;

/// The machines as they were found, each by itself, and the files that they use.
#[derive(Debug, Default)]
pub(super) struct Sharing {
    found: BTreeMap<VmId, (Inventory, Uses)>,
    users: Users,
}

impl Sharing {
    /// A machine was looked at. Returns the machines that may be restricted otherwise than before, and itself.
    pub(super) fn saw(&mut self, inventory: Inventory, uses: &Uses) -> BTreeSet<VmId> {
        let vm = inventory.vm.id;
        let mut affected = self.users.set(vm, &inventory.vm.name, uses);
        self.found.insert(vm, (inventory, uses.clone()));
        affected.insert(vm);
        affected
    }

    /// There is no such machine any more. Returns the machines that may be restricted otherwise than before.
    pub(super) fn vanished(&mut self, vm: VmId) -> BTreeSet<VmId> {
        self.found.remove(&vm);
        self.users.remove(vm)
    }

    /// The images that depend on files are these. Returns the machines that may be restricted otherwise than before.
    pub(super) fn set_dependents(&mut self, dependents: Dependents) -> BTreeSet<VmId> {
        self.users.set_dependents(dependents)
    }

    /// The files that they use.
    pub(super) fn files(&self) -> impl Iterator<Item = (PathBuf, VmId, String)> {
        self.found.iter().flat_map(|(vm, (inventory, uses))| {
            // Beside their paths, files go by their numbers.
            let paths = uses.reached.iter().filter(|file| file.starts_with('/'));
            paths.map(|path| (PathBuf::from(path), *vm, inventory.vm.name.clone()))
        })
    }

    pub(super) fn has(&self, vm: VmId) -> bool {
        self.users.has(vm)
    }

    pub(super) fn other_user(&self, vm: VmId, file: &str) -> Option<String> {
        self.users.other_user(vm, file).map(str::to_owned)
    }

    /// A machine with what the others make unavailable.
    pub(super) fn inventory(&self, vm: VmId) -> Option<Inventory> {
        let (inventory, uses) = self.found.get(&vm)?;
        Some(self.restricted(inventory.clone(), uses))
    }

    /// The same for what a look has just found.
    pub(super) fn restricted(&self, mut inventory: Inventory, uses: &Uses) -> Inventory {
        let vm = inventory.vm.id;
        inventory.vm.restrictions.extend(self.users.restrictions(vm, uses));
        // Who is known by name, on this host or on another, is told by that.
        let in_use = inventory.vm.restrictions.iter().filter(|one| one.reason == Reason::ImageInUse);
        let told: BTreeSet<Option<String>> = in_use.map(|one| one.disk.clone()).collect();
        for snapshot in &mut inventory.snapshots {
            snapshot.restrictions.extend(self.users.of_snapshot(vm, uses, &snapshot.id));
            if snapshot.storage == Storage::Internal {
                let unused = self.users.of_dependents(uses, &snapshot.id);
                snapshot.restrictions.extend(unused.into_iter().filter(|one| !told.contains(&one.disk)));
            }
        }
        inventory
    }
}

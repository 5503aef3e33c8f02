//! What must not be lost: for everything that was ever a current state or a snapshot and that nobody has asked to be removed, what it
//! holds and where it is to be found. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::content::May;

/// A disk of a VM, or one that was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its active image.
    pub path: PathBuf,
    /// What may be on it.
    pub may: May,
}

/// A snapshot of a VM.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// What it holds, by target device.
    pub disks: BTreeMap<String, May>,
    /// The snapshot that it was created on.
    pub parent: Option<String>,
    /// Whether a deletion of it did not succeed, so that it may be gone.
    pub may_be_gone: bool,
    /// Whether an administrator has put another image in the place of one that holds it, so that only its data must be somewhere.
    pub is_displaced: bool,
}

/// A VM of a room.
#[derive(Debug, Clone)]
pub struct Vm {
    /// Its domain's name.
    pub name: String,
    /// Its UUID.
    pub uuid: Uuid,
    /// The number of the host that has its definition. A VM that is defined on two hosts is in the ledger twice.
    pub host: usize,
    /// Whether users have snapshots of it.
    pub is_served: bool,
    /// Its definition as long as it is undefined.
    pub undefined: Option<String>,
    /// Its disks by target device.
    pub disks: BTreeMap<String, Disk>,
    /// Its snapshots, by their names in libvirt.
    pub snapshots: BTreeMap<String, Known>,
    /// The snapshot that its current state descends from.
    pub current: Option<String>,
}

impl Vm {
    /// As resource names have it.
    pub fn resource(&self) -> String {
        format!("vms/{}", self.uuid)
    }

    /// Whether libvirt has it.
    pub fn is_defined(&self) -> bool {
        self.undefined.is_none()
    }

    /// A snapshot with these contents was created.
    pub fn created(&mut self, id: &str, disks: BTreeMap<String, May>) {
        let parent = self.current.replace(id.to_owned());
        self.snapshots.insert(id.to_owned(), Known { disks, parent, ..Known::default() });
    }

    /// A snapshot and all that were created on it.
    pub fn subtree(&self, id: &str) -> BTreeSet<String> {
        let mut found: BTreeSet<String> = [id.to_owned()].into();
        loop {
            let is_below = |known: &Known| known.parent.as_ref().is_some_and(|parent| found.contains(parent));
            let below: Vec<String> =
                self.snapshots.iter().filter(|(_, it)| is_below(it)).map(|(id, _)| id.clone()).collect();
            let before = found.len();
            found.extend(below);
            if found.len() == before {
                return found;
            }
        }
    }

    /// A snapshot is no longer listed. Those that were created on it are of its parent now, and so is the current state.
    pub fn forget(&mut self, id: &str) -> Option<Known> {
        let known = self.snapshots.remove(id)?;
        for child in self.snapshots.values_mut().filter(|child| child.parent.as_deref() == Some(id)) {
            child.parent.clone_from(&known.parent);
        }
        if self.current.as_deref() == Some(id) {
            self.current.clone_from(&known.parent);
        }
        Some(known)
    }
}

/// A snapshot inside an image that an administrator has made with `qemu-img`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// The image.
    pub file: PathBuf,
    /// Its name.
    pub name: String,
    /// What it holds.
    pub may: May,
}

/// Everything that must not be lost in a room.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// The VMs.
    pub vms: Vec<Vm>,
    /// Images that are no VM's disk: at these paths, with these contents.
    pub loose: BTreeMap<PathBuf, May>,
    /// Those of them that were never a disk of a VM, which their administrator may remove.
    pub spare: BTreeSet<PathBuf>,
    /// Snapshots inside images that `qemu-img` made.
    pub tags: Vec<Tag>,
    /// Images that external snapshots hold states in: nobody writes to them.
    pub frozen: BTreeSet<PathBuf>,
    /// What libvirt or an administrator has lost sight of: it must be readable somewhere. With words about what it was.
    pub displaced: Vec<(String, May)>,
}

impl Ledger {
    /// The entries of the same VM on other hosts.
    pub fn twins(&self, vm: usize) -> Vec<usize> {
        let uuid = self.vms.get(vm).map(|vm| vm.uuid);
        (0..self.vms.len()).filter(|other| *other != vm && self.vms.get(*other).map(|vm| vm.uuid) == uuid).collect()
    }

    /// Whether another entry than this one has an image as a disk.
    pub fn is_of_another(&self, vm: usize, path: &Path) -> bool {
        let others = self.vms.iter().enumerate().filter(|(number, _)| *number != vm);
        others.flat_map(|(_, other)| other.disks.values()).any(|disk| disk.path == path)
    }

    /// An image is no disk of a VM any more: that of nobody, unless another VM has it, too.
    pub fn let_go(&mut self, vm: usize, path: PathBuf, may: May) {
        if !self.is_of_another(vm, &path) {
            self.loose.insert(path, may);
        }
    }

    /// The metadata of a snapshot was removed: its data must be somewhere, unless another host still has the snapshot.
    pub fn displace(&mut self, vm: usize, id: &str) {
        let is_elsewhere = self.twins(vm).iter().any(|twin| self.vms[*twin].snapshots.contains_key(id));
        let Some(vm) = self.vms.get_mut(vm) else { return };
        let Some(known) = vm.forget(id) else { return };
        if known.may_be_gone || is_elsewhere {
            return;
        }
        let words = |target: &str| {
            format!("{target} of snapshot {id} of {}, whose metadata was removed ({})", vm.name, vm.uuid)
        };
        self.displaced.extend(known.disks.into_iter().map(|(target, may)| (words(&target), may)));
    }

    /// A file was moved, with the snapshots inside it, which may be of any VM that it was ever a disk of: they are at another path than
    /// libvirt has written down.
    pub fn moved(&mut self, from: &Path, to: &Path) {
        for known in self.vms.iter_mut().flat_map(|vm| vm.snapshots.values_mut()) {
            known.is_displaced = true;
        }
        for tag in self.tags.iter_mut().filter(|tag| tag.file == from) {
            to.clone_into(&mut tag.file);
        }
    }

    /// An image becomes a VM's disk.
    pub fn taken(&mut self, path: &Path) {
        self.loose.remove(path);
        self.spare.remove(path);
    }
}

#[cfg(test)]
mod tests {
    use super::super::content::Content;
    use super::*;

    fn vm() -> Vm {
        Vm {
            name: "v".to_owned(),
            uuid: Uuid::nil(),
            host: 0,
            is_served: true,
            undefined: None,
            disks: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            current: None,
        }
    }

    fn holding(number: u32) -> BTreeMap<String, May> {
        [("vda".to_owned(), May::exactly(Content::default().with(0, number)))].into()
    }

    #[test]
    fn children_of_a_snapshot_that_is_gone_are_its_parents() {
        let mut vm = vm();
        for (number, id) in (1..).zip(["a", "b", "c"]) {
            vm.created(id, holding(number));
        }
        assert_eq!(vm.subtree("b"), ["b".to_owned(), "c".to_owned()].into());
        vm.forget("b");
        assert_eq!(vm.snapshots["c"].parent.as_deref(), Some("a"));
        vm.forget("c");
        assert_eq!(vm.current.as_deref(), Some("a"));
    }

    #[test]
    fn what_two_hosts_have_is_let_go_by_the_last() {
        let disk = |path: &str| Disk { path: path.into(), may: holding(1)["vda"].clone() };
        let mut ledger = Ledger { vms: vec![vm(), vm()], ..Ledger::default() };
        for vm in &mut ledger.vms {
            vm.created("a", holding(1));
            vm.disks.insert("vda".to_owned(), disk("/image"));
        }
        ledger.displace(0, "a");
        assert!(ledger.displaced.is_empty(), "the other host has the snapshot");
        ledger.displace(1, "a");
        assert_eq!(ledger.displaced.len(), 1);
        ledger.let_go(0, "/image".into(), holding(1)["vda"].clone());
        assert!(ledger.loose.is_empty(), "the other host's VM has the image");
        ledger.vms[1].disks.clear();
        ledger.let_go(0, "/image".into(), holding(1)["vda"].clone());
        assert_eq!(ledger.loose.len(), 1);
    }

    #[test]
    fn what_a_snapshot_holds_outlives_its_metadata() {
        let mut ledger = Ledger { vms: vec![vm()], ..Ledger::default() };
        ledger.vms[0].created("a", holding(1));
        ledger.displace(0, "a");
        assert!(ledger.vms[0].snapshots.is_empty());
        assert_eq!(ledger.displaced[0].1, holding(1)["vda"]);
    }
}

//! Which VMs use which files, and what that makes unavailable.
//!
//! A revert changes the content of the active image of every writable disk. Whoever else has such an image in a backing chain, or
//! as a disk, finds other data there afterwards. So does an image that no VM uses: a linked clone that is not defined yet.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::error::Reason;
use crate::ids::{SnapshotId, VmId};
use crate::restriction::{RestrictedOperation, Restriction};

/// Which files a VM reaches, and which of them a revert would change. Files go by every name they have: their path without
/// links, and the numbers of their device and inode.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Uses {
    /// The files that its disks and its snapshots reach, backing files included.
    pub reached: BTreeSet<String>,
    /// By file: the target of the disk whose active image it is.
    pub changed: BTreeMap<String, String>,
    /// By snapshot: the files that a revert to it changes beside those, with their targets.
    pub changed_by: BTreeMap<SnapshotId, BTreeMap<String, String>>,
}

impl Uses {
    /// Every file that some revert changes, with its disk's target.
    fn all_changed(&self) -> impl Iterator<Item = &String> {
        self.changed.keys().chain(self.changed_by.values().flat_map(BTreeMap::keys))
    }
}

/// An image that depends on others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dependent {
    /// Its path without links.
    pub path: String,
    /// The numbers of its device and inode, or its path where they are not known.
    pub number: String,
}

/// Which images in the directories of a host depend on others, as far as that is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dependents {
    /// By each name of a file, the images that depend on it. Some are used by VMs.
    pub by_file: BTreeMap<String, BTreeSet<Dependent>>,
    /// The directories that could not be searched, each with why. What depends on the images in and below them is not known.
    pub unsearched: BTreeMap<String, String>,
}

/// Which VMs of a host use which files.
#[derive(Debug, Clone, Default)]
pub struct Users {
    vms: BTreeMap<VmId, (String, Uses)>,
    by_file: BTreeMap<String, BTreeSet<VmId>>,
    by_changed: BTreeMap<String, BTreeSet<VmId>>,
    dependents: Dependents,
}

impl Users {
    /// A VM of this name uses these files. Returns the other VMs whose restrictions may have changed by it.
    pub fn set(&mut self, vm: VmId, name: &str, uses: &Uses) -> BTreeSet<VmId> {
        if self.vms.get(&vm).is_some_and(|(known, used)| known == name && used == uses) {
            return BTreeSet::new();
        }
        let mut affected = self.remove(vm);
        for file in &uses.reached {
            self.by_file.entry(file.clone()).or_default().insert(vm);
            affected.extend(self.by_changed.get(file).into_iter().flatten());
        }
        for file in uses.all_changed() {
            self.by_changed.entry(file.clone()).or_default().insert(vm);
        }
        self.vms.insert(vm, (name.to_owned(), uses.clone()));
        affected.remove(&vm);
        affected
    }

    /// There is no such VM any more. Returns the other VMs whose restrictions may have changed by it.
    pub fn remove(&mut self, vm: VmId) -> BTreeSet<VmId> {
        let Some((_, uses)) = self.vms.remove(&vm) else { return BTreeSet::new() };
        for file in uses.all_changed() {
            drop_from(&mut self.by_changed, file, vm);
        }
        let mut affected = BTreeSet::new();
        for file in &uses.reached {
            drop_from(&mut self.by_file, file, vm);
            affected.extend(self.by_changed.get(file).into_iter().flatten());
        }
        affected
    }

    /// These images are in the directories of the host. Returns the VMs whose restrictions may have changed by it.
    pub fn set_dependents(&mut self, dependents: Dependents) -> BTreeSet<VmId> {
        let before = std::mem::replace(&mut self.dependents, dependents);
        if before.unsearched != self.dependents.unsearched {
            return self.vms.keys().copied().collect();
        }
        let (before, now) = (&before.by_file, &self.dependents.by_file);
        let changed = before.keys().chain(now.keys()).filter(|file| before.get(*file) != now.get(*file));
        changed.filter_map(|file| self.by_changed.get(file)).flatten().copied().collect()
    }

    /// The VMs that are known.
    pub fn has(&self, vm: VmId) -> bool {
        self.vms.contains_key(&vm)
    }

    /// The name of a VM that uses a file, other than this one.
    pub fn other_user(&self, vm: VmId, file: &str) -> Option<&str> {
        let other = self.by_file.get(file)?.iter().find(|other| **other != vm)?;
        self.vms.get(other).map(|(name, _)| name.as_str())
    }

    /// What the use of its images by other VMs makes unavailable for a VM.
    pub fn restrictions(&self, vm: VmId, uses: &Uses) -> Vec<Restriction> {
        self.of_files(vm, &uses.changed)
    }

    /// The same for one of its snapshots, beside those of the VM.
    pub fn of_snapshot(&self, vm: VmId, uses: &Uses, id: &SnapshotId) -> Vec<Restriction> {
        uses.changed_by.get(id).map(|files| self.of_files(vm, files)).unwrap_or_default()
    }

    /// What images that no VM uses make unavailable for an internal snapshot: a revert to it changes what they depend on. One to an
    /// external snapshot leaves those files as they are.
    pub fn of_dependents(&self, uses: &Uses, id: &SnapshotId) -> Vec<Restriction> {
        let beside = uses.changed_by.get(id).into_iter().flatten();
        let mut found: BTreeMap<&str, Restriction> = BTreeMap::new();
        for (file, target) in uses.changed.iter().chain(beside) {
            let is_used =
                |image: &Dependent| self.by_file.contains_key(&image.path) || self.by_file.contains_key(&image.number);
            let mut unused = self.dependents.by_file.get(file).into_iter().flatten().filter(|image| !is_used(image));
            let mut unsearched = self.dependents.unsearched.iter().filter(|(dir, _)| Path::new(file).starts_with(dir));
            let (reason, message) = if let Some(Dependent { path: image, .. }) = unused.next() {
                let message = format!(
                    "image {image}, which no VM of this host uses, depends on the image of disk {target}, and a revert would change its data: \
                     remove it, or copy what it depends on into it with qemu-img rebase -b \"\""
                );
                (Reason::ImageInUse, message)
            } else if let Some((directory, why)) = unsearched.next() {
                let message = format!(
                    "which images depend on that of disk {target} is not known, because {directory} cannot be searched ({why}): a revert \
                     could change their data; keep in that directory only what belongs to images of VMs"
                );
                (Reason::ImageUnavailable, message)
            } else {
                continue;
            };
            let restriction = Restriction::new(RestrictedOperation::REVERT, reason, message);
            found.entry(target).or_insert_with(|| restriction.on_disk(target));
        }
        found.into_values().collect()
    }

    fn of_files(&self, vm: VmId, files: &BTreeMap<String, String>) -> Vec<Restriction> {
        let mut found: BTreeMap<(&str, VmId), Restriction> = BTreeMap::new();
        for (file, target) in files {
            for other in self.by_file.get(file).into_iter().flatten().filter(|other| **other != vm) {
                let Some((name, _)) = self.vms.get(other) else { continue };
                let message = format!(
                    "VM {name} uses the image of disk {target}, as a disk, in a snapshot or as a backing file, and a revert would change its data: remove that VM, or copy the image for it"
                );
                let restriction = Restriction::new(RestrictedOperation::REVERT, Reason::ImageInUse, message);
                found.entry((target, *other)).or_insert_with(|| restriction.on_disk(target));
            }
        }
        found.into_values().collect()
    }
}

fn drop_from(files: &mut BTreeMap<String, BTreeSet<VmId>>, file: &str, vm: VmId) {
    if let Some(users) = files.get_mut(file) {
        users.remove(&vm);
        if users.is_empty() {
            files.remove(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn vm(n: u128) -> VmId {
        VmId::from_uuid(Uuid::from_u128(n))
    }

    fn uses(reached: &[&str], changed: &[&str]) -> Uses {
        Uses {
            reached: reached.iter().map(|file| (*file).to_owned()).collect(),
            changed: changed.iter().map(|file| ((*file).to_owned(), "vda".to_owned())).collect(),
            changed_by: BTreeMap::new(),
        }
    }

    #[test]
    fn a_clone_makes_the_revert_of_its_base_unavailable_and_not_its_own() {
        let mut users = Users::default();
        let (base, clone) = (uses(&["/base"], &["/base"]), uses(&["/clone", "/base"], &["/clone"]));
        assert!(users.set(vm(1), "base", &base).is_empty());
        assert_eq!(users.set(vm(2), "clone", &clone), BTreeSet::from([vm(1)]));
        assert!(users.set(vm(2), "clone", &clone).is_empty(), "nothing new");
        assert_eq!((users.other_user(vm(1), "/base"), users.other_user(vm(2), "/clone")), (Some("clone"), None));
        let found = users.restrictions(vm(1), &base);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].message.contains("VM clone uses the image of disk vda"), "{found:?}");
        assert_eq!(
            (found[0].reason, found[0].operations.as_slice()),
            (Reason::ImageInUse, &RestrictedOperation::REVERT[..])
        );
        assert!(users.restrictions(vm(2), &clone).is_empty());
        // Its name is told, so a new one is news.
        assert_eq!(users.set(vm(2), "renamed", &clone), BTreeSet::from([vm(1)]));
        assert!(users.restrictions(vm(1), &base)[0].message.contains("VM renamed"));
        assert_eq!(users.remove(vm(2)), BTreeSet::from([vm(1)]));
        assert!(users.restrictions(vm(1), &base).is_empty());
        assert!(users.has(vm(1)) && !users.has(vm(2)));
        assert!(users.remove(vm(2)).is_empty());
    }

    #[test]
    fn a_golden_image_below_many_is_nobodys_to_change() {
        let mut users = Users::default();
        for n in 1..4 {
            let own = format!("/clone-{n}");
            assert!(users.set(vm(n), "clone", &uses(&[&own, "/golden"], &[&own])).is_empty());
        }
        assert!(users.restrictions(vm(1), &uses(&["/clone-1", "/golden"], &["/clone-1"])).is_empty());
    }

    #[test]
    fn a_disk_that_two_have_is_told_to_both_in_whatever_order_they_are_seen() {
        let shared = uses(&["/shared"], &["/shared"]);
        let mut users = Users::default();
        assert!(users.set(vm(1), "one", &shared).is_empty());
        assert_eq!(users.set(vm(2), "two", &shared), BTreeSet::from([vm(1)]));
        for n in [1, 2] {
            assert_eq!(users.restrictions(vm(n), &shared).len(), 1);
        }
    }

    #[test]
    fn an_image_that_only_a_snapshot_leads_to_restricts_that_snapshot() {
        let id = SnapshotId::of_name("old");
        let mut mine = uses(&["/now", "/then"], &["/now"]);
        mine.changed_by.insert(id.clone(), BTreeMap::from([("/then".to_owned(), "vda".to_owned())]));
        let mut users = Users::default();
        users.set(vm(1), "mine", &mine);
        assert_eq!(users.set(vm(2), "other", &uses(&["/then"], &[])), BTreeSet::from([vm(1)]));
        assert!(users.restrictions(vm(1), &mine).is_empty());
        assert_eq!(users.of_snapshot(vm(1), &mine, &id).len(), 1);
        assert!(users.of_snapshot(vm(1), &mine, &SnapshotId::of_name("new")).is_empty());
    }

    #[test]
    fn an_image_that_no_vm_uses_restricts_the_internal_snapshots_of_what_it_depends_on() {
        let id = SnapshotId::of_name("old");
        let mut users = Users::default();
        let mine = uses(&["/base"], &["/base"]);
        users.set(vm(1), "mine", &mine);
        users.set(vm(2), "beside", &uses(&["/beside"], &["/beside"]));
        let dependents = |image: &str, file: &str| {
            let dependent = Dependent { path: image.to_owned(), number: "1:7".to_owned() };
            let by_file = BTreeMap::from([(file.to_owned(), BTreeSet::from([dependent]))]);
            Dependents { by_file, ..Dependents::default() }
        };
        assert_eq!(users.set_dependents(dependents("/clone", "/base")), BTreeSet::from([vm(1)]));
        assert!(users.set_dependents(dependents("/clone", "/base")).is_empty(), "nothing new");
        let found = users.of_dependents(&mine, &id);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].message.contains("/clone") && found[0].message.contains("disk vda"), "{found:?}");
        assert!(users.restrictions(vm(1), &mine).is_empty(), "an external snapshot is not affected");
        // A VM that uses it is told of by its name.
        assert_eq!(users.set(vm(3), "clone", &uses(&["/clone", "/base"], &["/clone"])), BTreeSet::from([vm(1)]));
        assert!(users.of_dependents(&mine, &id).is_empty());
        assert_eq!(users.remove(vm(3)), BTreeSet::from([vm(1)]));
        // Also by another path.
        users.set(vm(3), "clone", &uses(&["/link", "1:7", "/base"], &["/link"]));
        assert!(users.of_dependents(&mine, &id).is_empty());
        users.remove(vm(3));
        assert_eq!(users.set_dependents(Dependents::default()), BTreeSet::from([vm(1)]));
        assert!(users.of_dependents(&mine, &id).is_empty());
        // Of an image that only this snapshot leads to.
        let mut mine = mine;
        mine.changed_by.insert(id.clone(), BTreeMap::from([("/then".to_owned(), "vda".to_owned())]));
        users.set(vm(1), "mine", &mine);
        assert_eq!(users.set_dependents(dependents("/clone", "/then")), BTreeSet::from([vm(1)]));
        assert_eq!(users.of_dependents(&mine, &id).len(), 1);
        assert!(users.of_dependents(&mine, &SnapshotId::of_name("new")).is_empty());
    }

    #[test]
    fn where_a_directory_cannot_be_searched_no_image_below_it_is_changed_by_a_revert() {
        let id = SnapshotId::of_name("old");
        let mut users = Users::default();
        let (inside, beside) =
            (uses(&["/pool/deep/one", "1:7"], &["/pool/deep/one", "1:7"]), uses(&["/pools/two"], &["/pools/two"]));
        users.set(vm(1), "inside", &inside);
        users.set(vm(2), "beside", &beside);
        let unsearched = BTreeMap::from([("/pool".to_owned(), "there are too many files".to_owned())]);
        let dependents = Dependents { unsearched, ..Dependents::default() };
        assert!(users.set_dependents(dependents.clone()).contains(&vm(1)));
        assert!(users.set_dependents(dependents).is_empty(), "nothing new");
        let found = users.of_dependents(&inside, &id);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(
            (found[0].reason, &found[0].operations[..]),
            (Reason::ImageUnavailable, &RestrictedOperation::REVERT[..])
        );
        assert!(found[0].message.contains("/pool cannot be searched (there are too many files)"), "{found:?}");
        assert!(users.of_dependents(&beside, &id).is_empty());
        assert!(users.set_dependents(Dependents::default()).contains(&vm(1)));
        assert!(users.of_dependents(&inside, &id).is_empty());
    }
}

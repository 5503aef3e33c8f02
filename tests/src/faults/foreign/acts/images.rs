//! Images: cloned, copied, replaced, removed, committed, rebased.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::super::content::May;
use super::super::disk_tools as tools;
use super::super::room::{Outcome, Room};
use super::{attempt, pick};
use crate::tools::run;

/// The most images that are no disks. Beyond that none is made.
const LOOSE: usize = 24;

fn qemu_img(arguments: &[&str], files: &[&Path]) -> Result<()> {
    run(Command::new("qemu-img").args(arguments).args(files)).map(drop)
}

impl Room {
    fn has_space(&self) -> bool {
        self.ledger.loose.len() < LOOSE
    }

    /// A new image that was never a disk.
    pub(super) fn found(&mut self, path: &Path) -> Result<()> {
        let content = self.read(path, None)?;
        self.ledger.loose.insert(path.to_owned(), May::exactly(content));
        self.ledger.spare.insert(path.to_owned());
        Ok(())
    }

    /// Every image of the room that a clone or a copy may be made of: disks, what they lie on, and images that are no disks. Not those of
    /// the VM that a user's operation is under way on: nobody can say which moment they would be of.
    fn sources(&self) -> Vec<PathBuf> {
        let all = tools::all(&self.directories);
        let mut raced: BTreeSet<PathBuf> = BTreeSet::new();
        for (_, vm) in self.ledger.vms.iter().enumerate().filter(|(number, _)| self.is_raced(*number)) {
            for disk in vm.disks.values() {
                let mut next = Some(disk.path.clone());
                while let Some(path) = next.filter(|path| !raced.contains(path)) {
                    next = all.get(&path).cloned().flatten();
                    raced.insert(path);
                }
            }
        }
        let known: BTreeSet<PathBuf> = self
            .active()
            .into_iter()
            .chain(self.ledger.loose.keys().cloned())
            .chain(all.values().flatten().cloned())
            .collect();
        known.into_iter().filter(|path| all.contains_key(path) && !raced.contains(path)).collect()
    }

    pub(super) fn make(&mut self, which: u64) -> Result<Outcome> {
        if !self.has_space() {
            return Ok(Outcome::Impossible);
        }
        let (path, may) = attempt!(self.new_image("new", which));
        self.ledger.loose.insert(path.clone(), may);
        self.ledger.spare.insert(path.clone());
        Ok(Outcome::Done(path.display().to_string()))
    }

    pub(super) fn linked_clone(&mut self, which: u64) -> Result<Outcome> {
        let sources = self.sources();
        let Some(base) = pick(&sources, which).filter(|_| self.has_space()) else { return Ok(Outcome::Impossible) };
        let clone = self.fresh_path("clone", which >> 8);
        let below = base.display().to_string();
        attempt!(qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &below], &[&clone]));
        self.found(&clone)?;
        Ok(Outcome::Done(format!("{} on {below}", clone.display())))
    }

    pub(super) fn full_clone(&mut self, which: u64) -> Result<Outcome> {
        let sources = self.sources();
        let Some(source) = pick(&sources, which).filter(|_| self.has_space()) else { return Ok(Outcome::Impossible) };
        let clone = self.fresh_path("full", which >> 8);
        attempt!(qemu_img(&["convert", "-U", "-f", "qcow2", "-O", "qcow2"], &[source, &clone]));
        self.found(&clone)?;
        Ok(Outcome::Done(format!("{} of {}", clone.display(), source.display())))
    }

    /// Copies a file with all that is in it, snapshots and backing file.
    pub(super) fn copy(&mut self, which: u64) -> Result<Outcome> {
        let sources = self.sources();
        let Some(source) = pick(&sources, which).filter(|_| self.has_space()) else { return Ok(Outcome::Impossible) };
        let copy = self.fresh_path("copy", which >> 8);
        attempt!(run(Command::new("cp").arg("--").arg(source).arg(&copy)));
        self.found(&copy)?;
        Ok(Outcome::Done(format!("{} of {}", copy.display(), source.display())))
    }

    /// Puts another image in the place of a disk's, which gets another name.
    pub(super) fn replace(&mut self, which: u64) -> Result<Outcome> {
        let is_free = |vm: usize, room: &Self| Self::is_defined(vm, room) && !room.is_raced(vm);
        let Some(vm) = self.pick_vm(which, is_free).filter(|_| self.has_space()) else {
            return Ok(Outcome::Impossible);
        };
        let all: Vec<PathBuf> = self.ledger.vms[vm].disks.values().map(|disk| disk.path.clone()).collect();
        let is_free = |path: &&PathBuf| !self.bases().contains(*path) && !self.ledger.is_of_another(vm, path);
        let Some(path) = pick(&all, which >> 8).filter(is_free) else {
            return Ok(Outcome::Impossible);
        };
        let (new, may) = attempt!(self.new_image("put", which >> 16));
        let aside = self.fresh_path("aside", which >> 24);
        fs::rename(path, &aside)?;
        fs::rename(&new, path)?;
        self.ledger.moved(path, &aside);
        let vm = &mut self.ledger.vms[vm];
        if let Some(disk) = vm.disks.values_mut().find(|disk| disk.path == *path) {
            self.ledger.loose.insert(aside.clone(), std::mem::replace(&mut disk.may, may));
        }
        Ok(Outcome::Done(format!("{}, which is {} now", path.display(), aside.display())))
    }

    /// Images that were never a disk, that nothing lies on, and that have no snapshots.
    fn removable(&self) -> Vec<PathBuf> {
        let bases = self.bases();
        let is_free = |path: &&PathBuf| !bases.contains(*path) && self.ledger.tags.iter().all(|tag| tag.file != **path);
        self.ledger.spare.iter().filter(is_free).cloned().collect()
    }

    pub(super) fn remove(&mut self, which: u64) -> Result<Outcome> {
        let removable = self.removable();
        if removable.len() < 4 {
            return Ok(Outcome::Impossible);
        }
        let Some(path) = pick(&removable, which) else { return Ok(Outcome::Impossible) };
        fs::remove_file(path)?;
        self.ledger.taken(path);
        Ok(Outcome::Done(path.display().to_string()))
    }

    /// Merges a clone into its base, both of which are nobody's disk.
    pub(super) fn commit(&mut self, which: u64) -> Result<Outcome> {
        let all = tools::all(&self.directories);
        let users = |base: &Path| all.values().flatten().filter(|below| **below == *base).count();
        let candidates: Vec<(PathBuf, PathBuf)> = self
            .removable()
            .into_iter()
            .filter_map(|clone| Some((clone.clone(), all.get(&clone)?.clone()?)))
            .filter(|(_, base)| self.ledger.spare.contains(base) && users(base) == 1)
            .collect();
        let Some((clone, base)) = pick(&candidates, which) else { return Ok(Outcome::Impossible) };
        attempt!(qemu_img(&["commit", "-q", "-f", "qcow2"], &[clone]));
        if let Some(may) = self.ledger.loose.get(clone).cloned() {
            self.ledger.loose.insert(base.clone(), may);
        }
        Ok(Outcome::Done(format!("{} into {}", clone.display(), base.display())))
    }

    /// Copies into a clone all that is in its base, and takes it off that.
    pub(super) fn rebase(&mut self, which: u64) -> Result<Outcome> {
        let all = tools::all(&self.directories);
        let is_clone = |path: &PathBuf| all.get(path).is_some_and(Option::is_some);
        let clones: Vec<PathBuf> = self.removable().into_iter().filter(is_clone).collect();
        let Some(clone) = pick(&clones, which) else { return Ok(Outcome::Impossible) };
        attempt!(qemu_img(&["rebase", "-q", "-f", "qcow2", "-b", ""], &[clone]));
        Ok(Outcome::Done(clone.display().to_string()))
    }

    pub(super) fn bitmap(&mut self, which: u64) -> Result<Outcome> {
        let bases = self.bases();
        let all: Vec<PathBuf> = self
            .active()
            .into_iter()
            .chain(self.ledger.loose.keys().cloned())
            .filter(|path| !bases.contains(path))
            .collect();
        let Some(path) = pick(&all, which) else { return Ok(Outcome::Impossible) };
        let (name, file) = (format!("backup-{}", which % 3), path.display().to_string());
        let verb = if which.is_multiple_of(2) { "--add" } else { "--remove" };
        attempt!(run(Command::new("qemu-img").args(["bitmap", verb, "-f", "qcow2", &file, &name])));
        Ok(Outcome::Done(format!("{verb} {name} of {file}")))
    }
}

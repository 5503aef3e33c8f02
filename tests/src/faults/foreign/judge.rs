//! Reads everything of the ledger back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::super::judge::Kind;
use super::content::{Content, May};
use super::disk_tools as tools;
use super::ledger::{Known, Vm};
use super::room::{Room, disks_of};

/// A look that finds something is done again: libvirt's daemon may have been away.
const LOOKS: u32 = 3;

/// Whether a file was made by a snapshot or a revert: every image of an administrator's has another ending.
fn is_overlay(path: &Path) -> bool {
    path.extension().is_none_or(|ending| ending != "qcow2")
}

impl Room {
    /// Whether this can be read from any image of the room or any snapshot inside one.
    pub(super) fn is_somewhere(&self, may: &May) -> bool {
        self.everywhere(&mut None).iter().any(|content| may.has(*content))
    }

    /// Everything that can be read in the room.
    fn everywhere(&self, known: &mut Option<BTreeSet<Content>>) -> BTreeSet<Content> {
        known
            .get_or_insert_with(|| {
                let mut found = BTreeSet::new();
                for image in tools::all(&self.directories).into_keys() {
                    found.extend(self.read(&image, None).ok());
                    let tags: BTreeSet<String> = tools::tags(&image).unwrap_or_default().into_iter().collect();
                    found.extend(tags.iter().filter_map(|tag| self.read(&image, Some(tag)).ok()));
                }
                found
            })
            .clone()
    }

    /// Reads all of it back. What was found to be wrong is told once.
    pub(super) fn judge(&mut self) -> Result<()> {
        let mut all = None;
        self.judge_images();
        self.judge_tags();
        for vm in 0..self.ledger.vms.len() {
            self.judge_snapshots(vm, &mut all);
        }
        for (what, may) in std::mem::take(&mut self.ledger.displaced) {
            if self.everywhere(&mut all).iter().any(|content| may.has(*content)) {
                self.ledger.displaced.push((what, may));
            } else {
                self.violated(Kind::Lost, format!("{may:?}, {what}, is nowhere"));
            }
        }
        self.world.history.count("times that a room was read back");
        Ok(())
    }

    fn judge_images(&mut self) {
        for number in 0..self.ledger.vms.len() {
            let vm = &self.ledger.vms[number];
            if vm.is_defined() {
                let Some(paths) = (0..LOOKS).find_map(|_| self.paths(vm).ok()) else {
                    self.violated(Kind::Lost, format!("libvirt does not know {} {}", vm.name, vm.uuid));
                    continue;
                };
                let known = vm.disks.iter().map(|(target, disk)| (target.clone(), disk.path.clone())).collect();
                if paths != known {
                    let what = format!("{} is on {paths:?}, and must be on {known:?}", vm.name);
                    self.violated(Kind::Disagree, what);
                }
            }
            for (target, disk) in self.ledger.vms[number].disks.clone() {
                if let Some(content) = self.must_hold(&disk.path, &disk.may, "a disk")
                    && let Some(disk) = self.ledger.vms[number].disks.get_mut(&target)
                {
                    disk.may = May::exactly(content);
                }
            }
        }
        for (path, may) in self.ledger.loose.clone() {
            // An overlay that no VM is on may go as long as its content is there: one that nothing was ever written to.
            if is_overlay(&path) && !self.read(&path, None).is_ok_and(|content| may.has(content)) {
                self.ledger.taken(&path);
                self.ledger.displaced.push((format!("{}, which nobody has given up", path.display()), may));
                continue;
            }
            match self.must_hold(&path, &may, "an image that is no disk") {
                Some(content) => drop(self.ledger.loose.insert(path, May::exactly(content))),
                None => self.ledger.taken(&path),
            }
        }
    }

    /// Reads an image that must hold this. Returns what it holds from now on.
    fn must_hold(&self, path: &Path, may: &May, what: &str) -> Option<Content> {
        match self.read(path, None) {
            Ok(content) if may.has(content) => Some(content),
            Ok(content) => {
                let what = format!("{what}, {}, has {content:?} and must have {may:?}", path.display());
                self.violated(Kind::WrongData, what);
                Some(content)
            }
            Err(error) => {
                self.violated(
                    Kind::Lost,
                    format!("{what}, {}, with {may:?} is not to be read: {error:#}", path.display()),
                );
                None
            }
        }
    }

    fn judge_tags(&mut self) {
        for tag in self.ledger.tags.clone() {
            let read = self.read(&tag.file, Some(&tag.name));
            if !read.as_ref().is_ok_and(|content| tag.may.has(*content)) {
                let told = read.map_or_else(|error| format!("{error:#}"), |content| format!("{content:?}"));
                let what = format!("{:?} in {} must hold {:?}: {told}", tag.name, tag.file.display(), tag.may);
                self.violated(Kind::Lost, what);
                self.ledger.tags.retain(|one| *one != tag);
            }
        }
    }

    fn judge_snapshots(&mut self, number: usize, all: &mut Option<BTreeSet<Content>>) {
        let vm = self.ledger.vms[number].clone();
        if vm.snapshots.is_empty() || !vm.is_defined() {
            return;
        }
        let uuid = vm.uuid.to_string();
        let list = || self.world.virsh_on(vm.host, &["snapshot-list", &uuid, "--name"]).ok();
        let listed = (0..LOOKS).find_map(|_| list()).unwrap_or_default();
        let listed: BTreeSet<&str> = listed.lines().filter(|line| !line.is_empty()).collect();
        for (id, known) in &vm.snapshots {
            if known.may_be_gone {
                continue;
            }
            if !listed.contains(id.as_str()) {
                self.violated(Kind::Lost, format!("{id:?} of {} is not listed: {listed:?}", vm.name));
                self.ledger.vms[number].forget(id);
                continue;
            }
            let frozen = self.frozen(&vm, id);
            for (target, may) in &known.disks {
                let found = self.snapshot_holds(number, (id, known), target, may, &frozen)
                    || known.is_displaced && self.everywhere(all).iter().any(|content| may.has(*content));
                if !found && frozen.contains_key(target) {
                    let what = format!("{target} of snapshot {id:?} of {} must be {may:?} and is nowhere", vm.name);
                    self.violated(Kind::Lost, what);
                    self.ledger.vms[number].forget(id);
                    break;
                }
            }
        }
    }

    /// The disks of a snapshot by libvirt's record, with the images that they were on when it was created.
    pub(super) fn frozen(&self, vm: &Vm, id: &str) -> BTreeMap<String, PathBuf> {
        let uuid = vm.uuid.to_string();
        let dump = || self.world.virsh_on(vm.host, &["snapshot-dumpxml", &uuid, "--snapshotname", id]).ok();
        let xml = (0..LOOKS).find_map(|_| dump()).unwrap_or_default();
        let domain = xml.split("<domain ").nth(1).and_then(|rest| rest.split("</domain>").next()).unwrap_or_default();
        disks_of(domain, &self.directories[1])
    }

    /// Whether a snapshot's data is where it must be: in the file that it froze, or inside an image under its name.
    fn snapshot_holds(
        &self,
        number: usize,
        (id, _): (&str, &Known),
        target: &str,
        may: &May,
        frozen: &BTreeMap<String, PathBuf>,
    ) -> bool {
        let active = self.ledger.vms[number].disks.get(target).map(|disk| disk.path.clone());
        let places: BTreeSet<PathBuf> = frozen.get(target).cloned().into_iter().chain(active).collect();
        let inside = places.iter().any(|path| self.read(path, Some(id)).is_ok_and(|content| may.has(content)));
        let below = frozen.get(target).is_some_and(|path| self.read(path, None).is_ok_and(|content| may.has(content)));
        inside || below
    }
}

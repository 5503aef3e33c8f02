//! Disks: written to, attached, detached, swapped, moved, resized.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::super::content::{May, SLOTS};
use super::super::disk_tools::{self as tools, Written};
use super::super::ledger::Disk;
use super::super::room::{Effect, Outcome, Room};
use super::{attempt, pick};
use crate::tools::run;

/// The most disks of a VM.
pub(super) const DISKS: [&str; 3] = ["vda", "vdb", "vdc"];

impl Room {
    /// Writes to a VM's disk, or to an image that is no disk. Nobody writes to what others lie on.
    pub(super) fn write(&mut self, which: u64) -> Result<Outcome> {
        let (slot, number) = ((which >> 20) as usize % SLOTS, self.number());
        if which.is_multiple_of(5) && self.race.is_none() {
            return self.write_loose(which >> 3, slot, number);
        }
        let Some(vm) = self.pick_vm(which >> 3, Self::is_defined) else { return Ok(Outcome::Impossible) };
        let paths: Vec<(String, PathBuf)> = attempt!(self.paths(&self.ledger.vms[vm])).into_iter().collect();
        let Some((target, path)) = pick(&paths, which >> 32).cloned() else { return Ok(Outcome::Impossible) };
        if self.bases().contains(&path) {
            return Ok(Outcome::Impossible);
        }
        let written = tools::write(&self.scratch(), &path, slot, number)?;
        if let Written::Refused(why) = written {
            return Ok(Outcome::Refused(why));
        }
        let is_done = written == Written::Done;
        // Another host's definition of the VM may name the same image, and so may another VM.
        for other in 0..self.ledger.vms.len() {
            let disks = &mut self.ledger.vms[other].disks;
            let is_it = |(name, disk): &(&String, &mut Disk)| (other, *name) == (vm, &target) || disk.path == path;
            let mut written = Vec::new();
            for (name, disk) in disks.iter_mut().filter(is_it) {
                let after = disk.may.with(slot, number);
                disk.may = if is_done { after } else { after.or(&disk.may) };
                written.push(name.clone());
            }
            for name in written.into_iter().filter(|_| is_done) {
                self.effect(other, Effect::Wrote(name, slot, number));
            }
        }
        Ok(Outcome::Done(format!("{number} into cluster {slot} of {}: {written:?}", path.display())))
    }

    fn write_loose(&mut self, which: u64, slot: usize, number: u32) -> Result<Outcome> {
        let bases = self.bases();
        let all: Vec<PathBuf> = self.ledger.loose.keys().filter(|path| !bases.contains(*path)).cloned().collect();
        let Some(path) = pick(&all, which) else { return Ok(Outcome::Impossible) };
        let written = tools::write(&self.scratch(), path, slot, number)?;
        if let Written::Refused(why) = written {
            return Ok(Outcome::Refused(why));
        }
        if let Some(may) = self.ledger.loose.get_mut(path) {
            let after = may.with(slot, number);
            *may = if written == Written::Done { after } else { after.or(may) };
        }
        Ok(Outcome::Done(format!("{number} into cluster {slot} of {}: {written:?}", path.display())))
    }

    /// An image for a disk: one that is there and that nothing lies on, or a new one.
    fn image_for_disk(&mut self, which: u64) -> Result<(PathBuf, May)> {
        let bases = self.bases();
        // One that is not there is an overlay that nothing was ever written to: it may go.
        let free = |(path, _): &(&PathBuf, &May)| !bases.contains(*path) && path.exists();
        let all: Vec<(PathBuf, May)> =
            self.ledger.loose.iter().filter(free).map(|(path, may)| (path.clone(), may.clone())).collect();
        if which.is_multiple_of(3) || all.is_empty() {
            let (path, may) = self.new_image("data", which)?;
            self.ledger.loose.insert(path.clone(), may.clone());
            return Ok((path, may));
        }
        Ok(all[(which >> 4) as usize % all.len()].clone())
    }

    pub(super) fn attach(&mut self, which: u64) -> Result<Outcome> {
        let has_room =
            |vm: usize, room: &Self| Self::is_defined(vm, room) && room.ledger.vms[vm].disks.len() < DISKS.len();
        let Some(vm) = self.pick_vm(which, has_room) else { return Ok(Outcome::Impossible) };
        let paths = attempt!(self.paths(&self.ledger.vms[vm]));
        let Some(target) = DISKS.into_iter().find(|target| !paths.contains_key(*target)) else {
            return Ok(Outcome::Impossible);
        };
        let (path, may) = attempt!(self.image_for_disk(which >> 8));
        let (id, image) = (self.ledger.vms[vm].uuid.to_string(), path.display().to_string());
        let attached = ["attach-disk", &id, &image, target, "--config", "--driver", "qemu", "--subdriver", "qcow2"];
        attempt!(self.virsh_for(vm, &attached));
        self.ledger.taken(&path);
        self.ledger.vms[vm].disks.insert(target.to_owned(), Disk { path: path.clone(), may: may.clone() });
        self.effect(vm, Effect::Attached(target.to_owned(), path, may));
        Ok(Outcome::Done(format!("{image} to {} as {target}", self.ledger.vms[vm].name)))
    }

    pub(super) fn detach(&mut self, which: u64) -> Result<Outcome> {
        let has_more = |vm: usize, room: &Self| Self::is_defined(vm, room) && room.ledger.vms[vm].disks.len() > 1;
        let Some(vm) = self.pick_vm(which, has_more) else { return Ok(Outcome::Impossible) };
        let paths: Vec<(String, PathBuf)> = attempt!(self.paths(&self.ledger.vms[vm])).into_iter().collect();
        let Some((target, path)) = pick(&paths, which >> 8).filter(|_| paths.len() > 1).cloned() else {
            return Ok(Outcome::Impossible);
        };
        attempt!(self.virsh_for(vm, &["detach-disk", &self.ledger.vms[vm].uuid.to_string(), &target, "--config"]));
        if let Some(disk) = self.ledger.vms[vm].disks.remove(&target)
            && !self.is_raced(vm)
        {
            self.ledger.let_go(vm, disk.path, disk.may);
        }
        self.effect(vm, Effect::Detached(target.clone(), path.clone()));
        Ok(Outcome::Done(format!("{target} of {}, which was on {}", self.ledger.vms[vm].name, path.display())))
    }

    /// Gives a disk another image.
    pub(super) fn swap(&mut self, which: u64) -> Result<Outcome> {
        let Some(vm) = self.pick_vm(which, Self::is_defined) else { return Ok(Outcome::Impossible) };
        let xml = attempt!(self.xml(&self.ledger.vms[vm]));
        let paths = super::super::room::disks_of(&xml, &self.directories[1]);
        let all: Vec<(String, PathBuf)> =
            paths.into_iter().filter(|(_, path)| xml.contains(&format!("'{}'", path.display()))).collect();
        let Some((target, old)) = pick(&all, which >> 8).cloned() else { return Ok(Outcome::Impossible) };
        let (new, may) = attempt!(self.image_for_disk(which >> 16));
        attempt!(self.define(
            self.ledger.vms[vm].host,
            &xml.replace(&format!("'{}'", old.display()), &format!("'{}'", new.display()))
        ));
        self.ledger.taken(&new);
        let disk = Disk { path: new.clone(), may: may.clone() };
        if let Some(was) = self.ledger.vms[vm].disks.insert(target.clone(), disk)
            && !self.is_raced(vm)
        {
            self.ledger.let_go(vm, was.path, was.may);
        }
        let told = format!("{target} of {} from {} to {}", self.ledger.vms[vm].name, old.display(), new.display());
        self.effect(vm, Effect::Swapped(target, old, new, may));
        Ok(Outcome::Done(told))
    }

    /// Moves a disk's image, with the VM's definition.
    pub(super) fn move_image(&mut self, which: u64) -> Result<Outcome> {
        let is_free = |vm: usize, room: &Self| Self::is_defined(vm, room) && !room.is_raced(vm);
        let Some(vm) = self.pick_vm(which, is_free) else { return Ok(Outcome::Impossible) };
        let xml = attempt!(self.xml(&self.ledger.vms[vm]));
        let all: Vec<String> = self.ledger.vms[vm].disks.keys().cloned().collect();
        let Some(target) = pick(&all, which >> 8) else { return Ok(Outcome::Impossible) };
        let old = self.ledger.vms[vm].disks[target].path.clone();
        let named = format!("'{}'", old.display());
        if self.bases().contains(&old) || !xml.contains(&named) || self.ledger.is_of_another(vm, &old) {
            return Ok(Outcome::Impossible);
        }
        let new = self.fresh_path("moved", which >> 16);
        attempt!(run(Command::new("cp").arg("--").arg(&old).arg(&new)));
        if let Err(error) = self.define(self.ledger.vms[vm].host, &xml.replace(&named, &format!("'{}'", new.display())))
        {
            fs::remove_file(&new)?;
            return Ok(super::refused(&error));
        }
        // Nothing lies on it, no definition names it, and its data is at the new path.
        fs::remove_file(&old)?;
        self.ledger.moved(&old, &new);
        let moved = &mut self.ledger.vms[vm];
        if let Some(disk) = moved.disks.get_mut(target) {
            disk.path.clone_from(&new);
        }
        Ok(Outcome::Done(format!("{} to {}", old.display(), new.display())))
    }

    pub(super) fn resize(&mut self, which: u64) -> Result<Outcome> {
        let Some(vm) = self.pick_vm(which, Self::is_defined) else { return Ok(Outcome::Impossible) };
        let paths: Vec<PathBuf> = attempt!(self.paths(&self.ledger.vms[vm])).into_values().collect();
        let Some(path) = pick(&paths, which >> 8) else { return Ok(Outcome::Impossible) };
        if self.bases().contains(path) {
            return Ok(Outcome::Impossible);
        }
        attempt!(run(Command::new("qemu-img").args(["resize", "-q", "-f", "qcow2"]).arg(path).arg("+128k")));
        Ok(Outcome::Done(path.display().to_string()))
    }
}

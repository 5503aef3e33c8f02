//! Snapshots of other tools, with odd names: inside images by `qemu-img`, and by virsh.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::super::super::judge::Kind;
use super::super::content::May;
use super::super::disk_tools as tools;
use super::super::ledger::Tag;
use super::super::room::{Outcome, Room};
use super::{attempt, pick};
use crate::tools::run;

/// Names that a program may take for a number, an option, an id of QEMU's or one of ours.
const NAMES: [&str; 10] = [
    "0",
    "1",
    "2",
    "\u{fc}n\u{ef} \u{441}\u{43d}\u{438}\u{43c}\u{43e}\u{43a}",
    "a b",
    "snap-0",
    "snap-00000000",
    "%s",
    "x;y",
    "@\"&",
];

impl Room {
    pub(super) fn tag(&mut self, which: u64) -> Result<Outcome> {
        let mut all: Vec<PathBuf> = self.active().into_iter().chain(self.ledger.loose.keys().cloned()).collect();
        all.sort();
        let Some(file) = pick(&all, which).cloned() else { return Ok(Outcome::Impossible) };
        let name = NAMES[(which >> 16) as usize % NAMES.len()];
        let there = attempt!(tools::tags(&file));
        if there.iter().any(|tag| tag == name) || there.len() > 12 {
            return Ok(Outcome::Impossible);
        }
        attempt!(run(Command::new("qemu-img").args(["snapshot", "-c", name]).arg(&file)));
        // What it is of is known only now, if a user's operation is under way.
        let content = attempt!(self.read(&file, Some(name)));
        let expected = self.ledger.vms.iter().enumerate().find_map(|(number, vm)| {
            let disk = vm.disks.values().find(|disk| disk.path == file)?;
            (!self.is_raced(number)).then_some(&disk.may)
        });
        if let Some(may) = expected.or_else(|| self.ledger.loose.get(&file))
            && !may.has(content)
        {
            self.violated(Kind::WrongData, format!("{} has {content:?} and must have {may:?}", file.display()));
        }
        let may = May::exactly(content);
        self.ledger.tags.push(Tag { file: file.clone(), name: name.to_owned(), may });
        Ok(Outcome::Done(format!("{name:?} in {}", file.display())))
    }

    pub(super) fn untag(&mut self, which: u64) -> Result<Outcome> {
        let Some(tag) = pick(&self.ledger.tags, which).cloned() else { return Ok(Outcome::Impossible) };
        attempt!(run(Command::new("qemu-img").args(["snapshot", "-d", &tag.name]).arg(&tag.file)));
        self.ledger.tags.retain(|one| *one != tag);
        Ok(Outcome::Done(format!("{:?} of {}", tag.name, tag.file.display())))
    }

    /// VMs whose snapshots are inside their images, and that no user's operation is under way on.
    fn is_for_virsh(vm: usize, room: &Self) -> bool {
        let is_internal = room.storage != proto::v1::StorageKind::External;
        Self::is_defined(vm, room) && !room.is_raced(vm) && is_internal
    }

    pub(super) fn virsh_create(&mut self, which: u64) -> Result<Outcome> {
        let is_one = |vm: usize, room: &Self| Self::is_for_virsh(vm, room) && room.ledger.vms[vm].snapshots.len() < 6;
        let Some(vm) = self.pick_vm(which, is_one) else { return Ok(Outcome::Impossible) };
        let name = NAMES[(which >> 8) as usize % NAMES.len()];
        let id = self.ledger.vms[vm].uuid.to_string();
        let files: Vec<PathBuf> = self.ledger.vms[vm].disks.values().map(|disk| disk.path.clone()).collect();
        for file in files {
            // libvirt would make a second one of that name.
            if attempt!(tools::tags(&file)).iter().any(|tag| tag == name) {
                return Ok(Outcome::Impossible);
            }
        }
        attempt!(self.virsh_for(vm, &["snapshot-create-as", &id, "--name", name]));
        let vm = &mut self.ledger.vms[vm];
        let disks = vm.disks.iter().map(|(target, disk)| (target.clone(), disk.may.clone())).collect();
        vm.created(name, disks);
        Ok(Outcome::Done(format!("{name:?} of {}", vm.name)))
    }

    pub(super) fn virsh_delete(&mut self, which: u64) -> Result<Outcome> {
        let is_one = |vm: usize, room: &Self| {
            let mut names = room.ledger.vms[vm].snapshots.keys();
            Self::is_for_virsh(vm, room) && names.any(|id| NAMES.contains(&id.as_str()))
        };
        let Some(vm) = self.pick_vm(which, is_one) else { return Ok(Outcome::Impossible) };
        let names: Vec<String> =
            self.ledger.vms[vm].snapshots.keys().filter(|id| NAMES.contains(&id.as_str())).cloned().collect();
        let Some(name) = pick(&names, which >> 8) else { return Ok(Outcome::Impossible) };
        let deleted =
            self.virsh_for(vm, &["snapshot-delete", &self.ledger.vms[vm].uuid.to_string(), "--snapshotname", name]);
        // Another host's metadata of it is of no use any more.
        for twin in self.ledger.twins(vm) {
            if let Some(known) = self.ledger.vms[twin].snapshots.get_mut(name) {
                known.may_be_gone = true;
            }
        }
        if deleted.is_err() {
            // It may have deleted it on some disks.
            if let Some(known) = self.ledger.vms[vm].snapshots.get_mut(name) {
                known.may_be_gone = true;
            }
        }
        attempt!(deleted);
        self.ledger.vms[vm].forget(name);
        Ok(Outcome::Done(format!("{name:?} of {}", self.ledger.vms[vm].name)))
    }

    /// Removes the metadata of a snapshot and leaves its data.
    pub(super) fn virsh_forget(&mut self, which: u64) -> Result<Outcome> {
        let is_one = |vm: usize, room: &Self| {
            Self::is_defined(vm, room) && !room.is_raced(vm) && !room.ledger.vms[vm].snapshots.is_empty()
        };
        let Some(vm) = self.pick_vm(which, is_one) else { return Ok(Outcome::Impossible) };
        let names: Vec<String> = self.ledger.vms[vm].snapshots.keys().cloned().collect();
        let Some(name) = pick(&names, which >> 8) else { return Ok(Outcome::Impossible) };
        let id = self.ledger.vms[vm].uuid.to_string();
        attempt!(self.virsh_for(vm, &["snapshot-delete", &id, "--snapshotname", name, "--metadata"]));
        self.ledger.displace(vm, name);
        Ok(Outcome::Done(format!("{name:?} of {}", self.ledger.vms[vm].name)))
    }
}

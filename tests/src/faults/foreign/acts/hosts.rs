//! Two hosts on shared storage: VMs that are off move from one to the other, are defined on both for a while, as Ravada leaves them, and
//! use each other's images.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::super::ledger::Disk;
use super::super::moved::Moved;
use super::super::room::{Effect, HOSTS, Outcome, Room};
use super::disks::DISKS;
use super::{attempt, pick};
use crate::faults::world::NAMES_OF_HOSTS;

/// The most entries of a room's ledger: a VM that is on two hosts has two.
const VMS: usize = 10;
/// How long an administrator waits until a host has told the others what it uses.
const TOLD: Duration = Duration::from_secs(20);
const AGAIN: Duration = Duration::from_millis(50);

/// Snapshots as libvirt has them written down, each after its parent, with whether it is the current one.
type Metadata = Vec<(String, String, bool)>;

impl Room {
    /// Moves a VM: its definition is removed here and made there, in either order, or is left on both hosts. The metadata of its snapshots
    /// goes along, or is dropped.
    pub(super) fn migrate(&mut self, which: u64) -> Result<Outcome> {
        let is_on_one = |vm: usize, room: &Self| {
            let has_moved = room.race.as_ref().is_some_and(|race| race.moved.iter().any(|moved| moved.entry == vm));
            Self::is_defined(vm, room) && room.ledger.twins(vm).is_empty() && !has_moved
        };
        let Some(vm) = self.pick_vm(which, is_on_one) else { return Ok(Outcome::Impossible) };
        let (uuid, from) = (self.ledger.vms[vm].uuid.to_string(), self.ledger.vms[vm].host);
        let to = (from + 1) % HOSTS;
        let xml = attempt!(self.xml(&self.ledger.vms[vm]));
        let goes_along = !(which >> 8).is_multiple_of(3);
        let metadata = if goes_along { attempt!(self.metadata(vm)) } else { Metadata::new() };
        let leaves = (which >> 12) % 4;
        if self.is_raced(vm) {
            return self.migrate_raced(vm, to, &xml, &metadata, leaves);
        }
        if leaves >= 2 && self.ledger.vms.len() < VMS {
            attempt!(self.define(to, &xml));
            let mut twin = self.ledger.vms[vm].clone();
            twin.host = to;
            let redefined = self.redefine_snapshots(to, &uuid, &metadata);
            twin.snapshots.retain(|id, _| redefined.contains(id));
            twin.current = twin.current.filter(|id| redefined.contains(id));
            self.ledger.vms.push(twin);
            self.has_told(to, vm);
            return Ok(Outcome::Done(format!("{uuid} is on both hosts, on {to} with snapshots {redefined:?}")));
        }
        let undefine = ["undefine", &uuid, "--snapshots-metadata", "--checkpoints-metadata"];
        if leaves == 0 {
            attempt!(self.virsh_for(vm, &undefine));
            // Nobody has it now: if the other host does not take it, it is one that was undefined.
            self.ledger.vms[vm].undefined = Some(xml.clone());
            if let Err(error) = self.define(to, &xml) {
                self.displace_all_but(vm, &[]);
                return Ok(super::refused(&error));
            }
        } else {
            attempt!(self.define(to, &xml));
            if let Err(error) = self.virsh_for(vm, &undefine) {
                self.world.virsh_on(to, &["undefine", &uuid])?;
                return Ok(super::refused(&error));
            }
        }
        (self.ledger.vms[vm].host, self.ledger.vms[vm].undefined) = (to, None);
        let redefined = self.redefine_snapshots(to, &uuid, &metadata);
        self.displace_all_but(vm, &redefined);
        let order = if leaves == 0 { "undefined first" } else { "defined first" };
        Ok(Outcome::Done(format!("{uuid} from {from} to {to}, {order}, with snapshots {redefined:?}")))
    }

    /// Of a VM that is on two hosts, removes one definition.
    pub(super) fn part(&mut self, which: u64) -> Result<Outcome> {
        let is_twin = |vm: usize, room: &Self| {
            let is_on_another = room.ledger.twins(vm).iter().any(|twin| room.ledger.vms[*twin].is_defined());
            Self::is_defined(vm, room) && is_on_another && room.race.is_none()
        };
        let Some(vm) = self.pick_vm(which, is_twin) else { return Ok(Outcome::Impossible) };
        let uuid = self.ledger.vms[vm].uuid.to_string();
        attempt!(self.virsh_for(vm, &["undefine", &uuid, "--snapshots-metadata", "--checkpoints-metadata"]));
        let host = self.ledger.vms[vm].host;
        self.forget_entry(vm);
        Ok(Outcome::Done(format!("{uuid} is no longer on host {host}")))
    }

    /// Moves a VM while a user's operation on it is under way. What came of it is looked at when that has ended.
    fn migrate_raced(&mut self, vm: usize, to: usize, xml: &str, metadata: &Metadata, leaves: u64) -> Result<Outcome> {
        let uuid = self.ledger.vms[vm].uuid.to_string();
        let undefine = ["undefine", &uuid, "--snapshots-metadata", "--checkpoints-metadata"];
        if leaves == 0 {
            attempt!(self.virsh_for(vm, &undefine));
            self.ledger.vms[vm].undefined = Some(xml.to_owned());
            self.effect(vm, Effect::Undefined);
        }
        attempt!(self.define(to, xml));
        let snapshots = self.redefine_snapshots(to, &uuid, metadata);
        if leaves == 1 && self.virsh_for(vm, &undefine).is_ok() {
            self.ledger.vms[vm].undefined = Some(xml.to_owned());
            self.effect(vm, Effect::Undefined);
        }
        let told = format!("{uuid} to {to} in the middle of an operation ({leaves}), with snapshots {snapshots:?}");
        if let Some(race) = &mut self.race {
            race.moved.push(Moved { entry: vm, to, snapshots });
        }
        Ok(Outcome::Done(told))
    }

    /// `virsh migrate`: offline, or of a VM that was started without running a guest. libvirt refuses it where there are snapshots.
    pub(super) fn migrate_by_libvirt(&mut self, which: u64) -> Result<Outcome> {
        let is_on_one = |vm: usize, room: &Self| {
            let has_none = room.ledger.vms[vm].snapshots.is_empty() || which.is_multiple_of(5);
            Self::is_defined(vm, room) && room.ledger.twins(vm).is_empty() && has_none
        };
        let Some(vm) = self.pick_vm(which, is_on_one) else { return Ok(Outcome::Impossible) };
        let (uuid, from) = (self.ledger.vms[vm].uuid.to_string(), self.ledger.vms[vm].host);
        let to = (from + 1) % HOSTS;
        if self.race.as_ref().is_some_and(|race| race.moved.iter().any(|moved| moved.entry == vm)) {
            return Ok(Outcome::Impossible);
        }
        let (uri, way) = (self.world.uri(to)?, self.scratch().join(self.fresh("way")));
        let way = format!("unix://{}", way.display());
        let is_live = (which >> 8).is_multiple_of(2);
        let moved = if is_live {
            attempt!(self.virsh_for(vm, &["start", &uuid, "--paused"]));
            let live = ["migrate", "--live", "--unsafe", "--persistent", "--undefinesource", &uuid, &uri, &way];
            self.virsh_for(vm, &live)
        } else {
            self.virsh_for(vm, &["migrate", "--offline", "--persistent", "--undefinesource", &uuid, &uri])
        };
        if moved.is_ok() {
            self.ledger.vms[vm].host = to;
        }
        if is_live {
            self.is_off(vm)?;
        }
        attempt!(moved);
        Ok(Outcome::Done(format!("{uuid} from {from} to {to}, {}", if is_live { "live" } else { "offline" })))
    }

    /// Gives a VM of one host an image that a VM of the other one has, too.
    pub(super) fn share(&mut self, which: u64) -> Result<Outcome> {
        let has_room =
            |vm: usize, room: &Self| Self::is_defined(vm, room) && room.ledger.vms[vm].disks.len() < DISKS.len();
        let Some(vm) = self.pick_vm(which, |vm, room| has_room(vm, room) && !room.is_raced(vm)) else {
            return Ok(Outcome::Impossible);
        };
        let (host, uuid) = (self.ledger.vms[vm].host, self.ledger.vms[vm].uuid);
        let bases = self.bases();
        let others = self.ledger.vms.iter().enumerate().filter(|(number, other)| {
            other.host != host && other.uuid != uuid && other.is_defined() && !self.is_raced(*number)
        });
        let images: Vec<Disk> = others
            .flat_map(|(_, other)| other.disks.values().cloned())
            .filter(|disk| !bases.contains(&disk.path))
            .collect();
        let Some(disk) = pick(&images, which >> 8).cloned() else { return Ok(Outcome::Impossible) };
        let paths = attempt!(self.paths(&self.ledger.vms[vm]));
        let is_free = |target: &&str| !paths.contains_key(*target);
        let Some(target) = DISKS.into_iter().find(is_free).filter(|_| !paths.values().any(|path| *path == disk.path))
        else {
            return Ok(Outcome::Impossible);
        };
        let (id, image) = (uuid.to_string(), disk.path.display().to_string());
        let attached = ["attach-disk", &id, &image, target, "--config", "--driver", "qemu", "--subdriver", "qcow2"];
        attempt!(self.virsh_for(vm, &attached));
        self.ledger.vms[vm].disks.insert(target.to_owned(), disk.clone());
        self.effect(vm, Effect::Attached(target.to_owned(), disk.path, disk.may));
        self.has_told(host, vm);
        Ok(Outcome::Done(format!("{image} to {} of host {host} as {target}", self.ledger.vms[vm].name)))
    }

    /// What libvirt has of the snapshots of a VM.
    fn metadata(&self, vm: usize) -> Result<Metadata> {
        let uuid = self.ledger.vms[vm].uuid.to_string();
        let names = self.virsh_for(vm, &["snapshot-list", &uuid, "--name", "--topological"])?;
        let current = self.virsh_for(vm, &["snapshot-current", &uuid, "--name"]).unwrap_or_default();
        let names = names.lines().filter(|name| !name.is_empty());
        let dump = |name: &str| {
            let dump = ["snapshot-dumpxml", &uuid, "--snapshotname", name, "--security-info"];
            Ok((name.to_owned(), self.virsh_for(vm, &dump)?, current.trim_end_matches('\n') == name))
        };
        names.map(dump).collect()
    }

    /// Tells libvirt of snapshots; those that it takes.
    fn redefine_snapshots(&self, host: usize, uuid: &str, metadata: &Metadata) -> Vec<String> {
        let mut taken = Vec::new();
        for (name, xml, is_current) in metadata {
            let mark: &[&str] = if *is_current { &["--current"] } else { &[] };
            let create = |file: &str| {
                self.world.virsh_on(host, &[&["snapshot-create", uuid, file, "--redefine"], mark].concat())
            };
            match self.virsh_with(xml, create) {
                Ok(_) => taken.push(name.clone()),
                Err(error) => self.tell(&format!("snapshot {name} of {uuid} does not go along: {error:#}")),
            }
        }
        taken
    }

    /// The metadata of all other snapshots of a VM is gone.
    pub(in super::super) fn displace_all_but(&mut self, vm: usize, kept: &[String]) {
        let gone: Vec<String> = self.ledger.vms[vm].snapshots.keys().filter(|id| !kept.contains(id)).cloned().collect();
        for snapshot in gone {
            self.ledger.displace(vm, &snapshot);
        }
    }

    /// Waits until a host has told the other one that it uses the images of a VM: what is done in the moment before that is a known limit.
    fn has_told(&self, host: usize, vm: usize) {
        let begun = Instant::now();
        let is_told = || {
            self.ledger.vms[vm].disks.values().all(|disk| {
                let (Some(directory), Some(name)) = (disk.path.parent(), disk.path.file_name()) else { return true };
                let note = directory.join(".ravada-snapshots").join(format!("{}.json", NAMES_OF_HOSTS[host]));
                let note = std::fs::read_to_string(note).unwrap_or_default();
                note.contains(&format!("\"{}\"", name.to_string_lossy()))
                    && note.contains(&self.ledger.vms[vm].uuid.to_string())
            })
        };
        while !is_told() {
            if begun.elapsed() > TOLD {
                self.tell("the host has not told the other one what it uses");
                return;
            }
            std::thread::sleep(AGAIN);
        }
    }
}

//! Definitions: renamed, changed, removed, and defined again.

use anyhow::Result;
use uuid::Uuid;

use super::super::room::{Effect, HOSTS, Outcome, Room};
use super::attempt;

impl Room {
    pub(super) fn rename(&mut self, which: u64) -> Result<Outcome> {
        let Some(vm) = self.pick_vm(which, Self::is_defined) else { return Ok(Outcome::Impossible) };
        let (id, name) = (self.ledger.vms[vm].uuid.to_string(), self.fresh("renamed"));
        attempt!(self.virsh_for(vm, &["domrename", &id, &name]));
        self.ledger.vms[vm].name.clone_from(&name);
        Ok(Outcome::Done(format!("{id} to {name}")))
    }

    /// Defines a VM with another amount of memory and another title.
    pub(super) fn redefine(&mut self, which: u64) -> Result<Outcome> {
        let Some(vm) = self.pick_vm(which, Self::is_defined) else { return Ok(Outcome::Impossible) };
        let mut xml = attempt!(self.xml(&self.ledger.vms[vm]));
        for tag in ["memory", "currentMemory"] {
            let (open, close) = (format!("<{tag} unit='KiB'>"), format!("</{tag}>"));
            if let Some((before, rest)) = xml.split_once(&open)
                && let Some((_, after)) = rest.split_once(&close)
            {
                xml = format!("{before}{open}{}{close}{after}", (16 + which % 8) * 1024);
            }
        }
        if !xml.contains("<title>") {
            xml = xml.replacen("</uuid>", &format!("</uuid><title>desk {}</title>", which % 100), 1);
        }
        attempt!(self.define(self.ledger.vms[vm].host, &xml));
        Ok(Outcome::Done(self.ledger.vms[vm].name.clone()))
    }

    /// Removes the definition with the metadata of all snapshots. No file of the VM is touched by that.
    pub(super) fn undefine(&mut self, which: u64) -> Result<Outcome> {
        let is_neither_last = |vm: usize, room: &Self| {
            // An image that another VM has as well is that one's from then on: its user may revert it.
            let shares = room.ledger.vms[vm].disks.values().any(|disk| room.ledger.is_of_another(vm, &disk.path));
            Self::is_defined(vm, room) && !shares && room.ledger.vms.iter().filter(|vm| !vm.is_defined()).count() < 2
        };
        let Some(vm) = self.pick_vm(which, is_neither_last) else { return Ok(Outcome::Impossible) };
        let xml = attempt!(self.xml(&self.ledger.vms[vm]));
        let id = self.ledger.vms[vm].uuid.to_string();
        attempt!(self.virsh_for(vm, &["undefine", &id, "--snapshots-metadata", "--checkpoints-metadata"]));
        self.ledger.vms[vm].undefined = Some(xml);
        if self.is_raced(vm) {
            self.effect(vm, Effect::Undefined);
        } else {
            let all: Vec<String> = self.ledger.vms[vm].snapshots.keys().cloned().collect();
            for snapshot in all {
                self.ledger.displace(vm, &snapshot);
            }
        }
        Ok(Outcome::Done(self.ledger.vms[vm].name.clone()))
    }

    /// Defines a VM that was undefined, as it was, or as another VM with the same disks, on its host or on the other one.
    pub(super) fn define_again(&mut self, which: u64) -> Result<Outcome> {
        let is_gone = |vm: usize, room: &Self| !Self::is_defined(vm, room) && !room.is_raced(vm);
        let Some(vm) = self.pick_vm(which, is_gone) else { return Ok(Outcome::Impossible) };
        let was = self.ledger.vms[vm].clone();
        let Some(mut xml) = was.undefined.clone() else { return Ok(Outcome::Impossible) };
        if which.is_multiple_of(3) {
            let other = Uuid::new_v4();
            xml = xml.replace(&was.uuid.to_string(), &other.to_string());
            self.ledger.vms[vm].uuid = other;
        }
        let host = (which >> 4) as usize % HOSTS;
        let is_there = self.ledger.twins(vm).iter().any(|twin| self.ledger.vms[*twin].host == host);
        let host = if is_there { was.host } else { host };
        if let Err(error) = self.define(host, &xml) {
            self.ledger.vms[vm].uuid = was.uuid;
            return Ok(super::refused(&error));
        }
        let vm = &mut self.ledger.vms[vm];
        (vm.undefined, vm.current, vm.host) = (None, None, host);
        Ok(Outcome::Done(format!("{} as {} on host {host}", vm.name, vm.uuid)))
    }
}

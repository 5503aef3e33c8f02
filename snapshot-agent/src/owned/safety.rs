//! Safety tags ([`crate::safety`]) that outlive their operation, and VMs whose disks a revert has left mixed.

use snapshot_core::ids::VmId;
use snapshot_core::restriction::Restriction;

use super::{Owned, Record};
use crate::hypervisor::{Failure, Hypervisor};
use crate::safety::{Mixed, Safety};

impl Owned {
    /// A safety tag could not be removed, or is needed.
    pub fn keep_safety(&self, vm: VmId, safety: Safety) {
        self.change_safety(vm, |record| {
            // The definition has secrets, and nobody needs it any more.
            let safety = Safety { definition: String::new(), ..safety.clone() };
            record.safety.retain(|other| other.tag != safety.tag);
            record.safety.push(safety);
        });
    }

    /// The disks of a VM hold states of different moments.
    pub fn mix(&self, vm: VmId, mixed: Mixed) {
        self.change_safety(vm, |record| record.mixed = Some(mixed.clone()));
    }

    /// The disks of a VM hold one snapshot again.
    pub fn unmix(&self, vm: VmId) {
        if self.get(vm).is_some_and(|record| record.mixed.is_some()) {
            self.change_safety(vm, |record| record.mixed = None);
        }
    }

    /// What is on record of a VM that makes operations on it unavailable.
    pub fn restrictions(&self, vm: VmId) -> Vec<Restriction> {
        self.get(vm).and_then(|record| record.mixed).iter().map(Mixed::restriction).collect()
    }

    /// The safety tags of a VM that nobody needs.
    pub fn unneeded_safety(&self, vm: VmId) -> Vec<Safety> {
        self.get(vm).filter(|record| record.mixed.is_none()).map(|record| record.safety).unwrap_or_default()
    }

    /// Removes all safety tags of a VM, which may not exist any more.
    pub(crate) fn clear_safety(&self, hypervisor: &dyn Hypervisor, vm: VmId) -> Result<(), Failure> {
        for safety in self.get(vm).into_iter().flat_map(|record| record.safety) {
            hypervisor.remove_safety_tag(vm, &safety)?;
            self.change_safety(vm, |record| record.safety.retain(|other| other.tag != safety.tag));
        }
        Ok(())
    }

    /// When this returns, a power cut does not forget it.
    fn change_safety(&self, vm: VmId, change: impl Fn(&mut Record)) {
        let changed = self.change(vm, |record| {
            let mut record = record.cloned().unwrap_or_else(|| Record::nothing(vm));
            change(&mut record);
            (!record.is_empty()).then_some(record)
        });
        if changed && self.get(vm).is_some() {
            self.sync(vm);
        }
    }
}

#[cfg(test)]
mod tests;

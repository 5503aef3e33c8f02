//! VMs that could not be observed, because something about them does not respond.

use proto::convert::Inventory;
use snapshot_core::ids::VmId;
use snapshot_core::vm::{VmFacts, VmState};

use super::Machines;
use crate::hypervisor::Unresponsive;

impl Machines {
    /// A VM could not be observed. What was last known of it stays, but for what that makes unavailable.
    pub fn is_unresponsive(&self, vm: VmId, found: &Unresponsive) {
        let mut state = self.lock();
        let nothing = || {
            let vm = VmFacts::bare(vm, vm.to_string(), VmState::Unknown);
            Inventory { vm, snapshots: Vec::new(), sequence: 0, unobserved: true }
        };
        let mut inventory = state.sharing.inventory(vm).unwrap_or_else(nothing);
        // A look that is refused at once, because an earlier one hangs, finds out less than that one did.
        let told = state.unresponsive.get(&vm).map(|told| (told.vm.name.clone(), told.vm.state));
        if let Some((name, state)) = found.known.clone().or(told) {
            (inventory.vm.name, inventory.vm.state) = (name, state);
        }
        inventory.vm.restrictions = vec![found.restriction.clone()];
        inventory.unobserved = true;
        state.unresponsive.insert(vm, inventory);
        state.renew(vm);
    }
}

//! Comparing the names of all snapshots with what is known.

use std::collections::BTreeSet;

use proto::convert::Inventory;
use snapshot_core::ids::{SnapshotId, VmId};

use crate::hypervisor::{Failure, Hypervisor, Outline, Versions};
use crate::machines::Machines;
use crate::owned;

/// A comparison of all names with what is known.
pub(super) struct Scan {
    pub(super) versions: Versions,
    pub(super) all: BTreeSet<VmId>,
    pub(super) changed: BTreeSet<VmId>,
}

pub(super) fn scan(hypervisor: &dyn Hypervisor, machines: &Machines) -> Result<Scan, Failure> {
    let all: BTreeSet<VmId> = hypervisor.vms()?.into_iter().collect();
    let mut changed = BTreeSet::new();
    for vm in &all {
        match (machines.get(*vm), hypervisor.outline(*vm)) {
            (Some(known), Ok(outline)) if is_same(&known, &outline) => {}
            (_, Err(failure @ Failure::Unreachable(_))) => return Err(failure),
            _ => {
                changed.insert(*vm);
            }
        }
    }
    if let Some(owned) = machines.owned() {
        owned::sweep(owned);
    }
    Ok(Scan { versions: hypervisor.versions()?, all, changed })
}

fn is_same(known: &Inventory, outline: &Outline) -> bool {
    let current = known.snapshots.iter().find(|snapshot| snapshot.is_current).map(|snapshot| snapshot.id.clone());
    let ids: BTreeSet<SnapshotId> = known.snapshots.iter().map(|snapshot| snapshot.id.clone()).collect();
    outline.current.as_deref().map(SnapshotId::of_name) == current
        && outline.snapshots.iter().map(|name| SnapshotId::of_name(name)).collect::<BTreeSet<_>>() == ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_by_the_ids_they_have() {
        let known = Inventory { vm: crate::machines::tests::vm(1, "desk"), snapshots: vec![], sequence: 0 };
        let outline = |names: &[&str], current: Option<&str>| Outline {
            snapshots: names.iter().map(|name| (*name).to_owned()).collect(),
            current: current.map(str::to_owned),
        };
        assert!(is_same(&known, &outline(&[], None)));
        assert!(!is_same(&known, &outline(&["a"], None)));
        let mut odd = crate::owned::tests::seen(&[SnapshotId::of_name("a\tb")], &[]).snapshots;
        odd[0].is_current = true;
        let known = Inventory { snapshots: odd, ..known };
        assert!(is_same(&known, &outline(&["a\tb"], Some("a\tb"))));
        assert!(!is_same(&known, &outline(&["a\tb"], None)));
        assert!(!is_same(&known, &outline(&["a\tc"], Some("a\tc"))));
    }
}

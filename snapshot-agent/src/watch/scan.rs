//! Comparing the names of all snapshots with what is known.

use std::collections::BTreeSet;
use std::sync::Arc;

use snapshot_core::ids::{SnapshotId, VmId};

use crate::bounded::jobs;
use crate::hypervisor::{Failure, Hypervisor, Outline, Versions};
use crate::machines::{Listed, Machines};
use crate::owned;

/// A comparison of all names with what is known.
pub(super) struct Scan {
    pub(super) versions: Versions,
    pub(super) all: BTreeSet<VmId>,
    pub(super) changed: BTreeSet<VmId>,
}

pub(super) fn scan(hypervisor: &dyn Hypervisor, machines: &Arc<Machines>) -> Result<Scan, Failure> {
    let all: BTreeSet<VmId> = hypervisor.vms()?.into_iter().collect();
    let mut changed = BTreeSet::new();
    for vm in &all {
        match (machines.listed(*vm), hypervisor.outline(*vm)) {
            (Some(listed), Ok(outline)) if is_same(&listed, &outline) => {}
            (_, Err(failure @ Failure::Unreachable(_))) => return Err(failure),
            // It is looked at again by itself, and one that nobody knows yet is looked at once.
            (Some(_), Err(Failure::Unresponsive(_))) => {}
            _ => {
                changed.insert(*vm);
            }
        }
    }
    let sweeping = Arc::clone(machines);
    if let Err(stuck) = jobs::run("files of VMs that are gone", move || sweeping.owned().map(owned::sweep)) {
        tracing::debug!(?stuck, "the files of VMs that are gone cannot be looked at");
    }
    Ok(Scan { versions: hypervisor.versions()?, all, changed })
}

fn is_same(listed: &Listed, outline: &Outline) -> bool {
    outline.current.as_deref().map(SnapshotId::of_name) == listed.current
        && outline.snapshots.iter().map(|name| SnapshotId::of_name(name)).collect::<BTreeSet<_>>() == listed.snapshots
}

#[cfg(test)]
mod tests {
    use snapshot_core::layers::Parts;

    use super::*;
    use crate::hypervisor::Observed;
    use crate::owned::tests::{id, seen};

    fn outline(names: &[&str], current: Option<&str>) -> Outline {
        Outline {
            snapshots: names.iter().map(|name| (*name).to_owned()).collect(),
            current: current.map(str::to_owned),
        }
    }

    fn listed(seen: &Observed) -> Listed {
        let machines = Machines::default();
        machines.saw(seen);
        machines.listed(seen.vm.id).unwrap()
    }

    #[test]
    fn names_are_compared_by_the_ids_they_have() {
        let nothing = listed(&seen(&[], &[]));
        assert!(is_same(&nothing, &outline(&[], None)));
        assert!(!is_same(&nothing, &outline(&["a"], None)));
        let mut odd = seen(&[SnapshotId::of_name("a\tb")], &[]);
        odd.snapshots[0].is_current = true;
        let odd = listed(&odd);
        assert!(is_same(&odd, &outline(&["a\tb"], Some("a\tb"))));
        assert!(!is_same(&odd, &outline(&["a\tb"], None)));
        assert!(!is_same(&odd, &outline(&["a\tc"], Some("a\tc"))));
    }

    /// libvirt still lists it, and marks it as current, while its parent is told to be.
    #[test]
    fn a_snapshot_whose_deletion_is_not_finished_is_no_news() {
        let (kept, gone) = (id(1), id(2));
        let mut seen = seen(std::slice::from_ref(&kept), &[]);
        seen.snapshots[0].is_current = true;
        let names = [kept.as_str(), gone.as_str()];
        seen.layers.snapshots.insert(kept.clone(), Parts::default());
        seen.layers.snapshots.insert(gone.clone(), Parts { deleted: true, is_current: true, ..Parts::default() });
        let deferred = listed(&seen);
        assert!(is_same(&deferred, &outline(&names, Some(gone.as_str()))));
        assert!(!is_same(&deferred, &outline(&names, Some(kept.as_str()))), "somebody went back");
        assert!(!is_same(&deferred, &outline(&[kept.as_str()], Some(kept.as_str()))), "somebody deleted it");
        // The machine goes back to the other: the mark is its own then.
        seen.layers.snapshots.values_mut().for_each(|parts| parts.is_current = !parts.is_current);
        assert!(is_same(&listed(&seen), &outline(&names, Some(kept.as_str()))));
        // It is removed for good.
        seen.layers.snapshots.remove(&gone);
        assert!(is_same(&listed(&seen), &outline(&[kept.as_str()], Some(kept.as_str()))));
    }
}

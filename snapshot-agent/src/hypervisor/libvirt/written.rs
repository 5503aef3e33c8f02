//! What is written about snapshots, as it was last read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use snapshot_core::ids::{SnapshotId, VmId};

use super::super::Reread;
use super::super::snapshot_xml::Recorded;

/// What was read, by machine and libvirt's name of the snapshot.
#[derive(Debug, Default)]
pub(super) struct Written(Mutex<BTreeMap<VmId, Machine>>);

#[derive(Debug, Default)]
struct Machine {
    snapshots: BTreeMap<String, Recorded>,
    /// How often something was changed: what was read across a change may be from before it.
    changes: u64,
}

/// What need not be read again, and when that was found.
pub(super) struct Known {
    pub(super) snapshots: BTreeMap<String, Recorded>,
    changes: u64,
}

impl Written {
    /// What is known of the machine's snapshots and need not be read again.
    pub(super) fn known(&self, vm: VmId, listed: &BTreeSet<String>, reread: Reread<'_>) -> Known {
        let again = |name: &str| match reread {
            Reread::All => true,
            Reread::One(id) => SnapshotId::of_name(name) == *id,
            Reread::Some(names) => names.contains(name),
            Reread::New => false,
        };
        // Where a snapshot was deleted, libvirt has given its children to its parent.
        let is_orphan = |recorded: &Recorded| recorded.parent.as_ref().is_some_and(|parent| !listed.contains(parent));
        let state = self.lock();
        let Some(machine) = state.get(&vm) else { return Known { snapshots: BTreeMap::new(), changes: 0 } };
        let kept = machine.snapshots.iter();
        // A pool that was not active may be so now.
        let is_whole = |recorded: &Recorded| !is_orphan(recorded) && recorded.unresolved.is_empty();
        let kept = kept.filter(|(name, recorded)| listed.contains(*name) && !again(name) && is_whole(recorded));
        let snapshots = kept.map(|(name, recorded)| (name.clone(), recorded.clone())).collect();
        Known { snapshots, changes: machine.changes }
    }

    /// This is what is written now, unless something was changed since.
    pub(super) fn remember(&self, vm: VmId, read: &Known) {
        let mut state = self.lock();
        let machine = state.entry(vm).or_default();
        if machine.changes == read.changes {
            machine.snapshots.clone_from(&read.snapshots);
        }
    }

    /// What is written about this snapshot was changed.
    pub(super) fn changed(&self, vm: VmId, id: &SnapshotId) {
        let mut state = self.lock();
        let machine = state.entry(vm).or_default();
        machine.changes += 1;
        machine.snapshots.retain(|name, _| SnapshotId::of_name(name) != *id);
    }

    /// These are all the machines there are.
    pub(super) fn keep(&self, vms: &[VmId]) {
        self.lock().retain(|vm, _| vms.contains(vm));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VmId, Machine>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::super::snapshot_xml;
    use super::*;

    fn recorded(name: &str, parent: Option<&str>) -> (String, Recorded) {
        let parent = parent.map(|parent| format!("<parent><name>{parent}</name></parent>")).unwrap_or_default();
        let xml = format!("<domainsnapshot><name>{name}</name>{parent}</domainsnapshot>");
        (name.to_owned(), snapshot_xml::parse(&xml).unwrap())
    }

    fn listed(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn remember(written: &Written, vm: VmId, read: &[(&str, Option<&str>)]) {
        let mut known = written.known(vm, &BTreeSet::new(), Reread::All);
        known.snapshots = read.iter().map(|(name, parent)| recorded(name, *parent)).collect();
        written.remember(vm, &known);
    }

    fn known(written: &Written, vm: VmId, names: &[&str], reread: Reread<'_>) -> String {
        written.known(vm, &listed(names), reread).snapshots.into_keys().collect::<Vec<_>>().concat()
    }

    #[test]
    fn what_may_have_changed_is_not_known() {
        let (written, vm) = (Written::default(), VmId::from_uuid(Uuid::from_u128(1)));
        remember(&written, vm, &[("a", None), ("b", Some("a")), ("c", Some("b"))]);
        let all = ["a", "b", "c", "new"];
        let b: SnapshotId = "b".parse().unwrap();
        assert_eq!(known(&written, vm, &all, Reread::New), "abc");
        assert_eq!(known(&written, vm, &all, Reread::One(&b)), "ac");
        assert_eq!(known(&written, vm, &all, Reread::Some(&listed(&["a", "b"]))), "c");
        assert_eq!(known(&written, vm, &all, Reread::All), "");
        // c hangs under a now.
        assert_eq!(known(&written, vm, &["a", "c"], Reread::New), "a");
        written.changed(vm, &b);
        assert_eq!(known(&written, vm, &all, Reread::New), "ac");
        written.keep(&[]);
        assert_eq!(known(&written, vm, &all, Reread::New), "");
    }

    #[test]
    fn what_was_read_across_a_change_is_not_believed() {
        let (written, vm) = (Written::default(), VmId::from_uuid(Uuid::from_u128(1)));
        remember(&written, vm, &[("a", None)]);
        let slow = written.known(vm, &listed(&["a"]), Reread::New);
        written.changed(vm, &"a".parse().unwrap());
        written.remember(vm, &slow);
        assert_eq!(known(&written, vm, &["a"], Reread::New), "");
    }
}

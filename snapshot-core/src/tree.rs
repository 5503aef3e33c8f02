//! The tree of a machine's snapshots.
//!
//! Invariants, held by construction and by property tests:
//! - ids are unique, every parent exists, and there is no cycle;
//! - at most one snapshot is current;
//! - removing a snapshot gives its children to its parent, and the mark of the current one with them.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::SnapshotId;
use crate::snapshot::SnapshotFacts;

/// Snapshots of one machine, in the order of their creation, each parent before its children.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SnapshotTree {
    snapshots: BTreeMap<SnapshotId, SnapshotFacts>,
    order: Vec<SnapshotId>,
}

/// A set of snapshots that is not a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// Two snapshots have one id.
    #[error("snapshot {0} occurs twice")]
    Duplicate(SnapshotId),
    /// A snapshot descends from itself.
    #[error("snapshot {0} descends from itself")]
    Cycle(SnapshotId),
    /// More than one snapshot is marked as current.
    #[error("snapshots {0} and {1} are both current")]
    TwoCurrent(SnapshotId, SnapshotId),
}

impl SnapshotTree {
    /// Builds the tree. A snapshot whose parent is not among them becomes a root, as libvirt does when the metadata of
    /// a parent is lost.
    pub fn new(facts: impl IntoIterator<Item = SnapshotFacts>) -> Result<Self, TreeError> {
        let mut snapshots = BTreeMap::new();
        let mut current: Option<SnapshotId> = None;
        for snapshot in facts {
            let id = snapshot.id.clone();
            if snapshot.is_current
                && let Some(other) = current.replace(id.clone())
            {
                return Err(TreeError::TwoCurrent(other, id));
            }
            if snapshots.insert(id.clone(), snapshot).is_some() {
                return Err(TreeError::Duplicate(id));
            }
        }
        let known: BTreeSet<SnapshotId> = snapshots.keys().cloned().collect();
        for snapshot in snapshots.values_mut() {
            snapshot.parent.take_if(|parent| !known.contains(parent));
        }
        let mut tree = Self { snapshots, order: Vec::new() };
        tree.order = tree.sorted()?;
        Ok(tree)
    }

    /// Parents first, and among those whose parents are placed the oldest first.
    fn sorted(&self) -> Result<Vec<SnapshotId>, TreeError> {
        let children = self.children_by_parent();
        let key = |id: &SnapshotId| (self.snapshots.get(id).map_or(0, |s| s.create_time), id.clone());
        let mut ready: BTreeSet<(i64, SnapshotId)> =
            children.get(&None).into_iter().flatten().map(|id| key(id)).collect();
        let mut order = Vec::with_capacity(self.snapshots.len());
        while let Some((_, id)) = ready.pop_first() {
            ready.extend(children.get(&Some(&id)).into_iter().flatten().map(|child| key(child)));
            order.push(id);
        }
        if order.len() == self.snapshots.len() {
            return Ok(order);
        }
        let placed: BTreeSet<&SnapshotId> = order.iter().collect();
        match self.snapshots.keys().find(|id| !placed.contains(id)) {
            Some(id) => Err(TreeError::Cycle(id.clone())),
            None => Ok(order),
        }
    }

    fn children_by_parent(&self) -> BTreeMap<Option<&SnapshotId>, Vec<&SnapshotId>> {
        let mut children: BTreeMap<Option<&SnapshotId>, Vec<&SnapshotId>> = BTreeMap::new();
        for snapshot in self.snapshots.values() {
            children.entry(snapshot.parent.as_ref()).or_default().push(&snapshot.id);
        }
        children
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The snapshot with this id.
    pub fn get(&self, id: &SnapshotId) -> Option<&SnapshotFacts> {
        self.snapshots.get(id)
    }

    /// All of them, oldest first, each parent before its children.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &SnapshotFacts> {
        self.order.iter().filter_map(|id| self.snapshots.get(id))
    }

    /// The one that the machine's present descends from directly.
    pub fn current(&self) -> Option<&SnapshotFacts> {
        self.snapshots.values().find(|snapshot| snapshot.is_current)
    }

    /// The ancestors of a snapshot, nearest first.
    pub fn ancestors<'a>(&'a self, id: &SnapshotId) -> impl Iterator<Item = &'a SnapshotFacts> {
        let parent = |snapshot: &SnapshotFacts| snapshot.parent.as_ref().and_then(|parent| self.get(parent));
        std::iter::successors(self.get(id).and_then(parent), move |snapshot| parent(snapshot))
    }

    /// How many ancestors a snapshot has.
    pub fn depth(&self, id: &SnapshotId) -> usize {
        self.ancestors(id).count()
    }

    /// The snapshots taken directly on top of one, oldest first.
    pub fn children<'a>(&'a self, id: &'a SnapshotId) -> impl Iterator<Item = &'a SnapshotFacts> {
        self.iter().filter(move |snapshot| snapshot.parent.as_ref() == Some(id))
    }

    /// All that descend from a snapshot, each child before its parent.
    pub fn descendants_leaf_first(&self, id: &SnapshotId) -> Vec<SnapshotId> {
        let mut inside = BTreeSet::from([id.clone()]);
        let mut found = Vec::new();
        for snapshot in self.iter() {
            if snapshot.parent.as_ref().is_some_and(|parent| inside.contains(parent)) {
                inside.insert(snapshot.id.clone());
                found.push(snapshot.id.clone());
            }
        }
        found.reverse();
        found
    }

    /// Adds a snapshot as the current one, on top of the one that was.
    pub fn insert_current(&mut self, mut snapshot: SnapshotFacts) -> Result<(), TreeError> {
        let parent = self.current().map(|current| current.id.clone());
        if self.snapshots.contains_key(&snapshot.id) {
            return Err(TreeError::Duplicate(snapshot.id));
        }
        self.set_current(None);
        snapshot.parent = parent;
        snapshot.is_current = true;
        self.order.push(snapshot.id.clone());
        self.snapshots.insert(snapshot.id.clone(), snapshot);
        self.order = self.sorted()?;
        Ok(())
    }

    /// Moves the mark of the current snapshot, as a revert does.
    pub fn set_current(&mut self, id: Option<&SnapshotId>) {
        for snapshot in self.snapshots.values_mut() {
            snapshot.is_current = Some(&snapshot.id) == id;
        }
    }

    /// Removes a snapshot: its children move up to its parent, which becomes current if it was.
    pub fn remove(&mut self, id: &SnapshotId) -> Option<SnapshotFacts> {
        let removed = self.snapshots.remove(id)?;
        self.order.retain(|other| other != id);
        for snapshot in self.snapshots.values_mut() {
            if snapshot.parent.as_ref() == Some(id) {
                snapshot.parent.clone_from(&removed.parent);
            }
        }
        if removed.is_current {
            self.set_current(removed.parent.as_ref());
        }
        Some(removed)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::description::Label;
    use crate::snapshot::{Content, Origin, RecordedState, Storage};
    use proptest::prelude::*;

    pub(crate) fn snapshot(number: u32, parent: Option<u32>) -> SnapshotFacts {
        SnapshotFacts {
            id: format!("snap-{number}").parse().unwrap(),
            parent: parent.map(|parent| format!("snap-{parent}").parse().unwrap()),
            is_current: false,
            create_time: i64::from(number / 2),
            label: Label::foreign(&format!("number {number}"), ""),
            content: Content::Disks,
            storage: Storage::Internal,
            vm_state: RecordedState::Shutoff,
            consistency: None,
            disks: vec!["vda".to_owned()],
            size_bytes: 0,
            origin: Origin::Service,
            broken: None,
            restrictions: Vec::new(),
            revert_denied: None,
        }
    }

    /// Any tree: each snapshot hangs under an earlier one or is a root; any one of them may be current.
    pub(crate) fn any_tree() -> impl Strategy<Value = SnapshotTree> {
        (proptest::collection::vec(any::<Option<prop::sample::Index>>(), 0..24), any::<prop::sample::Index>()).prop_map(
            |(parents, current)| {
                let mut facts: Vec<SnapshotFacts> = Vec::new();
                for (number, parent) in parents.iter().enumerate() {
                    let parent = if number == 0 { None } else { parent.map(|index| index.index(number) as u32) };
                    facts.push(snapshot(number as u32, parent));
                }
                if !facts.is_empty() {
                    let index = current.index(facts.len());
                    facts[index].is_current = true;
                }
                SnapshotTree::new(facts).unwrap()
            },
        )
    }

    pub(crate) fn assert_invariants(tree: &SnapshotTree) {
        let mut seen = BTreeSet::new();
        for snapshot in tree.iter() {
            if let Some(parent) = &snapshot.parent {
                assert!(seen.contains(parent), "{parent} is missing or comes after its child {}", snapshot.id);
            }
            assert!(seen.insert(snapshot.id.clone()), "{} occurs twice", snapshot.id);
        }
        assert_eq!(seen.len(), tree.len());
        assert!(tree.iter().filter(|snapshot| snapshot.is_current).count() <= 1);
    }

    #[test]
    fn a_cycle_is_refused_and_a_lost_parent_makes_a_root() {
        let cycle = [snapshot(1, Some(2)), snapshot(2, Some(1))];
        assert!(matches!(SnapshotTree::new(cycle), Err(TreeError::Cycle(_))));
        let orphan = SnapshotTree::new([snapshot(3, Some(9))]).unwrap();
        assert_eq!(orphan.iter().next().unwrap().parent, None);
    }

    #[test]
    fn the_depth_of_a_snapshot_is_the_number_of_its_ancestors() {
        let tree = SnapshotTree::new([snapshot(1, None), snapshot(2, Some(1)), snapshot(3, Some(2))]).unwrap();
        for (number, depth) in [(1, 0), (2, 1), (3, 2), (4, 0)] {
            assert_eq!(tree.depth(&snapshot(number, None).id), depth, "{number}");
        }
    }

    proptest! {
        #[test]
        fn removing_any_sequence_keeps_the_invariants(
            tree in any_tree(), removals in proptest::collection::vec(any::<prop::sample::Index>(), 0..24),
        ) {
            let mut tree = tree;
            assert_invariants(&tree);
            for removal in removals {
                if tree.is_empty() { break; }
                let id = tree.iter().nth(removal.index(tree.len())).unwrap().id.clone();
                let before = tree.len();
                let children: Vec<_> = tree.children(&id).map(|child| child.id.clone()).collect();
                let removed = tree.remove(&id).unwrap();
                prop_assert_eq!(tree.len(), before - 1);
                for child in children {
                    prop_assert_eq!(&tree.get(&child).unwrap().parent, &removed.parent);
                }
                assert_invariants(&tree);
            }
        }

        #[test]
        fn a_new_snapshot_hangs_under_the_current_one(tree in any_tree(), number in 100u32..200) {
            let mut tree = tree;
            let before = tree.current().map(|current| current.id.clone());
            tree.insert_current(snapshot(number, None)).unwrap();
            let added = tree.current().unwrap();
            prop_assert_eq!(&added.parent, &before);
            assert_invariants(&tree);
        }

        #[test]
        fn descendants_come_leaf_first_and_are_all_of_them(tree in any_tree()) {
            for snapshot in tree.iter() {
                let found = tree.descendants_leaf_first(&snapshot.id);
                let expected: BTreeSet<_> = tree.iter()
                    .filter(|other| tree.ancestors(&other.id).any(|ancestor| ancestor.id == snapshot.id))
                    .map(|other| other.id.clone()).collect();
                prop_assert_eq!(found.iter().cloned().collect::<BTreeSet<_>>(), expected);
                for (index, id) in found.iter().enumerate() {
                    for child in tree.children(id) {
                        prop_assert!(found[..index].contains(&child.id));
                    }
                }
            }
        }
    }
}

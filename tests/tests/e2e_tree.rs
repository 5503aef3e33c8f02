//! Trees: three levels with a fork, deleted by every scope. What survives is reverted to, and the guest reads the right
//! content of each.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use std::collections::BTreeMap;

use proto::v1;
use tests::guest::Guest;
use tests::lab::{Lab, Power};

/// A tree in the making, and what the guest had written before each snapshot.
struct Tree {
    lab: Lab,
    guest: Guest,
    power: Power,
    content: BTreeMap<&'static str, (v1::Snapshot, char)>,
}

impl Tree {
    /// ```text
    /// base (A)
    /// ├── left (B)
    /// │   ├── left-1 (C)
    /// │   └── left-2 (D)
    /// └── right (E)
    ///     └── right-1 (F), the current one
    /// ```
    async fn grow(power: Power) -> Self {
        let lab = Lab::start().unwrap();
        let guest = lab.guest("student").await.unwrap();
        let mut tree = Self { lab, guest, power, content: BTreeMap::new() };
        tree.add("base", 'A').await;
        tree.add("left", 'B').await;
        tree.add("left-1", 'C').await;
        tree.read("left").await;
        tree.add("left-2", 'D').await;
        tree.read("base").await;
        tree.add("right", 'E').await;
        tree.add("right-1", 'F').await;
        tree.check(&[
            ("base", "", 0, 2),
            ("left", "base", 1, 2),
            ("left-1", "left", 2, 0),
            ("left-2", "left", 2, 0),
            ("right", "base", 1, 1),
            ("right-1", "right", 2, 0),
        ])
        .await;
        tree.check_current("right-1").await;
        tree
    }

    async fn add(&mut self, name: &'static str, marker: char) {
        self.lab.set(&self.guest, Power::Running).await.unwrap();
        self.guest.write(marker).unwrap();
        self.lab.set(&self.guest, self.power).await.unwrap();
        let snapshot = self.lab.take(&self.guest, name).await.unwrap();
        self.content.insert(name, (snapshot, marker));
        self.check_current(name).await;
    }

    fn named(&self, name: &str) -> &v1::Snapshot {
        &self.content[name].0
    }

    /// Reverts to a snapshot and has the guest say what is there.
    async fn read(&self, name: &str) {
        let (snapshot, marker) = &self.content[name];
        self.lab.return_to(snapshot).await.unwrap();
        self.check_current(name).await;
        self.lab.set(&self.guest, Power::Running).await.unwrap();
        let report = self.guest.report().unwrap();
        assert_eq!((report.disk, report.ram), (*marker, *marker), "{name}");
    }

    async fn delete(&self, name: &str, scope: v1::DeleteScope) {
        self.lab.remove(self.named(name), scope).await.unwrap();
    }

    /// The list is this one, in this order: name, parent's name, depth, count of children; libvirt and images agree.
    async fn check(&self, expected: &[(&str, &str, i32, i32)]) {
        let list = self.lab.agreed(&self.guest).await.unwrap();
        let names: BTreeMap<&str, &str> =
            list.iter().map(|one| (one.name.as_str(), one.display_name.as_str())).collect();
        let told: Vec<(&str, &str, i32, i32)> = list
            .iter()
            .map(|one| {
                let parent = names.get(one.parent_snapshot.as_str()).copied().unwrap_or_default();
                (one.display_name.as_str(), parent, one.depth, one.child_count)
            })
            .collect();
        assert_eq!(told, expected);
        assert!(list.iter().all(|one| one.state() == v1::SnapshotState::Ready), "{list:?}");
    }

    async fn check_current(&self, name: &str) {
        let list = self.lab.agreed(&self.guest).await.unwrap();
        let current: Vec<&str> =
            list.iter().filter(|one| one.is_current).map(|one| one.display_name.as_str()).collect();
        assert_eq!(current, [name]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_machines_tree() {
    let tree = Tree::grow(Power::Running).await;
    // In the middle, above a fork, off the current branch: its children move up to its parent.
    tree.delete("left", v1::DeleteScope::Only).await;
    tree.check(&[
        ("base", "", 0, 3),
        ("left-1", "base", 1, 0),
        ("left-2", "base", 1, 0),
        ("right", "base", 1, 1),
        ("right-1", "right", 2, 0),
    ])
    .await;
    tree.check_current("right-1").await;
    assert_eq!(tree.guest.report().unwrap().disk, 'F', "a deletion leaves the present alone");
    for name in ["left-1", "right-1", "left-2", "right", "base"] {
        tree.read(name).await;
    }

    // With all that descends from it; the machine is at the root.
    tree.delete("right", v1::DeleteScope::Subtree).await;
    tree.check(&[("base", "", 0, 2), ("left-1", "base", 1, 0), ("left-2", "base", 1, 0)]).await;
    tree.read("left-2").await;
    tree.read("left-1").await;

    // The machine is at one of those that go: it runs on, and its present descends from the root then.
    let at = tree.guest.report().unwrap();
    tree.delete("base", v1::DeleteScope::Descendants).await;
    tree.check(&[("base", "", 0, 0)]).await;
    tree.check_current("base").await;
    assert_eq!(tree.guest.report().unwrap(), at);
    tree.read("base").await;
    tree.delete("base", v1::DeleteScope::Only).await;
    tree.lab.nothing_left(&tree.guest, tree.named("base")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_powered_off_machines_tree() {
    let tree = Tree::grow(Power::Off).await;
    // Below a fork on the other branch, and not the fork itself.
    tree.delete("left", v1::DeleteScope::Descendants).await;
    tree.check(&[("base", "", 0, 2), ("left", "base", 1, 0), ("right", "base", 1, 1), ("right-1", "right", 2, 0)])
        .await;
    for name in ["left", "right", "right-1"] {
        tree.read(name).await;
    }

    // The root alone: its children become roots. The one in the middle of what is left, too.
    tree.delete("base", v1::DeleteScope::Only).await;
    tree.check(&[("left", "", 0, 0), ("right", "", 0, 1), ("right-1", "right", 1, 0)]).await;
    tree.read("left").await;
    tree.read("right-1").await;
    tree.lab.set(&tree.guest, Power::Off).await.unwrap();
    tree.delete("right", v1::DeleteScope::Subtree).await;
    tree.check(&[("left", "", 0, 0)]).await;
    tree.read("left").await;
    tree.delete("left", v1::DeleteScope::Subtree).await;
    tree.lab.nothing_left(&tree.guest, tree.named("left")).await.unwrap();
}

//! What is known of the host's machines, and who is told when it changes.
//!
//! A subscriber gets every machine once and then each that changed. What waits for it is only which machines to tell it
//! about: a slow one misses intermediate states and never the last, and costs no more memory than there are machines.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use proto::convert::Inventory;
use snapshot_core::Reason;
use snapshot_core::ids::{SnapshotId, VmId};
use tokio::sync::{Notify, watch};

use crate::clock::since_boot;
use crate::hypervisor::{Observed, Versions};
use crate::owned::Owned;

/// The machines of a host as they were last seen.
#[derive(Debug)]
pub struct Machines {
    state: Mutex<State>,
    synced: watch::Sender<bool>,
    rereading: watch::Sender<Rereading>,
    /// What of ours is in their images; nothing remembers it in some tests.
    owned: Option<Owned>,
}

/// What libvirt lists of a machine's snapshots.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listed {
    /// Their ids, deleted ones included.
    pub snapshots: BTreeSet<SnapshotId>,
    /// The one marked as current, which may be deleted.
    pub current: Option<SnapshotId>,
}

impl Listed {
    fn of(inventory: &Inventory) -> Self {
        let current = inventory.snapshots.iter().find(|snapshot| snapshot.is_current);
        Self {
            snapshots: inventory.snapshots.iter().map(|snapshot| snapshot.id.clone()).collect(),
            current: current.map(|snapshot| snapshot.id.clone()),
        }
    }

    /// With the snapshots that are deleted for everybody but libvirt; `None` where there are none.
    fn with_deleted(seen: &Observed) -> Option<Self> {
        let deleted = seen.layers.deleted();
        if deleted.is_empty() {
            return None;
        }
        let mut listed = Self::of(&seen.inventory());
        // That of a deleted one is told of its parent.
        let current = deleted.iter().find(|id| seen.layers.snapshots.get(*id).is_some_and(|parts| parts.is_current));
        listed.current = current.cloned().or(listed.current);
        listed.snapshots.extend(deleted);
        Some(listed)
    }
}

/// How often all machines were asked to be looked at again, and up to which asking that was done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rereading {
    /// The number of the last asking.
    pub asked: u64,
    /// The number of the last asking after which every machine was looked at.
    pub done: u64,
}

#[derive(Debug, Default)]
struct State {
    known: BTreeMap<VmId, Arc<Inventory>>,
    /// What libvirt listed, where it lists more than there is for anybody else: snapshots whose deletion is not finished.
    listed: BTreeMap<VmId, Listed>,
    /// The number of the last inventory that was published.
    published: u64,
    subscribers: Vec<Weak<Subscriber>>,
    versions: Versions,
}

#[derive(Debug, Default)]
struct Subscriber {
    pending: Mutex<BTreeSet<VmId>>,
    arrived: Notify,
}

/// What happened to a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It is now so.
    Is(Arc<Inventory>),
    /// There is no such machine any more.
    Gone(VmId),
}

/// A place to be told of changes.
#[derive(Debug)]
pub struct Subscription {
    machines: Arc<Machines>,
    subscriber: Arc<Subscriber>,
}

impl Default for Machines {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            synced: watch::Sender::new(false),
            rereading: watch::Sender::default(),
            owned: None,
        }
    }
}

impl Machines {
    /// No machine is known yet, and what of ours is in images is remembered there.
    pub fn remembering(owned: Owned) -> Self {
        Self { owned: Some(owned), ..Self::default() }
    }

    /// What of ours is in the images of machines.
    pub fn owned(&self) -> Option<&Owned> {
        self.owned.as_ref()
    }

    /// A machine was looked at.
    pub fn saw(&self, seen: &Observed) {
        if let Some(owned) = &self.owned {
            owned.saw(seen);
        }
        let mut inventory = seen.inventory();
        inventory.vm.restrictions.retain(|restriction| restriction.reason != Reason::DisksMixed);
        inventory.vm.restrictions.extend(self.owned.iter().flat_map(|owned| owned.restrictions(seen.vm.id)));
        self.publish(inventory, Listed::with_deleted(seen));
    }

    /// There is no such machine. What it left in images is remembered before anybody is told.
    pub fn vanished(&self, vm: VmId) {
        if let Some(owned) = &self.owned {
            owned.vanished(vm);
        }
        self.remove(vm);
    }

    fn publish(&self, mut inventory: Inventory, listed: Option<Listed>) {
        let vm = inventory.vm.id;
        let mut state = self.lock();
        match listed {
            Some(listed) => _ = state.listed.insert(vm, listed),
            None => _ = state.listed.remove(&vm),
        }
        let same = |known: &Arc<Inventory>| known.vm == inventory.vm && known.snapshots == inventory.snapshots;
        if state.known.get(&vm).is_some_and(same) {
            return;
        }
        // No less than the time since boot, so that a process that follows another one does not seem to tell old news.
        state.published = (state.published + 1).max(since_boot());
        inventory.sequence = state.published;
        state.known.insert(vm, Arc::new(inventory));
        state.tell(vm);
    }

    fn remove(&self, vm: VmId) {
        let mut state = self.lock();
        state.listed.remove(&vm);
        if state.known.remove(&vm).is_some() {
            state.tell(vm);
        }
    }

    /// A machine as it was last seen.
    pub fn get(&self, vm: VmId) -> Option<Arc<Inventory>> {
        self.lock().known.get(&vm).cloned()
    }

    /// What libvirt listed of a machine's snapshots when it was last seen.
    pub fn listed(&self, vm: VmId) -> Option<Listed> {
        let state = self.lock();
        let listed = state.listed.get(&vm).cloned();
        listed.or_else(|| state.known.get(&vm).map(|known| Listed::of(known)))
    }

    /// The machines that are known.
    pub fn ids(&self) -> Vec<VmId> {
        self.lock().known.keys().copied().collect()
    }

    /// What runs on the host.
    pub fn versions(&self) -> Versions {
        self.lock().versions.clone()
    }

    /// What runs on the host was found out.
    pub fn set_versions(&self, versions: Versions) {
        self.lock().versions = versions;
    }

    /// Whether every machine has been seen since the hypervisor was reached, and it still is reached.
    pub fn synced(&self) -> watch::Receiver<bool> {
        self.synced.subscribe()
    }

    /// Every machine has been seen, or the hypervisor was lost.
    pub fn set_synced(&self, synced: bool) {
        self.synced.send_if_modified(|now| std::mem::replace(now, synced) != synced);
    }

    /// Has every machine looked at again, whatever is known of it, and waits until that is done.
    pub async fn reread(&self) {
        let mut rereading = self.rereading.subscribe();
        let mut mine = 0;
        self.rereading.send_modify(|rereading| {
            rereading.asked += 1;
            mine = rereading.asked;
        });
        // The sender lives as long as `self`.
        let _ = rereading.wait_for(|rereading| rereading.done >= mine).await;
    }

    /// Tells when somebody asks for every machine to be looked at again.
    pub fn rereading(&self) -> watch::Receiver<Rereading> {
        self.rereading.subscribe()
    }

    /// Every machine was looked at after this asking.
    pub fn set_reread(&self, asked: u64) {
        self.rereading.send_modify(|rereading| rereading.done = rereading.done.max(asked));
    }

    /// Subscribes; every machine that is known counts as changed at first.
    pub fn subscribe(self: &Arc<Self>) -> Subscription {
        let mut state = self.lock();
        let pending = Mutex::new(state.known.keys().copied().collect());
        let subscriber = Arc::new(Subscriber { pending, arrived: Notify::new() });
        state.subscribers.push(Arc::downgrade(&subscriber));
        Subscription { machines: Arc::clone(self), subscriber }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn tell(&mut self, vm: VmId) {
        self.subscribers.retain(|subscriber| {
            let Some(subscriber) = subscriber.upgrade() else { return false };
            subscriber.pending.lock().unwrap_or_else(PoisonError::into_inner).insert(vm);
            subscriber.arrived.notify_one();
            true
        });
    }
}

impl Subscription {
    /// A change, if there is one.
    pub fn try_next(&self) -> Option<Change> {
        let vm = self.subscriber.pending.lock().unwrap_or_else(PoisonError::into_inner).pop_first()?;
        Some(self.machines.get(vm).map_or(Change::Gone(vm), Change::Is))
    }

    /// Waits for a change. Nothing is lost when the wait is given up.
    pub async fn next(&self) -> Change {
        loop {
            if let Some(change) = self.try_next() {
                return change;
            }
            self.subscriber.arrived.notified().await;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use snapshot_core::vm::{Nvram, VmFacts, VmState};
    use uuid::Uuid;

    pub(crate) fn vm(n: u128, name: &str) -> VmFacts {
        VmFacts {
            id: VmId::from_uuid(Uuid::from_u128(n)),
            name: name.to_owned(),
            state: VmState::Shutoff,
            persistent: true,
            has_managed_save: false,
            block_job_disk: None,
            memory_bytes: 0,
            disks: vec![],
            nvram: Nvram::Absent,
            missing_medium: None,
            restrictions: Vec::new(),
        }
    }

    fn inventory(n: u128, name: &str) -> Inventory {
        Inventory { vm: vm(n, name), snapshots: vec![], sequence: 0 }
    }

    #[tokio::test]
    async fn a_subscriber_gets_all_and_then_the_latest_of_what_changed() {
        let machines = Arc::new(Machines::default());
        machines.publish(inventory(1, "a"), None);
        machines.publish(inventory(2, "b"), None);
        let subscription = machines.subscribe();
        let told = |change: Change| match change {
            Change::Is(inventory) => (inventory.vm.name.clone(), inventory.sequence),
            other => panic!("{other:?}"),
        };
        let (first, second) = (told(subscription.next().await), told(subscription.next().await));
        assert_eq!((first.0.as_str(), second.0.as_str()), ("a", "b"));
        assert!(first.1 < second.1, "{first:?} {second:?}");
        assert_eq!(subscription.try_next(), None);
        for name in ["x", "y", "z"] {
            machines.publish(inventory(1, name), None);
        }
        machines.publish(inventory(2, "b"), None);
        let latest = told(subscription.next().await);
        assert!(latest.0 == "z" && latest.1 >= second.1 + 3, "{latest:?}");
        assert_eq!(subscription.try_next(), None);
        let gone = inventory(2, "b").vm.id;
        machines.remove(gone);
        machines.remove(gone);
        assert_eq!(subscription.next().await, Change::Gone(gone));
        assert_eq!(subscription.try_next(), None);
    }

    #[test]
    fn a_process_that_follows_another_tells_by_higher_numbers() {
        let told = || {
            let machines = Machines::default();
            machines.publish(inventory(1, "a"), None);
            machines.get(vm(1, "a").id).unwrap().sequence
        };
        let before = told();
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert!(told() > before);
    }

    #[test]
    fn who_no_longer_listens_is_forgotten() {
        let machines = Arc::new(Machines::default());
        drop(machines.subscribe());
        machines.publish(inventory(1, "a"), None);
        assert!(machines.lock().subscribers.is_empty());
    }
}

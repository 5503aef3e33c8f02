//! What is known of the host's machines, and who is told when it changes.
//!
//! A subscriber gets every machine once and then each that changed. What waits for it is only which machines to tell it
//! about: a slow one misses intermediate states and never the last, and costs no more memory than there are machines.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use proto::convert::Inventory;
use snapshot_core::Reason;
use snapshot_core::ids::{SnapshotId, VmId};
use snapshot_core::images::Uses;
use tokio::sync::{Notify, watch};

use crate::clock::since_boot;
use crate::hypervisor::{Observed, Versions};
use crate::owned::{Owned, Prepared};
use sharing::Sharing;

mod dependents;
mod sharing;
mod unresponsive;

/// The machines of a host as they were last seen.
#[derive(Debug)]
pub struct Machines {
    state: Mutex<State>,
    synced: watch::Sender<bool>,
    rereading: watch::Sender<Rereading>,
    /// What of ours is in their images; nothing remembers it in some tests.
    owned: Option<Owned>,
    dependents: dependents::Found,
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
    sharing: Sharing,
    /// Machines that could not be observed, as they are told.
    unresponsive: BTreeMap<VmId, Inventory>,
    /// Machines that could not be looked at when somebody waited for that.
    awaited: BTreeSet<VmId>,
    /// What libvirt listed, where it lists more than there is for anybody else: snapshots whose deletion is not finished.
    listed: BTreeMap<VmId, Listed>,
    /// Snapshots to which only administrators may revert, with the reason.
    denied: BTreeMap<VmId, BTreeMap<SnapshotId, String>>,
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
            dependents: dependents::Found::default(),
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
        self.publish_seen(seen);
    }

    fn publish_seen(&self, seen: &Observed) {
        let mut inventory = seen.inventory();
        inventory.vm.restrictions.retain(|restriction| restriction.reason != Reason::DisksMixed);
        if let Some(owned) = &self.owned {
            inventory.vm.restrictions.extend(owned.restrictions(seen.vm.id));
            inventory.vm.orphans = owned.orphan_summary(seen.vm.id);
            owned.mark_replaced(seen, &mut inventory.snapshots);
        }
        if let Some(denied) = self.lock().denied.get(&seen.vm.id) {
            inventory.snapshots.iter_mut().for_each(|one| one.revert_denied = denied.get(&one.id).cloned());
        }
        self.publish(inventory, &seen.uses, Listed::with_deleted(seen));
    }

    /// The same, with what was read from storage for it before: this touches none.
    pub(crate) fn saw_prepared(&self, seen: &Observed, prepared: Option<&Prepared>) {
        if let (Some(owned), Some(prepared)) = (&self.owned, prepared) {
            owned.saw_prepared(seen.vm.id, prepared);
        }
        self.publish_seen(seen);
    }

    /// The host's policy lets nobody but administrators revert a VM to these snapshots, as of the look that is published next.
    pub(crate) fn set_denied(&self, vm: VmId, denied: BTreeMap<SnapshotId, String>) {
        let mut state = self.lock();
        match denied.is_empty() {
            true => _ = state.denied.remove(&vm),
            false => _ = state.denied.insert(vm, denied),
        }
    }

    /// There is no such machine. What it left in images is remembered before anybody is told.
    pub fn vanished(&self, vm: VmId) {
        if let Some(owned) = &self.owned {
            owned.vanished(vm);
        }
        self.remove(vm);
    }

    fn publish(&self, inventory: Inventory, uses: &Uses, listed: Option<Listed>) {
        let vm = inventory.vm.id;
        let mut state = self.lock();
        match listed {
            Some(listed) => _ = state.listed.insert(vm, listed),
            None => _ = state.listed.remove(&vm),
        }
        state.unresponsive.remove(&vm);
        // What it uses may make operations on others unavailable, or available again.
        let affected = state.sharing.saw(inventory, uses);
        affected.into_iter().for_each(|vm| state.renew(vm));
    }

    fn remove(&self, vm: VmId) {
        let mut state = self.lock();
        state.listed.remove(&vm);
        state.denied.remove(&vm);
        state.unresponsive.remove(&vm);
        let affected = state.sharing.vanished(vm);
        if state.known.remove(&vm).is_some() {
            state.tell(vm);
        }
        affected.into_iter().for_each(|vm| state.renew(vm));
    }

    /// Adds what the use of its images by other machines makes unavailable to a machine that was looked at.
    pub fn restrict(&self, seen: &Observed) -> Inventory {
        self.lock().sharing.restricted(seen.inventory(), &seen.uses)
    }

    /// The name of another VM than this one that uses a file, as it was last seen.
    pub fn other_user(&self, vm: VmId, file: &str) -> Option<String> {
        self.lock().sharing.other_user(vm, file)
    }

    /// Whether any of these machines was never looked at.
    pub fn has_new(&self, vms: &[VmId]) -> bool {
        let state = self.lock();
        vms.iter().any(|vm| !state.sharing.has(*vm) && !state.awaited.contains(vm))
    }

    /// These machines were waited for in vain.
    pub fn no_longer_new(&self, vms: &[VmId]) {
        self.lock().awaited = vms.iter().copied().collect();
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

    /// The files that VMs use, as they were last looked at: each with the VM and its name.
    pub(crate) fn files(&self) -> Vec<(PathBuf, VmId, String)> {
        self.lock().sharing.files().collect()
    }

    /// Whether the files that a VM uses are known.
    pub(crate) fn has_files_of(&self, vm: VmId) -> bool {
        self.lock().sharing.has(vm)
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
    /// Publishes a machine as it is now known, if that is news.
    fn renew(&mut self, vm: VmId) {
        let unresponsive = self.unresponsive.get(&vm).cloned();
        let Some(mut inventory) = unresponsive.or_else(|| self.sharing.inventory(vm)) else { return };
        let same = |known: &Arc<Inventory>| {
            (&known.vm, &known.snapshots, known.unobserved)
                == (&inventory.vm, &inventory.snapshots, inventory.unobserved)
        };
        if self.known.get(&vm).is_some_and(same) {
            return;
        }
        // No less than the time since boot, so that a process that follows another one does not seem to tell old news.
        self.published = (self.published + 1).max(since_boot());
        inventory.sequence = self.published;
        self.known.insert(vm, Arc::new(inventory));
        self.tell(vm);
    }

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
pub(crate) mod tests;

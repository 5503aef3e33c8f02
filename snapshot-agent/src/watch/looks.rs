//! Looking at machines: when, how many at a time, and what is published of what a look found.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use snapshot_core::ids::{SnapshotId, VmId};
use snapshot_core::policy::HostPolicy;

use super::leftovers::Left;
use super::{Done, HELD_PAUSE, LOOKS, RETRIES, RETRY_PAUSE, Read, SLOW, SLOW_LOOKS, Watch, places};
use crate::bounded::jobs;
use crate::hypervisor::libvirt::unresponsive;
use crate::hypervisor::{Failure, Hypervisor, Observed, Reread, Unresponsive};
use crate::machines::Machines;
use crate::owned::Prepared;
use crate::revert_plan;

/// A machine as a look found it, and whatever else of it is read from storage: the task that decides touches none.
pub(super) struct Seen {
    pub(super) observed: Observed,
    prepared: Option<Prepared>,
    denied: BTreeMap<SnapshotId, String>,
    pub(super) left: Left,
}

fn look(
    hypervisor: &dyn Hypervisor,
    policy: &HostPolicy,
    machines: &Arc<Machines>,
    vm: VmId,
    reread: Reread<'_>,
) -> Result<Seen, Failure> {
    let observed = hypervisor.observe(vm, reread)?;
    let denied = revert_plan::denied(hypervisor, &machines.versions().limit(policy), &observed);
    let (machines, state) = (Arc::clone(machines), (observed.vm.name.clone(), observed.vm.state));
    let examined = jobs::run(&vm.to_string(), move || {
        let prepared = machines.owned().map(|owned| owned.prepare(&observed));
        let left = Left::of(machines.owned(), &observed);
        Seen { observed, prepared, denied, left }
    });
    examined.map_err(|stuck| unresponsive(&stuck, Some(state)))
}

impl Watch {
    pub(super) fn begin_looks(&mut self) {
        while self.has_place() {
            let Some(vm) = self.next() else { return };
            self.queue.remove(&vm);
            let stamp = self.locks.stamp(vm);
            if stamp.is_none() && self.machines.get(vm).is_some() {
                self.hold(vm);
                self.see(vm);
                continue;
            }
            self.looking.insert(vm, Instant::now());
            let (hypervisor, machines) = (Arc::clone(&self.hypervisor), Arc::clone(&self.machines));
            let policy = self.policy.clone();
            let names = self.rewritten.remove(&vm).unwrap_or_default();
            let read = Read { all: self.thorough.remove(&vm), names };
            self.tasks.spawn_blocking(move || {
                let reread = if read.all { Reread::All } else { Reread::Some(&read.names) };
                let result = Box::new(look(&*hypervisor, &policy, &machines, vm, reread));
                Done::Looked { vm, stamp, read, result }
            });
        }
        if !self.queue.is_empty() && !std::mem::replace(&mut self.is_pausing, true) {
            self.tasks.spawn(async {
                tokio::time::sleep(SLOW).await;
                Done::SlowDue
            });
        }
    }

    /// Whether another machine may be looked at. A look that is slow does not count: it waits for its own machine.
    fn has_place(&self) -> bool {
        let quick = self.looking.values().filter(|begun| begun.elapsed() < SLOW).count();
        quick < LOOKS && self.looking.len() < LOOKS + SLOW_LOOKS
    }

    /// The next machine to look at: those that did not respond come last.
    fn next(&self) -> Option<VmId> {
        let mut free = self.queue.iter().filter(|vm| !self.looking.contains_key(vm));
        let responsive = free.clone().find(|vm| !self.unresponsive.contains(vm));
        responsive.or_else(|| free.next()).copied()
    }

    /// An operation has the machine: it is tried again in a moment.
    pub(super) fn hold(&mut self, vm: VmId) {
        if self.held.is_empty() {
            self.tasks.spawn(async {
                tokio::time::sleep(HELD_PAUSE).await;
                Done::HeldDue
            });
        }
        self.held.insert(vm);
    }

    /// The next look reads what this one was to.
    pub(super) fn unread(&mut self, vm: VmId, read: Read) {
        if read.all {
            self.thorough.insert(vm);
        }
        if !read.names.is_empty() {
            self.rewritten.entry(vm).or_default().extend(read.names);
        }
    }

    pub(super) fn looked(&mut self, vm: VmId, stamp: Option<u64>, read: Read, result: Result<Seen, Failure>) {
        match result {
            Ok(seen) => {
                self.notes.changed();
                self.unreadable.remove(&vm);
                self.responds(vm);
                let undisturbed = stamp.is_some() && self.locks.stamp(vm) == stamp;
                if undisturbed || self.machines.get(vm).is_none() {
                    // What libvirt told while this look was under way is found by the next one.
                    if !self.queue.contains(&vm) {
                        self.news.remove(&vm);
                    }
                    self.machines.set_denied(vm, seen.denied.clone());
                    self.machines.saw_prepared(&seen.observed, seen.prepared.as_ref());
                    self.clear_leftovers(&seen);
                } else {
                    self.unread(vm, read);
                    self.hold(vm);
                }
                self.place(&seen.observed);
                self.postponed.extend(places::look_again(&seen.observed));
                self.see(vm);
            }
            Err(Failure::Unresponsive(found)) => self.does_not_respond(vm, stamp, read, &found),
            Err(Failure::VmGone) => {
                self.notes.changed();
                self.news.remove(&vm);
                self.unreadable.remove(&vm);
                self.responds(vm);
                self.machines.vanished(vm);
                self.dependents.changed();
                self.thorough.remove(&vm);
                self.rewritten.remove(&vm);
                self.moved |= self.places.remove(vm);
                self.see(vm);
            }
            Err(failure) => {
                let unreachable = matches!(failure, Failure::Unreachable(_));
                if !unreachable && self.unreadable.insert(vm) {
                    self.notes.changed();
                    tracing::warn!(%vm, %failure, "a machine cannot be read");
                }
                self.unread(vm, read);
                self.postponed.insert(vm);
                // A machine that libvirt cannot tell of must not keep the others from being served. Finding that out takes
                // longer than the time between two looks, so it is always queued again by now.
                if !unreachable {
                    self.count_as_seen(vm);
                }
            }
        }
    }

    fn clear_leftovers(&mut self, seen: &Seen) {
        let vm = seen.observed.vm.id;
        if let Some(clear) = self.leftovers.clear(&self.hypervisor, &self.locks, &self.machines, seen) {
            self.tasks.spawn_blocking(move || {
                clear();
                Done::Cleared(vm)
            });
        }
    }

    /// Follows a machine to where it is on disk.
    fn place(&mut self, seen: &Observed) {
        let (moved, hinted) = self.places.set(seen);
        if moved {
            self.moved = true;
            self.dependents.changed();
        }
        if hinted {
            self.queue.insert(seen.vm.id);
            self.thorough.insert(seen.vm.id);
        }
    }

    /// Something about a VM does not respond: it is published so, and looked at again.
    fn does_not_respond(&mut self, vm: VmId, stamp: Option<u64>, read: Read, found: &Unresponsive) {
        if self.unresponsive.insert(vm) {
            tracing::warn!(%vm, message = found.restriction.message, "a VM does not respond");
            self.measure();
            self.notes.changed();
        }
        self.unread(vm, read);
        let undisturbed = stamp.is_some() && self.locks.stamp(vm) == stamp;
        if undisturbed || self.machines.get(vm).is_none() {
            self.machines.is_unresponsive(vm, found);
        }
        // It must not keep the others from being served.
        self.count_as_seen(vm);
        self.begin_retry();
    }

    fn begin_retry(&mut self) {
        if !std::mem::replace(&mut self.is_retrying, true) {
            self.tasks.spawn(async {
                tokio::time::sleep(RETRY_PAUSE).await;
                Done::RetryDue
            });
        }
    }

    /// Has some of the VMs that do not respond looked at again: each in its turn, so that many of them cost no more than few.
    pub(super) fn retry(&mut self) {
        self.is_retrying = false;
        let (before, after): (Vec<_>, Vec<_>) =
            self.unresponsive.iter().copied().partition(|vm| Some(*vm) <= self.last_retry);
        let turn: Vec<VmId> = after.into_iter().chain(before).take(RETRIES).collect();
        self.last_retry = turn.last().copied();
        if !turn.is_empty() {
            self.queue.extend(turn);
            self.begin_retry();
        }
    }

    fn responds(&mut self, vm: VmId) {
        if self.unresponsive.remove(&vm) {
            tracing::info!(%vm, "a VM responds again");
            self.measure();
        }
    }

    fn measure(&self) {
        metrics::gauge!("snapshot_agent_vms_unresponsive").set(self.unresponsive.len() as f64);
    }
}

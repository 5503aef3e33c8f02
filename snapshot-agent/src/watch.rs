//! Keeping what is known of the host's machines up to date.
//!
//! 1. When the hypervisor is reached, every machine is looked at; then the host counts as synced.
//! 2. Events name machines that changed: each is looked at again.
//! 3. At intervals the names of all snapshots are compared with what is known, because libvirt has no event for a
//!    snapshot that somebody else takes or deletes; where they differ the machine is looked at. Each time one machine is
//!    looked at whatever its names say, so that every machine's turn comes.
//! 4. Operations publish their machine themselves; one that is held by an operation is not looked at by this, and a look
//!    that an operation got in between of is thrown away. Machines left out so are looked at with the next interval.
//!
//! One task decides and never blocks; at most [`LOOKS`] machines are looked at at a time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use proto::convert::Inventory;
use snapshot_core::ids::{SnapshotId, VmId};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::hypervisor::{Failure, Hypervisor, Observed, Outline, Reread, Versions};
use crate::locks::Locks;
use crate::machines::Machines;

/// Machines looked at at a time.
const LOOKS: usize = 3;

/// How long after a comparison that failed the next one is begun.
const SCAN_PAUSE: Duration = Duration::from_millis(500);

/// Keeps [`Machines`] up to date.
pub struct Watch {
    hypervisor: Arc<dyn Hypervisor>,
    locks: Arc<Locks>,
    machines: Arc<Machines>,
    /// Machines to look at.
    queue: BTreeSet<VmId>,
    /// Of those, the ones whose snapshots are read again to the last word.
    thorough: BTreeSet<VmId>,
    /// Machines that an operation had when there was news of them.
    postponed: BTreeSet<VmId>,
    looking: BTreeSet<VmId>,
    /// Machines whose last look failed, which was logged.
    unreadable: BTreeSet<VmId>,
    /// Machines that have to be seen before the host counts as synced; `None` once it does, or while the hypervisor is
    /// away.
    unseen: Option<BTreeSet<VmId>>,
    /// The machine whose turn it was last.
    last_turn: Option<VmId>,
    scanning: bool,
    /// The number of the asking for everything to be looked at that the scan under way, or what follows it, answers.
    answering: u64,
    /// The same for the machines in `unseen`.
    looking_for: u64,
    tasks: JoinSet<Done>,
}

/// What a task found.
enum Done {
    Looked { vm: VmId, stamp: Option<u64>, result: Box<Result<Observed, Failure>> },
    Scanned(Result<Scan, Failure>),
    ScanDue,
}

/// A comparison of all names with what is known.
struct Scan {
    versions: Versions,
    all: BTreeSet<VmId>,
    changed: BTreeSet<VmId>,
}

impl Watch {
    /// Will watch this hypervisor.
    pub fn new(hypervisor: Arc<dyn Hypervisor>, locks: Arc<Locks>, machines: Arc<Machines>) -> Self {
        Self {
            hypervisor,
            locks,
            machines,
            queue: BTreeSet::new(),
            thorough: BTreeSet::new(),
            postponed: BTreeSet::new(),
            looking: BTreeSet::new(),
            unreadable: BTreeSet::new(),
            unseen: None,
            last_turn: None,
            scanning: false,
            answering: 0,
            looking_for: 0,
            tasks: JoinSet::new(),
        }
    }

    /// Watches until told to stop.
    pub async fn run(mut self, every: Duration, stopping: CancellationToken) {
        let hypervisor = Arc::clone(&self.hypervisor);
        let mut connected = hypervisor.inbox().connected();
        connected.mark_changed();
        let mut rereading = self.machines.rereading();
        let mut tick = interval(every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.begin_looks();
            tokio::select! {
                () = stopping.cancelled() => return,
                Some(done) = self.tasks.join_next() => match done {
                    Ok(done) => self.finish(done),
                    Err(error) => self.lose(&error),
                },
                vms = hypervisor.inbox().take() => self.queue.extend(vms),
                Ok(()) = connected.changed() => {
                    let connected = *connected.borrow_and_update();
                    self.set_connected(connected);
                }
                Ok(()) = rereading.changed() => if self.is_asked() { self.begin_scan() },
                _ = tick.tick() => self.begin_turn(),
            }
        }
    }

    fn set_connected(&mut self, connected: bool) {
        // Events were missed while it was away, so nothing that was known before counts.
        self.machines.set_synced(false);
        self.unseen = None;
        if connected {
            self.begin_scan();
        }
    }

    fn begin_turn(&mut self) {
        if !self.hypervisor.inbox().is_connected() {
            return;
        }
        self.queue.append(&mut self.postponed);
        let ids = self.machines.ids();
        let next = ids.iter().find(|id| Some(**id) > self.last_turn).or(ids.first()).copied();
        self.queue.extend(next);
        self.thorough.extend(next);
        self.last_turn = next;
        self.begin_scan();
    }

    fn begin_scan(&mut self) {
        if !std::mem::replace(&mut self.scanning, true) {
            self.answering = self.machines.rereading().borrow().asked;
            let (hypervisor, machines) = (Arc::clone(&self.hypervisor), Arc::clone(&self.machines));
            self.tasks.spawn_blocking(move || Done::Scanned(scan(&*hypervisor, &machines)));
        }
    }

    fn begin_looks(&mut self) {
        while self.looking.len() < LOOKS {
            let Some(vm) = self.queue.iter().find(|vm| !self.looking.contains(vm)).copied() else { return };
            self.queue.remove(&vm);
            let stamp = self.locks.stamp(vm);
            if stamp.is_none() && self.machines.get(vm).is_some() {
                self.postponed.insert(vm);
                self.see(vm);
                continue;
            }
            self.looking.insert(vm);
            let (hypervisor, thorough) = (Arc::clone(&self.hypervisor), self.thorough.remove(&vm));
            self.tasks.spawn_blocking(move || {
                let reread = if thorough { Reread::All } else { Reread::New };
                let result = Box::new(hypervisor.observe(vm, reread));
                Done::Looked { vm, stamp, result }
            });
        }
    }

    fn finish(&mut self, done: Done) {
        match done {
            Done::Looked { vm, stamp, result } => {
                self.looking.remove(&vm);
                self.looked(vm, stamp, *result);
            }
            Done::Scanned(result) => {
                self.scanning = false;
                match result {
                    Ok(scan) => self.scanned(scan),
                    Err(failure) => {
                        tracing::debug!(%failure, "the machines cannot be listed");
                        self.tasks.spawn(async {
                            tokio::time::sleep(SCAN_PAUSE).await;
                            Done::ScanDue
                        });
                    }
                }
            }
            Done::ScanDue if self.hypervisor.inbox().is_connected() => self.begin_scan(),
            Done::ScanDue => {}
        }
    }

    /// A task panicked. Which one is not told, so everything that was under way is begun again with the next interval.
    fn lose(&mut self, error: &tokio::task::JoinError) {
        tracing::error!(%error, "a look at a machine panicked");
        self.postponed.append(&mut self.looking);
        self.scanning = false;
    }

    fn looked(&mut self, vm: VmId, stamp: Option<u64>, result: Result<Observed, Failure>) {
        match result {
            Ok(seen) => {
                self.unreadable.remove(&vm);
                let undisturbed = stamp.is_some() && self.locks.stamp(vm) == stamp;
                if undisturbed || self.machines.get(vm).is_none() {
                    self.machines.publish(seen.inventory());
                } else {
                    self.postponed.insert(vm);
                }
                self.see(vm);
            }
            Err(Failure::VmGone) => {
                self.unreadable.remove(&vm);
                self.machines.remove(vm);
                self.see(vm);
            }
            Err(failure) => {
                let unreachable = matches!(failure, Failure::Unreachable(_));
                if !unreachable && self.unreadable.insert(vm) {
                    tracing::warn!(%vm, %failure, "a machine cannot be read");
                }
                self.postponed.insert(vm);
                // A machine that libvirt cannot tell of must not keep the others from being served.
                if !unreachable {
                    self.see(vm);
                }
            }
        }
    }

    /// Whether somebody waits for everything to be looked at again.
    fn is_asked(&self) -> bool {
        let rereading = *self.machines.rereading().borrow();
        rereading.asked > rereading.done
    }

    fn see(&mut self, vm: VmId) {
        // A look that began before everything was asked for is followed by another.
        if self.queue.contains(&vm) {
            return;
        }
        let Some(unseen) = &mut self.unseen else { return };
        unseen.remove(&vm);
        self.check_synced();
    }

    fn check_synced(&mut self) {
        if self.unseen.as_ref().is_some_and(BTreeSet::is_empty) {
            self.unseen = None;
            self.machines.set_synced(true);
            self.machines.set_reread(self.looking_for);
            tracing::info!(machines = self.machines.ids().len(), "every machine was looked at");
            if self.is_asked() {
                self.begin_scan();
            }
        }
    }

    fn scanned(&mut self, scan: Scan) {
        let connected = self.hypervisor.inbox().is_connected();
        self.machines.set_versions(scan.versions);
        for gone in self.machines.ids().into_iter().filter(|id| !scan.all.contains(id)) {
            self.queue.insert(gone);
        }
        let all_wanted = !*self.machines.synced().borrow() || self.is_asked();
        if connected && self.unseen.is_none() && all_wanted {
            // The first since the hypervisor was reached, or somebody asked: look at everything.
            self.looking_for = self.answering;
            self.queue.extend(&scan.all);
            self.thorough.extend(&scan.all);
            self.unseen = Some(scan.all);
            self.check_synced();
        } else {
            self.queue.extend(&scan.changed);
            self.thorough.extend(scan.changed);
        }
    }
}

fn scan(hypervisor: &dyn Hypervisor, machines: &Machines) -> Result<Scan, Failure> {
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
    Ok(Scan { versions: hypervisor.versions()?, all, changed })
}

/// Names that cannot be ids are in no inventory.
fn is_same(known: &Inventory, outline: &Outline) -> bool {
    let is_id = |name: &&String| name.parse::<SnapshotId>().is_ok();
    let current = known.snapshots.iter().find(|snapshot| snapshot.is_current).map(|snapshot| snapshot.id.as_str());
    let names: BTreeSet<&str> = known.snapshots.iter().map(|snapshot| snapshot.id.as_str()).collect();
    outline.current.as_ref().filter(is_id).map(String::as_str) == current
        && outline.snapshots.iter().filter(is_id).map(String::as_str).eq(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_ids_do_not_count() {
        let known = Inventory { vm: crate::machines::tests::vm(1, "desk"), snapshots: vec![], sequence: 0 };
        let outline = |names: &[&str], current: Option<&str>| Outline {
            snapshots: names.iter().map(|name| (*name).to_owned()).collect(),
            current: current.map(str::to_owned),
        };
        assert!(is_same(&known, &outline(&[], None)));
        assert!(is_same(&known, &outline(&["a\tb"], Some("a\tb"))));
        assert!(!is_same(&known, &outline(&["a"], None)));
    }
}

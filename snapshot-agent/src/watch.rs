//! Keeping what is known of the host's machines up to date.
//!
//! 1. When the hypervisor is reached, every machine is looked at; then the host counts as synced.
//! 2. Events name machines that changed: each is looked at again.
//! 3. Folders are watched, because libvirt has no event for a snapshot that somebody else takes or deletes, and nobody
//!    tells of an image that is replaced ([`crate::folders`]). The machine whose record or image was changed is looked at.
//! 4. At intervals the names of all snapshots are compared with what is known, for folders that cannot be watched; where
//!    they differ the machine is looked at. Each time one machine is looked at whatever its names say, so that every
//!    machine's turn comes.
//! 5. Operations publish their machine themselves; one that is held by an operation is not looked at by this, and a look
//!    that an operation got in between of is thrown away. Machines left out so are looked at soon after.
//!
//! One task decides and never blocks; at most [`LOOKS`] machines are looked at at a time.

mod leftovers;
mod places;
mod scan;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use snapshot_core::ids::VmId;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use self::leftovers::Leftovers;
use self::places::Places;
use self::scan::{Scan, scan};
use crate::folders::{Folders, Hints};
use crate::hypervisor::{Failure, Hypervisor, Observed, Reread};
use crate::locks::Locks;
use crate::machines::Machines;

/// Machines looked at at a time.
const LOOKS: usize = 3;

/// How long after a comparison that failed the next one is begun.
const SCAN_PAUSE: Duration = Duration::from_millis(500);

/// How long after an operation was in the way the machine is tried again.
const HELD_PAUSE: Duration = Duration::from_millis(250);

/// Keeps [`Machines`] up to date.
pub struct Watch {
    hypervisor: Arc<dyn Hypervisor>,
    locks: Arc<Locks>,
    machines: Arc<Machines>,
    /// Machines to look at.
    queue: BTreeSet<VmId>,
    /// Of those, the ones whose snapshots are read again to the last word.
    thorough: BTreeSet<VmId>,
    /// Of some, only these snapshots are, by their names.
    rewritten: BTreeMap<VmId, BTreeSet<String>>,
    /// Machines that could not be read when there was news of them.
    postponed: BTreeSet<VmId>,
    /// Machines that an operation had.
    held: BTreeSet<VmId>,
    folders: Folders,
    places: Places,
    leftovers: Leftovers,
    /// Whether images came or went since the folders were told.
    moved: bool,
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
    Looked { vm: VmId, stamp: Option<u64>, read: Read, result: Box<Result<Observed, Failure>> },
    HeldDue,
    Cleared(VmId),
    Scanned(Result<Scan, Failure>),
    ScanDue,
}

/// What of a machine's snapshots is read again by a look.
struct Read {
    all: bool,
    names: BTreeSet<String>,
}

impl Watch {
    /// Will watch this hypervisor, and these folders.
    pub fn new(hypervisor: Arc<dyn Hypervisor>, locks: Arc<Locks>, machines: Arc<Machines>, folders: Folders) -> Self {
        Self {
            folders,
            places: Places::default(),
            leftovers: Leftovers::default(),
            moved: false,
            rewritten: BTreeMap::new(),
            held: BTreeSet::new(),
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
            if self.queue.is_empty() && std::mem::take(&mut self.moved) {
                self.folders.set_images(self.places.images());
            }
            tokio::select! {
                () = stopping.cancelled() => return,
                Some(done) = self.tasks.join_next() => match done {
                    Ok(done) => self.finish(done),
                    Err(error) => self.lose(&error),
                },
                vms = hypervisor.inbox().take() => self.queue.extend(vms),
                hints = self.folders.next() => self.follow(hints),
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
                self.hold(vm);
                self.see(vm);
                continue;
            }
            self.looking.insert(vm);
            let hypervisor = Arc::clone(&self.hypervisor);
            let names = self.rewritten.remove(&vm).unwrap_or_default();
            let read = Read { all: self.thorough.remove(&vm), names };
            self.tasks.spawn_blocking(move || {
                let reread = if read.all { Reread::All } else { Reread::Some(&read.names) };
                let result = Box::new(hypervisor.observe(vm, reread));
                Done::Looked { vm, stamp, read, result }
            });
        }
    }

    fn finish(&mut self, done: Done) {
        match done {
            Done::Looked { vm, stamp, read, result } => {
                self.looking.remove(&vm);
                self.looked(vm, stamp, read, *result);
            }
            Done::HeldDue => self.queue.append(&mut self.held),
            Done::Cleared(vm) => _ = self.queue.insert(vm),
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

    /// An operation has the machine: it is tried again in a moment.
    fn hold(&mut self, vm: VmId) {
        if self.held.is_empty() {
            self.tasks.spawn(async {
                tokio::time::sleep(HELD_PAUSE).await;
                Done::HeldDue
            });
        }
        self.held.insert(vm);
    }

    /// Looks where something on disk was changed.
    fn follow(&mut self, hints: Hints) {
        if hints.anything {
            let all = self.machines.ids();
            self.queue.extend(&all);
            self.thorough.extend(all);
            self.begin_scan();
        }
        for (name, snapshots) in hints.snapshots {
            let Some(vm) = self.places.named(&name) else { continue };
            self.queue.insert(vm);
            match snapshots {
                Some(names) => self.rewritten.entry(vm).or_default().extend(names),
                None => _ = self.thorough.insert(vm),
            }
        }
        let images = hints.images.iter().flat_map(|image| self.places.users(image));
        let below = hints.folders.iter().flat_map(|folder| self.places.users_below(folder));
        self.queue.extend(images.chain(below));
    }

    /// The next look reads what this one was to.
    fn unread(&mut self, vm: VmId, read: Read) {
        if read.all {
            self.thorough.insert(vm);
        }
        if !read.names.is_empty() {
            self.rewritten.entry(vm).or_default().extend(read.names);
        }
    }

    fn looked(&mut self, vm: VmId, stamp: Option<u64>, read: Read, result: Result<Observed, Failure>) {
        match result {
            Ok(seen) => {
                self.unreadable.remove(&vm);
                let undisturbed = stamp.is_some() && self.locks.stamp(vm) == stamp;
                if undisturbed || self.machines.get(vm).is_none() {
                    self.machines.saw(&seen);
                    self.clear_leftovers(&seen);
                } else {
                    self.unread(vm, read);
                    self.hold(vm);
                }
                self.place(&seen);
                self.postponed.extend(places::look_again(&seen));
                self.see(vm);
            }
            Err(Failure::VmGone) => {
                self.unreadable.remove(&vm);
                self.machines.vanished(vm);
                self.thorough.remove(&vm);
                self.rewritten.remove(&vm);
                self.moved |= self.places.remove(vm);
                self.see(vm);
            }
            Err(failure) => {
                let unreachable = matches!(failure, Failure::Unreachable(_));
                if !unreachable && self.unreadable.insert(vm) {
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

    fn clear_leftovers(&mut self, seen: &Observed) {
        let vm = seen.vm.id;
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
        self.moved |= moved;
        if hinted {
            self.queue.insert(seen.vm.id);
            self.thorough.insert(seen.vm.id);
        }
    }

    /// Whether somebody waits for everything to be looked at again.
    fn is_asked(&self) -> bool {
        let rereading = *self.machines.rereading().borrow();
        rereading.asked > rereading.done
    }

    fn see(&mut self, vm: VmId) {
        // A look that began before everything was asked for is followed by another.
        if !self.queue.contains(&vm) {
            self.count_as_seen(vm);
        }
    }

    fn count_as_seen(&mut self, vm: VmId) {
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

    /// Machines that went while this process did not run. One that was defined a moment ago is looked at and known again.
    fn find_left_behind(&mut self, all: &BTreeSet<VmId>) {
        let Some(owned) = self.machines.owned() else { return };
        for vm in owned.present().into_iter().filter(|vm| !all.contains(vm) && self.machines.get(*vm).is_none()) {
            owned.vanished(vm);
            self.queue.insert(vm);
        }
    }

    fn scanned(&mut self, scan: Scan) {
        let connected = self.hypervisor.inbox().is_connected();
        self.machines.set_versions(scan.versions);
        let gone = self.machines.ids().into_iter().filter(|id| !scan.all.contains(id));
        self.queue.extend(gone);
        self.find_left_behind(&scan.all);
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

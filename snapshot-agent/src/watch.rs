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
//! 6. A VM whose storage or whose QEMU does not respond is published as such ([`looks`]), counts as looked at, and is looked at
//!    again until it responds. It holds up nobody else.
//!
//! One task decides and never blocks; at most [`LOOKS`] machines are looked at at a time, besides those whose looks are slow.

mod dependents;
mod leftovers;
mod looks;
mod places;
mod publisher;
mod scan;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use snapshot_core::ids::VmId;
use snapshot_core::policy::HostPolicy;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use self::leftovers::Leftovers;
use self::looks::Seen;
use self::places::Places;
use self::scan::{Scan, scan};
use crate::bounded::jobs;
use crate::folders::{Folders, Hints};
use crate::hypervisor::{Failure, Hypervisor};
use crate::locks::Locks;
use crate::machines::Machines;

/// Machines looked at at a time.
const LOOKS: usize = 3;

/// How long a look counts for that: one that takes longer waits for something that others need not wait for.
const SLOW: Duration = Duration::from_millis(150);

/// Slow looks at a time, besides.
const SLOW_LOOKS: usize = 64;

/// How long until VMs that do not respond are looked at again, and how many of them at a time. When storage responds again, all
/// of them are at once.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
const RETRIES: usize = 16;

/// How long after a comparison that failed the next one is begun.
const SCAN_PAUSE: Duration = Duration::from_millis(500);

/// How long after an operation was in the way the machine is tried again.
const HELD_PAUSE: Duration = Duration::from_millis(250);

/// Keeps [`Machines`] up to date.
pub struct Watch {
    hypervisor: Arc<dyn Hypervisor>,
    policy: HostPolicy,
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
    /// Machines that are looked at, and since when.
    looking: BTreeMap<VmId, Instant>,
    /// Whether the moment in which a look becomes slow is waited for.
    is_pausing: bool,
    /// VMs that did not respond when they were last looked at.
    unresponsive: BTreeSet<VmId>,
    /// The one of them that was last looked at again.
    last_retry: Option<VmId>,
    is_retrying: bool,
    /// Tells when something that did not respond has done so after all.
    returned: watch::Receiver<u64>,
    /// Machines whose last look failed, which was logged.
    unreadable: BTreeSet<VmId>,
    /// Machines that have to be seen before the host counts as synced; `None` once it does, or while the hypervisor is
    /// away.
    unseen: Option<BTreeSet<VmId>>,
    /// The machine whose turn it was last.
    last_turn: Option<VmId>,
    scanning: bool,
    /// VMs of which libvirt told something that no look has found yet.
    news: BTreeSet<VmId>,
    /// What other hosts are told.
    notes: publisher::Notes,
    /// Which images depend on those of VMs.
    dependents: dependents::Dependents,
    /// The number of the asking for everything to be looked at that the scan under way, or what follows it, answers.
    answering: u64,
    /// The same for the machines in `unseen`.
    looking_for: u64,
    tasks: JoinSet<Done>,
}

/// What a task found.
enum Done {
    Looked { vm: VmId, stamp: Option<u64>, read: Read, result: Box<Result<Seen, Failure>> },
    HeldDue,
    SlowDue,
    RetryDue,
    Cleared(VmId),
    Published(Option<bool>),
    RenewalDue(PathBuf),
    FoundDependents,
    Scanned(Result<Scan, Failure>),
    ScanDue,
}

/// What of a machine's snapshots is read again by a look.
struct Read {
    all: bool,
    names: BTreeSet<String>,
}

impl Watch {
    /// Will watch this hypervisor, and these directories. What the policy denies is told of each snapshot.
    pub fn new(
        hypervisor: Arc<dyn Hypervisor>,
        policy: HostPolicy,
        locks: Arc<Locks>,
        machines: Arc<Machines>,
        folders: Folders,
    ) -> Self {
        Self {
            policy,
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
            looking: BTreeMap::new(),
            is_pausing: false,
            unresponsive: BTreeSet::new(),
            last_retry: None,
            is_retrying: false,
            returned: jobs::returned(),
            unreadable: BTreeSet::new(),
            unseen: None,
            last_turn: None,
            scanning: false,
            news: BTreeSet::new(),
            notes: publisher::Notes::default(),
            dependents: dependents::Dependents::default(),
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
            self.begin_publishing();
            self.begin_renewing();
            self.begin_finding_dependents();
            if self.queue.is_empty() && std::mem::take(&mut self.moved) {
                self.folders.set_images(self.places.images());
            }
            tokio::select! {
                () = stopping.cancelled() => return,
                Some(done) = self.tasks.join_next() => match done {
                    Ok(done) => self.finish(done),
                    Err(error) => self.lose(&error),
                },
                vms = hypervisor.inbox().take() => {
                    self.news.extend(&vms);
                    self.queue.extend(vms);
                }
                hints = self.folders.next() => self.follow(hints),
                Ok(()) = connected.changed() => {
                    let connected = *connected.borrow_and_update();
                    self.set_connected(connected);
                }
                Ok(()) = rereading.changed() => if self.is_asked() { self.begin_scan() },
                Ok(()) = self.returned.changed() => self.queue.extend(&self.unresponsive),
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
        self.notes.retry();
        self.dependents.changed();
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

    fn finish(&mut self, done: Done) {
        match done {
            Done::Looked { vm, stamp, read, result } => {
                self.looking.remove(&vm);
                self.looked(vm, stamp, read, *result);
            }
            Done::HeldDue => self.queue.append(&mut self.held),
            Done::SlowDue => self.is_pausing = false,
            Done::RetryDue => self.retry(),
            Done::Cleared(vm) => _ = self.queue.insert(vm),
            Done::Published(all) => self.notes.published(all),
            Done::RenewalDue(root) => self.notes.renewal_due(&root),
            Done::FoundDependents => self.dependents.searched(),
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
        self.postponed.extend(std::mem::take(&mut self.looking).into_keys());
        self.scanning = false;
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
        if hints.files_beside || !hints.images.is_empty() || !hints.folders.is_empty() {
            self.dependents.changed();
        }
        let images = hints.images.iter().flat_map(|image| self.places.users(image));
        let below = hints.folders.iter().flat_map(|folder| self.places.users_below(folder));
        self.queue.extend(images.chain(below));
    }

    /// Whether somebody waits for everything to be looked at again.
    fn is_asked(&self) -> bool {
        let rereading = *self.machines.rereading().borrow();
        rereading.asked > rereading.done
    }

    pub(super) fn see(&mut self, vm: VmId) {
        // A look that began before everything was asked for is followed by another.
        if !self.queue.contains(&vm) {
            self.count_as_seen(vm);
        }
    }

    pub(super) fn count_as_seen(&mut self, vm: VmId) {
        let Some(unseen) = &mut self.unseen else { return };
        unseen.remove(&vm);
        self.check_synced();
    }

    fn check_synced(&mut self) {
        if self.unseen.as_ref().is_some_and(BTreeSet::is_empty) {
            self.unseen = None;
            self.machines.set_synced(true);
            self.notes.changed();
            self.dependents.changed();
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

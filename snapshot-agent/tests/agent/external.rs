//! External snapshots of real guests: what the guest reads after going back to every snapshot, and which files are left.

mod ahead;
mod stories;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use proto::convert::Spec;
use snapshot_agent::execute::Executor;
use snapshot_agent::execute::operation::{Operation, Phase};
use snapshot_agent::hypervisor::libvirt::Libvirt;
use snapshot_agent::hypervisor::{Hypervisor, Observed, Reread};
use snapshot_agent::journal::{Ended, Journal};
use snapshot_agent::locks::Locks;
use snapshot_agent::machines::Machines;
use snapshot_agent::owned::Owned;
use snapshot_core::Error;
use snapshot_core::ids::{OperationId, SnapshotId};
use snapshot_core::operation::{Create, DeleteScope, Outcome, Request, RunAfter};
use snapshot_core::policy::HostPolicy;
use snapshot_core::snapshot::{Content, Storage};
use uuid::Uuid;

use crate::directory::Directory;
use crate::guest::{Guest, HOST};
use crate::operations::{permit_for, permit_for_action};
use crate::served::{create, id};

/// A guest, and an agent that may move its disks.
pub(crate) struct Bench {
    pub(crate) guest: Guest,
    libvirt: Arc<Libvirt>,
    pub(crate) executor: Executor,
    journal: Directory,
    /// What the guest read when each snapshot was taken.
    pub(crate) expected: BTreeMap<SnapshotId, char>,
    /// What it has written since.
    pub(crate) now: char,
}

/// Longer than any test.
const SILENCE: Duration = Duration::from_secs(600);

fn executor(libvirt: &Arc<Libvirt>, journal: &Directory, silence: Duration) -> Executor {
    let policy = HostPolicy { stable_paths: false, ..HostPolicy::default() };
    let hypervisor = Arc::clone(libvirt) as Arc<dyn Hypervisor>;
    let machines = Machines::remembering(Owned::open(&journal.path().join("owned")).unwrap());
    let journal = Journal::open(journal.path()).unwrap();
    Executor::new(hypervisor, journal, Arc::new(Locks::new(2)), Arc::new(machines), policy, silence)
}

impl Bench {
    pub(crate) fn new(guest: Guest) -> Self {
        Self::on(&HOST.libvirt, guest)
    }

    pub(crate) fn on(libvirt: &Arc<Libvirt>, guest: Guest) -> Self {
        Self::patient_for(libvirt, guest, SILENCE)
    }

    /// With an agent that gives up operations which make no progress for this long.
    pub(crate) fn patient_for(libvirt: &Arc<Libvirt>, guest: Guest, silence: Duration) -> Self {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let dir = Directory::new();
        let executor = executor(libvirt, &dir, silence);
        let libvirt = Arc::clone(libvirt);
        Self { guest, libvirt, executor, journal: dir, expected: BTreeMap::new(), now: '-' }
    }

    /// Has the last operation settled by another process, to which the journal tells that its first step was begun.
    pub(crate) async fn again(&mut self, expected: Outcome) {
        let ended = self.again_after(&["{\"begun\":0}".to_owned()]).await;
        assert_eq!(ended.outcome, expected, "{ended:?}");
    }

    /// The journal's file of the last operation.
    pub(crate) fn last(&self) -> PathBuf {
        let files = fs::read_dir(self.journal.path()).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|it| it == "jsonl")).max().unwrap()
    }

    /// The same, with these marks in the journal.
    pub(crate) async fn again_after(&mut self, marks: &[String]) -> Ended {
        let last = self.last();
        let text = fs::read_to_string(&last).unwrap();
        fs::write(&last, format!("{}\n{}\n", text.lines().next().unwrap(), marks.join("\n"))).unwrap();
        self.executor = executor(&self.libvirt, &self.journal, SILENCE);
        self.executor.settle().await.unwrap();
        let operation = self.executor.get(last.file_stem().unwrap().to_str().unwrap().parse().unwrap()).unwrap();
        Self::end(&operation).await
    }

    pub(crate) async fn run(&self, request: Request) -> Ended {
        let operation = self.start(request).await.unwrap();
        Self::end(&operation).await
    }

    pub(crate) async fn start(&self, request: Request) -> Result<Arc<Operation>, Error> {
        let spec = Spec { operation: OperationId::from_uuid(Uuid::now_v7()), vm: self.guest.vm, request };
        self.executor.start(&permit_for(self.guest.vm), spec, String::new()).await
    }

    /// Asks for it to be stopped, as somebody who could have begun it.
    fn cancel(&self, operation: &Operation) -> Result<(), Error> {
        self.executor.cancel(&permit_for_action(self.guest.vm, operation.kind().into()), operation.id())
    }

    pub(crate) async fn end(operation: &Operation) -> Ended {
        let mut phase = operation.follow();
        match &*phase.wait_for(|phase| matches!(phase, Phase::Ended { .. })).await.unwrap() {
            Phase::Ended { ended, .. } => ended.clone(),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn done(&self, request: Request) -> Ended {
        let ended = self.run(request.clone()).await;
        assert_eq!(ended.outcome, Outcome::Succeeded, "{request:?}: {:?}\n{:#?}", ended.error, self.look());
        ended
    }

    pub(crate) fn look(&self) -> Observed {
        self.libvirt.observe(self.guest.vm, Reread::All).unwrap()
    }

    pub(crate) fn is_on(&self) -> bool {
        self.look().vm.is_active()
    }

    /// Has the guest write something, switching it on for that if need be.
    pub(crate) fn write(&mut self, marker: char) {
        let was_on = self.is_on();
        if !was_on {
            self.guest.start();
        }
        self.guest.write(marker);
        if !was_on {
            self.guest.domain().destroy().unwrap();
        }
        self.now = marker;
    }

    pub(crate) async fn take(&mut self, content: Option<Content>) -> SnapshotId {
        let id = id();
        let create = Create { storage: Some(Storage::External), content, ..create(&id) };
        self.done(Request::Create(create)).await;
        self.expected.insert(id.clone(), self.now);
        id
    }

    pub(crate) async fn revert(&mut self, id: &SnapshotId, run_after: RunAfter) {
        self.done(Request::Revert { snapshot: id.clone(), run_after, save_current: None }).await;
        self.now = self.expected[id];
        assert!(self.look().snapshot(id).unwrap().is_current);
    }

    pub(crate) async fn delete(&mut self, id: &SnapshotId, scope: DeleteScope) {
        let tree = self.look();
        let mut doomed = BTreeSet::from([id.clone()]);
        for _ in 0..tree.snapshots.len() {
            let below = tree.snapshots.iter().filter(|one| one.parent.as_ref().is_some_and(|it| doomed.contains(it)));
            let below: Vec<_> = below.map(|one| one.id.clone()).filter(|_| scope != DeleteScope::Only).collect();
            doomed.extend(below);
        }
        if scope == DeleteScope::Descendants {
            doomed.remove(id);
        }
        self.done(Request::Delete { snapshot: id.clone(), scope, force: false }).await;
        self.expected.retain(|id, _| !doomed.contains(id));
        self.check();
    }

    /// The guest reads what it wrote last; what is listed is what was not deleted; the folder has the files that these
    /// need and no other, all of them sound.
    pub(crate) fn check(&self) {
        let was_on = self.is_on();
        if !was_on {
            self.guest.start();
        }
        let report = self.guest.report();
        assert_eq!(report.disk, self.now, "{:#?}", self.look());
        assert!(report.second.is_none_or(|second| second == self.now), "{report:?}");
        let seen = self.look();
        let listed: BTreeSet<_> = seen.snapshots.iter().map(|snapshot| snapshot.id.clone()).collect();
        assert_eq!(listed, self.expected.keys().cloned().collect());
        for snapshot in &seen.snapshots {
            assert_eq!(snapshot.broken, None, "{snapshot:?}");
        }
        let mut needed: BTreeSet<String> =
            seen.layers.reached(&BTreeSet::new()).into_iter().map(str::to_owned).collect();
        needed.extend(seen.layers.snapshots.values().filter_map(|parts| parts.memory_file.clone()));
        let there: BTreeSet<String> = fs::read_dir(&self.guest.dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| {
                !["serial", "vda.raw", "vdb.raw", "vda.qcow2", "vdb.qcow2"].iter().any(|name| path.ends_with(name))
            })
            .map(|path| path.display().to_string())
            .collect();
        let original = |path: &&String| path.ends_with(".qcow2") || path.ends_with(".raw");
        let needed: BTreeSet<String> = needed.iter().filter(|path| !original(path)).cloned().collect();
        assert_eq!(there, needed, "{:#?}", seen.layers);
        if !was_on {
            self.guest.domain().destroy().unwrap();
            for path in there.iter().filter(|path| !path.ends_with(".mem")) {
                let check = Command::new("qemu-img").args(["check", "-q", path]).output().unwrap();
                assert!(check.status.success(), "{path}: {}", String::from_utf8_lossy(&check.stderr));
            }
        }
    }

    /// Goes back to every snapshot and has the guest read.
    pub(crate) async fn check_all(&mut self) {
        let ids: Vec<SnapshotId> = self.expected.keys().cloned().collect();
        for id in ids {
            self.revert(&id, RunAfter::Running).await;
            self.check();
        }
    }

    pub(crate) async fn purge(&mut self) {
        self.done(Request::Purge { force: true }).await;
        self.expected.clear();
        self.check();
        let seen = self.look();
        assert_eq!(seen.layers.snapshots.len(), 0, "{:#?}", seen.layers);
        for (target, path) in &seen.layers.live {
            let name = Path::new(path).file_stem().unwrap().to_str().unwrap();
            assert_eq!(name, target, "the disk is not on its own image: {path}");
        }
    }
}

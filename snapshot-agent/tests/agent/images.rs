//! Images that are not as they should be, or not the VM's alone: whatever libvirt or QEMU would do halfway is refused before, and the
//! capabilities, the plan and the operation say the same.
//!
//! Each case is first shown to be one: what libvirt does when it is asked. Then the service is asked, with nothing changed by that:
//! neither the definition nor a byte of an image.

mod headers;
mod names;
mod others;
mod sharing;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use proto::convert::{Inventory, Spec};
use snapshot_agent::execute::Executor;
use snapshot_agent::execute::operation::Phase;
use snapshot_agent::hypervisor::libvirt::Libvirt;
use snapshot_agent::hypervisor::{Hypervisor, Observed, Reread};
use snapshot_agent::journal::{Ended, Journal};
use snapshot_agent::locks::Locks;
use snapshot_agent::machines::Machines;
use snapshot_agent::owned::Owned;
use snapshot_core::ids::{OperationId, SnapshotId};
use snapshot_core::layers::Layers;
use snapshot_core::operation::{Create, DeleteScope, Outcome, Request, RunAfter};
use snapshot_core::plan::{CapabilityKind, Situation, capabilities};
use snapshot_core::policy::HostPolicy;
use snapshot_core::snapshot::Content;
use snapshot_core::tree::SnapshotTree;
use snapshot_core::vm::VmState;
use snapshot_core::{Error, Reason};
use uuid::Uuid;

use crate::directory::Directory;
use crate::guest::{Guest, HOST, run};
use crate::operations::permit_for_action;
use crate::served::{create, id};

/// A guest, and an agent that knows of the VMs that it has looked at.
struct Case {
    guest: Guest,
    libvirt: Arc<Libvirt>,
    machines: Arc<Machines>,
    executor: Executor,
    _journal: Directory,
}

impl Case {
    fn new(guest: Guest) -> Self {
        Self::on(&HOST.libvirt, guest)
    }

    fn on(libvirt: &Arc<Libvirt>, guest: Guest) -> Self {
        let journal = Directory::new();
        let machines = Arc::new(Machines::remembering(Owned::open(&journal.path().join("owned")).unwrap()));
        let hypervisor = Arc::clone(libvirt) as Arc<dyn Hypervisor>;
        let kept = Journal::open(journal.path()).unwrap();
        let (locks, policy) = (Arc::new(Locks::new(2)), HostPolicy::default());
        let silence = Duration::from_secs(600);
        let executor = Executor::new(hypervisor, kept, locks, Arc::clone(&machines), policy, silence);
        Self { guest, libvirt: Arc::clone(libvirt), machines, executor, _journal: journal }
    }

    /// Looks at a VM as the watch would.
    fn see(&self, guest: &Guest) -> Observed {
        let seen = self.libvirt.observe(guest.vm, Reread::All).unwrap();
        self.machines.saw(&seen);
        seen
    }

    fn look(&self) -> Observed {
        self.see(&self.guest)
    }

    fn told(&self) -> Arc<Inventory> {
        self.look();
        self.machines.get(self.guest.vm).unwrap()
    }

    /// What a capability of the VM is refused for.
    fn capability(&self, kind: CapabilityKind) -> Result<(), Reason> {
        let told = self.told();
        let tree = SnapshotTree::new(told.snapshots.iter().cloned()).unwrap();
        let (layers, policy) = (Layers::default(), HostPolicy::default());
        let all = capabilities(Situation { vm: &told.vm, tree: &tree, layers: &layers, policy: &policy }, true);
        let one = all.into_iter().find(|one| one.kind == kind).unwrap();
        one.outcome.map(drop).map_err(|error| error.reason())
    }

    async fn plan(&self, request: Request) -> Result<(), Reason> {
        let permit = permit_for_action(self.guest.vm, request.kind().into());
        let spec = Spec { operation: OperationId::from_uuid(Uuid::now_v7()), vm: self.guest.vm, request };
        self.executor.plan(&permit, spec).await.map(drop).map_err(|error| error.reason())
    }

    async fn run(&self, request: Request) -> Result<Ended, Error> {
        let action = request.kind().into();
        let spec = Spec { operation: OperationId::from_uuid(Uuid::now_v7()), vm: self.guest.vm, request };
        let permit = permit_for_action(self.guest.vm, action);
        let planned = self.executor.plan(&permit, spec.clone()).await.map(drop);
        let operation = match self.executor.start(&permit, spec, String::new()).await {
            Ok(operation) => operation,
            Err(error) => {
                assert_eq!(planned.map_err(|error| error.reason()), Err(error.reason()), "the plan says the same");
                return Err(error);
            }
        };
        assert_eq!(planned, Ok(()), "the plan says the same");
        let mut phase = operation.follow();
        let ended = match &*phase.wait_for(|phase| matches!(phase, Phase::Ended { .. })).await.unwrap() {
            Phase::Ended { ended, .. } => ended.clone(),
            other => panic!("{other:?}"),
        };
        Ok(ended)
    }

    async fn done(&self, request: Request) {
        let ended = self.run(request.clone()).await.unwrap();
        assert_eq!(ended.outcome, Outcome::Succeeded, "{request:?}: {ended:?}");
    }

    /// It is refused for this reason, in a sentence with this in it, and nothing is changed.
    async fn refused(&self, request: Request, reason: Reason, told: &str) {
        let before = self.fingerprint();
        let error = match self.run(request.clone()).await {
            Err(error) => error,
            Ok(ended) => panic!("{request:?} was done: {ended:?}"),
        };
        assert_eq!(error.reason(), reason, "{request:?}: {error}");
        assert!(error.message().contains(told), "{error}");
        assert_eq!(self.fingerprint(), before, "{request:?}");
    }

    /// The definition, the snapshots, the process, and every byte of the images of a VM that does not run.
    fn fingerprint(&self) -> (String, Vec<String>, Option<u32>, BTreeMap<PathBuf, Vec<u8>>) {
        let domain = self.guest.domain();
        let mut names: Vec<String> =
            domain.list_all_snapshots(0).unwrap().iter().map(|snapshot| snapshot.name().unwrap()).collect();
        names.sort();
        let files = fs::read_dir(&self.guest.dir).unwrap().flatten().map(|entry| entry.path());
        let images = files.filter(|path| path.extension().is_some_and(|it| it == "qcow2"));
        let is_on = domain.is_active().unwrap();
        let bytes = images.filter(|_| !is_on).map(|path| (path.clone(), fs::read(&path).unwrap())).collect();
        // 2: INACTIVE.
        (domain.xml_desc(2).unwrap(), names, domain.id(), bytes)
    }

    /// A snapshot of the VM as it is.
    async fn take(&self, content: Content) -> SnapshotId {
        let id = id();
        self.done(creation(&id, content)).await;
        id
    }

    fn state(&self) -> VmState {
        self.look().vm.state
    }

    /// What the guest has on its disks: it is started for that, and ended.
    fn reads(&self) -> (char, Option<char>) {
        self.guest.start();
        let report = self.guest.report();
        self.libvirt.power_off(self.guest.vm).unwrap();
        (report.disk, report.second)
    }

    /// Has the guest write this, and switches it off.
    fn write(&self, marker: char) {
        self.guest.start();
        self.guest.write(marker);
        self.libvirt.power_off(self.guest.vm).unwrap();
    }

    fn image(&self, disk: &str) -> PathBuf {
        self.guest.dir.join(format!("{disk}.qcow2"))
    }

    /// Makes the image of a disk anew, with these options of `qemu-img convert`.
    fn remake(&self, disk: &str, options: &[&str]) {
        let (old, new) = (format!("{disk}.qcow2"), format!("{disk}.new"));
        let args = [&["convert", "-O", "qcow2"], options, &[&old, &new]].concat();
        run(&self.guest.dir, "qemu-img", &args);
        fs::rename(self.guest.dir.join(new), self.guest.dir.join(old)).unwrap();
    }

    fn virsh_like_snapshot(&self, name: &str) {
        let xml = format!("<domainsnapshot><name>{name}</name></domainsnapshot>");
        self.guest.domain().create_snapshot_xml(&xml, 0).unwrap();
    }
}

fn creation(id: &SnapshotId, content: Content) -> Request {
    Request::Create(Create { content: Some(content), ..create(id) })
}

fn revert(id: &SnapshotId, run_after: RunAfter) -> Request {
    Request::Revert { snapshot: id.clone(), run_after, save_current: None }
}

fn delete(id: &SnapshotId) -> Request {
    Request::Delete { snapshot: id.clone(), scope: DeleteScope::Only, force: true }
}

/// The names of the snapshots in an image, in the order of its table.
fn in_image(image: &Path) -> Vec<String> {
    snapshot_agent::qcow2::read(image).unwrap().tags.into_iter().map(|tag| tag.name).collect()
}

/// What `qemu-io` reads where the guest writes.
pub(crate) fn marker(image: &Path) -> char {
    let mut command = Command::new("qemu-io");
    command.args(["-r", "-U", "-f", "qcow2", "-c", "read -v 512 1"]).arg(image);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let byte = text.split_whitespace().nth(1).and_then(|hex| u8::from_str_radix(hex, 16).ok());
    char::from(byte.unwrap_or_else(|| panic!("{text}: {}", String::from_utf8_lossy(&output.stderr))))
}

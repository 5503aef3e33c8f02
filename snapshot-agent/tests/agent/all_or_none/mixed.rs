//! A revert that can be neither finished nor undone: the VM is marked, and can be driven to either end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto::convert::Spec;
use snapshot_agent::execute::Executor;
use snapshot_agent::execute::operation::Phase;
use snapshot_agent::hypervisor::{Hypervisor, Reread};
use snapshot_agent::journal::{Ended, Journal};
use snapshot_agent::locks::Locks;
use snapshot_agent::machines::Machines;
use snapshot_agent::owned::Owned;
use snapshot_core::ids::{OperationId, SnapshotId};
use snapshot_core::operation::{Outcome, Request, RunAfter};
use snapshot_core::policy::HostPolicy;
use snapshot_core::vm::VmState;
use snapshot_core::{Error, Reason};
use uuid::Uuid;

use crate::directory::Directory;
use crate::fake::{Fake, World, lock, vm_facts};
use crate::operations::permit_for;
use crate::served::{create, id};

/// One process of an agent that remembers what it has.
struct Agent {
    executor: Executor,
    machines: Arc<Machines>,
    fake: Arc<Fake>,
}

impl Agent {
    fn start(world: &Arc<Mutex<World>>, dir: &Directory) -> Self {
        let fake = Arc::new(Fake::new(world, None));
        let owned = Owned::open(&dir.path().join("owned")).unwrap();
        let machines = Arc::new(Machines::remembering(owned));
        let journal = Journal::open(&dir.path().join("journal")).unwrap();
        let hypervisor = Arc::clone(&fake) as Arc<dyn Hypervisor>;
        let locks = Arc::new(Locks::new(2));
        let silence = Duration::from_secs(600);
        let executor = Executor::new(hypervisor, journal, locks, Arc::clone(&machines), HostPolicy::default(), silence);
        machines.saw(&fake.observe(vm_facts().id, Reread::All).unwrap());
        Self { executor, machines, fake }
    }

    async fn run(&self, request: Request) -> Result<Ended, Error> {
        let vm = vm_facts().id;
        let spec = Spec { operation: OperationId::from_uuid(Uuid::now_v7()), vm, request };
        let operation = self.executor.start(&permit_for(vm), spec, String::new()).await?;
        let mut phase = operation.follow();
        match &*phase.wait_for(|phase| matches!(phase, Phase::Ended { .. })).await.unwrap() {
            Phase::Ended { ended, .. } => Ok(ended.clone()),
            other => panic!("{other:?}"),
        }
    }

    /// The reasons that GetVm tells for what is not possible.
    fn told(&self) -> Vec<Reason> {
        let known = self.machines.get(vm_facts().id).unwrap();
        known.vm.restrictions.iter().map(|restriction| restriction.reason).collect()
    }
}

fn revert(id: &SnapshotId) -> Request {
    Request::Revert { snapshot: id.clone(), run_after: RunAfter::AsRecorded, save_current: None }
}

/// 'A' is in the snapshot and 'B' on the disks; libvirt reverts the first disk and no more, and nothing can be restored.
async fn mixed(dir: &Directory) -> (Arc<Mutex<World>>, SnapshotId, Ended) {
    let world = World::with_machine(VmState::Shutoff);
    let set =
        |change: &dyn Fn(&mut crate::fake::Machine)| change(lock(&world).machines.get_mut(&vm_facts().id).unwrap());
    set(&|machine| machine.disks = vec!['A'; 2]);
    let (agent, snapshot) = (Agent::start(&world, dir), id());
    assert_eq!(agent.run(Request::Create(create(&snapshot))).await.unwrap().outcome, Outcome::Succeeded);
    set(&|machine| (machine.disks, machine.reverts_halfway, machine.restores_nothing) = (vec!['B'; 2], true, true));
    let ended = agent.run(revert(&snapshot)).await.unwrap();
    set(&|machine| (machine.reverts_halfway, machine.restores_nothing) = (false, false));
    (world, snapshot, ended)
}

fn disks(world: &Arc<Mutex<World>>) -> (Vec<char>, Vec<BTreeMap<SnapshotId, char>>) {
    let machine = lock(world).machines[&vm_facts().id].clone();
    (machine.disks, machine.images)
}

#[tokio::test]
async fn mixed_disks_are_told_and_nobody_takes_a_snapshot_of_them() {
    let dir = Directory::new();
    let (world, snapshot, ended) = mixed(&dir).await;
    assert_eq!(disks(&world).0, ['A', 'B']);
    let error = ended.error.unwrap();
    assert_eq!((ended.outcome, error.reason()), (Outcome::Failed, Reason::DisksMixed), "{error:?}");
    let told = |disk: &str| error.metadata().get(disk).cloned().unwrap_or_default();
    assert_eq!((told("disk.vda"), told("disk.vdb")), (format!("snapshot {snapshot}"), "current state".to_owned()));
    // Also by the next process.
    for _ in 0..2 {
        let agent = Agent::start(&world, &dir);
        agent.executor.settle().await.unwrap();
        assert!(agent.told().contains(&Reason::DisksMixed));
        let refused = agent.run(Request::Create(create(&id()))).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::DisksMixed, "{refused:?}");
        // A look does not end it.
        agent.machines.saw(&agent.fake.observe(vm_facts().id, Reread::All).unwrap());
        assert!(agent.told().contains(&Reason::DisksMixed));
    }
}

/// To the snapshot that was asked for, and to the state before, which is listed as a snapshot.
#[tokio::test]
async fn mixed_disks_can_be_driven_to_either_end() {
    for to_snapshot in [true, false] {
        let dir = Directory::new();
        let (world, snapshot, _) = mixed(&dir).await;
        let agent = Agent::start(&world, &dir);
        agent.executor.settle().await.unwrap();
        let known = agent.machines.get(vm_facts().id).unwrap();
        let saved = known.snapshots.iter().find(|one| one.id != snapshot).unwrap().id.clone();
        assert!(snapshot_agent::safety::is_tag(saved.as_str()), "{saved}");
        let end = if to_snapshot { &snapshot } else { &saved };
        let ended = agent.run(revert(end)).await.unwrap();
        assert_eq!(ended.outcome, Outcome::Succeeded, "{ended:?}");
        assert_eq!(disks(&world).0, vec![if to_snapshot { 'A' } else { 'B' }; 2]);
        assert!(agent.told().is_empty());
        let ended = agent.run(Request::Create(create(&id()))).await.unwrap();
        assert_eq!(ended.outcome, Outcome::Succeeded, "{ended:?}");
        // The state before stays as long as somebody wants it.
        assert!(disks(&world).1.iter().all(|image| image.contains_key(&saved)));
    }
}

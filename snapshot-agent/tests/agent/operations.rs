//! Operations against a host whose calls fail.
//!
//! [`faults`] runs every kind of request with every call of it going wrong in every way, in this process and across its
//! death. This module has what is not about faults.

mod faults;
mod lost_sight;
mod low_space;
mod tokens;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto::convert::Spec;
use snapshot_agent::execute::Executor;
use snapshot_agent::execute::operation::{Operation, Phase};
use snapshot_agent::hypervisor::{Hypervisor, Versions};
use snapshot_agent::journal::{Ended, Journal};
use snapshot_agent::locks::Locks;
use snapshot_agent::machines::Machines;
use snapshot_core::authority::{Action, Caller, Ceiling, Claims, Grant, Permit, VmSelector, authorize};
use snapshot_core::ids::{OperationId, SnapshotId, VmId};
use snapshot_core::operation::{Create, DeleteScope, Method, Outcome, Request, RunAfter};
use snapshot_core::policy::{DefinitionOnRevert, HostPolicy};
use snapshot_core::snapshot::{Content, Storage};
use snapshot_core::text::{Description, DisplayName};
use snapshot_core::vm::VmState;
use snapshot_core::{Error, Reason};
use uuid::Uuid;

use crate::directory::Directory;
use crate::fake::{Fake, Fault, Machine, World, lock, vm_facts};

/// One process of an agent, and the state folder that outlives it.
struct Agent {
    executor: Executor,
    fake: Arc<Fake>,
    machines: Arc<Machines>,
}

impl Agent {
    fn start(world: &Arc<Mutex<World>>, dir: &Directory, fault: Option<(usize, Fault)>) -> Self {
        let fake = Arc::new(Fake::new(world, fault));
        let journal = Journal::open(dir.path()).unwrap();
        let machines = Arc::new(Machines::default());
        let locks = Arc::new(Locks::new(2));
        let hypervisor: Arc<dyn Hypervisor> = Arc::clone(&fake) as Arc<dyn Hypervisor>;
        let keeps = lock(world).machines.values().any(|machine| !machine.changes.is_empty());
        let definition_on_revert = if keeps { DefinitionOnRevert::Keep } else { DefinitionOnRevert::default() };
        let policy = HostPolicy { stable_paths: false, definition_on_revert, ..HostPolicy::default() };
        let executor =
            Executor::new(hypervisor, journal, locks, Arc::clone(&machines), policy, Duration::from_secs(600));
        Self { executor, fake, machines }
    }

    async fn ended(&self, operation: &Operation) -> Ended {
        let mut phase = operation.follow();
        let done = phase.wait_for(|phase| matches!(phase, Phase::Ended { .. }));
        let phase = tokio::time::timeout(Duration::from_secs(30), done).await.expect("an end").unwrap().clone();
        match phase {
            Phase::Ended { ended, .. } => ended,
            other => panic!("{other:?}"),
        }
    }

    async fn run(&self, request: Request) -> Result<Ended, Error> {
        let operation = self.executor.start(&permit(), spec(request), "r-1".to_owned()).await?;
        Ok(self.ended(&operation).await)
    }
}

fn permit() -> Permit {
    permit_for(vm_facts().id)
}

pub(crate) fn permit_for(vm: VmId) -> Permit {
    permit_for_action(vm, Action::Create)
}

pub(crate) fn permit_for_action(vm: VmId, action: Action) -> Permit {
    permit_by(vm, action, "t", &users())
}

/// For the machine, by this token.
fn permit_to(action: Action, token: &str) -> Permit {
    permit_by(vm_facts().id, action, token, &users())
}

fn users() -> Ceiling {
    Ceiling { actions: Action::ALL.into_iter().collect(), any_vm: true, service: false, destructive_uses: 1000 }
}

fn permit_by(vm: VmId, action: Action, token: &str, ceiling: &Ceiling) -> Permit {
    // The service's own may not be granted it.
    let force = (!ceiling.service).then_some(Action::Force);
    let claims = Claims {
        iss: "ravada".to_owned(),
        sub: "alice".to_owned(),
        aud: String::new(),
        jti: token.to_owned(),
        iat: 0,
        nbf: None,
        exp: 1,
        cnf: None,
        grants: vec![Grant { vm: VmSelector::Any, actions: [action].into_iter().chain(force).collect() }],
    };
    authorize(&Caller::from_verified(claims, ceiling).unwrap(), vm, action).unwrap()
}

fn spec(request: Request) -> Spec {
    Spec { operation: OperationId::from_uuid(Uuid::now_v7()), vm: vm_facts().id, request }
}

fn id(n: u128) -> SnapshotId {
    SnapshotId::from_uuid(Uuid::from_u128(n))
}

fn create(n: u128) -> Create {
    Create {
        snapshot: id(n),
        display_name: DisplayName::parse("before exam").unwrap(),
        description: Description::default(),
        protected: false,
        content: None,
        storage: None,
        quiesce: false,
        allow_crash_consistent: false,
    }
}

fn revert(n: u128, run_after: RunAfter, save_current: Option<Create>) -> Request {
    Request::Revert { snapshot: id(n), run_after, save_current }
}

fn delete(n: u128, scope: DeleteScope) -> Request {
    Request::Delete { snapshot: id(n), scope, force: false }
}

fn machine(world: &Arc<Mutex<World>>) -> Machine {
    lock(world).machines[&vm_facts().id].clone()
}

/// A host whose machine has the chain 1 -> 2 -> 3, taken with 'A' on the disks, while 'B' is on them now.
async fn with_chain(state: VmState, dir: &Directory) -> Arc<Mutex<World>> {
    with_chain_of(state, Storage::Internal, 2, dir).await
}

/// The same of this kind, with so many disks.
async fn with_chain_of(state: VmState, storage: Storage, disks: usize, dir: &Directory) -> Arc<Mutex<World>> {
    let world = World::with_disks(state, disks);
    let agent = Agent::start(&world, dir, None);
    lock(&world).machines.get_mut(&vm_facts().id).unwrap().disks = vec!['A'; disks];
    let content = (state != VmState::Shutoff).then_some(Content::DisksAndMemory);
    for n in 1..=3 {
        let create = Create { storage: Some(storage), content, ..create(n) };
        assert_eq!(agent.run(Request::Create(create)).await.unwrap().outcome, Outcome::Succeeded);
    }
    lock(&world).machines.get_mut(&vm_facts().id).unwrap().disks = vec!['B'; disks];
    world
}

#[tokio::test]
async fn the_story() {
    let dir = Directory::new();
    let world = with_chain(VmState::Running, &dir).await;
    let agent = Agent::start(&world, &dir, None);
    agent.executor.settle().await.unwrap();
    let ended = agent.run(revert(2, RunAfter::AsRecorded, Some(create(9)))).await.unwrap();
    assert_eq!((ended.outcome, &ended.error), (Outcome::Succeeded, &None));
    assert!(ended.pause_ms.is_some());
    let now = machine(&world);
    // In the process that there was.
    assert_eq!(ended.method, Some(Method::InPlace));
    assert_eq!((now.disks.as_slice(), now.vm.state, now.instance), (&['A'; 2][..], VmState::Running, Some(1)));
    assert!(now.loads.is_empty());
    assert_eq!(now.images[1][&id(9)], 'B');
    let known = agent.machines.get(vm_facts().id).unwrap();
    assert_eq!(known.snapshots.iter().find(|snapshot| snapshot.is_current).unwrap().id, id(2));
    assert_eq!(known.snapshots.iter().find(|snapshot| snapshot.id == id(9)).unwrap().label.actor, "ravada/alice");

    let ended = agent.run(revert(1, RunAfter::Off, None)).await.unwrap();
    assert_eq!((ended.outcome, machine(&world).vm.state), (Outcome::Succeeded, VmState::Shutoff));
    assert_eq!(agent.run(delete(2, DeleteScope::Subtree)).await.unwrap().outcome, Outcome::Succeeded);
    let left: Vec<_> = machine(&world).snapshots.into_iter().map(|snapshot| snapshot.id).collect();
    assert_eq!(left, [id(1)]);
    assert_eq!(agent.run(Request::Purge { force: false }).await.unwrap().outcome, Outcome::Succeeded);
    assert_eq!(machine(&world).images, vec![BTreeMap::new(); 2]);
}

/// The versions are those that the watch found, by which hosts and machines are told, too.
#[tokio::test]
async fn live_and_in_place_an_older_qemu_is_asked_for_libvirts_own_ways() {
    let dir = Directory::new();
    let world = with_chain(VmState::Running, &dir).await;
    let agent = Agent::start(&world, &dir, None);
    agent.executor.settle().await.unwrap();
    agent.machines.set_versions(Versions { libvirt: "9.9.0".to_owned(), qemu: "4.1.0".to_owned() });
    let ended = agent.run(Request::Create(create(8))).await.unwrap();
    assert_eq!((ended.outcome, ended.method), (Outcome::Succeeded, Some(Method::Libvirt)));
    let taken = machine(&world).snapshots.into_iter().find(|snapshot| snapshot.id == id(8)).unwrap();
    assert_eq!(taken.content, Content::DisksAndMemory);
    let before = machine(&world).instance;
    let ended = agent.run(revert(2, RunAfter::AsRecorded, None)).await.unwrap();
    assert_eq!((ended.outcome, ended.method), (Outcome::Succeeded, Some(Method::Libvirt)));
    assert_ne!(machine(&world).instance, before, "another process");

    agent.machines.set_versions(Versions { libvirt: "9.9.0".to_owned(), qemu: "6.0.0".to_owned() });
    let ended = agent.run(Request::Create(create(9))).await.unwrap();
    assert_eq!((ended.outcome, ended.method), (Outcome::Succeeded, Some(Method::Live)));
    let ended = agent.run(revert(2, RunAfter::AsRecorded, None)).await.unwrap();
    assert_eq!((ended.outcome, ended.method), (Outcome::Succeeded, Some(Method::InPlace)));
}

#[tokio::test]
async fn a_refusal_changes_nothing_and_is_not_remembered() {
    let dir = Directory::new();
    let world = World::with_machine(VmState::Running);
    let agent = Agent::start(&world, &dir, None);
    let before = machine(&world);
    let refused = spec(delete(7, DeleteScope::Only));
    for _ in 0..2 {
        let error = agent.executor.start(&permit(), refused.clone(), String::new()).await.unwrap_err();
        assert_eq!(error.reason(), Reason::SnapshotNotFound);
    }
    assert_eq!(agent.executor.get(refused.operation).unwrap_err().reason(), Reason::OperationNotFound);
    assert_eq!(machine(&world), before);
    assert!(Journal::open(dir.path()).unwrap().load().unwrap().is_empty());
    let elsewhere = Spec { vm: VmId::from_uuid(Uuid::from_u128(5)), ..refused };
    let error = agent.executor.start(&permit(), elsewhere, String::new()).await.unwrap_err();
    assert_eq!(error.reason(), Reason::VmNotFound);
}

#[tokio::test]
async fn a_repeat_follows_the_first_and_another_request_is_told_apart() {
    let dir = Directory::new();
    let world = World::with_machine(VmState::Shutoff);
    let agent = Agent::start(&world, &dir, None);
    let spec = spec(Request::Create(create(1)));
    let permit = permit();
    let start = || agent.executor.start(&permit, spec.clone(), String::new());
    let (first, second) = tokio::join!(start(), start());
    let (first, second) = (first.unwrap(), second.unwrap());
    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!(agent.ended(&first).await.outcome, Outcome::Succeeded);
    let other = Spec { request: Request::Purge { force: false }, ..spec.clone() };
    let error = agent.executor.start(&permit, other, String::new()).await.unwrap_err();
    assert_eq!(error.reason(), Reason::RequestIdReused);
    // The same after the process has ended.
    let next = Agent::start(&world, &dir, None);
    next.executor.settle().await.unwrap();
    let again = next.executor.start(&permit, spec, String::new()).await.unwrap();
    assert_eq!(next.ended(&again).await.outcome, Outcome::Succeeded);
    assert_eq!(machine(&world).snapshots.len(), 1);
}

#[tokio::test]
async fn a_deletion_stops_between_two_steps() {
    let dir = Directory::new();
    let world = with_chain(VmState::Shutoff, &dir).await;
    let agent = Agent::start(&world, &dir, None);
    agent.fake.stall_at(1);
    let (spec, to_delete) = (spec(delete(1, DeleteScope::Subtree)), permit_to(Action::Delete, "t"));
    let operation = agent.executor.start(&to_delete, spec, String::new()).await.unwrap();
    agent.fake.stalled().await;
    let other = agent.executor.cancel(&permit(), operation.id()).unwrap_err();
    assert_eq!(other.reason(), Reason::OperationNotFound, "a permit to take snapshots stops no deletion");
    agent.executor.cancel(&to_delete, operation.id()).unwrap();
    agent.fake.go_on();
    let ended = agent.ended(&operation).await;
    assert_eq!(ended.outcome, Outcome::Cancelled);
    assert_eq!(ended.error.unwrap().metadata()["remaining"], "1");
    let left: Vec<_> = machine(&world).snapshots.into_iter().map(|snapshot| snapshot.id).collect();
    assert_eq!(left, [id(1)]);
    assert_eq!(agent.executor.cancel(&to_delete, operation.id()).unwrap_err().reason(), Reason::NotCancellable);
}

#[tokio::test]
async fn one_operation_has_a_machine_for_itself_and_a_single_step_cannot_be_stopped() {
    let dir = Directory::new();
    let world = World::with_machine(VmState::Shutoff);
    let agent = Agent::start(&world, &dir, None);
    agent.fake.stall_at(0);
    let first = agent.executor.start(&permit(), spec(Request::Create(create(1))), String::new()).await.unwrap();
    agent.fake.stalled().await;
    let second = agent.executor.start(&permit(), spec(Request::Create(create(2))), String::new()).await.unwrap_err();
    assert_eq!(second.reason(), Reason::VmBusy);
    assert_eq!(second.metadata()["operation"], format!("operations/{}", first.id()));
    assert_eq!(agent.executor.cancel(&permit(), first.id()).unwrap_err().reason(), Reason::NotCancellable);
    agent.fake.go_on();
    assert_eq!(agent.ended(&first).await.outcome, Outcome::Succeeded);
    assert!(agent.run(Request::Create(create(2))).await.is_ok());
}

#[tokio::test]
async fn a_stop_leaves_a_deletion_for_the_next_start() {
    let dir = Directory::new();
    let world = with_chain(VmState::Shutoff, &dir).await;
    let agent = Agent::start(&world, &dir, None);
    agent.fake.stall_at(0);
    let spec = spec(delete(1, DeleteScope::Subtree));
    let operation = agent.executor.start(&permit(), spec.clone(), String::new()).await.unwrap();
    agent.fake.stalled().await;
    let stop = agent.executor.stop(Duration::from_secs(10));
    let mut stop = std::pin::pin!(stop);
    assert!(tokio::time::timeout(Duration::from_millis(20), &mut stop).await.is_err());
    let refused = agent.executor.start(&permit(), self::spec(delete(1, DeleteScope::Only)), String::new()).await;
    assert_eq!(refused.unwrap_err().reason(), Reason::ShuttingDown);
    agent.fake.go_on();
    assert!(stop.await);
    assert_eq!(machine(&world).snapshots.len(), 2);
    assert!(matches!(operation.phase(), Phase::Running { .. }));

    let next = Agent::start(&world, &dir, None);
    next.executor.settle().await.unwrap();
    let ended = next.ended(&next.executor.get(spec.operation).unwrap()).await;
    assert_eq!((ended.outcome, machine(&world).snapshots.len()), (Outcome::Succeeded, 0));
}

#[tokio::test]
async fn a_revert_that_was_not_begun_in_time_is_not_begun() {
    let dir = Directory::new();
    let world = with_chain(VmState::Running, &dir).await;
    let agent = Agent::start(&world, &dir, Some((0, Fault::Dies)));
    let spec = spec(revert(2, RunAfter::AsRecorded, None));
    agent.executor.start(&permit(), spec.clone(), String::new()).await.unwrap();
    agent.executor.stop(Duration::from_secs(10)).await;
    let path = dir.path().join(format!("{}.jsonl", spec.operation));
    let text = std::fs::read_to_string(&path).unwrap();
    let mut entry: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    entry["accepted"]["millis"] = 0.into();
    std::fs::write(&path, format!("{entry}\n{{\"begun\":0}}\n")).unwrap();
    let next = Agent::start(&world, &dir, None);
    next.executor.settle().await.unwrap();
    let ended = next.ended(&next.executor.get(spec.operation).unwrap()).await;
    assert_eq!(ended.error.unwrap().reason(), Reason::Interrupted);
    assert_eq!(machine(&world).disks, ['B'; 2]);
}

/// Somebody resumed the guest after the load, and libvirt cannot mark the snapshot as current: that is no success, and the
/// guest keeps what it has done.
#[tokio::test]
async fn in_place_a_revert_that_is_not_marked_as_current_is_no_success() {
    let dir = Directory::new();
    let world = with_chain(VmState::Running, &dir).await;
    let agent = Agent::start(&world, &dir, None);
    agent.executor.settle().await.unwrap();
    lock(&world).machines.get_mut(&vm_facts().id).unwrap().runs_on_unmarked = true;
    let before = machine(&world).instance;
    let ended = agent.run(revert(2, RunAfter::AsRecorded, None)).await.unwrap();
    assert_eq!(ended.outcome, Outcome::Failed, "{ended:?}");
    let now = machine(&world);
    assert_eq!((now.vm.state, now.instance, now.disks[0]), (VmState::Running, before, 'A'), "{ended:?}");
}

//! What is known follows the host, whoever changes it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use proto::convert::Inventory;
use snapshot_agent::folders::Folders;
use snapshot_agent::hypervisor::{Hypervisor, Reread};
use snapshot_agent::locks::Locks;
use snapshot_agent::machines::{Change, Machines};
use snapshot_agent::owned::Owned;
use snapshot_agent::watch::Watch;
use snapshot_core::description::Label;
use snapshot_core::ids::{SnapshotId, VmId};
use snapshot_core::policy::HostPolicy;
use snapshot_core::vm::VmState;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::directory::Directory;
use crate::fake::{Fake, World, lock, vm_facts};

struct Fixture {
    world: Arc<Mutex<World>>,
    fake: Arc<Fake>,
    locks: Arc<Locks>,
    machines: Arc<Machines>,
    stopping: CancellationToken,
}

impl Fixture {
    fn start(every: Duration) -> Self {
        let world = World::with_machine(VmState::Running);
        let fake = Fake::new(&world, None);
        Self::watching(every, world, fake)
    }

    fn watching(every: Duration, world: Arc<Mutex<World>>, fake: Fake) -> Self {
        Self::of(every, world, fake, Machines::default())
    }

    fn of(every: Duration, world: Arc<Mutex<World>>, fake: Fake, machines: Machines) -> Self {
        let (fake, machines, locks) = (Arc::new(fake), Arc::new(machines), Arc::new(Locks::new(4)));
        let stopping = CancellationToken::new();
        let hypervisor: Arc<dyn Hypervisor> = Arc::clone(&fake) as Arc<dyn Hypervisor>;
        let watch =
            Watch::new(hypervisor, HostPolicy::default(), Arc::clone(&locks), Arc::clone(&machines), Folders::none());
        tokio::spawn(watch.run(every, stopping.clone()));
        Self { world, fake, locks, machines, stopping }
    }

    async fn synced(&self, expected: bool) {
        let mut synced = self.machines.synced();
        let wait = synced.wait_for(|synced| *synced == expected);
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect("in time").unwrap();
    }

    /// Waits until the machine is known so.
    async fn known(&self, is_so: impl Fn(&Inventory) -> bool) {
        let subscription = self.machines.subscribe();
        let wait = async {
            loop {
                if let Change::Is(inventory) = subscription.next().await
                    && is_so(&inventory)
                {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect("in time");
    }

    fn rename(&self, name: &str) {
        lock(&self.world).machines.get_mut(&vm_facts().id).unwrap().vm.name = name.to_owned();
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}

const NEVER: Duration = Duration::from_secs(3600);
const OFTEN: Duration = Duration::from_millis(20);

#[tokio::test]
async fn events_are_followed_and_a_lost_hypervisor_is_told() {
    let fixture = Fixture::start(NEVER);
    fixture.synced(true).await;
    assert_eq!(fixture.machines.ids(), [vm_facts().id]);
    fixture.rename("renamed");
    fixture.fake.inbox().tell(vm_facts().id);
    fixture.known(|inventory| inventory.vm.name == "renamed").await;
    fixture.fake.inbox().set_connected(false);
    fixture.synced(false).await;
    fixture.rename("meanwhile");
    fixture.fake.inbox().set_connected(true);
    fixture.synced(true).await;
    assert_eq!(fixture.machines.get(vm_facts().id).unwrap().vm.name, "meanwhile");
    lock(&fixture.world).machines.clear();
    fixture.fake.inbox().tell(vm_facts().id);
    let subscription = fixture.machines.subscribe();
    while subscription.next().await != Change::Gone(vm_facts().id) {}
}

#[tokio::test]
async fn what_no_event_tells_of_is_found() {
    let fixture = Fixture::start(OFTEN);
    fixture.synced(true).await;
    let label = snapshot_core::description::Label::foreign("by-virsh", "");
    fixture.fake.create_internal(&vm_facts(), &"by-virsh".parse().unwrap(), &label, true).unwrap();
    fixture.known(|inventory| inventory.snapshots.len() == 1).await;
    fixture.rename("renamed");
    fixture.known(|inventory| inventory.vm.name == "renamed").await;
    let mut other = lock(&fixture.world).machines[&vm_facts().id].clone();
    other.vm.id = VmId::from_uuid(uuid::Uuid::from_u128(7));
    let id = other.vm.id;
    lock(&fixture.world).machines.insert(id, other);
    fixture.known(|inventory| inventory.vm.id == id).await;
    lock(&fixture.world).machines.remove(&id);
    let subscription = fixture.machines.subscribe();
    while subscription.next().await != Change::Gone(id) {}
}

#[tokio::test]
async fn a_machine_that_an_operation_has_is_left_to_it() {
    let fixture = Fixture::start(OFTEN);
    fixture.synced(true).await;
    let operation = snapshot_core::ids::OperationId::from_uuid(uuid::Uuid::from_u128(1));
    let guard = fixture.locks.take(vm_facts().id, operation).unwrap();
    fixture.rename("halfway");
    fixture.fake.inbox().tell(vm_facts().id);
    tokio::time::sleep(OFTEN * 5).await;
    assert_eq!(fixture.machines.get(vm_facts().id).unwrap().vm.name, "desk");
    drop(guard);
    fixture.known(|inventory| inventory.vm.name == "halfway").await;
}

#[tokio::test]
async fn a_machine_that_cannot_be_read_does_not_keep_the_host_from_being_served() {
    // As libvirt has it after its daemon died while a machine was started: it lists it, and every look fails after 30 s.
    let world = World::with_machine(VmState::Running);
    let mut other = lock(&world).machines[&vm_facts().id].clone();
    other.vm.id = VmId::from_uuid(uuid::Uuid::from_u128(7));
    let id = other.vm.id;
    lock(&world).machines.insert(id, other);
    let fake = Fake::new(&world, None);
    fake.make_unreadable(id, OFTEN * 5);
    let fixture = Fixture::watching(OFTEN, world, fake);
    fixture.synced(true).await;
    assert_eq!(fixture.machines.ids(), [vm_facts().id]);
}

/// What a full disk did not let an operation remove is removed later; what somebody had libvirt forget is not touched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_failed_snapshot_left_is_removed_later_and_nothing_else() {
    let dir = Directory::new();
    let world = World::with_machine(VmState::Shutoff);
    let (failed, forgotten) = (SnapshotId::from_uuid(Uuid::from_u128(1)), SnapshotId::from_uuid(Uuid::from_u128(2)));
    let owned = Owned::open(dir.path()).unwrap();
    let label = Label::foreign("x", "");
    for id in [&failed, &forgotten] {
        let seen = Fake::new(&world, None).observe(vm_facts().id, Reread::All).unwrap();
        owned.expect(&seen, id, &label);
        lock(&world).machines.get_mut(&vm_facts().id).unwrap().images[0].insert(id.clone(), 'A');
    }
    owned.remains(vm_facts().id, &failed);
    // It is written down: the process that comes next knows it, too.
    drop(owned);
    let (fake, owned) = (Fake::new(&world, None), Owned::open(dir.path()).unwrap());
    let fixture = Fixture::of(Duration::from_millis(50), world, fake, Machines::remembering(owned));
    let holds = |id| lock(&fixture.world).machines[&vm_facts().id].images[0].contains_key(id);
    let begun = std::time::Instant::now();
    while holds(&failed) {
        assert!(begun.elapsed() < Duration::from_secs(30), "it is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(holds(&forgotten));
    fixture.stopping.cancel();
}

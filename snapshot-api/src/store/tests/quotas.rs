//! What a user may keep.

use std::sync::Arc;

use super::*;

const ALICE: &str = "ravada/alice";

fn limited(snapshots: u64, bytes: u64, new: NewOperation) -> NewOperation {
    NewOperation { quota: Limits { snapshots, bytes }, ..new }
}

/// As a host tells of a snapshot that alice took.
fn of_alice(mut inventory: Inventory, size_bytes: u64) -> Inventory {
    for snapshot in &mut inventory.snapshots {
        (snapshot.origin, snapshot.size_bytes) = (Origin::Service, size_bytes);
        snapshot.label.actor = ALICE.to_owned();
    }
    inventory
}

/// Every one of many creates at once believes that there is a place left; the last place is taken once.
#[tokio::test(flavor = "multi_thread")]
async fn creates_at_the_same_moment_do_not_share_the_last_place() {
    let (store, _folder) = open();
    for number in 0..40 {
        put(&store, number, &[]).await;
    }
    let barrier = Arc::new(tokio::sync::Barrier::new(40));
    let mut tasks = Vec::new();
    for number in 0..40u128 {
        let (store, barrier) = (store.clone(), barrier.clone());
        tasks.push(tokio::spawn(async move {
            barrier.wait().await;
            store.begin(limited(3, 0, intent(number, create("snap")))).await
        }));
    }
    let mut begun = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(_) => begun += 1,
            Err(error) => assert_eq!(reason(error), Reason::QuotaExceeded),
        }
    }
    assert_eq!((begun, store.usage_of_user(ALICE).unwrap().snapshots), (3, 3));
}

#[tokio::test]
async fn what_is_being_taken_counts_what_failed_does_not_and_a_revert_that_saves_does() {
    let (store, _folder) = open();
    put(&store, 1, &[("a", None)]).await;
    put(&store, 2, &[]).await;
    let first = intent(2, create("snap-2"));
    let operation = first.id;
    store.begin(limited(1, 0, first)).await.unwrap();
    let Request::Create(save) = create("snap-1") else { unreachable!() };
    let revert = Request::Revert { snapshot: id("a"), run_after: Default::default(), save_current: Some(save) };
    let error: Error = store.begin(limited(1, 0, intent(1, revert.clone()))).await.unwrap_err().into();
    assert_eq!((error.reason(), error.metadata()["quota"].as_str()), (Reason::QuotaExceeded, "snapshots_per_user"));
    assert_eq!((error.metadata()["user"].as_str(), error.metadata()["used"].as_str()), (ALICE, "1"));
    // What takes none is not held up, and others have a quota of their own.
    let only = Request::Revert { snapshot: id("a"), run_after: Default::default(), save_current: None };
    store.check_quota(vm_id(1), ALICE, Limits { snapshots: 1, bytes: 1 }, &only).unwrap();
    store.check_quota(vm_id(1), "ravada/bob", Limits { snapshots: 1, bytes: 0 }, &revert).unwrap();
    assert!(store.check_quota(vm_id(1), ALICE, Limits { snapshots: 1, bytes: 0 }, &revert).is_err());
    store.end(operation, Ending::failed(Error::new(Reason::SpaceLow, "x")), 6000).await.unwrap();
    store.begin(limited(1, 0, intent(1, revert))).await.unwrap();
}

#[tokio::test]
async fn bytes_are_set_aside_and_then_as_many_as_the_host_tells() {
    let (store, _folder) = open();
    let mut running = inventory(1, &[]);
    running.vm.state = VmState::Running;
    store.put_inventory(host(), running.clone(), 1).await.unwrap();
    put(&store, 2, &[]).await;
    let new = intent(1, create("snap-1"));
    let operation = new.id;
    let memory = running.vm.memory_bytes;
    assert_eq!(reason(store.begin(limited(0, memory - 1, new.clone())).await.unwrap_err()), Reason::QuotaExceeded);
    store.begin(limited(0, memory, new)).await.unwrap();
    assert_eq!(store.usage_of_user(ALICE).unwrap().bytes, memory);
    assert_eq!(store.usage_of_vm(vm_id(1)).unwrap().bytes, memory);
    let mut after = of_alice(inventory(1, &[("snap-1", None)]), 1000);
    after.vm.state = VmState::Running;
    store.end(operation, succeeded(after), 6000).await.unwrap();
    assert_eq!(store.usage_of_user(ALICE).unwrap(), snapshot_core::quota::Usage { snapshots: 1, bytes: 1000 });
    // One that is off has no running state to save.
    store.begin(limited(0, 1000, intent(2, create("snap-2")))).await.unwrap();
}

#[tokio::test]
async fn a_catalogue_that_was_lost_learns_from_the_hosts_who_took_what() {
    let (store, _folder) = open();
    let mut told = of_alice(inventory(1, &[("snap-1", None), ("snap-2", Some("snap-1"))]), 10);
    told.snapshots.push(snapshot("by-virsh", None));
    store.put_inventory(host(), told, 1).await.unwrap();
    assert_eq!(store.usage_of_user(ALICE).unwrap(), snapshot_core::quota::Usage { snapshots: 2, bytes: 20 });
    assert_eq!(store.usage_of_vm(vm_id(1)).unwrap().snapshots, 3, "those of other tools count for the machine");
    assert_eq!(store.usage_of_user("").unwrap().snapshots, 0, "and for nobody else");
    assert_eq!(
        reason(store.begin(limited(2, 0, intent(1, create("snap-3")))).await.unwrap_err()),
        Reason::QuotaExceeded
    );
    put(&store, 1, &[]).await;
    assert_eq!(store.usage_of_user(ALICE).unwrap().snapshots, 0);
}

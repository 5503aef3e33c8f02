//! What is forgotten, and by which clock.

use std::time::Duration;

use snapshot_core::ids::RequestId;

use super::*;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// An operation that began and ended at a time of the wall clock.
async fn ended(store: &Store, number: u128, key: u128, now_ms: i64) -> OperationId {
    let request_id: Option<RequestId> = Some(Uuid::from_u128(key).to_string().parse().unwrap());
    let new = NewOperation { request_id, now_ms, ..intent(number, Request::Purge { force: false }) };
    let id = new.id;
    store.begin(new).await.unwrap();
    store.end(id, succeeded(inventory(number, &[])), now_ms).await.unwrap();
    id
}

fn known(store: &Store) -> Vec<OperationId> {
    let filter =
        OperationFilter { visible: snapshot_core::authority::Visible::All, vm: None, active_only: false, before: None };
    store.operations(&filter, 1000).unwrap().iter().map(|row| row.id).collect()
}

#[tokio::test]
async fn what_ended_is_kept_for_as_long_as_the_service_runs_and_what_runs_for_ever() {
    let (store, _folder) = open();
    put(&store, 1, &[]).await;
    put(&store, 2, &[]).await;
    let retention = Retention { keep: DAY * 10, most: u64::MAX };
    let first = ended(&store, 1, 1, 5000).await;
    let running = intent(2, create("snap"));
    let running_id = running.id;
    store.begin(running).await.unwrap();
    store.served(DAY * 6).await.unwrap();
    let second = ended(&store, 1, 2, 5000).await;
    assert_eq!(store.prune(retention).await.unwrap(), 0);
    store.served(DAY * 5).await.unwrap();
    assert_eq!(store.prune(retention).await.unwrap(), 1);
    assert_eq!(known(&store), [second, running_id]);
    assert_eq!(reason(store.operation(first).unwrap_err()), Reason::OperationNotFound);
    store.served(DAY * 100).await.unwrap();
    store.prune(retention).await.unwrap();
    assert_eq!(known(&store), [running_id]);
    store.end(running_id, Ending::failed(Error::new(Reason::Internal, "x")), 1).await.unwrap();
    assert_eq!(store.prune(retention).await.unwrap(), 0, "its time begins when it ends");
}

/// Years forward and back to 1970: nothing goes early, nothing stays for ever, and lists are in the order of what happened.
#[tokio::test]
async fn the_wall_clock_may_jump() {
    let (store, folder) = open();
    put(&store, 1, &[]).await;
    let now = 1_800_000_000_000;
    let year = 365 * 24 * 3600 * 1000;
    let mut ids = Vec::new();
    for (key, now_ms) in (1..).zip([now, now + 20 * year, now - 3_600_000, 0, -5, now]) {
        ids.push(ended(&store, 1, key, now_ms).await);
        assert_eq!(store.prune(Retention { keep: DAY, most: u64::MAX }).await.unwrap(), 0);
    }
    ids.reverse();
    assert_eq!(known(&store), ids);
    // Page by page it is the same list.
    let mut filter =
        OperationFilter { visible: snapshot_core::authority::Visible::All, vm: None, active_only: false, before: None };
    let mut paged = Vec::new();
    while let [row] = store.operations(&filter, 1).unwrap().as_slice() {
        paged.push(row.id);
        filter.before = Some(row.seq);
    }
    assert_eq!(paged, ids);
    store.close();
    // The time of service goes on after a restart.
    let store = Store::open(&folder.path().join("catalogue.db")).unwrap();
    store.served(DAY + Duration::from_millis(1)).await.unwrap();
    assert_eq!(store.prune(Retention { keep: DAY, most: u64::MAX }).await.unwrap(), ids.len());
}

#[tokio::test]
async fn a_request_id_finds_its_operation_for_a_day_however_little_is_kept() {
    let (store, _folder) = open();
    put(&store, 1, &[]).await;
    let stingy = Retention { keep: Duration::ZERO, most: 0 };
    let first = ended(&store, 1, 1, 5000).await;
    let key: RequestId = Uuid::from_u128(1).to_string().parse().unwrap();
    store.served(DAY).await.unwrap();
    store.prune(stingy).await.unwrap();
    assert_eq!(store.replayed("ravada/alice", Some(key), "f").unwrap().map(|row| row.id), Some(first));
    store.served(Duration::from_millis(1)).await.unwrap();
    store.prune(stingy).await.unwrap();
    assert!(store.replayed("ravada/alice", Some(key), "f").unwrap().is_none());
}

#[tokio::test]
async fn too_many_are_cut_down_to_the_newest() {
    let (store, _folder) = open();
    put(&store, 1, &[]).await;
    let mut ids = Vec::new();
    for key in 0..30 {
        ids.push(ended(&store, 1, key, 5000).await);
    }
    store.served(DAY * 2).await.unwrap();
    ids.push(ended(&store, 1, 31, 5000).await);
    assert_eq!(store.prune(Retention { keep: DAY * 90, most: 10 }).await.unwrap(), 21);
    ids.reverse();
    assert_eq!(known(&store), ids[..10]);
}

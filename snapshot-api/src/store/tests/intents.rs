//! Intents and outcomes.

use snapshot_core::ids::RequestId;
use snapshot_core::operation::OperationState;

use super::*;

#[tokio::test]
async fn one_mutation_runs_on_a_machine_and_the_second_is_told_which() {
    let (store, _folder) = open();
    put(&store, 1, &[]).await;
    put(&store, 2, &[]).await;
    let first = intent(1, create("snap-1"));
    let first_id = first.id;
    store.begin(first).await.unwrap();
    let error: Error = store.begin(intent(1, create("snap-2"))).await.unwrap_err().into();
    assert_eq!(error.reason(), Reason::VmBusy);
    assert_eq!(error.metadata()["operation"], format!("operations/{first_id}"));
    store.begin(intent(2, create("snap-2"))).await.unwrap();
    store.end(first_id, Ending::failed(Error::new(Reason::Internal, "x")), 6000).await.unwrap();
    store.begin(intent(1, create("snap-2"))).await.unwrap();
}

#[tokio::test]
async fn a_replay_finds_the_first_operation_and_only_that_of_the_same_request() {
    let (store, _folder) = open();
    put(&store, 1, &[]).await;
    let key: RequestId = "0191f7a0-0000-4000-8000-000000000001".parse().unwrap();
    let asked = |fingerprint: &str| NewOperation {
        request_id: Some(key),
        fingerprint: fingerprint.to_owned(),
        ..intent(1, create("snap-1"))
    };
    let first = asked("same");
    let first_id = first.id;
    assert!(matches!(store.begin(first).await.unwrap(), Begun::New));
    let Begun::Replay(row) = store.begin(asked("same")).await.unwrap() else { panic!("begun twice") };
    assert_eq!(row.id, first_id);
    assert_eq!(reason(store.begin(asked("other")).await.unwrap_err()), Reason::RequestIdReused);
    assert!(store.replayed("ravada/bob", Some(key), "same").unwrap().is_none(), "keys of others are others");
    // What came to nothing may be asked for again.
    store.end(first_id, Ending::failed(Error::new(Reason::VmBusy, "x")), 6000).await.unwrap();
    assert!(matches!(store.begin(asked("same")).await.unwrap(), Begun::New));
}

#[tokio::test]
async fn an_end_is_final() {
    let (store, _folder) = open();
    put(&store, 1, &[]).await;
    let new = intent(1, create("snap-1"));
    let operation = new.id;
    store.begin(new).await.unwrap();
    let row = store.accept(operation, false, 5500).await.unwrap();
    assert_eq!((row.state, row.start_time), (OperationState::Running, Some(5500)));
    store.end(operation, succeeded(inventory(1, &[("snap-1", None)])), 6000).await.unwrap();
    let row = store.end(operation, Ending::failed(Error::new(Reason::Internal, "late")), 7000).await.unwrap();
    assert_eq!((row.state, row.end_time, row.error), (OperationState::Succeeded, Some(6000), None));
    assert_eq!(store.accept(operation, false, 8000).await.unwrap().state, OperationState::Succeeded);
}

#[tokio::test]
async fn a_snapshot_in_creation_is_shown_and_settled() {
    for whole in [true, false] {
        let (store, _folder) = open();
        put(&store, 1, &[("a", None)]).await;
        let new = intent(1, create("snap-1"));
        let operation = new.id;
        store.begin(new).await.unwrap();
        let row = store.snapshot(vm_id(1), &id("snap-1")).unwrap();
        assert!(row.creating && row.facts.parent == Some(id("a")) && row.depth == 1);
        // The host does not have it yet, and that does not remove it.
        put(&store, 1, &[("a", None)]).await;
        assert_eq!(listed(&store, 1), ["a", "snap-1"]);
        if whole {
            let after = inventory(1, &[("a", None), ("snap-1", Some("a"))]);
            store.end(operation, succeeded(after), 6000).await.unwrap();
            assert!(!store.snapshot(vm_id(1), &id("snap-1")).unwrap().creating);
        } else {
            store.end(operation, Ending::failed(Error::new(Reason::SpaceLow, "x")), 6000).await.unwrap();
            assert_eq!(listed(&store, 1), ["a"]);
        }
    }
}

#[tokio::test]
async fn what_a_deletion_takes_is_marked_until_it_ends() {
    let tree = [("a", None), ("b", Some("a")), ("c", Some("b")), ("d", Some("a"))];
    for (scope, expected) in
        [(DeleteScope::Only, vec!["b"]), (DeleteScope::Subtree, vec!["b", "c"]), (DeleteScope::Descendants, vec!["c"])]
    {
        let (store, _folder) = open();
        put(&store, 1, &tree).await;
        let new = intent(1, delete("b", scope));
        let operation = new.id;
        store.begin(new).await.unwrap();
        let marked = || -> Vec<String> {
            let rows = store.snapshots(vm_id(1), 0, 100).unwrap();
            rows.iter().filter(|row| row.deleting).map(|row| row.facts.id.to_string()).collect()
        };
        assert_eq!(marked(), expected, "{scope:?}");
        store.end(operation, Ending::failed(Error::new(Reason::Internal, "x")), 6000).await.unwrap();
        assert_eq!(marked(), Vec::<String>::new(), "{scope:?}");
    }
}

#[tokio::test]
async fn a_purge_marks_everything() {
    let (store, _folder) = open();
    put(&store, 1, &[("a", None), ("b", Some("a")), ("c", None)]).await;
    store.begin(intent(1, Request::Purge { force: false })).await.unwrap();
    assert!(store.snapshots(vm_id(1), 0, 100).unwrap().iter().all(|row| row.deleting));
}

#[tokio::test]
async fn an_etag_guards_against_a_label_that_was_changed() {
    let (store, _folder) = open();
    put(&store, 1, &[("a", None)]).await;
    let seen = store.snapshot(vm_id(1), &id("a")).unwrap().label_revision;
    // A change that is not the label's leaves the etag as it is.
    put(&store, 1, &[("a", None), ("b", Some("a"))]).await;
    assert_eq!(store.snapshot(vm_id(1), &id("a")).unwrap().label_revision, seen);
    let mut changed = inventory(1, &[("a", None)]);
    changed.snapshots[0].label.protected = true;
    store.put_inventory(host(), changed, 2000).await.unwrap();
    let stale = NewOperation { expected_label: Some(seen), ..intent(1, delete("a", DeleteScope::Only)) };
    assert_eq!(reason(store.begin(stale).await.unwrap_err()), Reason::EtagMismatch);
    let now = store.snapshot(vm_id(1), &id("a")).unwrap().label_revision;
    let fresh = NewOperation { expected_label: Some(now), ..intent(1, delete("a", DeleteScope::Only)) };
    store.begin(fresh).await.unwrap();
}

#[tokio::test]
async fn what_ran_on_a_host_that_is_gone_from_the_configuration_is_found() {
    let (store, _folder) = open();
    put(&store, 1, &[]).await;
    let new = intent(1, create("snap-1"));
    let operation = new.id;
    store.begin(new).await.unwrap();
    let (alpha, beta): (HostId, HostId) = (host(), "beta".parse().unwrap());
    assert!(store.stranded_operations(&[&alpha, &beta]).unwrap().is_empty());
    let stranded = store.stranded_operations(&[&beta]).unwrap();
    assert_eq!(stranded.iter().map(|row| row.id).collect::<Vec<_>>(), [operation]);
    assert_eq!(store.stranded_operations(&[]).unwrap().len(), 1);
}

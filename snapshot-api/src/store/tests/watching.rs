//! What watchers are told.

use super::*;

fn names(news: &News) -> (Vec<String>, Vec<String>) {
    (
        news.snapshots.iter().map(|row| row.facts.id.to_string()).collect(),
        news.removed.iter().map(|gone| gone.0.to_string()).collect(),
    )
}

#[tokio::test]
async fn the_whole_state_first_and_then_only_what_changed() {
    let (store, _folder) = open();
    put(&store, 1, &[("a", None), ("b", Some("a"))]).await;
    let whole = store.news(vm_id(1), None).unwrap();
    assert!(whole.whole && whole.vm.is_some());
    assert_eq!(names(&whole), (vec!["a".to_owned(), "b".to_owned()], vec![]));
    let nothing = store.news(vm_id(1), Some(whole.revision)).unwrap();
    assert!(!nothing.whole && nothing.vm.is_none() && nothing.snapshots.is_empty() && nothing.removed.is_empty());
    put(&store, 2, &[("x", None)]).await;
    assert!(store.news(vm_id(1), Some(whole.revision)).unwrap().snapshots.is_empty(), "another machine's change");
    put(&store, 1, &[("a", None), ("c", Some("a"))]).await;
    let news = store.news(vm_id(1), Some(whole.revision)).unwrap();
    // `a` is told again: the number of its children and its mark are what they were, but they were touched.
    assert_eq!(names(&news), (vec!["a".to_owned(), "c".to_owned()], vec!["b".to_owned()]));
}

#[tokio::test]
async fn one_that_came_back_is_not_told_as_gone() {
    let (store, _folder) = open();
    put(&store, 1, &[("a", None)]).await;
    let seen = store.news(vm_id(1), None).unwrap().revision;
    put(&store, 1, &[]).await;
    put(&store, 1, &[("a", None)]).await;
    assert_eq!(names(&store.news(vm_id(1), Some(seen)).unwrap()), (vec!["a".to_owned()], vec![]));
}

#[tokio::test]
async fn a_revision_of_the_future_or_the_forgotten_past_gets_the_whole_state() {
    let (store, _folder) = open();
    put(&store, 1, &[("a", None)]).await;
    assert!(store.news(vm_id(1), Some(i64::MAX)).unwrap().whole);
    assert!(store.news(vm_id(1), Some(-7)).unwrap().whole);
}

#[tokio::test]
async fn every_step_of_an_operation_wakes_the_watchers_of_its_machine() {
    let (store, _folder) = open();
    put(&store, 1, &[]).await;
    let mut changes = store.subscribe();
    let mut seen = store.news(vm_id(1), None).unwrap().revision;
    let new = intent(1, create("snap-1"));
    let operation = new.id;
    store.begin(new).await.unwrap();
    let mut states = Vec::new();
    let mut look = |store: &Store, seen: &mut i64| {
        let news = store.news(vm_id(1), Some(*seen)).unwrap();
        *seen = news.revision;
        assert!(news.vm.is_some(), "the machine's etag covers its operations");
        states.extend(news.operations.iter().map(|row| row.state));
    };
    assert_eq!(changes.recv().await.unwrap(), Change::Vm(vm_id(1)));
    look(&store, &mut seen);
    store.accept(operation, false, 1).await.unwrap();
    assert_eq!(changes.recv().await.unwrap(), Change::Vm(vm_id(1)));
    look(&store, &mut seen);
    let progress = Progress { phase: "saving".to_owned(), percent: 50, bytes_done: 1, bytes_total: 2 };
    store.progress(operation, progress).await.unwrap();
    assert_eq!(changes.recv().await.unwrap(), Change::Vm(vm_id(1)));
    look(&store, &mut seen);
    store.end(operation, succeeded(inventory(1, &[("snap-1", None)])), 2).await.unwrap();
    look(&store, &mut seen);
    use snapshot_core::operation::OperationState::{Pending, Running, Succeeded};
    assert_eq!(states, [Pending, Running, Running, Succeeded]);
}

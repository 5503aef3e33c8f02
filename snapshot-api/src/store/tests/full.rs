//! A catalogue that cannot be written.

use snapshot_core::operation::OperationState;

use super::*;

/// Has every job fail until what this returns is dropped: somebody else holds the catalogue's lock.
pub(crate) fn lock_writes(path: &Path) -> impl Sized + use<> {
    let other = rusqlite::Connection::open(path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    other
}

impl Store {
    /// Allows the file no page more than it has, or as many as it likes.
    async fn limit(&self, limited: bool) {
        let limit = self.write(move |job| {
            let now: i64 = job.connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
            let most = if limited { now } else { 1 << 30 };
            job.connection.query_row(&format!("PRAGMA max_page_count = {most}"), [], |_| Ok(()))?;
            Ok(())
        });
        limit.await.unwrap();
    }
}

/// Writes machines until nothing fits any more.
async fn fill(store: &Store) -> u128 {
    for number in 1000.. {
        if store.put_inventory(host(), inventory(number, &[("a", None)]), 0).await.is_err() {
            return number;
        }
    }
    unreachable!("the numbers end")
}

#[tokio::test]
async fn when_it_is_full_reads_go_on_writes_are_refused_and_room_heals_it() {
    let (store, _folder) = open();
    put(&store, 1, &[("a", None)]).await;
    put(&store, 2, &[]).await;
    let running = intent(2, create("snap-2"));
    let operation = running.id;
    store.begin(running).await.unwrap();
    store.limit(true).await;
    let first_missing = fill(&store).await;
    let mut refused = 0;
    for number in 1..100 {
        let long = create(&format!("snap-{}", "x".repeat(90)));
        match store.begin(intent(1, long)).await {
            Ok(_) => panic!("{number}: there was room"),
            Err(error) => {
                let error = Error::from(error);
                assert_eq!((error.reason(), error.retryable()), (Reason::CatalogueUnavailable, true));
                assert!(store.beat().borrow().failing, "health is to know");
                refused += 1;
            }
        }
        assert_eq!(listed(&store, 1), ["a"]);
        assert!(store.operations(&all_operations(), 10).unwrap().len() == 1, "an intent that was refused is not there");
    }
    assert_eq!(refused, 99);
    store.limit(false).await;
    store.begin(intent(1, create("snap-1"))).await.unwrap();
    assert!(!store.beat().borrow().failing);
    let row = store.end(operation, succeeded(inventory(2, &[("snap-2", None)])), 9).await.unwrap();
    assert_eq!(row.state, OperationState::Succeeded);
    put(&store, first_missing, &[("a", None)]).await;
}

fn all_operations() -> OperationFilter {
    OperationFilter { visible: snapshot_core::authority::Visible::All, vm: None, active_only: false, before: None }
}

/// A transaction that SQLite takes back by itself, as it does after some failures of the disk, takes all of its jobs along.
/// None of them may be told that it was done, and none may be done that was told it was not.
#[tokio::test]
async fn jobs_of_a_transaction_that_was_taken_back_are_all_told_so() {
    let folder = TempDir::new().unwrap();
    let (store, mut committer) = Store::open_detached(&folder.path().join("catalogue.db")).unwrap();
    let jobs: Vec<_> = (1..=4u128)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move {
                if number == 2 {
                    let broken = store.write(|job| {
                        job.connection.execute_batch("ROLLBACK")?;
                        Err::<(), _>(StoreError::Corrupt("the disk".to_owned()))
                    });
                    return broken.await.is_ok();
                }
                store.put_inventory(host(), inventory(number, &[]), 0).await.is_ok()
            })
        })
        .collect();
    tokio::task::yield_now().await;
    committer.commit_waiting();
    for job in jobs {
        assert!(!job.await.unwrap());
    }
    for number in 1..=4 {
        assert_eq!(reason(store.vm(vm_id(number)).unwrap_err()), Reason::VmNotFound, "{number}");
    }
    let again = tokio::spawn({
        let store = store.clone();
        async move { store.put_inventory(host(), inventory(1, &[]), 0).await }
    });
    tokio::task::yield_now().await;
    committer.commit_waiting();
    again.await.unwrap().unwrap();
    assert!(store.vm(vm_id(1)).is_ok());
}

/// Somebody else holds the catalogue's lock for longer than a writer waits.
#[tokio::test(flavor = "multi_thread")]
async fn a_catalogue_that_is_locked_is_unavailable_and_not_closed() {
    let (store, folder) = open();
    put(&store, 1, &[]).await;
    let locked = lock_writes(&folder.path().join("catalogue.db"));
    assert_eq!(reason(store.begin(intent(1, create("snap-1"))).await.unwrap_err()), Reason::CatalogueUnavailable);
    drop(locked);
    store.begin(intent(1, create("snap-1"))).await.unwrap();
}

/// A host that tells nonsense at the end of an operation must not keep the operation from ending.
#[tokio::test]
async fn an_end_is_written_although_the_machine_after_it_makes_no_sense() {
    let (store, _folder) = open();
    put(&store, 1, &[("a", None)]).await;
    let new = intent(1, create("snap-1"));
    let operation = new.id;
    store.begin(new).await.unwrap();
    let twice = inventory(1, &[("a", None), ("a", None)]);
    let row = store.end(operation, succeeded(twice), 6000).await.unwrap();
    assert_eq!(row.state, OperationState::Succeeded);
    assert_eq!(listed(&store, 1), ["a"], "what it is now is told again");
    store.begin(intent(1, create("snap-2"))).await.unwrap();
}

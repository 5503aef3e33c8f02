use snapshot_core::{Error, Reason};

use super::*;
use crate::store::tests::{host, inventory};

fn reason(error: StoreError) -> Reason {
    Error::from(error).reason()
}

/// Half of a change is written when the fault is met.
fn faulty(job: &mut Job<'_>) -> Result<(), StoreError> {
    job.connection.execute_batch("DELETE FROM snapshots; DELETE FROM vms")?;
    panic!("a fault in a job");
}

#[tokio::test]
async fn a_job_that_panics_fails_alone_and_the_writer_goes_on() {
    let folder = tempfile::TempDir::new().unwrap();
    let store = Store::open(&folder.path().join("catalogue.db")).unwrap();
    store.put_inventory(host(), inventory(1, &[("a", None)]), 0).await.unwrap();
    let vm = inventory(1, &[]).vm.id;
    for round in 2..5 {
        assert_eq!(reason(store.write(faulty).await.unwrap_err()), Reason::Internal);
        assert_eq!(store.snapshots(vm, 0, 10).unwrap().len(), 1, "what it did is rolled back");
        store.put_inventory(host(), inventory(round, &[]), 0).await.unwrap();
    }
    assert!(!store.beat().borrow().failing, "the file can be written");
}

/// The jobs that share its transaction are committed, and each caller has the answer that is true.
#[tokio::test]
async fn a_job_that_panics_in_a_batch_takes_no_other_along() {
    let folder = tempfile::TempDir::new().unwrap();
    let (store, mut committer) = Store::open_detached(&folder.path().join("catalogue.db")).unwrap();
    let jobs: Vec<_> = (1..=9u128)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move {
                match number % 3 {
                    0 => store.write(faulty).await,
                    _ => store.put_inventory(host(), inventory(number, &[]), 0).await.map(drop),
                }
            })
        })
        .collect();
    // Whoever is told may fail, too.
    assert!(store.post(|_| Ok(()), |_| panic!("a fault in an answer")));
    tokio::task::yield_now().await;
    committer.commit_waiting();
    for (number, job) in (1..=9u128).zip(jobs) {
        let (result, known) = (job.await.unwrap(), store.vm(inventory(number, &[]).vm.id).is_ok());
        assert_eq!((result.is_ok(), known), (number % 3 != 0, number % 3 != 0), "{number}");
    }
}

#[tokio::test]
async fn a_writer_that_ends_all_the_same_is_told_of() {
    let folder = tempfile::TempDir::new().unwrap();
    let store = Store::open(&folder.path().join("catalogue.db")).unwrap();
    let act: Act = Box::new(|_| panic!("a fault beside the jobs"));
    store.writer.sender().unwrap().send(Work { durability: Durability::Synced, act }).unwrap();
    store.ended().await;
    assert_eq!(reason(store.write(|_| Ok(())).await.unwrap_err()), Reason::ShuttingDown);
}

use std::future::Future;
use std::path::PathBuf;

use tempfile::TempDir;
use tonic::Request;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus as Told;
use tonic_health::pb::health_server::Health as _;
use tonic_health::server::HealthService;

use super::*;
use crate::store::Committer;
use crate::store::tests::full::lock_writes;

/// What is told of each service, and of all together.
async fn told(reporter: &HealthReporter) -> Vec<Told> {
    let service = HealthService::from_health_reporter(reporter.clone());
    let mut all = Vec::new();
    for name in proto::SERVICES.into_iter().chain([""]) {
        let request = Request::new(HealthCheckRequest { service: name.to_owned() });
        all.push(service.check(request).await.unwrap().into_inner().status());
    }
    all
}

fn catalogue() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("catalogue.db");
    (folder, path)
}

/// Waits for it without a bound of its own: the test's runner has one.
async fn until(reporter: &HealthReporter, wanted: Told) {
    while told(reporter).await != [wanted; 5] {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(40), what).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalogue_that_cannot_be_written_is_not_served_and_comes_back_by_itself() {
    let (_folder, path) = catalogue();
    let (store, reporter) = (Store::open(&path).unwrap(), HealthReporter::new());
    let health = Health::begin(store.clone(), &path, reporter.clone()).await;
    assert_eq!(told(&reporter).await, [Told::Serving; 5], "before anybody is told that it is ready");
    let alive = health.alive();
    tokio::spawn(health.follow());
    // Nobody asks for a change meanwhile: the service finds out by itself.
    let locked = lock_writes(&path);
    within(until(&reporter, Told::NotServing)).await;
    assert!(alive(), "a restart would not help");
    drop(locked);
    within(until(&reporter, Told::Serving)).await;
}

/// In a time of its own.
struct Detached {
    store: Store,
    committer: Committer,
    reporter: HealthReporter,
    _folder: TempDir,
    path: PathBuf,
}

fn detached() -> Detached {
    let (_folder, path) = catalogue();
    let (store, committer) = Store::open_detached(&path).unwrap();
    Detached { store, committer, reporter: HealthReporter::new(), _folder, path }
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_does_not_answer_is_not_served_and_not_alive_until_it_does() {
    let Detached { store, mut committer, reporter, _folder, path } = detached();
    let health = Health::begin(store.clone(), &path, reporter.clone()).await;
    assert_eq!(told(&reporter).await, [Told::NotServing; 5]);
    let alive = health.alive();
    tokio::spawn(health.follow());
    tokio::time::sleep(SILENCE * 3).await;
    assert!(!alive(), "the service manager is to start it again");
    committer.commit_waiting();
    assert_eq!(store.beat().borrow().jobs, 1, "it is asked once, however long it takes");
    until(&reporter, Told::Serving).await;
    assert!(alive());
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_ended_is_not_served() {
    let Detached { store, mut committer, reporter, _folder, path } = detached();
    let answer = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        committer.commit_waiting();
    };
    let (health, ()) = tokio::join!(Health::begin(store.clone(), &path, reporter.clone()), answer);
    assert_eq!(told(&reporter).await, [Told::Serving; 5]);
    let following = tokio::spawn(health.follow());
    drop(committer);
    following.await.unwrap();
    assert_eq!(told(&reporter).await, [Told::NotServing; 5]);
    store.ended().await;
}

//! The catalogue on a real file.

mod audits;
mod backups;
mod damage;
mod earlier;
mod forgetting;
pub(crate) mod full;
mod intents;
mod inventories;
mod locks;
mod migrations;
mod placements;
mod quotas;
pub(crate) mod statements;
mod watching;

use proto::convert::Inventory;
use snapshot_core::audit::Source;
use snapshot_core::description::Label;
use snapshot_core::ids::{OperationId, SnapshotId, VmId};
use snapshot_core::operation::{Create, DeleteScope, Outcome, Request};
use snapshot_core::quota::Limits;
use snapshot_core::snapshot::{Content, Origin, RecordedState, SnapshotFacts, Storage};
use snapshot_core::text::{Description, DisplayName};
use snapshot_core::vm::{Nvram, OrphanSummary, VmFacts, VmState};
use tempfile::TempDir;
use uuid::Uuid;

use super::*;

fn open() -> (Store, TempDir) {
    let folder = TempDir::new().unwrap();
    (Store::open(&folder.path().join("catalogue.db")).unwrap(), folder)
}

fn vm_id(number: u128) -> VmId {
    VmId::from_uuid(Uuid::from_u128(number))
}

pub(crate) fn host() -> HostId {
    "alpha".parse().unwrap()
}

fn facts(number: u128) -> VmFacts {
    VmFacts {
        id: vm_id(number),
        name: format!("desk-{number}"),
        state: VmState::Shutoff,
        persistent: true,
        has_managed_save: false,
        block_job_disk: None,
        memory_bytes: 1 << 24,
        disks: Vec::new(),
        nvram: Nvram::Absent,
        missing_medium: None,
        orphans: OrphanSummary::default(),
        restrictions: Vec::new(),
    }
}

fn snapshot(id: &str, parent: Option<&str>) -> SnapshotFacts {
    SnapshotFacts {
        id: id.parse().unwrap(),
        parent: parent.map(|parent| parent.parse().unwrap()),
        is_current: false,
        create_time: 1,
        label: Label::foreign(id, ""),
        content: Content::Disks,
        storage: Storage::Internal,
        vm_state: RecordedState::Shutoff,
        consistency: None,
        disks: vec!["vda".to_owned()],
        size_bytes: 0,
        origin: Origin::Foreign,
        broken: None,
        restrictions: Vec::new(),
        revert_denied: None,
    }
}

pub(crate) fn inventory(number: u128, snapshots: &[(&str, Option<&str>)]) -> Inventory {
    let mut snapshots: Vec<_> = snapshots.iter().map(|(id, parent)| snapshot(id, *parent)).collect();
    if let Some(last) = snapshots.last_mut() {
        last.is_current = true;
    }
    Inventory { vm: facts(number), snapshots, sequence: 0, unobserved: false }
}

async fn put(store: &Store, number: u128, snapshots: &[(&str, Option<&str>)]) -> u32 {
    store.put_inventory(host(), inventory(number, snapshots), 1000).await.unwrap()
}

pub(crate) fn create(id: &str) -> Request {
    Request::Create(Create {
        snapshot: id.parse().unwrap(),
        display_name: DisplayName::parse(id).unwrap(),
        description: Description::default(),
        protected: false,
        content: None,
        storage: None,
        quiesce: false,
        allow_crash_consistent: false,
    })
}

fn delete(id: &str, scope: DeleteScope) -> Request {
    Request::Delete { snapshot: id.parse().unwrap(), scope, force: false }
}

pub(crate) fn intent(number: u128, request: Request) -> NewOperation {
    NewOperation {
        id: OperationId::from_uuid(Uuid::now_v7()),
        vm: vm_id(number),
        host: host(),
        request,
        actor: "ravada/alice".to_owned(),
        source: Source { issuer: "ravada".to_owned(), subject: "alice".to_owned(), ..Source::default() },
        quota: Limits::default(),
        request_id: None,
        fingerprint: "f".to_owned(),
        expected_label: None,
        now_ms: 5000,
    }
}

fn succeeded(inventory: Inventory) -> Ending {
    Ending {
        outcome: Outcome::Succeeded,
        error: None,
        method: None,
        pause_ms: None,
        predicted_pause_ms: None,
        notes: Vec::new(),
        inventory: Some(inventory),
    }
}

fn reason(error: StoreError) -> Reason {
    Error::from(error).reason()
}

fn listed(store: &Store, number: u128) -> Vec<String> {
    store.snapshots(vm_id(number), 0, 1000).unwrap().iter().map(|row| row.facts.id.to_string()).collect()
}

fn id(text: &str) -> SnapshotId {
    text.parse().unwrap()
}

#[tokio::test]
async fn what_was_written_is_there_after_a_restart_under_the_same_epoch() {
    let (store, folder) = open();
    put(&store, 1, &[("a", None), ("b", Some("a"))]).await;
    let epoch = store.epoch().to_owned();
    assert_eq!(listed(&store, 1).len(), 2);
    store.close();
    // The file alone has it, although readers still have it open.
    assert_eq!(std::fs::metadata(folder.path().join("catalogue.db-wal")).unwrap().len(), 0);
    let store = Store::open(&folder.path().join("catalogue.db")).unwrap();
    assert_eq!(listed(&store, 1), ["a", "b"]);
    assert_eq!(store.epoch(), epoch);
}

#[tokio::test]
async fn a_closed_catalogue_says_so() {
    let (store, _folder) = open();
    store.close();
    let error = store.put_inventory(host(), inventory(1, &[]), 0).await.unwrap_err();
    assert_eq!(reason(error), Reason::ShuttingDown);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_share_a_commit_fail_alone() {
    let (store, _folder) = open();
    for number in 0..50 {
        put(&store, number, &[]).await;
    }
    // Every second one is a duplicate of the one before it and is refused; the others must all be durable.
    let mut tasks = Vec::new();
    for number in 0..100u128 {
        let store = store.clone();
        tasks.push(tokio::spawn(async move { store.begin(intent(number / 2, create("snap"))).await.is_ok() }));
    }
    let mut begun = 0;
    for task in tasks {
        begun += u32::from(task.await.unwrap());
    }
    assert_eq!(begun, 50);
    assert_eq!(store.active_operations(&host()).unwrap().len(), 50);
}

//! A catalogue of each earlier schema, as it was left in the middle of operations, opened by the program of now.

use snapshot_core::operation::{OperationState, RunAfter};

use super::*;
use crate::store::schema::MIGRATIONS;

const BEFORE: &str = include_str!("earlier/contents.sql");

fn operation(last: u8) -> OperationId {
    format!("01900000-0000-7000-8000-{last:012}").parse().unwrap()
}

/// A file that a program of this schema has made and filled.
fn of_schema(schema: usize, path: &Path) {
    let file = rusqlite::Connection::open(path).unwrap();
    file.pragma_update(None, "journal_mode", "WAL").unwrap();
    for migration in &MIGRATIONS[..schema] {
        file.execute_batch(migration).unwrap();
    }
    file.execute_batch(BEFORE).unwrap();
    if schema >= 2 {
        file.execute("UPDATE operations SET ended_served_ms = 0 WHERE end_time IS NOT NULL", []).unwrap();
    }
    file.pragma_update(None, "user_version", i64::try_from(schema).unwrap()).unwrap();
}

#[tokio::test]
async fn a_catalogue_of_every_schema_opens_with_what_was_under_way() {
    for schema in 1..=MIGRATIONS.len() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("catalogue.db");
        of_schema(schema, &path);
        let store = Store::open(&path).unwrap();
        assert_eq!(store.epoch(), "a1b2c3d4", "schema {schema}");
        nothing_is_lost(&store);
        what_was_under_way_is_followed(&store).await;
        drop(store);
        let again = Store::open(&path).unwrap();
        assert!(again.active_operations(&host()).unwrap().is_empty(), "schema {schema}");
        assert_eq!(again.snapshots(vm_id(1), 0, 100).unwrap().len(), 2, "schema {schema}");
    }
}

fn nothing_is_lost(store: &Store) {
    let rows = store.snapshots(vm_id(1), 0, 100).unwrap();
    let told: Vec<_> = rows.iter().map(|row| (row.facts.id.as_str(), row.facts.label.display_name.as_str())).collect();
    assert_eq!(told, [("snap-1", "before exam"), ("snap-2", "exam"), ("snap-3", "lost"), ("by virsh", "by virsh")]);
    let (first, second, lost) = (&rows[0], &rows[1], &rows[2]);
    assert!(first.facts.label.protected && first.facts.label.description.as_str() == "all packages installed");
    assert_eq!((first.facts.content, first.facts.consistency), (Content::DisksAndMemory, None));
    assert!(second.deleting && second.facts.storage == Storage::External && second.child_count == 1);
    assert!(lost.deleting && lost.facts.broken.is_some());
    assert!(rows[3].facts.is_current && rows[3].facts.origin == Origin::Foreign);
    assert!(store.snapshot(vm_id(2), &id("snap-new")).unwrap().creating);
    let vm = store.vm(vm_id(2)).unwrap();
    assert!(vm.facts.has_managed_save && vm.facts.nvram == Nvram::Qcow2, "{vm:?}");
    assert_eq!(vm.facts.missing_medium.as_deref(), Some("/iso/gone.iso"));

    let failed = store.operation(operation(9)).unwrap();
    assert_eq!(failed.error.unwrap().reason(), Reason::SnapshotNotFound);
    let done = store.operation(operation(0)).unwrap();
    assert_eq!((done.state, done.pause_ms), (OperationState::Succeeded, Some(316)));
}

async fn what_was_under_way_is_followed(store: &Store) {
    let ids = |host: &HostId| -> Vec<_> { store.active_operations(host).unwrap().iter().map(|row| row.id).collect() };
    assert_eq!(ids(&host()), [operation(1), operation(2), operation(3)]);
    assert_eq!(ids(&"beta".parse().unwrap()), [operation(4)]);
    let revert = store.operation(operation(3)).unwrap();
    let Request::Revert { run_after: RunAfter::Running, save_current: Some(saved), .. } = revert.request else {
        panic!("{:?}", revert.request)
    };
    assert_eq!(saved.display_name.as_str(), "before going back");
    // The machine is held until it has ended.
    assert!(store.begin(intent(1, create("snap-next"))).await.is_err());

    let told = inventory(1, &[("snap-1", None), ("by virsh", Some("snap-1"))]);
    let after = Inventory { sequence: 20, ..told };
    let ended = store.end(operation(1), succeeded(after), 6000).await.unwrap();
    assert_eq!(ended.state, OperationState::Succeeded);
    let never = Error::new(Reason::HostUnreachable, "the host never took it on");
    assert_eq!(
        store.end(operation(2), Ending::failed(never.clone()), 6001).await.unwrap().state,
        OperationState::Failed
    );
    assert_eq!(reason(store.snapshot(vm_id(2), &id("snap-new")).unwrap_err()), Reason::SnapshotNotFound);
    for last in [3, 4] {
        store.end(operation(last), Ending::failed(never.clone()), 6002).await.unwrap();
    }
    for number in 1..=4 {
        let on = store.vm(vm_id(number)).unwrap().host;
        store.begin(NewOperation { host: on.clone(), ..intent(number, create("snap-next")) }).await.unwrap();
        let begun = store.active_operations(&on).unwrap().pop().unwrap().id;
        store.end(begun, Ending::failed(never.clone()), 6003).await.unwrap();
    }
}

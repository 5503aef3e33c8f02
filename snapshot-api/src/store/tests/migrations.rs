//! Catalogues of versions before.

use rusqlite::Connection;
use snapshot_core::audit::Outcome as Told;
use snapshot_core::operation::OperationState;

use super::*;
use crate::store::rows::to_json;

/// A file as the version before the audit trail left it: migrations are append-only, so their text is the old one.
fn schema_2(path: &Path) -> Connection {
    let file = Connection::open(path).unwrap();
    file.pragma_update(None, "journal_mode", "WAL").unwrap();
    file.execute_batch(include_str!("../migrations/0001_catalogue.sql")).unwrap();
    file.execute_batch(include_str!("../migrations/0002_service_time.sql")).unwrap();
    file.execute_batch("INSERT INTO catalogue (id, epoch, revision, served_ms) VALUES (1, 'e1e2e3e4', 7, 1000)")
        .unwrap();
    file.pragma_update(None, "user_version", 2).unwrap();
    file
}

/// Killed in the middle of a create, with a snapshot of each kind beside it: of ours, and of another tool.
fn killed_in_a_create(file: &Connection) -> OperationId {
    let sql = "INSERT INTO vms (id, host, facts, observe_time, revision) VALUES (?1, 'alpha', ?2, 1, 5)";
    file.execute(sql, (vm_id(1).to_string(), to_json(&facts(1)).unwrap())).unwrap();
    let operation = OperationId::from_uuid(Uuid::now_v7());
    let sql = "INSERT INTO operations (id, vm, host, snapshot, kind, state, request, actor, fingerprint, create_time, revision) \
               VALUES (?1, ?2, 'alpha', 'snap-new', 'create', 'running', ?3, 'ravada/alice', 'f', 2, 6)";
    let request = to_json(&create("snap-new")).unwrap();
    file.execute(sql, (operation.to_string(), vm_id(1).to_string(), request)).unwrap();
    for (name, origin, actor, creating_by) in [
        ("snap-old", Origin::Service, "ravada/bob", None),
        ("by-virsh", Origin::Foreign, "", None),
        ("snap-new", Origin::Service, "ravada/alice", Some(operation.to_string())),
    ] {
        let mut facts = snapshot(name, None);
        (facts.origin, facts.size_bytes) = (origin, 50);
        facts.label.actor = actor.to_owned();
        let sql = "INSERT INTO snapshots (vm, id, depth, is_current, facts, creating_by, label_revision, revision) \
                   VALUES (?1, ?2, 0, 0, ?3, ?4, 3, 3)";
        file.execute(sql, (vm_id(1).to_string(), name, to_json(&facts).unwrap(), creating_by)).unwrap();
    }
    operation
}

#[tokio::test]
async fn one_from_before_the_audit_trail_is_taken_over_with_what_ran() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("catalogue.db");
    let file = schema_2(&path);
    let operation = killed_in_a_create(&file);
    drop(file);
    let store = Store::open(&path).unwrap();
    assert_eq!(store.epoch(), "e1e2e3e4");
    for (user, snapshots) in [("ravada/bob", 1), ("ravada/alice", 1), ("", 0)] {
        assert_eq!(store.usage_of_user(user).unwrap().snapshots, snapshots, "{user}");
    }
    assert_eq!(store.usage_of_vm(vm_id(1)).unwrap(), snapshot_core::quota::Usage { snapshots: 3, bytes: 150 });
    let begun = &store.audit_events(&AuditFilter::default(), 10).unwrap().rows[0].event;
    assert_eq!(begun.outcome, Told::Begun);
    assert_eq!(begun.detail, "a catalogue from before there was an audit trail, epoch e1e2e3e4");

    // It is followed to its end, and the trail has that without its beginning.
    assert_eq!(store.active_operations(&host()).unwrap()[0].id, operation);
    let after = inventory(1, &[("snap-old", None), ("by-virsh", None), ("snap-new", None)]);
    let row = store.end(operation, succeeded(after), 6000).await.unwrap();
    assert_eq!(row.state, OperationState::Succeeded);
    assert!(!store.snapshot(vm_id(1), &id("snap-new")).unwrap().creating);
    let rows = store.audit_events(&AuditFilter::default(), 10).unwrap().rows;
    let end = &rows[0].event;
    assert_eq!(
        (end.outcome, end.source.issuer.as_str(), end.source.subject.as_str()),
        (Told::Succeeded, "ravada", "alice")
    );
    assert_eq!((rows.len(), end.operation.clone()), (2, operation.to_string()));
    verify(&path, None).unwrap();
    store.begin(intent(1, create("snap-next"))).await.unwrap();
}

#[test]
fn a_file_without_a_trail_cannot_be_verified() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("catalogue.db");
    assert!(matches!(verify(&path, None), Err(Unverified::Unreadable { .. })), "there is none");
    assert!(!path.exists(), "and none is made");
    drop(schema_2(&path));
    let error = verify(&path, None).unwrap_err();
    assert!(matches!(error, Unverified::Unreadable { .. }) && error.to_string().contains("audit trail"), "{error}");
    std::fs::write(&path, "rubbish, and more of it than a header would be".repeat(50)).unwrap();
    assert!(matches!(verify(&path, None), Err(Unverified::Unreadable { .. })));
}

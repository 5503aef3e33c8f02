//! The audit trail: written with what it tells of, only ever added to, and a change of it is found.

use std::time::Duration;

use rusqlite::Connection;
use snapshot_core::audit::{Event, Head, Outcome as Told, hex};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn path(folder: &TempDir) -> PathBuf {
    folder.path().join("catalogue.db")
}

fn refusal(number: i64) -> Event {
    let source = Source {
        issuer: "ravada".to_owned(),
        subject: "eve".to_owned(),
        token_id: format!("jti-{number}"),
        peer: "192.0.2.1".to_owned(),
        method: "DeleteSnapshot".to_owned(),
        request_id: "trace".to_owned(),
    };
    Event {
        vm: Some(vm_id(1)),
        snapshot: "snap".to_owned(),
        operation: "operation".to_owned(),
        reason: "ACTION_NOT_GRANTED".to_owned(),
        detail: "needs delete".to_owned(),
        ..Event::new(number, source, Told::Refused)
    }
}

/// A catalogue with the event `begun` and nine others, closed.
async fn ten() -> (PathBuf, TempDir) {
    let (store, folder) = open();
    for number in 2..=10 {
        store.record(vec![refusal(number)]).await.unwrap();
    }
    store.close();
    let path = path(&folder);
    drop(store);
    (path, folder)
}

fn outcomes(store: &Store) -> Vec<(Told, String)> {
    let filter = AuditFilter { oldest_first: true, ..AuditFilter::default() };
    let rows = store.audit_events(&filter, 1000).unwrap().rows;
    rows.into_iter().map(|row| (row.event.outcome, row.event.operation)).collect()
}

/// As somebody would who has the file.
fn tamper(path: &Path, sql: &str) {
    let file = Connection::open(path).unwrap();
    let triggers: Vec<String> = {
        let mut statement = file.prepare("SELECT name FROM sqlite_schema WHERE type = 'trigger'").unwrap();
        let rows = statement.query_map([], |row| row.get(0)).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    };
    for name in triggers {
        file.execute_batch(&format!("DROP TRIGGER {name}")).unwrap();
    }
    file.execute_batch(sql).unwrap();
}

fn broken(path: &Path, noted: Option<&Head>) -> Broken {
    match verify(path, noted) {
        Err(Unverified::Broken(broken)) => broken,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_intent_and_its_end_are_in_the_trail_and_a_refused_intent_is_not() {
    let (store, folder) = open();
    put(&store, 1, &[("a", None)]).await;
    let new = intent(1, delete("a", DeleteScope::Only));
    let operation = new.id;
    store.begin(new).await.unwrap();
    assert_eq!(reason(store.begin(intent(1, create("b"))).await.unwrap_err()), Reason::VmBusy);
    store.end(operation, Ending::failed(Error::new(Reason::SnapshotProtected, "x")), 6000).await.unwrap();
    store.end(operation, Ending::failed(Error::new(Reason::Internal, "again")), 7000).await.unwrap();
    let id = operation.to_string();
    assert_eq!(outcomes(&store), [(Told::Begun, String::new()), (Told::Accepted, id.clone()), (Told::Failed, id)]);
    let page = store.audit_events(&AuditFilter { vm: Some(vm_id(1)), ..AuditFilter::default() }, 10).unwrap();
    let [end, begin] = page.rows.as_slice() else { panic!("{page:?}") };
    assert_eq!(
        (begin.event.source.subject.as_str(), begin.event.snapshot.as_str(), begin.event.time_ms),
        ("alice", "a", 5000)
    );
    assert_eq!((end.event.source.subject.as_str(), end.event.reason.as_str()), ("alice", "SNAPSHOT_PROTECTED"));
    assert_eq!(end.event.source.peer, "hosts/alpha");
    let verified = verify(&path(&folder), None).unwrap();
    assert_eq!((verified.first, Some(&verified.head)), (1, store.audit_head().unwrap().as_ref()));
}

#[tokio::test]
async fn an_event_is_taken_back_with_what_it_tells_of() {
    let (store, folder) = open();
    put(&store, 1, &[]).await;
    let lock = full::lock_writes(&path(&folder));
    assert!(store.begin(intent(1, create("snap"))).await.is_err());
    assert!(store.record(vec![refusal(1)]).await.is_err());
    drop(lock);
    assert_eq!(outcomes(&store).len(), 1);
    store.begin(intent(1, create("snap"))).await.unwrap();
    assert_eq!(outcomes(&store).len(), 2);
    verify(&path(&folder), None).unwrap();
}

#[tokio::test]
async fn the_table_is_only_ever_added_to_at_its_end() {
    let (path, _folder) = ten().await;
    let file = Connection::open(&path).unwrap();
    for sql in [
        "UPDATE audit SET subject = 'mallory' WHERE seq = 5",
        "UPDATE OR REPLACE audit SET seq = 6 WHERE seq = 5",
        "DELETE FROM audit WHERE seq = 5",
        "DELETE FROM audit",
        "INSERT OR REPLACE INTO audit SELECT * FROM audit WHERE seq = 5",
        "INSERT INTO audit SELECT 12, version, time_ms, served_ms, count, issuer, subject, token_id, peer, method, request_id, vm, \
         snapshot, operation, outcome, reason, detail, previous, hash FROM audit WHERE seq = 10",
    ] {
        let error = file.execute_batch(sql).unwrap_err().to_string();
        assert!(error.contains("only ever added to"), "{sql}: {error}");
    }
    assert_eq!(verify(&path, None).unwrap().head.sequence, 10);
}

#[tokio::test]
async fn a_change_of_any_column_of_any_row_is_found() {
    let (path, folder) = ten().await;
    let columns: Vec<(String, String)> = {
        let file = Connection::open(&path).unwrap();
        let mut statement = file.prepare("SELECT name, type FROM pragma_table_info('audit')").unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    };
    assert_eq!(columns.len(), 19);
    let whole = verify(&path, None).unwrap();
    for (column, kind) in columns {
        for sequence in [1, 5, 10] {
            let changed = match (column.as_str(), kind.as_str()) {
                // To where there is no other.
                ("seq", _) => "seq + 100".to_owned(),
                (_, "INTEGER") => format!("{column} + 1"),
                (_, "BLOB") => "randomblob(32)".to_owned(),
                _ => format!("{column} || 'x'"),
            };
            let copy = folder.path().join(format!("{column}-{sequence}.db"));
            std::fs::copy(&path, &copy).unwrap();
            tamper(&copy, &format!("UPDATE audit SET {column} = CAST({changed} AS {kind}) WHERE seq = {sequence}"));
            let found = broken(&copy, None);
            // The first, moved to the end, is missed where it does not fit.
            let expected = if (column.as_str(), sequence) == ("seq", 1) { 11 } else { sequence };
            assert_eq!(found.sequence, expected, "{column}: {found}");
        }
    }
    assert_eq!(verify(&path, None).unwrap(), whole);
}

#[tokio::test]
async fn removed_inserted_and_swapped_rows_are_found() {
    let all = "version, time_ms, served_ms, count, issuer, subject, token_id, peer, method, request_id, vm, snapshot, operation, \
               outcome, reason, detail, previous, hash";
    let moved = |from: i64, to: i64| format!("UPDATE audit SET seq = {to} WHERE seq = {from};");
    let inserted = format!(
        "{} INSERT INTO audit SELECT 6, {all} FROM audit WHERE seq = 5",
        (6..=10).rev().map(|seq| moved(seq, seq + 1)).collect::<String>()
    );
    let closed =
        format!("DELETE FROM audit WHERE seq = 5; {}", (6..=10).map(|seq| moved(seq, seq - 1)).collect::<String>());
    let swapped = [moved(5, 100), moved(6, 5), moved(100, 6)].concat();
    for (what, sql, first) in [
        ("removed in the middle", "DELETE FROM audit WHERE seq = 5", 5),
        ("removed, and the gap closed", closed.as_str(), 5),
        ("removed at the beginning", "DELETE FROM audit WHERE seq <= 3", 3),
        ("inserted", inserted.as_str(), 6),
        ("swapped", swapped.as_str(), 5),
        ("emptied", "DELETE FROM audit", 1),
    ] {
        let (path, _folder) = ten().await;
        tamper(&path, sql);
        let found = broken(&path, None);
        assert_eq!(found.sequence, first, "{what}: {found}");
    }
}

#[tokio::test]
async fn what_the_file_alone_cannot_show_a_noted_head_shows() {
    let (path, folder) = ten().await;
    let head = verify(&path, None).unwrap().head;
    assert_eq!(verify(&path, Some(&head)).unwrap().head, head);

    // The end cut off: whole by itself.
    let cut = folder.path().join("cut.db");
    std::fs::copy(&path, &cut).unwrap();
    tamper(&cut, "DELETE FROM audit WHERE seq > 7");
    assert_eq!(verify(&cut, None).unwrap().head.sequence, 7);
    assert_eq!(broken(&cut, Some(&head)).sequence, 8);

    // All of it written anew, by the service's own code: whole by itself, and longer.
    let anew = TempDir::new().unwrap();
    let store = Store::open(&anew.path().join("catalogue.db")).unwrap();
    for number in 2..=12 {
        store.record(vec![refusal(number)]).await.unwrap();
    }
    store.close();
    let anew = anew.path().join("catalogue.db");
    assert_eq!(verify(&anew, None).unwrap().head.sequence, 12);
    assert_eq!(broken(&anew, Some(&head)).sequence, 10);

    // What is noted is what the log has: as text.
    let noted: Head = format!("10:{}", hex(&head.hash)).parse().unwrap();
    assert_eq!(noted, head);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_verified_as_the_catalogue_is_while_it_is_written() {
    let (store, folder) = open();
    let writer = store.clone();
    let writing = tokio::spawn(async move {
        for number in 0..300 {
            writer.record(vec![refusal(number)]).await.unwrap();
        }
    });
    let copy = folder.path().join("copy.db");
    let mut heads = Vec::new();
    while !writing.is_finished() || heads.is_empty() {
        heads.push(verify(&path(&folder), heads.last()).unwrap().head);
        backup(&path(&folder), &copy, heads.len() > 1).unwrap();
        verify(&copy, heads.last()).unwrap();
    }
    writing.await.unwrap();
    // A copy that is put back goes on from where it was, and says less than was noted since.
    let restored = Store::open(&copy).unwrap();
    restored.record(vec![refusal(1)]).await.unwrap();
    verify(&copy, heads.first()).unwrap();
}

#[tokio::test]
async fn an_emptied_catalogue_begins_a_trail_of_its_own_and_says_so() {
    let (path, _folder) = ten().await;
    let head = verify(&path, None).unwrap().head;
    std::fs::remove_file(&path).unwrap();
    let store = Store::open(&path).unwrap();
    let rows = store.audit_events(&AuditFilter::default(), 10).unwrap().rows;
    assert_eq!((rows.len(), rows[0].event.outcome, rows[0].sequence), (1, Told::Begun, 1));
    assert!(rows[0].event.detail.starts_with("a new catalogue, epoch "), "{}", rows[0].event.detail);
    assert_eq!(broken(&path, Some(&head)).sequence, 2);
    // Opened again it is no new one.
    store.close();
    assert_eq!(outcomes(&Store::open(&path).unwrap()).len(), 1);
}

#[tokio::test]
async fn old_events_go_by_time_of_service_and_the_trail_says_which() {
    let (store, folder) = open();
    for number in 2..=10 {
        store.record(vec![refusal(number)]).await.unwrap();
    }
    let early = store.audit_head().unwrap().unwrap();
    store.served(DAY * 10).await.unwrap();
    for number in 11..=20 {
        store.record(vec![refusal(number)]).await.unwrap();
    }
    let late = store.audit_head().unwrap().unwrap();
    assert_eq!(store.prune_audit(DAY * 10, 5).await.unwrap(), 0, "not older than it is kept");
    store.served(DAY / 2).await.unwrap();
    assert_eq!(store.prune_audit(DAY * 10, 5).await.unwrap(), 0, "a day more, so that it is done once a day");
    store.served(DAY).await.unwrap();
    assert_eq!(store.prune_audit(DAY * 10, 5).await.unwrap(), 10);
    let verified = verify(&path(&folder), Some(&late)).unwrap();
    assert_eq!((verified.first, verified.head.sequence), (11, 21));
    let rows = store.audit_events(&AuditFilter::default(), 1).unwrap().rows;
    assert_eq!((rows[0].event.outcome, rows[0].event.detail.clone()), (Told::Pruned, early.to_string()));
    // The last that went is still known by its hash, those before are not.
    verify(&path(&folder), Some(&early)).unwrap();
    let forged = Head { hash: [7; 32], ..early };
    assert_eq!(broken(&path(&folder), Some(&forged)).sequence, 11);
    let older = Head { sequence: 3, hash: [7; 32] };
    assert!(matches!(verify(&path(&folder), Some(&older)), Err(Unverified::TooOld { noted: 3, first: 11 })));
    // Later prunings vouch for themselves.
    store.served(DAY * 20).await.unwrap();
    assert_eq!(store.prune_audit(DAY * 10, 5).await.unwrap(), 11);
    assert_eq!(verify(&path(&folder), None).unwrap().first, 22);
    store.close();
    tamper(&path(&folder), "UPDATE audit SET detail = '11:' || substr(detail, 4) WHERE outcome = 'pruned'");
    assert_eq!(broken(&path(&folder), None).sequence, 22);
}

#[tokio::test]
async fn pages_go_on_where_they_ended_while_events_are_added() {
    let (store, _folder) = open();
    for number in 2..=30 {
        store.record(vec![refusal(number)]).await.unwrap();
    }
    for oldest_first in [true, false] {
        let mut filter = AuditFilter { oldest_first, ..AuditFilter::default() };
        let last = store.audit_head().unwrap().unwrap().sequence;
        let mut seen = Vec::new();
        loop {
            let page = store.audit_events(&filter, 7).unwrap();
            seen.extend(page.rows.iter().map(|row| row.sequence).filter(|sequence| *sequence <= last));
            store.record(vec![refusal(1)]).await.unwrap();
            let Some(next) = page.next.filter(|_| seen.len() < usize::try_from(last).unwrap()) else { break };
            filter.beyond = Some(next);
        }
        let all: Vec<i64> = if oldest_first { (1..=last).collect() } else { (1..=last).rev().collect() };
        assert_eq!(seen, all);
    }
    let count = |filter: AuditFilter| store.audit_events(&filter, 1000).unwrap().rows.len();
    assert_eq!(count(AuditFilter { vm: Some(vm_id(2)), ..AuditFilter::default() }), 0);
    assert_eq!(
        count(AuditFilter { actor: Some("ravada/eve".to_owned()), ..AuditFilter::default() }),
        count(AuditFilter::default()) - 1
    );
    assert_eq!(count(AuditFilter { actor: Some("ravada/ev".to_owned()), ..AuditFilter::default() }), 0);
    assert_eq!(count(AuditFilter { from_ms: Some(5), until_ms: Some(8), ..AuditFilter::default() }), 3);
}

/// The text of a filter has to be that of the index, or each page reads the whole trail.
#[tokio::test]
async fn filters_by_machine_and_by_actor_use_their_indexes() {
    let (path, _folder) = ten().await;
    let file = Connection::open(&path).unwrap();
    for (clause, index) in [
        ("vm = 'x' AND vm <> ''", "audit_by_vm"),
        ("issuer || '/' || subject = 'x' AND issuer <> ''", "audit_by_actor"),
        ("operation = 'x' AND operation <> '' AND outcome = 'accepted'", "audit_accepted"),
    ] {
        let sql = format!("EXPLAIN QUERY PLAN SELECT * FROM audit WHERE seq BETWEEN 1 AND 9 AND {clause}");
        let plan: String = file.query_row(&sql, [], |row| row.get(3)).unwrap();
        assert!(plan.contains(index), "{clause}: {plan}");
    }
}

#[tokio::test]
async fn a_service_that_starts_looks_at_the_end_of_the_trail_and_goes_on() {
    let (path, _folder) = ten().await;
    tamper(&path, "UPDATE audit SET subject = 'bob' WHERE seq = 5");
    let file = Connection::open(&path).unwrap();
    audit::check_end(&file, 5).unwrap();
    for links in [6, 1000] {
        let found = audit::check_end(&file, links).unwrap_err().to_string();
        assert!(found.starts_with("event 5: "), "{links}: {found}");
    }
    drop(file);
    let store = Store::open(&path).unwrap();
    store.record(vec![refusal(11)]).await.unwrap();
    assert_eq!(broken(&path, None).sequence, 5, "what is added later does not heal it");
}

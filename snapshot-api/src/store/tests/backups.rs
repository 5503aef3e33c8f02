//! Copies made while the catalogue is written.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use super::*;

fn paths(folder: &TempDir) -> (PathBuf, PathBuf) {
    (folder.path().join("catalogue.db"), folder.path().join("copy.db"))
}

fn files(folder: &TempDir) -> Vec<String> {
    let names =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.starts_with("catalogue.db")).collect()
}

/// Each job writes a machine with as many snapshots as its number; a copy has some of the first of them, whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_made_while_others_write_is_one_state_of_the_whole() {
    let (store, folder) = open();
    let (path, copy) = paths(&folder);
    let writer = store.clone();
    let writing = tokio::spawn(async move {
        for number in 0..200u128 {
            let names: Vec<String> = (0..number % 20).map(|snapshot| format!("s{snapshot:02}")).collect();
            let tree: Vec<(&str, Option<&str>)> = names.iter().map(|name| (name.as_str(), None)).collect();
            put(&writer, number, &tree).await;
        }
    });
    let mut copies = 0;
    while copies < 3 || !writing.is_finished() {
        backup(&path, &copy, copies > 0).unwrap();
        copies += 1;
        let copied = rusqlite::Connection::open(&copy).unwrap();
        let check: String = copied.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(check, "ok");
        drop(copied);
        let restored = Store::open(&copy).unwrap();
        let filter = VmFilter { visible: snapshot_core::authority::Visible::All, host: None, after: None };
        let machines = restored.vms(&filter, 1000).unwrap();
        for (number, machine) in (0..).zip(&machines) {
            assert_eq!((machine.id, machine.snapshot_count), (vm_id(number), (number % 20) as i64));
        }
        restored.close();
    }
    writing.await.unwrap();
    assert_eq!(std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
    let mut left = files(&folder);
    left.retain(|name| !["copy.db", "copy.db-wal", "copy.db-shm", "copy.db-lock"].contains(&name.as_str()));
    assert_eq!(left, Vec::<String>::new());
}

#[tokio::test]
async fn a_file_that_is_there_is_overwritten_only_when_that_is_asked_for() {
    let (store, folder) = open();
    let (path, copy) = paths(&folder);
    put(&store, 1, &[("a", None)]).await;
    std::fs::write(&copy, "precious").unwrap();
    assert!(matches!(backup(&path, &copy, false), Err(BackupError::Exists(there)) if there == copy));
    assert_eq!(std::fs::read(&copy).unwrap(), b"precious");
    // A link is not followed, wherever it leads.
    let link = folder.path().join("link.db");
    std::os::unix::fs::symlink(folder.path().join("elsewhere"), &link).unwrap();
    assert!(matches!(backup(&path, &link, false), Err(BackupError::Exists(_))));
    backup(&path, &copy, true).unwrap();
    assert_eq!(listed(&Store::open(&copy).unwrap(), 1), ["a"]);
}

#[tokio::test]
async fn what_comes_to_nothing_leaves_nothing() {
    let (_store, folder) = open();
    let (path, copy) = paths(&folder);
    let missing = folder.path().join("missing.db");
    assert!(matches!(backup(&missing, &copy, false), Err(BackupError::Store(StoreError::Unreadable { .. }))));
    assert!(matches!(backup(&path, &folder.path().join("no/such/folder.db"), false), Err(BackupError::Write { .. })));
    std::fs::write(&missing, "no database").unwrap();
    assert!(backup(&missing, &copy, false).is_err());
    assert_eq!(files(&folder), ["missing.db"]);
}

/// What was handed out since the copy was made must not fit what is counted anew after it was put back.
#[tokio::test]
async fn a_copy_that_is_put_back_has_an_epoch_of_its_own_and_what_ran_is_still_known_to_run() {
    let (store, folder) = open();
    let (path, copy) = paths(&folder);
    put(&store, 1, &[("a", None)]).await;
    let new = intent(1, create("snap-1"));
    let operation = new.id;
    store.begin(new).await.unwrap();
    backup(&path, &copy, false).unwrap();
    let restored = Store::open(&copy).unwrap();
    assert_ne!(restored.epoch(), store.epoch());
    assert_eq!(restored.active_operations(&host()).unwrap()[0].id, operation);
    assert_eq!(listed(&restored, 1), ["a", "snap-1"]);
}

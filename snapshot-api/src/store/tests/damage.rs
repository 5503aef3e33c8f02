//! Files that are no catalogue, or not whole, or not for this version.

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::PathBuf;

use super::*;

/// A catalogue of some hundred pages, closed.
async fn large() -> (PathBuf, TempDir) {
    let (store, folder) = open();
    let names: Vec<String> = (0..40).map(|number| format!("snap-{number:03}")).collect();
    let tree: Vec<(&str, Option<&str>)> = names.iter().map(|name| (name.as_str(), None)).collect();
    for number in 0..40 {
        put(&store, number, &tree).await;
    }
    store.close();
    let path = folder.path().join("catalogue.db");
    drop(store);
    assert!(std::fs::metadata(&path).unwrap().len() > 400_000, "everything is in the file itself");
    (path, folder)
}

/// Refused, and not one byte changed.
fn refused(path: &Path) -> StoreError {
    let before = std::fs::read(path).unwrap();
    let error = Store::open(path).err().expect("it was opened");
    assert!(std::fs::read(path).unwrap() == before, "the file was changed");
    error
}

fn damaged(path: &Path) -> String {
    let error = refused(path);
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    let message = error.to_string();
    for advice in ["backup", "-wal", "filled from the hosts"] {
        assert!(message.contains(advice), "{message}");
    }
    message
}

fn everything(store: &Store) -> Vec<Vec<SnapshotFacts>> {
    (0..40).map(|number| store.all_snapshots(vm_id(number)).unwrap()).collect()
}

#[tokio::test]
async fn a_newer_schema_is_refused_and_left_as_it_is() {
    let (path, _folder) = large().await;
    let file = rusqlite::Connection::open(&path).unwrap();
    // As a version may leave it that keeps another kind of journal.
    file.pragma_update(None, "journal_mode", "DELETE").unwrap();
    file.pragma_update(None, "user_version", 99).unwrap();
    drop(file);
    let error = refused(&path);
    assert!(matches!(error, StoreError::TooNew { found: 99, known: 6, .. }), "{error}");
    assert!(error.to_string().contains("newer version of the service"), "{error}");
}

#[tokio::test]
async fn a_whole_one_is_opened() {
    let (path, _folder) = large().await;
    assert_eq!(listed(&Store::open(&path).unwrap(), 7).len(), 40);
}

#[tokio::test]
async fn a_truncated_file_is_refused() {
    let (path, _folder) = large().await;
    let length = std::fs::metadata(&path).unwrap().len();
    for left in [length - 4096, length / 2, 4096, 1000, 50] {
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(left).unwrap();
        damaged(&path);
    }
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    let (path, _folder) = large().await;
    std::fs::write(&path, "to be or not to be\n".repeat(1000)).unwrap();
    damaged(&path);
}

#[tokio::test]
async fn another_programs_database_is_refused() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("catalogue.db");
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE users (name TEXT)").unwrap();
    drop(other);
    damaged(&path);
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 1).unwrap();
    damaged(&path);
}

/// Every page in turn is overwritten with what another page holds, with zeros, and with noise.
#[tokio::test]
async fn a_page_that_is_not_what_it_was_is_found_wherever_it_is() {
    const PAGE: usize = 4096;
    let (path, _folder) = large().await;
    let whole = std::fs::read(&path).unwrap();
    let pages = whole.len() / PAGE;
    let mut random = fastrand::Rng::with_seed(7);
    let before = everything(&Store::open(&path).unwrap());
    let mut found = 0;
    for page in (0..pages).step_by(pages / 25) {
        let noise: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(PAGE).collect();
        let other = (page + 3) % pages * PAGE;
        for content in [&[0; PAGE][..], &noise, &whole[other..other + PAGE]] {
            let mut file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
            file.seek(SeekFrom::Start((page * PAGE) as u64)).unwrap();
            file.write_all(content).unwrap();
            drop(file);
            match Store::open(&path) {
                Err(StoreError::Damaged { .. }) => found += 1,
                Err(error) => panic!("page {page}: {error}"),
                // A page that nothing is on.
                Ok(store) => assert!(everything(&store) == before, "page {page} of {pages} was not missed"),
            }
            std::fs::write(&path, &whole).unwrap();
        }
    }
    assert!(found > 60, "{found}");
}

/// The structure of the file is whole, and an index says something else than its table.
#[tokio::test]
async fn one_changed_byte_of_a_key_is_found() {
    let (path, _folder) = large().await;
    let mut whole = Vec::new();
    std::fs::File::open(&path).unwrap().read_to_end(&mut whole).unwrap();
    let key = b"snap-017";
    let places: Vec<usize> = (0..whole.len() - key.len()).filter(|&at| whole[at..].starts_with(key)).collect();
    assert!(places.len() > 80, "in the table, in its indexes, and in the facts");
    let mut found = 0;
    for place in places.iter().step_by(9) {
        let mut changed = whole.clone();
        changed[place + 5] ^= 1;
        std::fs::write(&path, &changed).unwrap();
        found += usize::from(matches!(Store::open(&path), Err(StoreError::Damaged { .. })));
    }
    // What is only in a text of JSON cannot be told from another text.
    assert!(found >= places.len() / 9 / 2, "{found} of {}", places.len() / 9);
}

#[tokio::test]
async fn an_older_schema_is_brought_up_to_date_and_keeps_what_it_has() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("catalogue.db");
    let file = rusqlite::Connection::open(&path).unwrap();
    file.execute_batch(include_str!("../migrations/0001_catalogue.sql")).unwrap();
    file.pragma_update(None, "user_version", 1).unwrap();
    file.execute_batch("INSERT INTO catalogue (id, epoch) VALUES (1, 'abcdefgh')").unwrap();
    let sql = "INSERT INTO operations (id, vm, host, kind, state, request, actor, fingerprint, create_time, revision) \
               VALUES (?1, ?2, 'alpha', 'purge', ?3, '{\"kind\":\"purge\",\"force\":false}', 'a', 'f', 1, 1)";
    for (number, state) in [(1, "succeeded"), (2, "running")] {
        let id = Uuid::from_u128(number).to_string();
        file.execute(sql, (id.clone(), id, state)).unwrap();
    }
    drop(file);
    let store = Store::open(&path).unwrap();
    assert_eq!(store.epoch(), "abcdefgh");
    assert_eq!(store.active_operations(&host()).unwrap().len(), 1);
    // The one that has ended counts as ended at the beginning of time, the other one not at all.
    store.served(REPLAY * 100).await.unwrap();
    let retention = Retention { keep: REPLAY, most: u64::MAX };
    assert_eq!(store.prune(retention).await.unwrap(), 1);
    assert_eq!(store.active_operations(&host()).unwrap().len(), 1);
}

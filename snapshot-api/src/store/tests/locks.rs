//! One process alone serves a catalogue.

use std::os::unix::fs::symlink;

use super::*;

fn refusal(path: &Path) -> String {
    let error = Store::open(path).err().expect("it was opened");
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    error.to_string()
}

#[tokio::test]
async fn a_catalogue_that_is_served_is_refused_with_the_file_and_the_holder() {
    let (store, folder) = open();
    put(&store, 1, &[("a", None)]).await;
    let path = folder.path().join("catalogue.db");
    let link = folder.path().join("elsewhere.db");
    symlink(&path, &link).unwrap();
    for name in [&path, &link] {
        let told = refusal(name);
        for word in [name.display().to_string(), format!("process {} on ", std::process::id())] {
            assert!(told.contains(&word), "{word}: {told}");
        }
    }
    // Who only reads is not held up.
    backup(&path, &folder.path().join("copy.db"), false).unwrap();
    verify(&path, None).unwrap();
    assert!(examine(&path).unwrap().is_some());
    put(&store, 2, &[]).await;
    drop(store);
    assert_eq!(listed(&Store::open(&link).unwrap(), 1), ["a"]);
}

#[tokio::test]
async fn a_lock_file_without_a_holder_holds_nobody_up() {
    let (store, folder) = open();
    store.close();
    let path = folder.path().join("catalogue.db");
    assert!(folder.path().join("catalogue.db-lock").exists(), "it stays: two processes must not lock two files");
    drop(Store::open(&path).unwrap());
    let (again, _committer) = Store::open_detached(&path).unwrap();
    refusal(&path);
    drop(again);
    refusal(&path);
}

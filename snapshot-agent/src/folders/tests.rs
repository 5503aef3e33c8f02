use std::fs;
use std::path::Path;

use super::*;

const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until something is hinted at that fits, and drops what comes before it.
async fn hinted(folders: &mut Folders, fits: impl Fn(&Hints) -> bool) -> Hints {
    let wait = async {
        loop {
            let hints = folders.next().await;
            if fits(&hints) {
                return hints;
            }
        }
    };
    timeout(DEADLINE, wait).await.expect("a hint in time")
}

/// As libvirt writes a record: under another name first.
fn record(root: &Path, domain: &str, name: &str) {
    fs::create_dir_all(root.join(domain)).unwrap();
    let file = root.join(domain).join(format!("{name}.xml"));
    fs::write(file.with_extension("xml.new"), "x").unwrap();
    fs::rename(file.with_extension("xml.new"), file).unwrap();
}

fn names(hints: &Hints, domain: &str) -> Option<Vec<String>> {
    hints.snapshots.get(domain)?.as_ref().map(|names| names.iter().cloned().collect())
}

#[tokio::test]
async fn records_of_snapshots_are_told_by_machine_and_name() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("snapshot");
    record(&root, "old", "first");
    let mut folders = Folders::start(Some(root.clone())).await;
    record(&root, "old", "second name");
    let hints = hinted(&mut folders, |hints| hints.snapshots.contains_key("old")).await;
    assert_eq!(names(&hints, "old").unwrap(), ["second name"]);
    assert!(!hints.anything && hints.images.is_empty() && hints.folders.is_empty());
    fs::remove_file(root.join("old/first.xml")).unwrap();
    let hints = hinted(&mut folders, |hints| hints.snapshots.contains_key("old")).await;
    assert_eq!(names(&hints, "old").unwrap(), ["first"]);
    record(&root, "new", "x");
    // What came before the new folder was watched may have been anything.
    hinted(&mut folders, |hints| hints.snapshots.get("new") == Some(&None)).await;
    fs::rename(root.join("new"), root.join("renamed")).unwrap();
    hinted(&mut folders, |hints| hints.snapshots.get("renamed") == Some(&None)).await;
    record(&root, "renamed", "y");
    let hints = hinted(&mut folders, |hints| names(hints, "renamed").is_some()).await;
    assert_eq!(names(&hints, "renamed").unwrap(), ["y"]);
    assert!(!hints.snapshots.contains_key("new"), "{hints:?}");
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("snapshot");
    let mut folders = Folders::start(Some(root.clone())).await;
    for _ in 0..2 {
        record(&root, "desk", "x");
        // It was not watched, so nobody knows what happened.
        hinted(&mut folders, |hints| hints.anything).await;
        while !folders.watches.contains_key(&Place::Domain("desk".to_owned())) {
            hinted(&mut folders, |_| true).await;
        }
        record(&root, "desk", "y");
        hinted(&mut folders, |hints| hints.snapshots.contains_key("desk")).await;
        fs::remove_dir_all(&root).unwrap();
        hinted(&mut folders, |hints| hints.anything).await;
    }
}

#[tokio::test]
async fn images_are_told_of_and_other_files_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let (pool, image) = (dir.path().join("pool"), dir.path().join("pool/desk.qcow2"));
    fs::create_dir(&pool).unwrap();
    fs::write(&image, "1").unwrap();
    let mut folders = Folders::start(None).await;
    folders.set_images([image.clone()].into());
    let hints = hinted(&mut folders, |hints| !hints.folders.is_empty()).await;
    assert_eq!(hints.folders, [pool.clone()].into());
    let told = |hints: &Hints| hints.images == [image.clone()].into();
    fs::write(pool.join("other.qcow2"), "2").unwrap();
    fs::write(&image, "2").unwrap();
    hinted(&mut folders, told).await;
    fs::rename(&image, pool.join("away")).unwrap();
    hinted(&mut folders, told).await;
    fs::rename(pool.join("away"), &image).unwrap();
    hinted(&mut folders, told).await;
    fs::remove_file(&image).unwrap();
    hinted(&mut folders, told).await;
    // The whole pool goes and comes back, as when a file system is mounted.
    fs::rename(&pool, dir.path().join("elsewhere")).unwrap();
    hinted(&mut folders, |hints| hints.folders == [pool.clone()].into()).await;
    fs::rename(dir.path().join("elsewhere"), &pool).unwrap();
    hinted(&mut folders, |hints| hints.folders == [pool.clone()].into()).await;
    fs::write(&image, "3").unwrap();
    hinted(&mut folders, told).await;
    // Nobody uses it any more.
    folders.set_images(BTreeSet::new());
    assert!(folders.watches.is_empty() && folders.places.is_empty());
}

#[tokio::test]
async fn a_guest_that_writes_costs_nothing() {
    use std::io::Write as _;

    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("desk.qcow2");
    let mut file = fs::File::create(&image).unwrap();
    let mut folders = Folders::start(None).await;
    folders.set_images([image.clone()].into());
    hinted(&mut folders, |hints| !hints.folders.is_empty()).await;
    for _ in 0..100 {
        file.write_all(b"work").unwrap();
        file.sync_data().unwrap();
    }
    // What is told next is the closing, and nothing came before it.
    drop(file);
    let hints = timeout(DEADLINE, folders.next()).await.unwrap();
    assert_eq!(hints.images, [image].into());
}

#[tokio::test]
async fn where_too_much_happens_anything_may_have() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("snapshot");
    record(&root, "desk", "x");
    let mut folders = Folders::start(Some(root.clone())).await;
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    for number in 0..=limit.trim().parse::<u32>().unwrap() / 2 {
        fs::write(root.join("desk").join(number.to_string()), "").unwrap();
    }
    record(&root, "unheard", "x");
    hinted(&mut folders, |hints| hints.anything).await;
    while !folders.watches.contains_key(&Place::Domain("unheard".to_owned())) {
        hinted(&mut folders, |_| true).await;
    }
}

use std::fs;

use super::super::orphans::tests::{Scene, overlay};
use super::super::tests::{id, vm};
use super::*;

fn made(kind: Kind, identity: Option<Identity>) -> Made {
    Made { snapshot: id(1), kind, identity, backing: None, holds: Holds::State }
}

#[test]
fn a_file_is_the_same_by_its_inode_and_by_when_it_was_created() {
    let one = Identity { inode: 7, born: Some(1) };
    assert!(one.is_same(one));
    assert!(!one.is_same(Identity { born: Some(2), ..one }), "a copy was given the same inode");
    assert!(!one.is_same(Identity { inode: 8, ..one }));
    let unknown = Identity { born: None, ..one };
    assert!(one.is_same(unknown) && unknown.is_same(one) && unknown.is_same(unknown));
    assert!(!unknown.is_same(Identity { inode: 8, born: None }));
}

#[test]
fn a_file_is_ours_by_name_and_identity_and_an_error_says_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let path = at(&format!("vda.{}", id(1)));
    fs::write(&path, "").unwrap();
    let identity = Identity::of(&fs::metadata(&path).unwrap());
    let ours = made(Kind::Overlay, Some(identity));
    assert_eq!(ours.looks(&path).unwrap(), Standing::Ours);
    assert_eq!(ours.looks(&guarded(&path)).unwrap(), Standing::Gone);
    assert_eq!(ours.looks(&at("none").join("file")).unwrap(), Standing::Away);
    assert_eq!(made(Kind::Memory, Some(identity)).looks(&path).unwrap(), Standing::Other, "of another kind");
    let other = at("vda.img");
    fs::rename(&path, &other).unwrap();
    assert_eq!(ours.looks(&other).unwrap(), Standing::Other, "not by its inode alone");
    fs::create_dir(&path).unwrap();
    assert_eq!(made(Kind::Overlay, None).looks(&path).unwrap(), Standing::Other);
    std::os::unix::fs::symlink("loop", at("loop")).unwrap();
    ours.looks(&at("loop").join("file")).unwrap_err();
}

#[test]
fn what_cannot_be_read_may_have_data_and_is_no_running_state() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    assert!(!has_data(&file), "it is gone");
    fs::write(&file, "Libvirt").unwrap();
    assert!(has_data(&file) && has_data(&file.join("below")));
    assert!(!is_running_state(&file).unwrap(), "shorter than a header");
    is_running_state(&file.join("below")).unwrap_err();
    for (text, is_one) in [("LibvirtQemudSave", true), ("LibvirtQemudPart", true), ("LibvirtQemudFile", false)] {
        fs::write(&file, text).unwrap();
        assert_eq!(is_running_state(&file).unwrap(), is_one, "{text}");
    }
}

/// Under another name the file that it depends on would be taken for another one.
#[test]
fn a_backing_file_whose_storage_does_not_respond_is_not_known() {
    let dir = tempfile::tempdir().unwrap();
    let (base, top) = (dir.path().join("base"), dir.path().join("top"));
    super::super::tests::qemu_img(&["create", "-q", "-f", "qcow2", base.to_str().unwrap(), "1M"]);
    overlay(&top, &base);
    assert_eq!(backing(&top).unwrap(), Some(base.canonicalize().unwrap()));
    let held = files::enter(&base).unwrap();
    while !files::hanging().contains(&base) {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!(matches!(backing(&top), Err(ImageError::Io(error)) if error.kind() == ErrorKind::TimedOut));
    drop(held);
    // One that is gone is known by its name.
    fs::remove_file(&base).unwrap();
    assert!(backing(&top).unwrap().is_some_and(|below| below.ends_with("base")));
}

#[test]
fn a_state_is_what_a_disk_or_a_snapshot_that_stays_is_on() {
    let scene = Scene::new();
    let text = |name: &str| scene.path(name).display().to_string();
    let tops = ["vda", "vdb"].map(|target| text(&format!("{target}.{}", id(1))));
    let bases = ["vda.qcow2", "vdb.qcow2"].map(text);
    let mut seen = scene.seen.clone();
    assert_eq!(states(&seen), tops.iter().chain(&bases).cloned().collect());
    seen.layers.kept.insert("/next".to_owned());
    let parts = seen.layers.snapshots.get_mut(&id(1)).unwrap();
    (parts.deleted, parts.memory_file) = (true, Some("/memory".to_owned()));
    assert_eq!(states(&seen), tops.iter().cloned().chain(["/next".to_owned()]).collect());
    seen.layers.snapshots.get_mut(&id(1)).unwrap().deleted = false;
    assert!(states(&seen).contains("/memory"));
}

#[test]
fn what_a_file_depends_on_is_renewed_by_a_look_that_could_read_all() {
    let scene = Scene::new();
    let top = scene.overlay();
    let merged = || {
        let mut seen = scene.seen.clone();
        seen.layers.files.get_mut(top.to_str().unwrap()).unwrap().backing = Some("/below".to_owned());
        // What libvirt has as overlays is taken as it is; this one is none of them any more.
        seen.layers.snapshots.clear();
        seen
    };
    let backing = |seen: &Observed| after(scene.fixture.owned.get(vm()).as_ref(), seen)[&top].backing.clone();
    let before = Some(scene.path("vdb.qcow2"));
    assert_eq!(backing(&scene.seen), before);
    assert_eq!(backing(&merged()), Some(PathBuf::from("/below")));
    let unreadable = |mut seen: Observed| {
        seen.layers.unreadable = Some("/other".to_owned());
        seen
    };
    assert_eq!(backing(&unreadable(merged())), before);
    let mut gone = merged();
    gone.layers.files.clear();
    assert_eq!(backing(&gone), before);
}

#[test]
fn an_overlay_of_a_revert_is_on_record_only_above_what_the_snapshot_holds() {
    let scene = Scene::new();
    let record = scene.fixture.owned.get(vm());
    let reverted = |name: &str, below: &str| {
        let (path, below) = (scene.path(name), scene.path(below));
        overlay(&path, &below);
        let mut seen = scene.seen.clone();
        let [path, below] = [path, below].map(|path| path.display().to_string());
        let layer = snapshot_core::layers::Layer { backing: Some(below), ..Default::default() };
        seen.layers.files.insert(path.clone(), layer);
        seen.layers.live.insert("vda".to_owned(), path.clone());
        after_revert(record.as_ref(), &seen, &id(1)).contains_key(Path::new(&path))
    };
    assert!(reverted("vda.1700000001", "vda.qcow2"));
    assert!(!reverted("vda.mine", "vda.qcow2"), "libvirt gives no such names");
    assert!(!reverted("vda.1700000002", "vdb.qcow2"), "it depends on another image");
}

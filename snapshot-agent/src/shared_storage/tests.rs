use std::fs;

use super::*;

struct Scene {
    dir: tempfile::TempDir,
    shared: SharedStorage,
}

const VM: Uuid = Uuid::from_u128(7);

fn images(names: &[&str]) -> Images {
    names.iter().map(|name| ((*name).to_owned(), BTreeMap::from([(VM, "desk".to_owned())]))).collect()
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let shared = Self::host(&dir, "alpha");
        Self { dir, shared }
    }

    fn host(dir: &tempfile::TempDir, name: &str) -> SharedStorage {
        fs::create_dir_all(dir.path().join("images")).unwrap();
        let state = dir.path().join(name);
        SharedStorage::open(name.parse().unwrap(), &state, &[dir.path().join("images")]).unwrap()
    }

    fn images(&self) -> PathBuf {
        self.dir.path().join("images")
    }

    fn note(&self, host: &str, text: &str) {
        let notes = self.images().join(NOTES);
        fs::create_dir_all(&notes).unwrap();
        fs::write(notes.join(format!("{host}.json")), text).unwrap();
    }

    fn used(&self) -> Result<BTreeSet<String>, Error> {
        self.shared.used_elsewhere(&BTreeSet::from([self.images()]))
    }

    fn path(&self, image: &str) -> String {
        self.images().join(image).display().to_string()
    }
}

#[test]
fn what_other_hosts_list_is_used_and_what_this_one_lists_is_not() {
    let scene = Scene::new();
    assert!(scene.used().unwrap().is_empty());
    let beta = Scene::host(&scene.dir, "beta");
    for (host, image) in [(&scene.shared, "mine"), (&beta, "theirs")] {
        let draft = host.draft(&scene.images(), &images(&[image]), true).unwrap().unwrap();
        scene.note(host.host.as_str(), std::str::from_utf8(&draft.bytes.unwrap()).unwrap());
    }
    assert_eq!(scene.used().unwrap(), BTreeSet::from([scene.path("theirs")]));
    let users = scene.shared.other_users(Path::new(&scene.path("theirs"))).unwrap();
    assert_eq!(users, [OtherUser { host: "beta".parse().unwrap(), vm: Some(VM), name: "desk".to_owned() }]);
    assert_eq!(scene.shared.other_users(Path::new(&scene.path("mine"))).unwrap(), []);
    // A newer version of it is read.
    scene.note("beta", r#"{"format": 1, "host": "beta", "images": {"other": {}}}"#);
    assert_eq!(scene.used().unwrap(), BTreeSet::from([scene.path("other")]));
}

#[test]
fn a_note_that_is_not_understood_is_no_empty_one() {
    for text in [
        "",
        "{",
        r#"{"format": 2, "host": "beta", "images": {}}"#,
        r#"{"format": 1, "host": "beta", "images": {}, "more": 1}"#,
        r#"{"format": 1, "host": "gamma", "images": {}}"#,
        r#"{"format": 1, "host": "Not a host", "images": {}}"#,
        r#"{"format": 1, "host": "beta", "images": {"x": {"no-uuid": "desk"}}}"#,
    ] {
        let scene = Scene::new();
        scene.note("beta", text);
        let error = scene.used().unwrap_err();
        assert_eq!(error.reason(), Reason::ImageUnavailable, "{text}");
        assert!(error.message().contains("beta.json"), "{error:?}");
        assert!(scene.shared.other_users(Path::new(&scene.path("x"))).is_err(), "{text}");
    }
}

#[test]
fn a_file_system_that_hosts_may_share_is_not_taken_for_a_local_one() {
    let scene = Scene::new();
    let standing = |path: &Path| scene.shared.standing(path).unwrap();
    assert_eq!(standing(&scene.images()), Standing::Shared);
    assert_eq!(standing(&scene.images().join("below")), Standing::Shared);
    assert_eq!(standing(scene.dir.path()), Standing::Local);
    assert_eq!(standing(Path::new("/dev/mapper")), Standing::Local);
    // No file system for images, and none that is known.
    assert_eq!(standing(Path::new("/proc/self")), Standing::Unknown);
    let error = scene.shared.used_elsewhere(&BTreeSet::from([PathBuf::from("/proc/self")])).unwrap_err();
    assert!(error.reason() == Reason::ImageOutOfReach && error.message().contains("shared_dirs"), "{error:?}");
}

#[test]
fn a_note_says_no_less_until_every_vm_is_known_and_is_removed_with_the_last_image() {
    let scene = Scene::new();
    let draft = |names: &[&str], complete| scene.shared.draft(&scene.images(), &images(names), complete).unwrap();
    assert!(draft(&[], true).is_none(), "nothing to say");
    let bytes = draft(&["a", "b"], true).unwrap().bytes.unwrap();
    scene.note("alpha", std::str::from_utf8(&bytes).unwrap());
    assert!(draft(&["a", "b"], true).is_none(), "it says so");
    assert!(draft(&["b"], false).is_none(), "it may use both");
    let more: Note = serde_json::from_slice(&draft(&["c"], false).unwrap().bytes.unwrap()).unwrap();
    assert_eq!(more.images, images(&["a", "b", "c"]));
    let fewer: Note = serde_json::from_slice(&draft(&["b"], true).unwrap().bytes.unwrap()).unwrap();
    assert_eq!(fewer.images, images(&["b"]));
    assert!(draft(&[], true).unwrap().bytes.is_none(), "it is removed");
}

#[test]
fn the_note_of_another_agent_with_the_same_name_is_not_written_over() {
    let scene = Scene::new();
    scene.note("alpha", r#"{"format": 1, "host": "alpha", "images": {"theirs": {}}}"#);
    let error = scene.shared.draft(&scene.images(), &images(&["a"]), true).unwrap_err();
    assert!(error.to_string().contains("another agent of a host alpha"), "{error}");
    assert_eq!(scene.used().unwrap(), BTreeSet::from([scene.path("theirs")]), "and is honoured");
    scene.shared.wrote(&scene.images(), Err(error));
    assert!(scene.shared.unwritten(&scene.images()).is_some());
    scene.shared.wrote(&scene.images(), Ok(()));
    assert!(scene.shared.unwritten(&scene.images()).is_none());
}

#[test]
fn an_agent_knows_after_a_restart_which_notes_are_its_own() {
    let scene = Scene::new();
    scene.shared.remember(&scene.images(), true).unwrap();
    let again = Scene::host(&scene.dir, "alpha");
    assert_eq!(
        (again.memory.instance, again.noted()),
        (scene.shared.memory.instance, BTreeSet::from([scene.images()]))
    );
    // A directory that is not configured any more keeps its note: others may still use it.
    let elsewhere = SharedStorage::open("alpha".parse().unwrap(), &scene.dir.path().join("alpha"), &[]).unwrap();
    assert!(elsewhere.noted().is_empty());
    again.remember(&scene.images(), false).unwrap();
    assert!(Scene::host(&scene.dir, "alpha").noted().is_empty());
}

/// What is removed by it is gone, so an error is never taken for "no host uses it".
#[test]
fn notes_that_cannot_be_listed_or_opened_are_not_taken_for_none() {
    let scene = Scene::new();
    let notes = scene.images().join(NOTES);
    fs::write(&notes, "no directory").unwrap();
    assert_eq!(scene.used().unwrap_err().reason(), Reason::ImageUnavailable);
    fs::remove_file(&notes).unwrap();
    fs::create_dir(&notes).unwrap();
    std::os::unix::fs::symlink("beta.json", notes.join("beta.json")).unwrap();
    assert_eq!(scene.used().unwrap_err().reason(), Reason::ImageUnavailable);
    // One that was removed since it was listed says nothing.
    fs::remove_file(notes.join("beta.json")).unwrap();
    std::os::unix::fs::symlink("none", notes.join("beta.json")).unwrap();
    assert!(scene.used().unwrap().is_empty());
}

#[test]
fn a_directory_whose_file_system_cannot_be_told_is_not_taken_for_a_local_one() {
    let scene = Scene::new();
    let file = scene.dir.path().join("file");
    fs::write(&file, "").unwrap();
    scene.shared.standing(&file.join("below")).unwrap_err();
    assert_eq!(scene.shared.standing(&scene.dir.path().join("none")).unwrap(), Standing::Local);
    let error = scene.shared.used_elsewhere(&BTreeSet::from([file.join("below")])).unwrap_err();
    assert_eq!(error.reason(), Reason::ImageUnavailable);
}

#[test]
fn a_note_that_is_too_large_and_too_many_notes_are_an_error() {
    let scene = Scene::new();
    let note = |bytes: usize| format!("{:<bytes$}", r#"{"format": 1, "host": "beta", "images": {"x": {}}}"#);
    let read = |bytes: usize| {
        scene.note("beta", &note(bytes));
        Note::read(fs::File::open(scene.images().join(NOTES).join("beta.json")).unwrap(), 100)
    };
    assert_eq!(read(100).unwrap().images.len(), 1);
    read(101).unwrap_err();
    for number in 0..MOST {
        scene.note(&format!("host-{number}"), &note(0).replace("beta", &format!("host-{number}")));
    }
    assert_eq!(scene.used().unwrap_err().reason(), Reason::ImageUnavailable, "one of beta is there, too");
    fs::remove_file(scene.images().join(NOTES).join("beta.json")).unwrap();
    assert_eq!(scene.used().unwrap(), BTreeSet::from([scene.path("x")]));
}

#[test]
fn a_note_is_read_again_when_it_was_changed() {
    let scene = Scene::new();
    for image in ["a", "b"] {
        scene.note("beta", &format!(r#"{{"format": 1, "host": "beta", "images": {{"{image}": {{}}}}}}"#));
        assert_eq!(scene.used().unwrap(), BTreeSet::from([scene.path(image)]));
        assert_eq!(scene.used().unwrap(), BTreeSet::from([scene.path(image)]), "and is remembered");
        let users = scene.shared.other_users(Path::new(&scene.path(image))).unwrap();
        assert_eq!((users.len(), users[0].vm, users[0].host.as_str()), (1, None, "beta"));
    }
    // Of a directory that is not shared there are none.
    assert!(scene.shared.other_users(&scene.dir.path().join("a")).unwrap().is_empty());
    let alone = SharedStorage::open("alpha".parse().unwrap(), &scene.dir.path().join("alone"), &[]).unwrap();
    assert!(!alone.is_any() && alone.standing(&scene.images()).unwrap() == Standing::Local);
    assert!(scene.shared.is_any() && Scene::host(&scene.dir, "gamma").unwritten(&scene.images()).is_none());
    assert_eq!(scene.shared.others(&scene.images()).unwrap(), BTreeSet::from(["beta".parse().unwrap()]));
}

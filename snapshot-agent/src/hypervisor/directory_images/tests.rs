//! Directories of real images.

use std::fs;
use std::process::Command;
use std::time::Duration;

use super::*;

struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn image(&self, name: &str, backing: &[&str]) -> PathBuf {
        let path = self.at(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-u", "-f", "qcow2", "-o", "size=1M"]).args(backing).arg(&path);
        assert!(command.status().unwrap().success());
        path
    }

    fn clone(&self, name: &str, below: &Path) -> PathBuf {
        self.image(name, &["-F", "qcow2", "-b", below.to_str().unwrap()])
    }

    /// What is found in the directory of the images, and in all of another one.
    fn found(&self, whole: &str) -> Result<Dependencies, Problem> {
        dependencies(&BTreeSet::from([self.at("images")]), &BTreeSet::from([self.at(whole)]))
    }

    fn readable(&self, is_whole: bool) -> Result<(Dependencies, BTreeSet<PathBuf>), Problem> {
        readable_dependencies(&self.at("images"), is_whole).map(|found| (found.images, found.unread))
    }
}

/// Nothing that accesses this path gets an answer until the end of the test.
fn hang(path: &Path) -> files::Access {
    let access = files::enter(path).unwrap();
    while !files::hanging().contains(&path.to_owned()) {
        std::thread::sleep(Duration::from_millis(50));
    }
    access
}

#[test]
fn a_clone_is_found_with_all_that_it_depends_on() {
    let scene = Scene::new();
    let base = scene.image("images/base.qcow2", &[]);
    let middle = scene.clone("images/middle.qcow2", &base);
    let clone = scene.clone("host/deep/clone.qcow2", &middle);
    fs::write(scene.at("images/notes.txt"), "notes").unwrap();
    std::os::unix::fs::symlink(&clone, scene.at("images/link.qcow2")).unwrap();
    std::os::unix::fs::symlink(scene.at("nowhere"), scene.at("images/broken.qcow2")).unwrap();
    let below_clone = BTreeSet::from([base.clone(), middle.clone(), clone.clone()]);
    let all = BTreeMap::from([
        (middle.clone(), BTreeSet::from([base.clone(), middle.clone()])),
        (clone.clone(), below_clone.clone()),
    ]);
    assert_eq!(scene.found("host").unwrap(), all);
    // A link is the image that it leads to.
    assert_eq!(scene.found("none").unwrap(), all);
    fs::remove_file(scene.at("images/link.qcow2")).unwrap();
    assert_eq!(scene.found("none").unwrap().into_keys().collect::<Vec<_>>(), [middle]);
    // The directories in one are looked through where it is one of the host's.
    let nested = scene.clone("images/nested/clone.qcow2", &base);
    assert!(!scene.found("host").unwrap().contains_key(&nested));
    assert!(scene.found("images").unwrap().contains_key(&nested));
    assert!(scene.readable(true).unwrap().0.contains_key(&nested));
    let (found, unread) = scene.readable(false).unwrap();
    assert!(found.len() == 1 && unread.is_empty(), "{found:?} {unread:?}");
}

/// What is removed by it must not be below an image that cannot be followed.
#[test]
fn an_image_below_which_nothing_can_be_read_is_an_error_and_one_without_its_base_is_not() {
    let scene = Scene::new();
    let base = scene.image("images/base.qcow2", &[]);
    let clone = scene.clone("images/clone.qcow2", &base);
    fs::remove_file(&base).unwrap();
    assert_eq!(scene.found("none").unwrap()[&clone], BTreeSet::from([base, clone.clone()]));
    let file = scene.at("images/file");
    fs::write(&file, "").unwrap();
    let within = file.join("base.qcow2");
    scene.clone("images/other.qcow2", &within);
    let (path, error) = scene.found("none").unwrap_err();
    assert_eq!((path, error.kind()), (within, ErrorKind::NotADirectory));
}

#[test]
fn a_directory_that_cannot_be_listed_is_an_error_and_one_that_does_not_exist_is_empty() {
    let scene = Scene::new();
    assert!(scene.found("none").unwrap().is_empty());
    assert!(scene.readable(true).unwrap().0.is_empty());
    fs::write(scene.at("images"), "no directory").unwrap();
    assert_eq!(scene.found("none").unwrap_err().0, scene.at("images"));
    assert_eq!(scene.readable(true).unwrap_err().0, scene.at("images"));
}

#[test]
fn an_image_whose_storage_does_not_respond_is_an_error_and_makes_nothing_else_unknown() {
    let scene = Scene::new();
    let base = scene.image("images/base.qcow2", &[]);
    let clone = scene.clone("images/clone.qcow2", &base);
    let hung = scene.clone("images/hung.qcow2", &base);
    let held = hang(&hung);
    let (path, error) = scene.found("none").unwrap_err();
    assert_eq!((&path, error.kind()), (&hung, ErrorKind::TimedOut));
    let (found, unread) = scene.readable(false).unwrap();
    assert!(found.keys().eq([&clone]) && unread == BTreeSet::from([hung.clone()]), "{found:?} {unread:?}");
    drop(held);
    // Only where a link leads is it known.
    let elsewhere = scene.clone("elsewhere/hung.qcow2", &base);
    std::os::unix::fs::symlink(&elsewhere, scene.at("images/link.qcow2")).unwrap();
    let _held = hang(&elsewhere);
    assert_eq!(scene.found("none").unwrap_err().1.kind(), ErrorKind::TimedOut);
}

#[test]
fn where_there_are_too_many_files_it_is_not_known_what_depends_on_what() {
    let scene = Scene::new();
    for name in ["a", "b", "c"] {
        scene.image(&format!("images/{name}"), &[]);
    }
    let walked = |most| {
        let mut count = 0;
        let walked = walk_at_most(most, vec![(scene.at("images"), true)], &mut |file| {
            count += 1;
            file.map(drop)
        });
        (walked.map_err(|(path, error)| (path, error.kind())), count)
    };
    assert_eq!(walked(3), (Ok(()), 3));
    assert_eq!(walked(2), (Err((scene.at("images"), ErrorKind::FileTooLarge)), 3));
}

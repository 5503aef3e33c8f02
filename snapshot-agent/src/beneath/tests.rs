use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::fs::CWD;
use tempfile::TempDir;

use super::*;

/// A folder of images, and beside it one of somebody else's.
struct Scene {
    dir: TempDir,
    folders: Beneath,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["images/vm", "bases", "outside"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        let root = dir.path().canonicalize().unwrap();
        let folders = Beneath::open(&[root.join("images")], &[root.join("bases")]);
        Self { dir, folders }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn file(&self, name: &str) -> PathBuf {
        let path = self.at(name);
        fs::write(&path, name).unwrap();
        path
    }
}

fn is_refused<T: std::fmt::Debug>(result: io::Result<T>) -> bool {
    result.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

#[test]
fn what_is_beneath_is_done() {
    let scene = Scene::new();
    let (image, second) = (scene.file("images/vm/a"), scene.at("images/vm/a.kept"));
    assert!(scene.folders.find(&image).unwrap().is_some());
    scene.folders.link(&image, &second).unwrap();
    scene.folders.link(&image, &second).unwrap();
    assert_eq!(fs::metadata(&image).unwrap().ino(), fs::metadata(&second).unwrap().ino());
    assert!(scene.folders.image(&image, &second).is_ok(), "its second name is ours");
    assert!(scene.folders.unlink(&image).unwrap());
    assert!(!scene.folders.unlink(&image).unwrap(), "it is gone already");
    scene.folders.rename(&second, &image).unwrap();
    assert_eq!(fs::read_to_string(&image).unwrap(), "images/vm/a");
    assert!(!scene.folders.unlink(&scene.at("images/gone/a")).unwrap(), "and so is one whose folder is");
}

#[test]
fn names_outside_are_refused_however_they_are_spelled() {
    let scene = Scene::new();
    let outside = scene.file("outside/a");
    let images = scene.at("images");
    for path in [
        outside.clone(),
        images.join("../outside/a"),
        images.join("vm/../../outside/a"),
        images.clone(),
        PathBuf::from("images/vm/a"),
        PathBuf::from("/etc/passwd"),
        scene.at("images-of-others/a"),
    ] {
        assert!(!scene.folders.has(&path), "{}", path.display());
        assert!(is_refused(scene.folders.unlink(&path)), "{}", path.display());
        assert!(is_refused(scene.folders.file(&path, OFlags::RDONLY)), "{}", path.display());
        assert!(is_refused(scene.folders.link(&path, &path.with_extension("kept"))), "{}", path.display());
    }
    assert!(outside.exists());
    assert!(scene.folders.may_read(&scene.at("bases/b")) && !scene.folders.has(&scene.at("bases/b")));
    assert!(!scene.folders.may_read(&scene.at("bases/../outside/a")));
}

#[test]
fn links_are_not_followed_wherever_they_stand() {
    let scene = Scene::new();
    let outside = scene.file("outside/a");
    symlink(scene.at("outside"), scene.at("images/away")).unwrap();
    symlink(&outside, scene.at("images/vm/link")).unwrap();
    let (through, link) = (scene.at("images/away/a"), scene.at("images/vm/link"));
    for result in [scene.folders.unlink(&through).map(drop), scene.folders.has_folder_of(&through)] {
        assert!(is_refused(result));
    }
    assert!(is_refused(scene.folders.file(&link, OFlags::PATH)), "a link is no image");
    assert!(scene.folders.file(&link, OFlags::RDWR).is_err());
    assert!(is_refused(scene.folders.link(&link, &scene.at("images/vm/link.kept"))), "nor is it guarded");
    assert!(is_refused(scene.folders.rename(&link, &scene.at("images/vm/b"))), "nor brought back");
    // The link itself is in our folder and goes; what it leads to stays.
    assert!(scene.folders.unlink(&link).unwrap());
    assert_eq!(fs::read_to_string(&outside).unwrap(), "outside/a");
}

#[test]
fn an_image_with_another_name_may_be_somebody_elses() {
    let scene = Scene::new();
    let (image, second) = (scene.file("images/vm/a"), scene.at("images/vm/a.kept"));
    fs::hard_link(&image, scene.at("outside/other")).unwrap();
    let refusal = scene.folders.image(&image, &second).unwrap_err();
    assert!(refusal.to_string().contains("another name"), "{refusal}");
    // Somebody has put another file where our second name would be.
    fs::write(&second, "not this").unwrap();
    assert!(is_refused(scene.folders.link(&image, &second)));
    assert_eq!(fs::read_to_string(&second).unwrap(), "not this");
    // To remove our name of it does nothing to the other.
    assert!(scene.folders.unlink(&image).unwrap());
    assert_eq!(fs::read_to_string(scene.at("outside/other")).unwrap(), "images/vm/a");
}

#[test]
fn a_pipe_holds_nobody_up() {
    let scene = Scene::new();
    let pipe = scene.at("images/vm/pipe");
    rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).unwrap();
    assert!(is_refused(scene.folders.file(&pipe, OFlags::RDONLY)));
}

#[test]
fn a_link_that_an_administrator_made_on_purpose_is_followed_once() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().canonicalize().unwrap().join("real");
    fs::create_dir_all(&real).unwrap();
    let named = dir.path().canonicalize().unwrap().join("named");
    symlink(&real, &named).unwrap();
    let folders = Beneath::open(std::slice::from_ref(&named), &[]);
    fs::write(real.join("a"), "x").unwrap();
    assert!(folders.has(&named.join("a")) && folders.has(&real.join("a")));
    assert!(folders.find(&named.join("a")).unwrap().is_some());
    // What it leads to later does not count.
    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("a"), "x").unwrap();
    fs::remove_file(&named).unwrap();
    symlink(&other, &named).unwrap();
    assert!(folders.unlink(&named.join("a")).unwrap());
    assert!(!real.join("a").exists() && other.join("a").exists());
}

/// How many files outside are lost in so many rounds in which a machine's folder is now a folder and now a link to one outside,
/// while a file in it is removed.
fn lost_in_a_race(scene: &Scene, rounds: u32, remove: impl Fn(&Path)) -> u32 {
    let (folder, link) = (scene.at("images/vm"), scene.at("images/swap"));
    symlink(scene.at("outside"), &link).unwrap();
    let stop = AtomicBool::new(false);
    let mut lost = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                renameat_with(CWD, &folder, CWD, &link, RenameFlags::EXCHANGE).unwrap();
            }
        });
        let victim = scene.at("outside/a");
        for _ in 0..rounds {
            fs::write(&victim, "somebody else's").unwrap();
            remove(&folder.join("a"));
            lost += u32::from(!victim.exists());
        }
        stop.store(true, Ordering::Relaxed);
    });
    lost
}

#[test]
fn a_folder_that_becomes_a_link_between_look_and_deed_leads_nowhere() {
    let lost = lost_in_a_race(&Scene::new(), 5000, |path| drop(fs::remove_file(path)));
    assert!(lost > 0, "the race is one: removing by path loses what is outside");
    let scene = Scene::new();
    let lost = lost_in_a_race(&scene, 5000, |path| drop(scene.folders.unlink(path)));
    assert_eq!(lost, 0);
}

#[test]
fn where_everything_may_be_touched_links_are_not_followed_either() {
    let scene = Scene::new();
    let lost = lost_in_a_race(&scene, 2000, |path| drop(Beneath::anywhere().unlink(path)));
    assert_eq!(lost, 0);
}

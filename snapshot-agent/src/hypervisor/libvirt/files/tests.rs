//! Real files in a directory.

use std::fs;

use super::*;
use crate::hypervisor::overlays::text;

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

    fn write(&self, name: &str) -> String {
        fs::write(self.at(name), name).unwrap();
        text(&self.at(name))
    }

    fn names(&self) -> Vec<(String, String)> {
        let mut names: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap()))
            .collect();
        names.sort();
        names
    }
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(name, held)| ((*name).to_owned(), (*held).to_owned())).collect()
}

#[test]
fn a_guarded_file_outlives_its_removal() {
    let scene = Scene::new();
    let (files, folders) = ([scene.write("a"), scene.write("b"), text(&scene.at("none"))], Beneath::anywhere());
    guard(folders, &files).unwrap();
    guard(folders, &files).unwrap();
    assert_eq!(scene.names(), pairs(&[("a", "a"), ("a.kept", "a"), ("b", "b"), ("b.kept", "b")]));
    fs::remove_file(&files[0]).unwrap();
    // libvirt may be at it still, so it keeps the second name until it is unguarded.
    guard(folders, &files).unwrap();
    assert_eq!(scene.names(), pairs(&[("a", "a"), ("a.kept", "a"), ("b", "b"), ("b.kept", "b")]));
    fs::remove_file(&files[1]).unwrap();
    unguard(folders, &files).unwrap();
    assert_eq!(scene.names(), pairs(&[("a", "a"), ("b", "b")]));
}

#[test]
fn a_second_name_of_another_file_is_not_taken_for_a_guard() {
    let scene = Scene::new();
    let file = scene.write("a");
    scene.write("a.kept");
    guard(Beneath::anywhere(), &[file]).unwrap_err();
    assert_eq!(scene.names(), pairs(&[("a", "a"), ("a.kept", "a.kept")]));
}

#[test]
fn files_are_removed_and_what_is_gone_is_no_failure() {
    let scene = Scene::new();
    let files = [scene.write("a"), text(&scene.at("none")), scene.write("b")];
    unlink(Beneath::anywhere(), &files).unwrap();
    assert_eq!(scene.names(), []);
    fs::create_dir(scene.at("directory")).unwrap();
    unlink(Beneath::anywhere(), &[text(&scene.at("directory"))]).unwrap_err();
}

#[test]
fn a_file_is_the_same_by_another_path() {
    let scene = Scene::new();
    let file = scene.write("a");
    std::os::unix::fs::symlink(&file, scene.at("link")).unwrap();
    assert!(is_same(&scene.at("link"), &file) && !is_same(&scene.at("b"), &file));
}

#[test]
fn what_others_use_is_followed_down_and_what_cannot_be_read_is_an_error() {
    let scene = Scene::new();
    let image = |name: &str, below: &[&str]| {
        let path = scene.at(name);
        let mut command = std::process::Command::new("qemu-img");
        command.args(["create", "-q", "-u", "-f", "qcow2", "-o", "size=1M"]).args(below).arg(&path);
        assert!(command.status().unwrap().success());
        path
    };
    let base = image("base", &[]);
    let top = image("top", &["-F", "qcow2", "-b", base.to_str().unwrap()]);
    let used = |path: &Path, format: &str| {
        let files = BTreeMap::from([((path.to_owned(), format.to_owned()), "neighbour".to_owned())]);
        follow(files, Beneath::anywhere())
    };
    assert_eq!(used(&top, "qcow2").unwrap(), BTreeSet::from([text(&base), text(&top)]));
    // Of a raw image a guest may have written the first bytes.
    assert_eq!(used(&top, "raw").unwrap(), BTreeSet::from([text(&top)]));
    // In two formats: by the one that has something below it.
    let both = ["raw", "qcow2"].map(|format| ((top.clone(), format.to_owned()), "neighbour".to_owned()));
    assert_eq!(follow(both.into(), Beneath::anywhere()).unwrap(), BTreeSet::from([text(&base), text(&top)]));
    let within = scene.at("file").join("image");
    fs::write(scene.at("file"), "").unwrap();
    let Err(Failure::Precondition(error)) = used(&within, "qcow2") else { panic!("it is not known what it is on") };
    assert_eq!((error.reason(), &error.metadata()["neighbour"]), (Reason::ImageUnavailable, &"neighbour".to_owned()));
    // And where it may not be read, it is said which directory is missing in the configuration.
    let Err(Failure::Precondition(error)) =
        follow(BTreeMap::from([((within, "qcow2".to_owned()), "neighbour".to_owned())]), &Beneath::open(&[], &[]))
    else {
        panic!("it is not known what it is on")
    };
    assert_eq!(error.reason(), Reason::ImageOutOfReach);
}

//! Two agents of one directory.

use std::fs;
use std::thread;

use super::*;

struct Scene {
    dir: tempfile::TempDir,
    places: Beneath,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("images/rooms")).unwrap();
        let places = Beneath::open(&[dir.path().join("images")], &[]);
        Self { dir, places }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join("images")
    }

    fn host(&self, name: &str) -> SharedStorage {
        SharedStorage::open(name.parse().unwrap(), &self.dir.path().join(name), &[self.root()]).unwrap()
    }

    fn silent(&self, host: &SharedStorage) -> Result<Option<String>, Error> {
        host.silent(&self.places, &BTreeSet::from([self.root().join("rooms")]))
    }

    fn alive(&self, host: &str) -> PathBuf {
        self.root().join(NOTES).join(format!("{host}.alive"))
    }
}

#[test]
fn nobody_is_waited_for_where_no_other_agent_is() {
    let scene = Scene::new();
    let alpha = scene.host("alpha");
    assert_eq!(scene.silent(&alpha).unwrap(), None);
    alpha.renew(&scene.places, &scene.root());
    assert!(scene.alive("alpha").exists());
    assert_eq!(scene.silent(&alpha).unwrap(), None);
    // Outside of what is shared.
    let beside = BTreeSet::from([scene.dir.path().join("beside")]);
    scene.host("beta").renew(&scene.places, &scene.root());
    assert_eq!(alpha.silent(&scene.places, &beside).unwrap(), None);
}

#[test]
fn an_agent_that_renews_its_file_is_waited_for_and_one_that_does_not_is_silent() {
    let scene = Scene::new();
    let (alpha, beta) = (scene.host("alpha"), scene.host("beta"));
    beta.renew(&scene.places, &scene.root());
    // It was renewed just now, and who knows what has come since.
    let begun = Instant::now();
    assert_eq!(scene.silent(&alpha).unwrap().as_deref(), Some("beta"));
    assert!(begun.elapsed() >= WAIT);
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..10 {
                thread::sleep(PAUSE / 4);
                beta.renew(&scene.places, &scene.root());
            }
        });
        assert_eq!(scene.silent(&alpha).unwrap(), None);
    });
    // One that has been silent for long is not waited for.
    let long = SystemTime::now() - LONG * 2;
    fs::File::open(scene.alive("beta")).unwrap().set_modified(long).unwrap();
    let begun = Instant::now();
    assert_eq!(scene.silent(&alpha).unwrap().as_deref(), Some("beta"));
    assert!(begun.elapsed() < WAIT);
    let found = alpha.long_silent(&scene.root()).unwrap();
    assert!(matches!(found.as_slice(), [(host, seconds)] if host == "beta" && *seconds >= 30), "{found:?}");
    // It will never be used again.
    fs::remove_file(scene.alive("beta")).unwrap();
    assert_eq!(scene.silent(&alpha).unwrap(), None);
}

#[test]
fn an_agent_that_could_not_write_a_note_does_not_say_that_all_is_in_them() {
    let scene = Scene::new();
    let alpha = scene.host("alpha");
    alpha.wrote(&scene.root().join("rooms"), Err(std::io::Error::other("no room")));
    alpha.renew(&scene.places, &scene.root());
    assert!(!scene.alive("alpha").exists());
    alpha.wrote(&scene.root().join("rooms"), Ok(()));
    alpha.renew(&scene.places, &scene.root());
    assert!(scene.alive("alpha").exists());
}

#[test]
fn where_nobody_can_be_asked_it_is_not_known_what_others_use() {
    let scene = Scene::new();
    let (alpha, beta) = (scene.host("alpha"), scene.host("beta"));
    beta.renew(&scene.places, &scene.root());
    // What alpha would ask by is a directory.
    fs::create_dir(scene.root().join(NOTES).join("alpha.asked")).unwrap();
    assert_eq!(scene.silent(&alpha).unwrap_err().reason(), Reason::ImageUnavailable);
    fs::remove_dir_all(scene.root().join(NOTES)).unwrap();
    fs::write(scene.root().join(NOTES), "no directory").unwrap();
    assert_eq!(scene.silent(&alpha).unwrap_err().reason(), Reason::ImageUnavailable);
}

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
        host.silent(&BTreeSet::from([self.root().join("rooms")]))
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
    assert_eq!(alpha.silent(&beside).unwrap(), None);
}

/// Renews so often, each a while after the one before.
fn renewing(scene: &Scene, host: &SharedStorage, times: u32) {
    for _ in 0..times {
        thread::sleep(PAUSE / 4);
        host.renew(&scene.places, &scene.root());
    }
}

#[test]
fn an_agent_that_renews_its_file_twice_is_waited_for_and_one_that_does_not_is_silent() {
    let scene = Scene::new();
    let (alpha, beta) = (scene.host("alpha"), scene.host("beta"));
    beta.renew(&scene.places, &scene.root());
    // It was renewed just now, and who knows what has come since.
    let begun = Instant::now();
    assert_eq!(scene.silent(&alpha).unwrap().as_deref(), Some("beta"));
    assert!(begun.elapsed() >= WAIT);
    // The first may have been decided before, and have hung since.
    for (times, silent) in [(1, Some("beta")), (2, None)] {
        thread::scope(|scope| {
            scope.spawn(|| renewing(&scene, &beta, times));
            assert_eq!(scene.silent(&alpha).unwrap().as_deref(), silent, "{times}");
        });
    }
    // A clock that is wrong makes nobody known.
    let ahead = SystemTime::now() + LONG * 100;
    fs::File::open(scene.alive("beta")).unwrap().set_modified(ahead).unwrap();
    assert_eq!(scene.silent(&alpha).unwrap().as_deref(), Some("beta"));
    thread::scope(|scope| {
        scope.spawn(|| renewing(&scene, &beta, 3));
        assert_eq!(scene.silent(&alpha).unwrap(), None);
    });
    // One that has been silent for long is not waited for.
    let long = SystemTime::now() - LONG * 2;
    fs::File::open(scene.alive("beta")).unwrap().set_modified(long).unwrap();
    let notes = scene.root().join(NOTES);
    let (renewed, since) = (alpha.renewed(&notes, "beta").unwrap(), Instant::now().checked_sub(LONG * 2).unwrap());
    alpha.renewals.lock().unwrap().insert(notes.join("beta"), (renewed, since));
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
fn where_it_cannot_be_read_who_uses_a_directory_nothing_is_known() {
    let scene = Scene::new();
    let (alpha, beta) = (scene.host("alpha"), scene.host("beta"));
    beta.renew(&scene.places, &scene.root());
    fs::remove_dir_all(scene.root().join(NOTES)).unwrap();
    fs::write(scene.root().join(NOTES), "no directory").unwrap();
    assert_eq!(scene.silent(&alpha).unwrap_err().reason(), snapshot_core::Reason::ImageUnavailable);
}

use std::fs;

use snapshot_core::ids::HostId;

use super::super::orphans::tests::{Scene, overlay};
use super::super::tests::{id, vm};
use super::*;
use crate::shared_storage::SharedStorage;

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn images_of_no_vm_keep_what_they_depend_on_and_those_of_the_vm_do_not() {
    let mut scene = Scene::new();
    let (top, base) = (scene.overlay(), scene.path("vdb.qcow2"));
    let kept = |seen: &Observed, given_up: &[&Path]| {
        let given_up = given_up.iter().map(|path| text(path)).collect();
        kept_by_strangers(Beneath::anywhere(), seen, &given_up).unwrap()
    };
    assert_eq!(kept(&scene.seen, &[]), BTreeSet::new());
    // A detached disk is nobody's, until it is given up.
    let tops = ["vda", "vdb"].map(|target| text(&scene.path(&format!("{target}.{}", id(1)))));
    scene.seen.layers.ours = tops.into();
    scene.detach();
    let below = BTreeSet::from([text(&top), text(&base)]);
    assert_eq!(kept(&scene.seen, &[]), below);
    assert_eq!(kept(&scene.seen, &[&top]), BTreeSet::new());
    let mut discarded = scene.seen.clone();
    discarded.layers.discarded.insert(text(&top));
    assert_eq!(kept(&discarded, &[]), BTreeSet::new());
    // What is not on record as created for the VM was not given up by saying so.
    discarded.layers.ours.clear();
    discarded.layers.snapshots.values_mut().for_each(|parts| parts.overlays.clear());
    assert_eq!(kept(&discarded, &[]), below);
    // During a revert it has a second name, which is no other image.
    fs::hard_link(&top, text(&top) + GUARDED).unwrap();
    assert_eq!(kept(&scene.seen, &[&top]), BTreeSet::new());
    // A clone keeps all that is below it.
    let clone = scene.path("clone.qcow2");
    overlay(&clone, &top);
    assert_eq!(kept(&scene.seen, &[&top]), BTreeSet::from([text(&clone), text(&top), text(&base)]));
}

#[test]
fn an_image_that_cannot_be_followed_is_an_error_that_says_what_to_do() {
    let scene = Scene::new();
    fs::write(scene.path("file"), "").unwrap();
    overlay(&scene.path("clone.qcow2"), &scene.path("vdb.qcow2"));
    let clone = scene.path("clone.qcow2");
    let within = text(&scene.path("file").join("base"));
    super::super::tests::qemu_img(&["rebase", "-u", "-F", "qcow2", "-b", &within, clone.to_str().unwrap()]);
    let reason =
        |directories: &Beneath| kept_by_strangers(directories, &scene.seen, &BTreeSet::new()).unwrap_err().reason();
    assert_eq!(reason(Beneath::anywhere()), Reason::ImageUnavailable);
    assert_eq!(reason(&Beneath::open(&[], &[])), Reason::ImageOutOfReach);
}

#[test]
fn what_vms_of_other_hosts_use_is_kept_and_they_are_named() {
    let scene = Scene::new();
    let directory = scene.path("vdb.qcow2").parent().unwrap().to_owned();
    let host: HostId = "alpha".parse().unwrap();
    let shared = SharedStorage::open(host, &scene.path("state"), std::slice::from_ref(&directory)).unwrap();
    let directories = Beneath::everything().sharing(shared);
    let note = directory.join(".ravada-snapshots/beta.json");
    fs::create_dir_all(note.parent().unwrap()).unwrap();
    let other = vm().as_uuid();
    let of_beta = format!(r#"{{"format": 1, "host": "beta", "images": {{"vdb.qcow2": {{"{other}": "room"}}}}}}"#);
    fs::write(&note, of_beta).unwrap();
    let base = scene.path("vdb.qcow2");
    let kept = |directories: &Beneath| kept_by_strangers(directories, &scene.seen, &BTreeSet::new());
    assert_eq!(kept(&directories).unwrap(), BTreeSet::from([text(&base)]));
    assert_eq!(kept(Beneath::anywhere()).unwrap(), BTreeSet::new(), "nothing is shared");
    let user = |directories: &Beneath, path: &Path| user_on_other_host(directories, path, None).unwrap();
    assert_eq!(user(&directories, &base).as_deref(), Some("room of host beta"));
    assert_eq!(user(&directories, &scene.overlay()), None);
    assert_eq!(user(Beneath::anywhere(), &base), None);
    // What a revert gave up may be in no backing chain of the VM; while beta says nothing it may use that, too.
    fs::write(directory.join(".ravada-snapshots/beta.alive"), "").unwrap();
    let left = text(&directory.join("left.qcow2"));
    let given_up = BTreeSet::from([left.clone()]);
    let kept_of = |directories: &Beneath| kept_by_strangers(directories, &scene.seen, &given_up).unwrap();
    let all = kept_of(&directories);
    assert!(all.contains(&left) && all.contains(&text(&scene.overlay())), "{all:?}");
    let silent = silent_host(&directories, [base.as_path()]).unwrap();
    assert_eq!(silent.as_deref(), Some("beta"));
    let user = user_on_other_host(&directories, &scene.overlay(), silent.as_ref());
    assert_eq!(user.unwrap_err().reason(), Reason::ImageUnavailable);
    fs::remove_file(directory.join(".ravada-snapshots/beta.alive")).unwrap();
    assert!(!kept_of(&directories).contains(&left));
    fs::write(&note, "{").unwrap();
    assert_eq!(kept(&directories).unwrap_err().reason(), Reason::ImageUnavailable);
    user_on_other_host(&directories, &base, None).unwrap_err();
}

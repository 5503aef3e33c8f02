use std::path::Path;
use std::process::Command;

use snapshot_core::ids::SnapshotId;

use super::*;
use crate::hypervisor::Observed;
use crate::owned::tests::{id, seen};

#[test]
fn each_file_has_the_images_that_depend_on_it() {
    let names = |all: &[&str]| all.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let found = Images::from([
        ("/a".into(), (Some("1:1".to_owned()), names(&["/base", "1:3"]))),
        ("/b".into(), (None, names(&["/a", "1:1", "/base", "1:3"]))),
    ]);
    let a = Dependent { path: "/a".to_owned(), number: "1:1".to_owned() };
    let b = Dependent { path: "/b".to_owned(), number: "/b".to_owned() };
    let both = BTreeSet::from([a, b.clone()]);
    let one = BTreeSet::from([b]);
    let of = |file: &str, images: &BTreeSet<Dependent>| (file.to_owned(), images.clone());
    let expected = BTreeMap::from([of("/base", &both), of("1:3", &both), of("/a", &one), of("1:1", &one)]);
    assert_eq!(by_file(found.iter()), expected);
}

fn qemu_img(arguments: &[&str], image: &Path) {
    assert!(Command::new("qemu-img").args(arguments).arg(image).status().unwrap().success(), "{arguments:?}");
}

/// A VM with an internal snapshot, and images beside its image and in a directory of the host.
#[test]
fn a_revert_is_unavailable_while_an_image_that_no_vm_uses_depends_on_the_active_one() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().canonicalize().unwrap().join(name);
    for directory in ["own", "host/deep"] {
        std::fs::create_dir_all(at(directory)).unwrap();
    }
    let base = at("own/base.qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", "-o", "size=1M"], &base);
    let text = base.display().to_string();
    let mut desk: Observed = seen(&[id(1)], &[]);
    desk.uses.reached.insert(text.clone());
    desk.uses.changed.insert(text.clone(), "vda".to_owned());
    let found = std::fs::metadata(&base).unwrap();
    desk.uses.changed.insert(format!("{}:{}", found.dev(), found.ino()), "vda".to_owned());
    let (machines, host) = (Machines::default(), Beneath::open(&[at("host")], &[]));
    machines.saw(&desk);
    let is_restricted = || {
        machines.find_dependents(&host);
        let told = machines.get(desk.vm.id).unwrap();
        assert!(machines.restrict(&desk).snapshots == told.snapshots);
        !told.snapshots.iter().find(|one| one.id == id(1) as SnapshotId).unwrap().restrictions.is_empty()
    };
    assert!(!is_restricted());
    // In a directory of the host, at any depth; beside the image; and not in a directory beside it.
    for (name, counts) in [("host/deep/clone", true), ("own/clone", true), ("own/deep/clone", false)] {
        let clone = at(name);
        std::fs::create_dir_all(clone.parent().unwrap()).unwrap();
        qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &text], &clone);
        assert_eq!(is_restricted(), counts, "{name}");
        std::fs::remove_file(&clone).unwrap();
        assert!(!is_restricted(), "{name}");
    }
    // By another name of the file, which is none of a VM.
    let (golden, clone) = (at("own/golden"), at("own/clone"));
    std::fs::hard_link(&base, &golden).unwrap();
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &golden.display().to_string()], &clone);
    assert!(is_restricted());
    std::fs::remove_file(&clone).unwrap();
    // One that cannot be read any more depends on what it depended on.
    let clone = at("own/clone");
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &text], &clone);
    assert!(is_restricted());
    let held = crate::bounded::files::enter(&clone).unwrap();
    while !crate::bounded::files::hanging().contains(&clone) {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!(is_restricted());
    drop(held);
    assert!(is_restricted());
}

/// A directory below which nothing is known: what depends on the images there is not known either.
#[test]
fn a_revert_is_unavailable_where_the_directory_of_an_image_cannot_be_searched() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().canonicalize().unwrap().join(name);
    let (root, base) = (at("host"), at("host/deep/base.qcow2"));
    std::fs::create_dir_all(base.parent().unwrap()).unwrap();
    let mut desk: Observed = seen(&[id(1)], &[]);
    desk.uses.changed.insert(base.display().to_string(), "vda".to_owned());
    let (machines, host) = (Machines::default(), Beneath::open(std::slice::from_ref(&root), &[]));
    machines.saw(&desk);
    let told = || {
        machines.find_dependents(&host);
        let told = machines.restrict(&desk).snapshots.into_iter().find(|one| one.id == id(1) as SnapshotId).unwrap();
        told.restrictions.into_iter().map(|one| (one.reason, one.message)).collect::<Vec<_>>()
    };
    assert_eq!(told(), []);
    std::fs::remove_dir_all(&root).unwrap();
    std::fs::write(&root, "no directory").unwrap();
    let found = told();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0, snapshot_core::Reason::ImageUnavailable);
    assert!(found[0].1.contains(&format!("{} cannot be searched", root.display())), "{found:?}");
    std::fs::remove_file(&root).unwrap();
    std::fs::create_dir(&root).unwrap();
    assert_eq!(told(), []);
    // Storage that does not respond from the beginning is not known either; what was found before counts.
    for (machines, is_known) in [(&machines, true), (&Machines::default(), false)] {
        machines.saw(&desk);
        let held = crate::bounded::files::enter(&root).unwrap();
        while !crate::bounded::files::hanging().contains(&root) {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        machines.find_dependents(&host);
        let told = machines.restrict(&desk).snapshots.into_iter().find(|one| one.id == id(1) as SnapshotId).unwrap();
        assert_eq!(told.restrictions.is_empty(), is_known, "{told:?}");
        drop(held);
    }
}

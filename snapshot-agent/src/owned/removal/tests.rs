use std::fs;

use super::super::orphans::tests::overlay;
use super::super::tests::{id, qemu_img};
use super::*;

#[test]
fn an_image_in_use_is_in_use_with_all_that_it_depends_on() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().canonicalize().unwrap().join(name);
    let all = ["base", "middle", "top"].map(at);
    qemu_img(&["create", "-q", "-f", "qcow2", all[0].to_str().unwrap(), "1M"]);
    overlay(&all[1], &all[0]);
    // Relative to the image, and through a link.
    std::os::unix::fs::symlink(&all[1], at("link")).unwrap();
    let top = all[2].to_str().unwrap();
    qemu_img(&["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "link", top, "1M"]);
    let used = |top: &Path| {
        let mut used = BTreeSet::new();
        below(top, &mut used).map(|()| used)
    };
    assert_eq!(used(&all[2]).unwrap(), BTreeSet::from(all.clone()));
    assert_eq!(used(&at("none")).unwrap(), BTreeSet::new());
    fs::write(at("raw"), "raw").unwrap();
    assert_eq!(used(&at("raw")).unwrap(), BTreeSet::from([at("raw")]));
    assert_eq!(used(&at("raw").join("below")).unwrap(), BTreeSet::new(), "there can be no such file");
    // A chain that leads back to itself has no end, and what cannot be followed is not known.
    qemu_img(&["rebase", "-u", "-F", "qcow2", "-b", all[2].to_str().unwrap(), all[0].to_str().unwrap()]);
    used(&all[2]).unwrap_err();
    std::os::unix::fs::symlink(at("loop"), at("loop")).unwrap();
    used(&at("loop")).unwrap_err();
}

#[test]
fn what_cannot_be_read_is_not_taken_for_an_image_without_snapshots() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    assert!(tags(&image).unwrap().is_empty(), "there is none");
    qemu_img(&["create", "-q", "-f", "qcow2", image.to_str().unwrap(), "1M"]);
    qemu_img(&["snapshot", "-c", "mine", image.to_str().unwrap()]);
    assert!(tags(&image).unwrap().keys().eq(["mine"]));
    tags(&image.join("below")).unwrap_err();
    fs::write(&image, "no image").unwrap();
    assert!(tags(&image).unwrap().is_empty());
}

#[test]
fn a_snapshot_is_ours_to_remove_only_as_it_was_taken() {
    let stamp = |seconds| Stamp { seconds, ..Stamp::default() };
    let tags =
        BTreeMap::from([(id(1), 7), (id(2), 8), (id(3), 9), (id(4), 9)].map(|(id, at)| (id.to_string(), stamp(at))));
    // When the second was taken is not known; in the place of the third there is another one.
    let taken = BTreeMap::from([(id(1), Some(stamp(7))), (id(2), None), (id(3), Some(stamp(8))), (id(5), None)]);
    let ours: Vec<_> = (1..=5).filter(|number| is_as_taken(&tags, &taken, &id(*number))).collect();
    assert_eq!(ours, [1, 2]);
}

use std::os::unix::fs::MetadataExt as _;

use super::super::tests::Scene;
use super::*;

#[test]
fn a_vm_uses_its_disks_what_its_snapshots_hold_and_what_its_definitions_reach() {
    let scene = Scene::new();
    let mut seen = scene.seen.clone();
    let text = |name: &str| scene.path(name).display().to_string();
    let overlay = scene.overlay().display().to_string();
    assert!(used_by_itself(&seen).contains(&overlay), "it is the active file");
    // libvirt has it as the overlay of the snapshot still, which a revert and a deletion work without.
    seen.layers.live.remove("vdb");
    seen.uses.reached.extend([overlay.clone(), "2049:12".to_owned(), text("medium.iso")]);
    let used = used_by_itself(&seen);
    assert!(!used.contains(&overlay) && !used.contains("2049:12"), "{used:?}");
    assert!(used.is_superset(&["vda.qcow2", "vdb.qcow2", "medium.iso"].map(text).into()), "{used:?}");
    seen.layers.kept.insert(overlay.clone());
    assert!(used_by_itself(&seen).contains(&overlay), "the definition of the next start has it");
}

#[test]
fn a_file_is_in_use_by_any_of_its_names() {
    let dir = tempfile::tempdir().unwrap();
    let [used, link, other] = ["used", "link", "other"].map(|name| dir.path().join(name));
    std::fs::write(&used, "").unwrap();
    std::fs::hard_link(&used, &link).unwrap();
    std::fs::write(&other, "").unwrap();
    let number = |path: &Path| {
        let found = std::fs::metadata(path).unwrap();
        (found.dev(), found.ino())
    };
    let all = Used::of([text(&used), "/none/gone".to_owned()].into()).unwrap();
    assert!(all.has(&text(&link), number(&link)) && all.has("/none/gone", (0, 0)));
    assert!(!all.has(&text(&other), number(&other)));
}

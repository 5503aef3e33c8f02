use snapshot_core::ids::SnapshotId;
use snapshot_core::layers::Layer;
use snapshot_core::operation::DeleteScope;
use snapshot_core::text::{Description, DisplayName};

use super::*;
use crate::owned::tests::{id, seen};

/// A purge of an image that the VM does not have any more needs to know who else uses it.
#[test]
fn an_image_that_is_none_of_the_vms_disks_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let [disk, link, other, nvram] = ["disk", "link", "other", "nvram"].map(|name| dir.path().join(name));
    std::fs::write(&disk, "").unwrap();
    std::os::unix::fs::symlink(&disk, &link).unwrap();
    let mut seen = seen(&[], &[(&disk, None)]);
    seen.nvram = Some(nvram.clone());
    let has_left = |images: &[&PathBuf]| has_left(&seen, images.iter().copied());
    assert!(!has_left(&[]) && !has_left(&[&disk, &link, &nvram]));
    assert!(has_left(&[&disk, &other]) && has_left(&[&other]));
}

#[test]
fn what_is_out_of_reach_is_refused_but_for_words() {
    let mut seen = seen(&[], &[]);
    seen.layers.live.insert("vda".to_owned(), "/far/vda".to_owned());
    seen.layers.files.insert("/far/vda".to_owned(), Layer::default());
    let directories = Beneath::open(&[], &[]);
    let snapshot: SnapshotId = id(1);
    let update = Request::Update {
        snapshot: snapshot.clone(),
        display_name: DisplayName::parse("exam").unwrap(),
        description: Description::default(),
        protected: false,
    };
    check_reach(&directories, &seen, &update).unwrap();
    for request in
        [Request::Purge { force: true }, Request::Delete { snapshot, scope: DeleteScope::Only, force: false }]
    {
        let refusal = check_reach(&directories, &seen, &request).unwrap_err();
        assert_eq!(refusal.reason(), Reason::ImageOutOfReach);
        check_reach(Beneath::anywhere(), &seen, &request).unwrap();
    }
}

#[test]
fn what_a_vm_left_is_removed_only_by_a_purge_of_one_that_does_not_exist() {
    let purge = Request::Purge { force: true };
    let delete = Request::Delete { snapshot: id(1), scope: DeleteScope::Subtree, force: true };
    let [gone, other] = [Reason::VmNotFound, Reason::HypervisorFailed].map(|reason| Error::new(reason, "so"));
    assert!(is_purge(&purge) && !is_purge(&delete));
    assert!(clears_left_behind(&purge, &gone));
    assert!(!clears_left_behind(&purge, &other), "it may be there");
    assert!(!clears_left_behind(&delete, &gone), "its files were not asked for");
}

//! Images that are changed, replaced or moved under a machine.

use std::fs;
use std::path::Path;

use proto::status::from_status;
use proto::v1::OperationState;
use snapshot_core::Reason;
use snapshot_core::ids::SnapshotId;
use snapshot_core::operation::{DeleteScope, Request, RunAfter};
use snapshot_core::snapshot::SnapshotFacts;

use super::Scene;
use crate::guest::{Guest, run};
use crate::served::{create, id};

async fn take(scene: &Scene, guest: &Guest) -> SnapshotId {
    let taken = id();
    let ended = scene.agent.run(guest.vm, Request::Create(create(&taken))).await.unwrap();
    assert_eq!(ended.state(), OperationState::Succeeded, "{:?}", ended.error);
    taken
}

async fn is_refused(scene: &Scene, guest: &Guest, snapshot: &SnapshotId) {
    let back = Request::Revert { snapshot: snapshot.clone(), run_after: RunAfter::AsRecorded, save_current: None };
    let refusal = from_status(&scene.agent.run(guest.vm, back).await.unwrap_err(), Reason::HostProtocol);
    assert_eq!(refusal.reason(), Reason::SnapshotBroken, "{refusal:?}");
}

fn all_broken(all: &[SnapshotFacts]) -> bool {
    all.iter().all(|snapshot| snapshot.broken == Some(Reason::SnapshotBroken))
}

fn all_whole(all: &[SnapshotFacts]) -> bool {
    all.iter().all(|snapshot| snapshot.broken.is_none())
}

fn tags(image: &Path) -> Vec<String> {
    snapshot_agent::qcow2::read(image).unwrap().tags.into_iter().map(|tag| tag.name).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_whose_data_goes_is_broken_and_one_whose_data_comes_back_is_not() {
    let mut scene = Scene::start("images").await;
    let guest = scene.guest(2).await;
    let first = take(&scene, &guest).await;
    let (image, away) = (guest.dir.join("vdb.qcow2"), guest.dir.join("away.qcow2"));
    scene.told.snapshots("a whole snapshot", &guest, |all| all.len() == 1 && all_whole(all)).await;

    // Moved away and back.
    fs::rename(&image, &away).unwrap();
    scene.told.snapshots("what is moved away", &guest, all_broken).await;
    is_refused(&scene, &guest, &first).await;
    fs::rename(&away, &image).unwrap();
    scene.told.snapshots("what is back", &guest, all_whole).await;

    // Another image in its place, as when a desktop is spun off or its base is changed; then the old one from a copy.
    fs::copy(&image, &away).unwrap();
    run(&guest.dir, "qemu-img", &["create", "-q", "-f", "qcow2", "vdb.qcow2", "64M"]);
    scene.told.snapshots("what is overwritten", &guest, all_broken).await;
    is_refused(&scene, &guest, &first).await;
    fs::copy(&away, &image).unwrap();
    scene.told.snapshots("what is restored", &guest, all_whole).await;
    guest.start();
    let back = Request::Revert { snapshot: first.clone(), run_after: RunAfter::AsRecorded, save_current: None };
    let ended = scene.agent.run(guest.vm, back).await.unwrap();
    assert_eq!(ended.state(), OperationState::Succeeded, "what has healed can be gone back to: {:?}", ended.error);

    // Deleted inside of one image alone. What is left of it can be deleted, and goes whole.
    run(&guest.dir, "qemu-img", &["snapshot", "-d", first.as_str(), "vdb.qcow2"]);
    scene.told.snapshots("what is deleted inside", &guest, all_broken).await;
    is_refused(&scene, &guest, &first).await;
    let delete = Request::Delete { snapshot: first.clone(), scope: DeleteScope::Only, force: false };
    let ended = scene.agent.run(guest.vm, delete.clone()).await.unwrap();
    assert_eq!(ended.state(), OperationState::Succeeded, "{:?}", ended.error);
    assert_eq!((tags(&guest.dir.join("vda.qcow2")), tags(&image)), (vec![], vec![]));

    // The same of one whose image is not there at all.
    let second = take(&scene, &guest).await;
    fs::remove_file(&image).unwrap();
    scene.told.snapshots("what is removed", &guest, |all| all.len() == 1 && all_broken(all)).await;
    let delete = Request::Delete { snapshot: second.clone(), scope: DeleteScope::Only, force: false };
    let ended = scene.agent.run(guest.vm, delete).await.unwrap();
    assert_eq!(ended.state(), OperationState::Succeeded, "{:?}", ended.error);
    scene.told.snapshots("the deletion", &guest, <[_]>::is_empty).await;
    assert_eq!(tags(&guest.dir.join("vda.qcow2")), Vec::<String>::new());
    scene.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_are_found_wherever_a_machine_has_them() {
    let mut scene = Scene::start("pools").await;
    let guest = scene.guest(1).await;
    let first = take(&scene, &guest).await;
    // The machine gets its image from another folder from now on. The snapshot is bound to where it was taken.
    let pool = guest.dir.join("pool");
    fs::create_dir(&pool).unwrap();
    fs::copy(guest.dir.join("vda.qcow2"), pool.join("vda.qcow2")).unwrap();
    let xml = scene.virsh(&["dumpxml", "--inactive", &guest.vm.to_string()]).replace("/vda.qcow2", "/pool/vda.qcow2");
    fs::write(guest.dir.join("moved.xml"), xml).unwrap();
    scene.virsh(&["define", guest.dir.join("moved.xml").to_str().unwrap()]);
    let moved = pool.join("vda.qcow2").display().to_string();
    scene.told.until("the new path", |told| told.vms[&guest.vm].vm.disks[0].path == moved).await;
    scene.told.snapshots("a whole snapshot", &guest, |all| all.len() == 1 && all_whole(all)).await;
    fs::rename(guest.dir.join("vda.qcow2"), guest.dir.join("away.qcow2")).unwrap();
    scene.told.snapshots("the loss of the old image", &guest, all_broken).await;
    is_refused(&scene, &guest, &first).await;
    fs::rename(guest.dir.join("away.qcow2"), guest.dir.join("vda.qcow2")).unwrap();
    scene.told.snapshots("its return", &guest, all_whole).await;
    let second = take(&scene, &guest).await;
    let is_second = |snapshot: &SnapshotFacts| snapshot.id == second && snapshot.broken.is_some();
    run(&pool, "qemu-img", &["snapshot", "-d", second.as_str(), "vda.qcow2"]);
    scene.told.snapshots("a loss in the new folder", &guest, |all| all.iter().any(is_second)).await;
    scene.agent.stop().await;
}

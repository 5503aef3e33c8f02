//! Machines that are undefined while there are snapshots of ours, and what a purge removes then.

use std::fs;
use std::path::Path;

use proto::agent::PlanOperationRequest;
use proto::status::from_status;
use proto::v1::OperationState;
use snapshot_core::Reason;
use snapshot_core::ids::SnapshotId;
use snapshot_core::operation::{Create, Request};
use snapshot_core::vm::VmState;

use super::{Scene, name};
use crate::guest::{Guest, run};
use crate::served::{create, id, spec, with_token};

fn tags(image: &Path) -> Vec<String> {
    snapshot_agent::qcow2::read(image).unwrap().tags.into_iter().map(|tag| tag.name).collect()
}

fn tag(folder: &Path, image: &str, name: &str) {
    run(folder, "qemu-img", &["snapshot", "-c", name, image]);
}

async fn take(scene: &Scene, guest: &Guest, request: Create) -> SnapshotId {
    let taken = request.snapshot.clone();
    let ended = scene.agent.run(guest.vm, Request::Create(request)).await.unwrap();
    assert_eq!(ended.state(), OperationState::Succeeded, "{:?}", ended.error);
    taken
}

async fn undefine(scene: &mut Scene, guest: &Guest) {
    let vm = guest.vm;
    scene.virsh(&["undefine", &vm.to_string(), "--snapshots-metadata"]);
    scene.told.until("that it is gone", |told| !told.vms.contains_key(&vm)).await;
    assert_eq!(scene.told.left_behind, [vm.to_string()], "told before the machine is told to be gone");
}

async fn purge(scene: &Scene, guest: &Guest) -> Result<(), Reason> {
    match scene.agent.run(guest.vm, Request::Purge { force: false }).await {
        Ok(ended) => {
            assert_eq!(ended.state(), OperationState::Succeeded, "{:?}", ended.error);
            Ok(())
        }
        Err(refusal) => Err(from_status(&refusal, Reason::HostProtocol).reason()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_removes_what_a_machine_left_and_nothing_else() {
    let mut scene = Scene::start("purge").await;
    let guest = scene.guest(2).await;
    let (first, second) = (id(), id());
    for snapshot in [&first, &second] {
        take(&scene, &guest, create(snapshot)).await;
    }
    scene.virsh(&["snapshot-create-as", &name(&guest), "by-hand"]);
    // A copy of the image, as a desktop that was made of this one, and a snapshot with a name like ours of somebody else.
    fs::copy(guest.dir.join("vda.qcow2"), guest.dir.join("copy.qcow2")).unwrap();
    let stranger = id();
    tag(&guest.dir, "vda.qcow2", stranger.as_str());
    undefine(&mut scene, &guest).await;
    assert_eq!(tags(&guest.dir.join("vda.qcow2")).len(), 4);

    let request = PlanOperationRequest { spec: Some((&spec(guest.vm, Request::Purge { force: false })).into()) };
    let plan = scene.agent.client.clone().plan_operation(with_token(request, &scene.agent.all())).await.unwrap();
    assert_eq!(plan.into_inner().plan.unwrap().deleted_snapshots.len(), 2);
    assert_eq!(tags(&guest.dir.join("vda.qcow2")).len(), 4, "a plan does nothing");
    purge(&scene, &guest).await.unwrap();
    assert_eq!(tags(&guest.dir.join("vda.qcow2")), ["by-hand", stranger.as_str()]);
    assert_eq!(tags(&guest.dir.join("vdb.qcow2")), ["by-hand"]);
    assert_eq!(tags(&guest.dir.join("copy.qcow2")), [first.as_str(), second.as_str(), "by-hand"]);
    run(&guest.dir, "qemu-img", &["check", "-q", "vda.qcow2"]);
    scene.told.until("that nothing is left", |told| told.left_behind.is_empty()).await;
    assert_eq!(purge(&scene, &guest).await, Err(Reason::VmNotFound));
    scene.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_protected_or_in_use_is_left() {
    let mut scene = Scene::start("in-use").await;
    let guest = scene.guest(2).await;
    let protected = take(&scene, &guest, Create { protected: true, ..create(&id()) }).await;
    undefine(&mut scene, &guest).await;
    assert_eq!(purge(&scene, &guest).await, Err(Reason::SnapshotProtected));
    // A new machine stands on one of the images, by way of another.
    let user = Guest::on(&scene.daemon.host, 1, "");
    let base = guest.dir.join("vda.qcow2").display().to_string();
    let link = guest.dir.join("link.qcow2").display().to_string();
    std::os::unix::fs::symlink(&base, &link).unwrap();
    let create = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"];
    run(&user.dir, "qemu-img", &[&create[..], &[&link, "middle.qcow2"]].concat());
    run(&user.dir, "qemu-img", &[&create[..], &["middle.qcow2", "vda.qcow2"]].concat());
    let forced = Request::Purge { force: true };
    let ended = scene.agent.run(guest.vm, forced.clone()).await.unwrap();
    assert_eq!(ended.state(), OperationState::Succeeded, "{:?}", ended.error);
    assert_eq!(tags(Path::new(&base)), [protected.as_str()], "in use");
    assert_eq!(tags(&guest.dir.join("vdb.qcow2")), Vec::<String>::new());
    // It is remembered until it can be removed.
    scene.virsh(&["undefine", &user.vm.to_string()]);
    let ended = scene.agent.run(guest.vm, forced).await.unwrap();
    assert_eq!(ended.state(), OperationState::Succeeded, "{:?}", ended.error);
    assert_eq!(tags(Path::new(&base)), Vec::<String>::new());
    scene.told.until("that nothing is left", |told| told.left_behind.is_empty()).await;
    scene.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_left_the_machine_is_purged_with_it() {
    let mut scene = Scene::start("detached").await;
    let guest = scene.guest(2).await;
    let ours = take(&scene, &guest, create(&id())).await;
    scene.virsh(&["detach-disk", &guest.vm.to_string(), "vdb", "--config"]);
    scene.told.until("one disk", |told| told.vms[&guest.vm].vm.disks.len() == 1).await;
    purge(&scene, &guest).await.unwrap();
    scene.told.snapshots("that there is none", &guest, <[_]>::is_empty).await;
    for image in ["vda.qcow2", "vdb.qcow2"] {
        assert_eq!(tags(&guest.dir.join(image)), Vec::<String>::new(), "{ours} in {image}");
    }
    scene.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_is_defined_again_has_its_record_again() {
    let mut scene = Scene::start("again").await;
    let guest = scene.guest(2).await;
    let ours = take(&scene, &guest, create(&id())).await;
    let xml = scene.virsh(&["dumpxml", &guest.vm.to_string()]);
    undefine(&mut scene, &guest).await;
    // An agent that was away meanwhile knows, too.
    let (daemon, dir) = scene.leave().await;
    let mut scene = Scene::come_back(daemon, dir).await;
    assert_eq!(scene.told.left_behind, [guest.vm.to_string()]);
    fs::write(guest.dir.join("again.xml"), xml).unwrap();
    scene.virsh(&["define", guest.dir.join("again.xml").to_str().unwrap()]);
    scene.told.until("its return", |told| told.vms.contains_key(&guest.vm)).await;
    scene.told.until("that it is no longer gone", |told| told.left_behind.is_empty()).await;
    guest.start();
    scene.told.until("that it runs", |told| told.vms[&guest.vm].vm.state == VmState::Running).await;
    assert_eq!(tags(&guest.dir.join("vda.qcow2")), [ours.as_str()]);
    // libvirt lists nothing, and what is left in the images of a running machine goes all the same.
    purge(&scene, &guest).await.unwrap();
    assert_eq!((tags(&guest.dir.join("vda.qcow2")), tags(&guest.dir.join("vdb.qcow2"))), (vec![], vec![]));
    guest.report();
    scene.agent.stop().await;
}

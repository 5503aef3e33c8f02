//! Recipes by which libvirt was measured to lose data without a word. None of them loses any through this service: what
//! would is refused with its reason, and the guest itself says afterwards that everything is there.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use std::time::{Duration, Instant};

use proto::v1;
use tests::client::Refusal;
use tests::guest::Guest;
use tests::lab::{Lab, key};
use tonic::Code;

/// How long it may take until a snapshot that another tool took is known.
const NOTICED: Duration = Duration::from_secs(25);

fn is(result: Result<v1::Operation, Refusal>, reason: &str) {
    let refusal = result.unwrap_err();
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::FailedPrecondition, reason), "{refusal}");
}

/// Waits until the API knows the snapshots with these libvirt names, whoever took them.
async fn known(lab: &Lab, guest: &Guest, names: &[&str]) -> Vec<v1::Snapshot> {
    let begun = Instant::now();
    loop {
        let all = lab.client.snapshots(&guest.vm()).await.unwrap();
        let find = |name: &&str| all.iter().find(|one| tests::lab::id(&one.name) == *name).cloned();
        let found: Vec<v1::Snapshot> = names.iter().filter_map(find).collect();
        if found.len() == names.len() {
            return found;
        }
        assert!(begun.elapsed() < NOTICED, "{names:?} are not among {all:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn create(guest: &Guest, storage: v1::StorageKind) -> v1::CreateSnapshotRequest {
    v1::CreateSnapshotRequest {
        parent: guest.vm(),
        snapshot: Some(v1::Snapshot { display_name: "x".to_owned(), ..Default::default() }),
        storage: storage.into(),
        request_id: key(),
        ..Default::default()
    }
}

/// libvirt would write the next start's changes into the snapshot's own file, or pair old RAM with other disks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hibernated_machine_comes_back_as_it_was() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("sleeper").await.unwrap();
    guest.write('A').unwrap();
    let snapshot = lab.take(&guest, "before").await.unwrap();
    guest.write('B').unwrap();
    let daemon = lab.daemon().unwrap();
    daemon.virsh(&["managedsave", guest.name()]).unwrap();

    for storage in [v1::StorageKind::Unspecified, v1::StorageKind::Internal, v1::StorageKind::External] {
        is(lab.client.create_as(create(&guest, storage)).await, "VM_HIBERNATED");
    }
    is(lab.client.revert(&snapshot.name).await, "VM_HIBERNATED");
    let saved = v1::RevertToSnapshotRequest {
        name: snapshot.name.clone(),
        save_current: true,
        request_id: key(),
        ..Default::default()
    };
    is(lab.client.revert_as(saved).await, "VM_HIBERNATED");

    daemon.power_on(&guest).unwrap();
    let woken = guest.report().unwrap();
    assert_eq!((woken.disk, woken.ram, woken.boots), ('B', 'B', 1), "it was resumed and not booted");
    lab.client.vm_in_state(&guest.vm(), v1::VmState::Running).await.unwrap();
    lab.return_to(&snapshot).await.unwrap();
    let back = guest.report().unwrap();
    assert_eq!((back.disk, back.ram), ('A', 'A'));
    lab.agreed(&guest).await.unwrap();
}

/// A revert to it would bring the RAM back and leave the disk as it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_the_memory_alone_is_not_reverted_to() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("forgetful").await.unwrap();
    guest.write('A').unwrap();
    let daemon = lab.daemon().unwrap();
    let memory = format!("file={},snapshot=external", lab.images().unwrap().join("ram").display());
    let words = ["snapshot-create-as", guest.name(), "ram", "--memspec", &memory, "--diskspec", "vda,snapshot=no"];
    daemon.virsh(&[&words[..], &["--live"]].concat()).unwrap();
    guest.write('B').unwrap();

    let [ram] = known(&lab, &guest, &["ram"]).await.try_into().unwrap();
    let refusal = lab.client.revert(&ram.name).await.unwrap_err();
    assert_eq!(refusal.code, Code::FailedPrecondition, "{refusal}");
    let now = guest.report().unwrap();
    assert_eq!((now.disk, now.ram, now.boots), ('B', 'B', 1));
}

/// libvirt deletes the external one together with the overlay that the internal one is inside of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_internal_snapshot_inside_the_overlay_of_an_external_one_survives() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("mixed").await.unwrap();
    guest.write('A').unwrap();
    let daemon = lab.daemon().unwrap();
    let overlay = format!("vda,snapshot=external,file={}", lab.images().unwrap().join("mixed.over").display());
    daemon.virsh(&["snapshot-create-as", guest.name(), "outside", "--disk-only", "--diskspec", &overlay]).unwrap();
    guest.write('B').unwrap();
    daemon.virsh(&["snapshot-create-as", guest.name(), "inside"]).unwrap();
    guest.write('C').unwrap();
    let [outside, _inside] = known(&lab, &guest, &["outside", "inside"]).await.try_into().unwrap();

    is(lab.client.delete(&outside.name, v1::DeleteScope::Only).await, "SNAPSHOT_STORAGE_UNSUPPORTED");
    is(lab.client.delete(&outside.name, v1::DeleteScope::Subtree).await, "SNAPSHOT_STORAGE_UNSUPPORTED");
    is(lab.client.create_as(create(&guest, v1::StorageKind::Internal)).await, "SNAPSHOT_STORAGE_UNSUPPORTED");
    let now = guest.report().unwrap();
    assert_eq!((now.disk, now.ram), ('C', 'C'));
    daemon.virsh(&["snapshot-revert", guest.name(), "inside"]).unwrap();
    let back = guest.report().unwrap();
    assert_eq!((back.disk, back.ram), ('B', 'B'));
}

/// libvirt's next revert would remove the file that another branch lies on, and say that all is well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleting_the_active_leaf_of_a_fork_leaves_the_other_branch_whole() {
    let lab = Lab::with_policy("stable_paths = false\n").unwrap();
    let guest = lab.guest("forked").await.unwrap();
    let take = async || {
        let request = create(&guest, v1::StorageKind::External);
        let operation = lab.client.done(lab.client.create_as(request).await).await.unwrap();
        lab.client.snapshot(&operation.snapshot).await.unwrap()
    };
    guest.write('R').unwrap();
    let root = take().await;
    guest.write('M').unwrap();
    let other = take().await;
    guest.write('X').unwrap();
    lab.return_to(&root).await.unwrap();
    guest.write('B').unwrap();
    let leaf = take().await;
    guest.write('C').unwrap();
    lab.remove(&leaf, v1::DeleteScope::Only).await.unwrap();
    assert_eq!(guest.report().unwrap().disk, 'C', "the present is what it was");
    let names = |all: Vec<v1::Snapshot>| all.into_iter().map(|one| one.name).collect::<Vec<_>>();
    assert_eq!(names(lab.client.snapshots(&guest.vm()).await.unwrap()), [root.name.clone(), other.name.clone()]);
    for (snapshot, marker) in [(&other, 'M'), (&root, 'R'), (&other, 'M')] {
        lab.return_to(snapshot).await.unwrap();
        assert_eq!(guest.report().unwrap().disk, marker);
    }
    // Now that the machine has left it, nothing of the leaf is left.
    let listed = lab.daemon().unwrap().snapshots(&guest).unwrap();
    assert!(!listed.iter().any(|name| name == tests::lab::id(&leaf.name)), "{listed:?}");
    let purge = v1::PurgeVmRequest { name: guest.vm(), request_id: key(), ..Default::default() };
    lab.client.done(lab.client.purge(purge).await).await.unwrap();
    assert_eq!(guest.report().unwrap().disk, 'M');
    let files = std::fs::read_dir(lab.images().unwrap()).unwrap().flatten().map(|file| file.file_name());
    let images: Vec<_> = files.filter(|name| !name.to_string_lossy().ends_with(".xml")).collect();
    assert_eq!(images.len(), 2, "the image and the serial port: {images:?}");
}

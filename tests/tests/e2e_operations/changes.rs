//! What is written about a snapshot, and what can be asked of a machine.

use proto::v1;
use tests::client::Client;
use tests::cluster::ALL_ACTIONS;
use tests::lab::{Lab, Power, id, key};
use tonic::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_a_description_and_a_protection_are_changed_one_by_one() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    guest.write('A').unwrap();
    let parent = lab.take(&guest, "parent").await.unwrap();
    let first = lab.client.create(&guest.vm(), "first name", "first text").await;
    let first = lab.client.done(first).await.unwrap().snapshot;
    let first = lab.client.snapshot(&first).await.unwrap();
    let wanted = v1::Snapshot {
        name: first.name.clone(),
        display_name: "<b>naïve</b> & \"co\" 🎓".to_owned(),
        description: "'; DROP TABLE snapshots; --".to_owned(),
        protected: true,
        ..Default::default()
    };
    let mut seen = first.clone();
    let cases: [(&[&str], _); 4] = [
        (&["description"], ("first name", wanted.description.as_str(), false)),
        (&["protected"], ("first name", wanted.description.as_str(), true)),
        (&["display_name"], (wanted.display_name.as_str(), wanted.description.as_str(), true)),
        (&[], ("all", "", false)),
    ];
    for (mask, (display_name, description, protected)) in cases {
        let all = v1::Snapshot { display_name: "all".to_owned(), ..Default::default() };
        let values = if mask.is_empty() { all } else { wanted.clone() };
        let request = v1::UpdateSnapshotRequest {
            snapshot: Some(v1::Snapshot { name: first.name.clone(), etag: seen.etag.clone(), ..values }),
            update_mask: Some(prost_types::FieldMask { paths: mask.iter().map(|&path| path.to_owned()).collect() }),
            request_id: key(),
            ..Default::default()
        };
        let done = lab.client.done(lab.client.update(request).await).await.unwrap();
        assert_eq!((done.kind(), &done.snapshot), (v1::OperationKind::Update, &first.name));
        let now = lab.client.snapshot(&first.name).await.unwrap();
        assert_ne!(now.etag, seen.etag, "{mask:?}");
        let etag = now.etag.clone();
        let expected = v1::Snapshot {
            display_name: display_name.to_owned(),
            description: description.to_owned(),
            protected,
            etag,
            ..first.clone()
        };
        assert_eq!(now, expected, "{mask:?}: that and nothing else");
        let shown = lab.daemon().unwrap().description(&guest, id(&first.name)).unwrap();
        assert!(shown.starts_with(&format!("{display_name}\n{description}\n")), "virsh shows {shown:?}");
        seen = now;
    }
    let list = lab.agreed(&guest).await.unwrap();
    assert!(list[1].is_current && list[1].parent_snapshot == parent.name, "the tree is as it was: {list:?}");
    guest.write('B').unwrap();
    lab.return_to(&seen).await.unwrap();
    assert_eq!(guest.report().unwrap().disk, 'A', "and so is what is in it");
}

/// The right to delete, and that over hosts, is none to delete what is protected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_protected_snapshot_is_deleted_by_who_may_force_it_alone() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    let snapshot = v1::Snapshot { display_name: "kept".to_owned(), protected: true, ..Default::default() };
    let take = || v1::CreateSnapshotRequest {
        parent: guest.vm(),
        snapshot: Some(snapshot.clone()),
        request_id: key(),
        ..Default::default()
    };
    let kept = lab.client.done(lab.client.create_as(take()).await).await.unwrap().snapshot;
    let name = kept.clone();
    let delete =
        |force| v1::DeleteSnapshotRequest { name: name.clone(), force, request_id: key(), ..Default::default() };
    let purge = |force| v1::PurgeVmRequest { name: guest.vm(), force, request_id: key(), ..Default::default() };
    let without: Vec<&str> = ALL_ACTIONS.into_iter().filter(|action| *action != "force").collect();
    let user = Client::grpc(&lab.cluster, lab.cluster.identity().token("alice", "*", &without).unwrap()).unwrap();
    for validate_only in [true, false] {
        for refused in [
            user.delete_as(v1::DeleteSnapshotRequest { validate_only, ..delete(true) }).await.unwrap_err(),
            user.purge(v1::PurgeVmRequest { validate_only, ..purge(true) }).await.unwrap_err(),
        ] {
            assert_eq!((refused.code, refused.reason.as_str()), (Code::PermissionDenied, "ACTION_NOT_GRANTED"));
            assert_eq!((&*refused.metadata["action"], &*refused.message), ("force", "the token does not grant force"));
        }
    }
    assert_eq!(user.delete_as(delete(false)).await.unwrap_err().reason, "SNAPSHOT_PROTECTED");
    assert_eq!(user.purge(purge(false)).await.unwrap_err().reason, "SNAPSHOT_PROTECTED");
    assert_eq!(lab.agreed(&guest).await.unwrap().len(), 1, "nothing was done");

    let may = ["read", "delete", "force"];
    let one = Client::grpc(&lab.cluster, lab.cluster.identity().token("bob", &guest.uuid().to_string(), &may).unwrap());
    let one = one.unwrap();
    assert_eq!(one.purge(purge(true)).await.unwrap_err().metadata["action"], "purge", "it opens nothing by itself");
    one.done(one.delete_as(delete(true)).await).await.unwrap();
    assert_eq!(lab.agreed(&guest).await.unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_says_what_can_be_asked_of_it_and_why_not() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    let vm = lab.client.vm(&guest.vm()).await.unwrap();
    assert_eq!((vm.display_name.as_str(), vm.memory_bytes, vm.persistent), ("student", 16 << 20, true));
    assert_eq!(vm.host, format!("hosts/{}", tests::lab::HOST));
    let [disk] = vm.disks.as_slice() else { panic!("{vm:?}") };
    assert_eq!((disk.target.as_str(), disk.format.as_str()), ("vda", "qcow2"));
    assert_eq!((disk.capacity_bytes, disk.has_backing_file, disk.read_only), (64 << 20, false, false));

    use v1::CapabilityKind::{CreateDisks, CreateDisksAndMemory, Delete, Revert};
    let told = async || {
        let vm = lab.client.vm(&guest.vm()).await.unwrap();
        vm.capabilities
            .iter()
            .map(|one| (one.kind(), one.available, one.reason.clone(), one.pauses))
            .collect::<Vec<_>>()
    };
    let no = |kind, reason: &str| (kind, false, reason.to_owned(), false);
    let yes = |kind, pauses| (kind, true, String::new(), pauses);
    let none = "SNAPSHOT_NOT_FOUND";
    let running = [no(CreateDisks, "LIVE_DISKS_UNSUPPORTED"), yes(CreateDisksAndMemory, true)];
    assert_eq!(told().await, [&running[..], &[no(Revert, none), no(Delete, none)]].concat());
    lab.take(&guest, "first").await.unwrap();
    assert_eq!(told().await, [&running[..], &[yes(Revert, true), yes(Delete, false)]].concat());
    lab.set(&guest, Power::Off).await.unwrap();
    let off = [yes(CreateDisks, false), no(CreateDisksAndMemory, "VM_NOT_RUNNING")];
    assert_eq!(told().await, [&off[..], &[yes(Revert, false), yes(Delete, false)]].concat());
}

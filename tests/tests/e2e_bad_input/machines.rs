//! Machines and hosts in a state that forbids what is asked.

use proto::v1;
use rustix::process::{Pid, Signal, kill_process};
use tests::client::{HOSTS, Refusal};
use tests::guest::{Disk, Format, Guest};
use tests::lab::{HOST, Lab, Power, key};
use tonic::Code;

use super::{Case, PRECONDITION, RETRY, refused};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_of_which_no_snapshot_can_be_taken() {
    let lab = Lab::start().unwrap();
    let (folder, daemon) = (lab.images().unwrap(), lab.daemon().unwrap());
    let raw = Disk::boot(&folder.join("raw.img"), Format::Raw).unwrap();
    let raw = Guest::with_disks(&folder, "raw", vec![raw]).unwrap();
    lab.run(&raw).await.unwrap();
    is_refused(&lab, &raw, v1::SnapshotContent::Unspecified, "DISK_FORMAT_UNSUPPORTED").await;
    lab.set(&raw, Power::Off).await.unwrap();
    is_refused(&lab, &raw, v1::SnapshotContent::Unspecified, "DISK_FORMAT_UNSUPPORTED").await;

    let second = Disk::empty(&folder.join("mixed-data.img"), Format::Raw).unwrap();
    let first = Disk::boot(&folder.join("mixed.qcow2"), Format::Qcow2).unwrap();
    let mixed = Guest::with_disks(&folder, "mixed", vec![first, second]).unwrap();
    lab.run(&mixed).await.unwrap();
    let refusal = is_refused(&lab, &mixed, v1::SnapshotContent::Unspecified, "DISK_FORMAT_UNSUPPORTED").await;
    assert_eq!(refusal.metadata["disk"], "vdb");
    daemon.power_off(&mixed).unwrap();

    let transient = Guest::new(&folder, "transient").unwrap();
    std::fs::write(transient.xml_file(), transient.xml().unwrap()).unwrap();
    daemon.virsh(&["create", &transient.xml_file().display().to_string()]).unwrap();
    lab.client.vm_in_state(&transient.vm(), v1::VmState::Running).await.unwrap();
    is_refused(&lab, &transient, v1::SnapshotContent::Unspecified, "VM_TRANSIENT").await;
    daemon.power_off(&transient).unwrap();

    let guest = lab.guest("student").await.unwrap();
    is_refused(&lab, &guest, v1::SnapshotContent::Disks, "LIVE_DISKS_UNSUPPORTED").await;
    daemon.pause(&guest).unwrap();
    is_refused(&lab, &guest, v1::SnapshotContent::Disks, "LIVE_DISKS_UNSUPPORTED").await;
    daemon.resume(&guest).unwrap();

    let copy = folder.join("copy.qcow2").display().to_string();
    daemon.virsh(&["blockcopy", guest.name(), "vda", "--dest", &copy, "--transient-job"]).unwrap();
    let refusal = is_refused(&lab, &guest, v1::SnapshotContent::Unspecified, "BLOCK_JOB_ACTIVE").await;
    assert_eq!(refusal.metadata["disk"], "vda");
    daemon.virsh(&["blockjob", guest.name(), "vda", "--abort"]).unwrap();

    let kept = lab.take(&guest, "kept").await.unwrap();
    daemon.virsh(&["managedsave", guest.name()]).unwrap();
    is_refused(&lab, &guest, v1::SnapshotContent::Unspecified, "VM_HIBERNATED").await;
    let result = lab.client.revert(&kept.name).await;
    refused("revert", result, Code::FailedPrecondition, "VM_HIBERNATED", &[PRECONDITION]);
    assert!(lab.client.vm(&guest.vm()).await.unwrap().has_managed_save);
    daemon.power_on(&guest).unwrap();
    lab.return_to(&kept).await.unwrap();
    lab.set(&guest, Power::Off).await.unwrap();
    is_refused(&lab, &guest, v1::SnapshotContent::DisksAndMemory, "VM_NOT_RUNNING").await;
    lab.agreed(&guest).await.unwrap();
}

/// Both a real request and one that only asks are refused with the same reason, and nothing is changed.
async fn is_refused(lab: &Lab, guest: &Guest, content: v1::SnapshotContent, reason: &str) -> Refusal {
    let traces = async || {
        let daemon = lab.daemon().unwrap();
        let tags = guest.disks().iter().map(|disk| tests::images::internal_snapshots(disk.path()).unwrap());
        (daemon.snapshots(guest).unwrap(), tags.collect::<Vec<_>>(), daemon.state(guest).unwrap())
    };
    let (before, listed) = (traces().await, lab.client.snapshots(&guest.vm()).await.unwrap());
    let request = v1::CreateSnapshotRequest {
        parent: guest.vm(),
        snapshot: Some(v1::Snapshot { display_name: "x".to_owned(), ..Default::default() }),
        content: content.into(),
        ..Default::default()
    };
    let what = format!("{} {content:?}", guest.name());
    let details: &[&str] = if reason == "BLOCK_JOB_ACTIVE" { &[PRECONDITION, RETRY] } else { &[PRECONDITION] };
    let validated = v1::CreateSnapshotRequest { validate_only: true, ..request.clone() };
    refused(&what, lab.client.create_as(validated).await, Code::FailedPrecondition, reason, details);
    let refusal = lab.client.create_as(request).await;
    let refusal = refused(&what, refusal, Code::FailedPrecondition, reason, details);
    assert_eq!(refusal.metadata["vm"], guest.vm(), "{what}");
    assert_eq!(traces().await, before, "{what}");
    assert_eq!(lab.client.snapshots(&guest.vm()).await.unwrap(), listed, "{what}");
    refusal
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storage_and_protection_that_do_not_allow_it() {
    let mut case = Case::start().await;
    let client = &case.lab.client;
    let external = v1::CreateSnapshotRequest { storage: v1::StorageKind::External.into(), ..case.create("x") };
    let result = client.create_as(external).await;
    refused("external", result, Code::FailedPrecondition, "EXTERNAL_UNSUPPORTED", &[PRECONDITION]);
    let quiesced = v1::CreateSnapshotRequest { quiesce: true, ..case.create("x") };
    let result = client.create_as(quiesced).await;
    refused("quiesce", result, Code::FailedPrecondition, "QUIESCE_UNSUPPORTED", &[PRECONDITION]);
    case.unchanged().await;

    let update = case.update(|snapshot| snapshot.protected = true, &["protected"]);
    client.done(client.update(update).await).await.unwrap();
    case.before = case.lab.traces(&case.guest).await.unwrap();
    let purge = v1::PurgeVmRequest { name: case.guest.vm(), request_id: key(), ..Default::default() };
    for scope in [v1::DeleteScope::Only, v1::DeleteScope::Subtree] {
        let result = client.delete(&case.snapshot.name, scope).await;
        let refusal = refused("delete", result, Code::FailedPrecondition, "SNAPSHOT_PROTECTED", &[PRECONDITION]);
        assert_eq!(refusal.metadata["snapshot"], case.snapshot.name);
    }
    let result = client.purge(purge.clone()).await;
    refused("purge", result, Code::FailedPrecondition, "SNAPSHOT_PROTECTED", &[PRECONDITION]);
    case.unchanged().await;

    let forced = v1::PurgeVmRequest { force: true, request_id: key(), ..purge };
    client.done(client.purge(forced).await).await.unwrap();
    case.lab.nothing_left(&case.guest, &case.snapshot).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_not_there() {
    let mut case = Case::start().await;
    case.lab.cluster.host_mut(HOST).unwrap().agent().stop().unwrap();
    let begun = std::time::Instant::now();
    while case.lab.client.vm(&case.guest.vm()).await.unwrap().host_reachable {
        assert!(begun.elapsed().as_secs() < 5, "the stop was not noticed");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let client = &case.lab.client;
    let unreachable = (Code::Unavailable, "HOST_UNREACHABLE");
    refused("create", client.create_as(case.create("x")).await, unreachable.0, unreachable.1, &[RETRY]);
    refused("revert", client.revert_as(case.revert()).await, unreachable.0, unreachable.1, &[RETRY]);
    refused("delete", client.delete_as(case.delete()).await, unreachable.0, unreachable.1, &[RETRY]);
    let validated = v1::CreateSnapshotRequest { validate_only: true, ..case.create("x") };
    refused("plan", client.create_as(validated).await, unreachable.0, unreachable.1, &[RETRY]);
    let reconcile = v1::ReconcileHostRequest { name: format!("hosts/{}", HOST) };
    let answer: Result<v1::ReconcileHostResponse, Refusal> = client.call((HOSTS, "ReconcileHost"), &reconcile).await;
    refused("reconcile", answer, unreachable.0, unreachable.1, &[RETRY]);
    case.unchanged().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_mutation_and_a_reused_key() {
    let case = Case::start().await;
    let client = &case.lab.client;
    // QEMU stands still, so the operation that wins cannot end before all the others have asked.
    let qemu = Pid::from_raw(case.lab.daemon().unwrap().qemu_pid(&case.guest).unwrap()).unwrap();
    kill_process(qemu, Signal::STOP).unwrap();
    let asked = (0..20).map(|n| client.create_as(case.create(&format!("n{n}")))).collect::<Vec<_>>();
    let (won, lost): (Vec<_>, Vec<_>) = all(asked).await.into_iter().partition(Result::is_ok);
    let [Ok(first)] = won.as_slice() else { panic!("not one won: {won:#?}\n{lost:#?}") };
    for refusal in lost {
        let refusal = refused("create", refusal, Code::Aborted, "VM_BUSY", &[RETRY]);
        assert_eq!(refusal.metadata["operation"], first.name);
    }
    for other in [
        client.revert_as(case.revert()).await,
        client.delete_as(case.delete()).await,
        client.update(case.update(|snapshot| snapshot.protected = true, &["protected"])).await,
        client.purge(v1::PurgeVmRequest { name: case.guest.vm(), request_id: key(), ..Default::default() }).await,
    ] {
        let refusal = refused("another", other, Code::Aborted, "VM_BUSY", &[RETRY]);
        assert_eq!(refusal.metadata["operation"], first.name);
    }
    let vm = client.vm(&case.guest.vm()).await.unwrap();
    assert_eq!(vm.active_operation, first.name);
    let creating = client.snapshot(&first.snapshot).await.unwrap();
    assert_eq!(creating.state(), v1::SnapshotState::Creating);
    kill_process(qemu, Signal::CONT).unwrap();
    client.done(Ok(first.clone())).await.unwrap();
    let list = case.lab.agreed(&case.guest).await.unwrap();
    assert_eq!(list.iter().map(|one| &one.name).collect::<Vec<_>>(), [&case.snapshot.name, &first.snapshot]);
    assert_eq!(client.vm(&case.guest.vm()).await.unwrap().active_operation, "");

    let before = case.lab.traces(&case.guest).await.unwrap();
    let request_id = key();
    let create = v1::CreateSnapshotRequest { request_id: request_id.clone(), ..case.create("with a key") };
    let operation = client.done(client.create_as(create).await).await.unwrap();
    client.done(client.delete(&operation.snapshot, v1::DeleteScope::Only).await).await.unwrap();
    let reused = [
        client.create_as(v1::CreateSnapshotRequest { request_id: request_id.clone(), ..case.create("other") }).await,
        client.revert_as(v1::RevertToSnapshotRequest { request_id: request_id.clone(), ..case.revert() }).await,
        client.delete_as(v1::DeleteSnapshotRequest { request_id: request_id.clone(), ..case.delete() }).await,
    ];
    for result in reused {
        let refusal = refused("reused", result, Code::AlreadyExists, "REQUEST_ID_REUSED", &[]);
        assert_eq!(refusal.metadata["operation"], operation.name);
    }
    let after = case.lab.traces(&case.guest).await.unwrap();
    assert_eq!((after.libvirt.len(), after.tags), (before.libvirt.len(), before.tags));
}

async fn all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    futures_util::future::join_all(futures).await
}

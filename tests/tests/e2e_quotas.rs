//! How much a user and a machine may keep.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use std::io::Write as _;

use proto::v1;
use tests::client::{Client, Refusal};
use tests::cluster::ALL_ACTIONS;
use tests::guest::Guest;
use tests::lab::{Lab, Power, key};
use tonic::Code;

const QUOTA: &str = "google.rpc.QuotaFailure";

/// A lab whose users may keep so much.
async fn limited(lines: &str, guests: &[&str]) -> (Lab, Vec<Guest>) {
    let mut lab = Lab::start().unwrap();
    let mut running = Vec::new();
    for name in guests {
        running.push(lab.guest(name).await.unwrap());
    }
    assert!(lab.cluster.api().stop().unwrap().success());
    let mut config = std::fs::OpenOptions::new().append(true).open(lab.cluster.api_config()).unwrap();
    writeln!(config, "\n[quotas]\n{lines}").unwrap();
    lab.cluster.start_api_again().unwrap();
    for guest in &running {
        lab.client.vm_in_state(&guest.vm(), v1::VmState::Running).await.unwrap();
    }
    (lab, running)
}

fn user(lab: &Lab, name: &str) -> Client {
    Client::grpc(&lab.cluster, lab.cluster.identity().token(name, "*", &ALL_ACTIONS[..6]).unwrap()).unwrap()
}

#[track_caller]
fn exceeded(refusal: &Refusal, quota: &str) {
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::ResourceExhausted, "QUOTA_EXCEEDED"), "{refusal}");
    assert_eq!(refusal.metadata["quota"], quota, "{refusal}");
    assert!(refusal.details.contains(&QUOTA.to_owned()), "{refusal}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_keeps_as_many_as_they_may_on_all_machines_together() {
    let (mut lab, guests) = limited("max_snapshots_per_user = 2", &["one", "other"]).await;
    let (one, other) = (&guests[0], &guests[1]);
    let (alice, bob) = (user(&lab, "alice"), user(&lab, "bob"));
    let first = alice.done(alice.create(&one.vm(), "first", "").await).await.unwrap();
    // The two take the last place at the same moment: one of them has it.
    let machines = (one.vm(), other.vm());
    let (left, right) = tokio::join!(alice.create(&machines.0, "second", ""), alice.create(&machines.1, "second", ""));
    let refused = match (left, right) {
        (Ok(begun), Err(refused)) | (Err(refused), Ok(begun)) => {
            alice.done(Ok(begun)).await.unwrap();
            refused
        }
        both => panic!("{both:?}"),
    };
    exceeded(&refused, "snapshots_per_user");
    assert_eq!(refused.metadata["user"], "ravada/alice");

    let vm = alice.vm(&one.vm()).await.unwrap();
    let quota = vm.user_quota.unwrap();
    assert_eq!((quota.snapshot_limit, quota.snapshots_used), (2, 2));
    assert!(quota.bytes_used > 0 && vm.quota.unwrap().snapshot_limit == i64::from(vm.snapshot_limit));
    let create = vm.capabilities.iter().find(|one| one.kind() == v1::CapabilityKind::CreateDisksAndMemory).unwrap();
    assert_eq!((create.available, create.reason.as_str()), (false, "QUOTA_EXCEEDED"));
    let snapshot = Some(v1::Snapshot { display_name: "planned".to_owned(), ..Default::default() });
    let plan = v1::CreateSnapshotRequest { parent: one.vm(), snapshot, validate_only: true, ..Default::default() };
    exceeded(&alice.create_as(plan.clone()).await.unwrap_err(), "snapshots_per_user");
    let saving = v1::RevertToSnapshotRequest {
        name: first.snapshot.clone(),
        save_current: true,
        request_id: key(),
        ..Default::default()
    };
    exceeded(&alice.revert_as(saving.clone()).await.unwrap_err(), "snapshots_per_user");
    let planned = v1::RevertToSnapshotRequest { validate_only: true, ..saving.clone() };
    exceeded(&alice.revert_as(planned).await.unwrap_err(), "snapshots_per_user");
    lab.agreed(one).await.unwrap();

    // Another user has their own, and a revert that saves nothing takes nothing.
    bob.create_as(plan).await.unwrap();
    bob.done(bob.create(&one.vm(), "of bob", "").await).await.unwrap();
    alice.done(alice.revert(&first.snapshot).await).await.unwrap();

    // Who took what is not forgotten with the catalogue.
    assert!(lab.cluster.api().stop().unwrap().success());
    for suffix in ["", "-wal", "-shm"] {
        let path = format!("{}{suffix}", lab.cluster.catalogue().display());
        assert!(std::fs::remove_file(&path).is_ok() || !std::path::Path::new(&path).exists());
    }
    lab.cluster.start_api_again().unwrap();
    for guest in &guests {
        lab.client.vm_in_state(&guest.vm(), v1::VmState::Running).await.unwrap();
    }
    exceeded(&alice.create(&other.vm(), "third", "").await.unwrap_err(), "snapshots_per_user");
    alice.done(alice.delete(&first.snapshot, v1::DeleteScope::Only).await).await.unwrap();
    alice.done(alice.create(&other.vm(), "third", "").await).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_of_a_user_are_counted_as_the_host_tells_them() {
    let (lab, guests) = limited("max_bytes_per_user = 1000000", &["student"]).await;
    let guest = &guests[0];
    let alice = user(&lab, "alice");
    // Running, it may need as much as its RAM; off, nothing.
    assert!(alice.vm(&guest.vm()).await.unwrap().memory_bytes > 1_000_000);
    exceeded(&alice.create(&guest.vm(), "running", "").await.unwrap_err(), "bytes_per_user");
    lab.set(guest, Power::Off).await.unwrap();
    let taken = alice.done(alice.create(&guest.vm(), "off", "").await).await.unwrap();
    let size = lab.client.snapshot(&taken.snapshot).await.unwrap().size_bytes;
    let quota = alice.vm(&guest.vm()).await.unwrap().user_quota.unwrap();
    assert_eq!((quota.byte_limit, quota.bytes_used, quota.snapshots_used), (1_000_000, size, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_of_a_machine_are_its_hosts_policy() {
    let lab = Lab::with_policy("max_snapshot_bytes_per_vm = 1000000").unwrap();
    let guest = lab.guest("student").await.unwrap();
    exceeded(&lab.client.create(&guest.vm(), "running", "").await.unwrap_err(), "bytes_per_vm");
    let vm = lab.client.vm(&guest.vm()).await.unwrap();
    assert_eq!(vm.quota.unwrap().byte_limit, 1_000_000);
    let create = vm.capabilities.iter().find(|one| one.kind() == v1::CapabilityKind::CreateDisksAndMemory).unwrap();
    assert_eq!(create.reason, "QUOTA_EXCEEDED");
    lab.set(&guest, Power::Off).await.unwrap();
    lab.take(&guest, "off").await.unwrap();
    assert!(lab.client.vm(&guest.vm()).await.unwrap().quota.unwrap().bytes_used > 0);
}

//! Machines that UEFI starts, which keeps its variables in a file of its own, the NVRAM.
//!
//! What the variables are is asked of the guest, after it was started again or gone on with.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use proto::v1;
use tests::guest::{Format, Guest};
use tests::lab::{Lab, Power, key};

const VARIABLES: &str = "/sys/firmware/efi/efivars";
const OWNER: &str = "6a1f7c52-3d0b-4c55-9f0e-2f6d1b1f5a01";

/// Writes a UEFI variable of this name, and a word into a file on the disk.
fn write(guest: &Guest, word: &str) {
    variables(guest);
    let variable = format!("printf '\\x07\\x00\\x00\\x00x' >{VARIABLES}/{word}-{OWNER}");
    guest.shell(&format!("{variable} && echo {word} >/data/file && sync")).unwrap().ok().unwrap();
}

/// The names of the variables that were written here, in the order of the alphabet.
fn variables(guest: &Guest) -> Vec<String> {
    let mount = format!("grep -q efivarfs /proc/mounts || mount -t efivarfs efivarfs {VARIABLES}");
    guest.shell(&mount).unwrap().ok().unwrap();
    let listed = guest.shell(&format!("ls {VARIABLES}")).unwrap().ok().unwrap();
    let ours = listed.lines().filter_map(|line| line.strip_suffix(OWNER));
    ours.map(|name| name.trim_end_matches('-').to_owned()).collect()
}

fn word(guest: &Guest) -> String {
    guest.shell("cat /data/file").unwrap().ok().unwrap().trim().to_owned()
}

async fn take(lab: &Lab, guest: &Guest, content: v1::SnapshotContent) -> v1::Snapshot {
    let snapshot = Some(v1::Snapshot { display_name: "taken".to_owned(), ..Default::default() });
    let (parent, content, request_id) = (guest.vm(), content.into(), key());
    let request = v1::CreateSnapshotRequest { parent, snapshot, content, request_id, ..Default::default() };
    let operation = lab.client.done(lab.client.create_as(request).await).await.unwrap();
    lab.client.snapshot(&operation.snapshot).await.unwrap()
}

fn revert(snapshot: &v1::Snapshot, validate_only: bool) -> v1::RevertToSnapshotRequest {
    let (name, run_after, request_id) = (snapshot.name.clone(), v1::RunAfter::Running.into(), key());
    v1::RevertToSnapshotRequest { name, run_after, request_id, validate_only, ..Default::default() }
}

/// Goes back; the plan says before that whether the variables come along. Returns what the guest then finds.
async fn go_back(lab: &Lab, guest: &Guest, snapshot: &v1::Snapshot, with_variables: bool) -> (String, Vec<String>) {
    let planned = lab.client.revert_as(revert(snapshot, true)).await.unwrap().plan.unwrap();
    let says_that_they_stay = planned.losses.iter().any(|loss| loss.contains("UEFI variables"));
    assert_eq!(says_that_they_stay, !with_variables, "{planned:?}");
    lab.client.done(lab.client.revert_as(revert(snapshot, false)).await).await.unwrap();
    (word(guest), variables(guest))
}

fn found(word: &str, variables: &[&str]) -> (String, Vec<String>) {
    (word.to_owned(), variables.iter().map(|&name| name.to_owned()).collect())
}

/// Why a kind of snapshot cannot be had now; empty when it can.
async fn refused(lab: &Lab, guest: &Guest, kind: v1::CapabilityKind) -> String {
    let vm = lab.client.vm(&guest.vm()).await.unwrap();
    vm.capabilities.into_iter().find(|one| one.kind() == kind).unwrap().reason
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raw_variables_come_back_with_the_running_state_and_stay_where_the_disks_alone_come_back() {
    let lab = Lab::with_policy("stable_paths = false\n").unwrap();
    let guest = Guest::uefi(&lab.images().unwrap(), "raw", Format::Raw).unwrap();
    lab.run(&guest).await.unwrap();
    write(&guest, "a");
    assert_eq!(refused(&lab, &guest, v1::CapabilityKind::CreateDisksAndMemory).await, "");
    let memory = take(&lab, &guest, v1::SnapshotContent::DisksAndMemory).await;
    assert_eq!(memory.storage(), v1::StorageKind::External);
    write(&guest, "b");
    let disks = take(&lab, &guest, v1::SnapshotContent::Disks).await;
    write(&guest, "c");
    lab.set(&guest, Power::Off).await.unwrap();
    let off = take(&lab, &guest, v1::SnapshotContent::Unspecified).await;
    lab.set(&guest, Power::Running).await.unwrap();
    write(&guest, "d");
    assert_eq!(go_back(&lab, &guest, &off, false).await, found("c", &["a", "b", "c", "d"]));
    assert_eq!(go_back(&lab, &guest, &disks, false).await, found("b", &["a", "b", "c", "d"]));
    assert_eq!(go_back(&lab, &guest, &memory, true).await, found("a", &["a"]));
    lab.remove(&memory, v1::DeleteScope::Subtree).await.unwrap();
    assert_eq!(lab.client.snapshots(&guest.vm()).await.unwrap(), []);
    assert_eq!((word(&guest), variables(&guest)), found("a", &["a"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_paths_are_stable_raw_variables_allow_only_a_snapshot_of_a_machine_that_is_off() {
    let lab = Lab::start().unwrap();
    let guest = Guest::uefi(&lab.images().unwrap(), "raw", Format::Raw).unwrap();
    lab.run(&guest).await.unwrap();
    write(&guest, "a");
    assert_eq!(refused(&lab, &guest, v1::CapabilityKind::CreateDisksAndMemory).await, "NVRAM_UNSUPPORTED");
    assert_eq!(lab.client.create(&guest.vm(), "x", "").await.unwrap_err().reason, "NVRAM_UNSUPPORTED");
    lab.set(&guest, Power::Off).await.unwrap();
    assert_eq!(refused(&lab, &guest, v1::CapabilityKind::CreateDisks).await, "");
    let off = take(&lab, &guest, v1::SnapshotContent::Unspecified).await;
    assert_eq!(off.storage(), v1::StorageKind::Internal);
    lab.set(&guest, Power::Running).await.unwrap();
    write(&guest, "b");
    assert_eq!(go_back(&lab, &guest, &off, false).await, found("a", &["a", "b"]));
    lab.remove(&off, v1::DeleteScope::Only).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn variables_in_qcow2_are_in_every_internal_snapshot() {
    let lab = Lab::start().unwrap();
    let guest = Guest::uefi(&lab.images().unwrap(), "qcow2", Format::Qcow2).unwrap();
    lab.run(&guest).await.unwrap();
    write(&guest, "a");
    let memory = take(&lab, &guest, v1::SnapshotContent::DisksAndMemory).await;
    write(&guest, "b");
    lab.set(&guest, Power::Off).await.unwrap();
    let off = take(&lab, &guest, v1::SnapshotContent::Unspecified).await;
    lab.set(&guest, Power::Running).await.unwrap();
    write(&guest, "c");
    assert_eq!(go_back(&lab, &guest, &off, true).await, found("b", &["a", "b"]));
    assert_eq!(go_back(&lab, &guest, &memory, true).await, found("a", &["a"]));
    lab.remove(&memory, v1::DeleteScope::Subtree).await.unwrap();
    // The file of the variables held the snapshots, too, and has lost them with the disk.
    let left = tests::images::internal_snapshots(guest.disks()[0].path()).unwrap();
    assert_eq!((left, guest.nvram().unwrap().format()), (Vec::<String>::new(), Format::Qcow2));
    lab.set(&guest, Power::Off).await.unwrap();
    let nvram = tests::images::internal_snapshots(guest.nvram().unwrap().path()).unwrap();
    assert_eq!(nvram, Vec::<String>::new());
}

//! virt-manager beside the service: what its own classes read from our snapshots, and what its calls do with them. Its windows
//! need a display and show what these return.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use std::collections::BTreeMap;
use std::process::Command;

use proto::v1;
use serde::Deserialize;
use tests::guest::Guest;
use tests::lab::{Lab, id, key};
use tests::tools;

/// A snapshot as virt-manager shows it.
#[derive(Debug, Deserialize)]
struct Shown {
    first_line: String,
    parent: Option<String>,
    state: String,
    memory: Option<String>,
    disks: BTreeMap<String, String>,
    current: bool,
}

/// Does `work` by virt-manager's classes; what it printed.
fn virt_manager(lab: &Lab, guest: &Guest, work: &[&str]) -> String {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e_virt_manager/snapshots.py");
    let mut command = Command::new("/usr/bin/python3");
    command.args([script, &lab.daemon().unwrap().uri(), guest.name()]).args(work);
    tools::run(&mut command).unwrap()
}

fn listed(lab: &Lab, guest: &Guest) -> BTreeMap<String, Shown> {
    serde_json::from_str(&virt_manager(lab, guest, &["list"])).unwrap()
}

/// The name of the one that is current.
fn current(lab: &Lab, guest: &Guest) -> Option<String> {
    let all = listed(lab, guest);
    assert!(all.values().filter(|shown| shown.current).count() <= 1, "{all:?}");
    all.into_iter().find(|(_, shown)| shown.current).map(|(name, _)| name)
}

async fn take(lab: &Lab, guest: &Guest, name: &str, content: v1::SnapshotContent) -> v1::Snapshot {
    let request = v1::CreateSnapshotRequest {
        parent: guest.vm(),
        snapshot: Some(v1::Snapshot { display_name: name.to_owned(), ..Default::default() }),
        content: content.into(),
        request_id: key(),
        ..Default::default()
    };
    let done = lab.client.done(lab.client.create_as(request).await).await.unwrap();
    lab.agreed(guest).await.unwrap().into_iter().find(|one| one.name == done.snapshot).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_and_in_place_virt_manager_reads_reverts_and_deletes_what_was_made() {
    let lab = Lab::live("").unwrap();
    let guest = Guest::with_two_disks(&lab.images().unwrap(), "desk").unwrap();
    lab.run(&guest).await.unwrap();
    guest.write('A').unwrap();
    let live = take(&lab, &guest, "before exam", v1::SnapshotContent::Disks).await;
    guest.write('B').unwrap();
    let memory = take(&lab, &guest, "in the middle", v1::SnapshotContent::DisksAndMemory).await;
    guest.write('C').unwrap();

    let all = listed(&lab, &guest);
    assert_eq!(all.len(), 2, "{all:?}");
    let (of_live, of_memory) = (&all[id(&live.name)], &all[id(&memory.name)]);
    assert!(of_live.first_line.contains("before exam") && of_memory.first_line.contains("in the middle"), "{all:?}");
    assert_eq!((of_live.parent.as_deref(), of_memory.parent.as_deref()), (None, Some(id(&live.name))));
    assert_eq!((of_live.state.as_str(), of_live.memory.as_deref()), ("shutoff", Some("no")));
    assert_eq!((of_memory.state.as_str(), of_memory.memory.as_deref()), ("running", Some("internal")));
    for shown in [of_live, of_memory] {
        assert_eq!(shown.disks.values().map(String::as_str).collect::<Vec<_>>(), ["internal"; 2], "{shown:?}");
    }

    // Theirs is known here, ours is where it was.
    virt_manager(&lab, &guest, &["create", "theirs", "by virt-manager"]);
    let adopted = lab.agreed_soon(&guest).await.unwrap();
    let theirs = adopted.iter().find(|one| id(&one.name) == "theirs").unwrap();
    assert_eq!(theirs.parent_snapshot, memory.name);
    guest.write('D').unwrap();

    // In place, and virt-manager sees where the machine is.
    let done = lab.return_to(&memory).await.unwrap();
    assert_eq!(done.method(), v1::OperationMethod::InPlace);
    let report = guest.report().unwrap();
    assert_eq!((report.disk, report.second_disk, report.ram), ('B', Some('B'), 'B'));
    assert_eq!(current(&lab, &guest).as_deref(), Some(id(&memory.name)));

    // Its own revert of what we made, after one in place.
    guest.write('E').unwrap();
    virt_manager(&lab, &guest, &["revert", id(&memory.name)]);
    let report = guest.report().unwrap();
    assert_eq!((report.disk, report.second_disk, report.ram), ('B', Some('B'), 'B'));
    virt_manager(&lab, &guest, &["revert", id(&live.name)]);
    assert_eq!(lab.daemon().unwrap().state(&guest).unwrap(), "shut off", "it has no running state");
    let now = lab.agreed_soon(&guest).await.unwrap();
    assert_eq!(current(&lab, &guest).as_deref(), Some(id(&live.name)));
    assert_eq!(now.len(), 3);

    for name in ["theirs", id(&memory.name), id(&live.name)] {
        virt_manager(&lab, &guest, &["delete", name]);
    }
    assert!(lab.agreed_soon(&guest).await.unwrap().is_empty());
    for snapshot in [&memory, &live] {
        lab.nothing_left(&guest, snapshot).await.unwrap();
    }
    lab.run(&guest).await.unwrap();
    let report = guest.report().unwrap();
    assert_eq!((report.disk, report.second_disk), ('A', Some('A')));
}

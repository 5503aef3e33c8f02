//! Loads that fail, and agents and daemons that die in the middle of them.

use std::fs;
use std::time::Duration;

use proto::v1;
use tests::guest::Guest;
use tests::lab::{HOST, Lab, Power, id};

use crate::{back, planned};

/// From before the guest is stopped to after it runs on: a fifth of a second alone, and more on a busy machine.
const DELAYS_MS: [u64; 8] = [0, 30, 60, 90, 120, 180, 300, 600];

/// Makes the running state in an image unreadable, and leaves the image whole: QEMU finds out when the disks are the snapshot's.
fn spoil_running_state(guest: &Guest) {
    let path = guest.disks()[0].path();
    let mut bytes = fs::read(path).unwrap();
    let magic = b"QEVM";
    let places: Vec<usize> = (0..bytes.len() - 4).filter(|at| bytes[*at..at + 4] == *magic).collect();
    assert_eq!(places.len(), 1, "one running state");
    bytes[places[0]..places[0] + 4].copy_from_slice(b"SPOI");
    fs::write(path, bytes).unwrap();
    tests::images::check(path).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_place_a_load_that_fails_leaves_no_guest_half_loaded() {
    let lab = Lab::start().unwrap();
    let daemon = lab.daemon().unwrap();
    let guest = lab.guest("student").await.unwrap();
    guest.write('A').unwrap();
    let taken = lab.take(&guest, "A").await.unwrap();
    guest.write('B').unwrap();
    lab.set(&guest, Power::Off).await.unwrap();
    spoil_running_state(&guest);
    lab.set(&guest, Power::Running).await.unwrap();
    guest.write('C').unwrap();
    // Neither QEMU nor libvirt can load it.
    let ended = lab.client.ended(lab.client.revert(&taken.name).await.unwrap()).await.unwrap();
    assert_eq!(ended.state(), v1::OperationState::Failed, "{ended:?}");
    assert_eq!(ended.method(), v1::OperationMethod::Libvirt, "{ended:?}");
    let error = ended.error.unwrap();
    assert!(error.message.contains("was left off"), "{error:?}");
    assert_eq!(daemon.state(&guest).unwrap(), "shut off");
    lab.client.vm_in_state(&guest.vm(), v1::VmState::Shutoff).await.unwrap();
    // The machine is free, and its snapshot can go.
    lab.remove(&taken, v1::DeleteScope::Only).await.unwrap();
    lab.nothing_left(&guest, &taken).await.unwrap();
}

/// Has the running QEMU refuse every state that was saved without this, which libvirt does not know, and its next process forgets.
fn set_apart(lab: &Lab, guest: &Guest) {
    let capability = r#"{"capability": "x-ignore-shared", "state": true}"#;
    let told = format!(r#"{{"execute": "migrate-set-capabilities", "arguments": {{"capabilities": [{capability}]}}}}"#);
    let answer = lab.daemon().unwrap().virsh(&["qemu-monitor-command", guest.name(), &told]).unwrap();
    assert!(answer.contains(r#""return""#), "{answer}");
}

/// libvirt sees no difference, and QEMU has gone to the disks of the snapshot when it finds that it cannot load the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_place_a_load_that_fails_is_followed_by_libvirts_own_way() {
    let lab = Lab::start().unwrap();
    let daemon = lab.daemon().unwrap();
    let guest = Guest::with_two_disks(&lab.images().unwrap(), "student").unwrap();
    lab.run(&guest).await.unwrap();
    guest.write('A').unwrap();
    let first = lab.take(&guest, "A").await.unwrap();
    guest.write('B').unwrap();
    let second = lab.take(&guest, "B").await.unwrap();
    for (snapshot, marker) in [(&first, 'A'), (&second, 'B')] {
        guest.write('C').unwrap();
        set_apart(&lab, &guest);
        let pid = daemon.qemu_pid(&guest).unwrap();
        assert_eq!(planned(&lab, snapshot).await.method(), v1::OperationMethod::InPlace);
        let done = back(&lab, snapshot, v1::OperationMethod::Libvirt).await;
        let log = lab.cluster.logs().unwrap();
        let why = |line: &str| line.contains("going back by libvirt's own revert") && line.contains("snapshot-load");
        assert!(log.iter().any(|(_, log)| log.lines().any(why)), "the load did not fail: {done:?}");
        assert_ne!(daemon.qemu_pid(&guest).unwrap(), pid, "the process that was half loaded");
        assert_eq!(daemon.state(&guest).unwrap(), "running");
        let report = guest.report().unwrap();
        assert_eq!((report.disk, report.ram, report.second_disk), (marker, marker, Some(marker)));
        assert_eq!(lab.agreed(&guest).await.unwrap().len(), 2);
        assert_eq!(daemon.current_snapshot(&guest).unwrap().as_deref(), Some(id(&snapshot.name)));
        // The process that there is now can be gone back in.
        guest.write('D').unwrap();
        back(&lab, snapshot, v1::OperationMethod::InPlace).await;
        let report = guest.report().unwrap();
        assert_eq!((report.disk, report.ram, report.second_disk), (marker, marker, Some(marker)));
    }
    lab.set(&guest, Power::Off).await.unwrap();
    guest.disks().iter().for_each(|disk| tests::images::check_consistent(disk.path()).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_place_an_agent_or_a_daemon_that_dies_loses_nothing() {
    let mut lab = Lab::start().unwrap();
    let guest = Guest::with_two_disks(&lab.images().unwrap(), "student").unwrap();
    lab.run(&guest).await.unwrap();
    guest.write('A').unwrap();
    let first = lab.take(&guest, "A").await.unwrap();
    guest.write('B').unwrap();
    let second = lab.take(&guest, "B").await.unwrap();
    for (round, delay) in DELAYS_MS.into_iter().enumerate() {
        let context = format!("round {round}, {delay} ms");
        guest.write('C').unwrap();
        let begun = lab.client.revert(&first.name).await.unwrap();
        tokio::time::sleep(Duration::from_millis(delay)).await;
        let host = lab.cluster.host_mut(HOST).unwrap();
        if round % 3 == 2 {
            let daemon = host.libvirtd_mut().unwrap();
            daemon.kill().unwrap();
            daemon.start_again().unwrap();
        } else {
            host.agent().kill().unwrap();
            host.start_agent_again().unwrap();
        }
        let ended = lab.client.ended(begun).await.unwrap();
        assert_eq!(ended.state(), v1::OperationState::Succeeded, "{context}: {ended:?}");
        lab.client.vm_in_state(&guest.vm(), v1::VmState::Running).await.unwrap();
        let report = guest.report().unwrap();
        assert_eq!((report.disk, report.ram, report.second_disk), ('A', 'A', Some('A')), "{context}: {ended:?}");
        assert_eq!(lab.agreed_soon(&guest).await.unwrap().len(), 2, "{context}");
    }
    back(&lab, &second, v1::OperationMethod::InPlace).await;
    let report = guest.report().unwrap();
    assert_eq!((report.disk, report.ram, report.second_disk), ('B', 'B', Some('B')));
}

//! Hosts: what is told of them, and what other tools did on them.

use std::process::Command;
use std::time::{Duration, Instant};

use proto::v1;
use tests::client::{Client, HOSTS};
use tests::lab::{HOST, Lab, Power};
use tests::tools::run;

async fn reconcile(client: &Client) -> v1::ReconcileHostResponse {
    let request = v1::ReconcileHostRequest { name: format!("hosts/{HOST}") };
    client.call((HOSTS, "ReconcileHost"), &request).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_tells_what_it_is() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    let hosts = lab.client.hosts().await.unwrap();
    let [host] = hosts.as_slice() else { panic!("{hosts:?}") };
    assert_eq!((host.name.as_str(), host.reachable, host.vm_count), ("hosts/alpha", true, 1));
    assert_eq!((host.unreachable_reason.as_str(), host.running_operations.len()), ("", 0));
    for version in [&host.agent_version, &host.libvirt_version, &host.qemu_version] {
        let parts: Vec<u32> = version.split('.').map(|part| part.parse().unwrap()).collect();
        assert!(parts.len() == 3 && parts.iter().any(|part| *part > 0), "{version}");
    }
    let images = lab.images().unwrap().display().to_string();
    let [space] = host.file_systems.as_slice() else { panic!("{host:?}") };
    assert_eq!(space.path, images);
    assert!((1..=space.total_bytes).contains(&space.free_bytes), "{space:?}");
    let request = v1::GetHostRequest { name: host.name.clone() };
    let same: v1::Host = lab.client.call((HOSTS, "GetHost"), &request).await.unwrap();
    assert_eq!((same.name.as_str(), same.reachable), (host.name.as_str(), true));

    let answer = reconcile(&lab.client).await;
    assert_eq!(answer.corrected_count, 0, "nothing was wrong: {answer:?}");
    assert!(answer.host.unwrap().reachable && answer.duration.is_some());
    assert!(lab.client.vm(&guest.vm()).await.unwrap().host_reachable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_virsh_makes_is_adopted_and_what_it_deletes_is_forgotten() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    let daemon = lab.daemon().unwrap();
    guest.write('A').unwrap();
    daemon.virsh(&["snapshot-create-as", guest.name(), "by-hand", "made with virsh"]).unwrap();
    let list = lab.agreed_soon(&guest).await.unwrap();
    let [foreign] = list.as_slice() else { panic!("{list:?}") };
    assert_eq!(foreign.name, format!("{}/snapshots/by-hand", guest.vm()));
    assert_eq!((foreign.display_name.as_str(), foreign.description.as_str()), ("by-hand", "made with virsh"));
    assert_eq!((foreign.origin(), foreign.actor.as_str()), (v1::SnapshotOrigin::Foreign, ""));
    assert_eq!(foreign.content(), v1::SnapshotContent::DisksAndMemory);

    // One of ours on top of it; the machine goes back to the foreign one; virsh deletes ours.
    guest.write('B').unwrap();
    let ours = lab.take(&guest, "ours").await.unwrap();
    assert_eq!((&ours.parent_snapshot, ours.depth), (&foreign.name, 1));
    lab.return_to(foreign).await.unwrap();
    assert_eq!(guest.report().unwrap().disk, 'A');
    daemon.virsh(&["snapshot-delete", guest.name(), tests::lab::id(&ours.name)]).unwrap();
    let list = lab.agreed_soon(&guest).await.unwrap();
    assert_eq!(list.iter().map(|one| &one.name).collect::<Vec<_>>(), [&foreign.name]);

    lab.remove(foreign, v1::DeleteScope::Only).await.unwrap();
    lab.nothing_left(&guest, foreign).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_read_again_tells_what_virsh_did_at_once() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    let daemon = lab.daemon().unwrap();
    lab.set(&guest, Power::Off).await.unwrap();
    let ours = lab.take(&guest, "ours").await.unwrap();
    // The folders tell of it within a moment; who asks does not wait for that.
    daemon.virsh(&["snapshot-create-as", guest.name(), "by-hand"]).unwrap();
    daemon.virsh(&["snapshot-delete", guest.name(), tests::lab::id(&ours.name)]).unwrap();
    reconcile(&lab.client).await;
    let list = lab.agreed(&guest).await.unwrap();
    assert_eq!(list.iter().map(|one| one.display_name.as_str()).collect::<Vec<_>>(), ["by-hand"]);
    assert_eq!(reconcile(&lab.client).await.corrected_count, 0);
}

/// Only the catalogue is changed, so that nothing but the reconciliation can find it: no event tells of it, and the host has
/// nothing new to tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_read_again_corrects_the_catalogue_and_counts_what_was_wrong() {
    let lab = Lab::without_scan().unwrap();
    let guest = lab.guest("student").await.unwrap();
    lab.set(&guest, Power::Off).await.unwrap();
    let (first, second) = (lab.take(&guest, "first").await.unwrap(), lab.take(&guest, "second").await.unwrap());
    let right = lab.agreed(&guest).await.unwrap();
    // One has another name, one is missing, and one is there that never was.
    let ghost = "snap-00000000000000000000000000000000";
    let (renamed, missing) = (tests::lab::id(&first.name), tests::lab::id(&second.name));
    let (id, facts) =
        (format!("replace(id, '{renamed}', '{ghost}')"), format!("replace(facts, '{renamed}', '{ghost}')"));
    let copied = format!("vm, {id}, parent, depth, is_current, {facts}, label_revision, revision");
    let columns = "vm, id, parent, depth, is_current, facts, label_revision, revision";
    let statements = [
        format!("UPDATE snapshots SET facts = replace(facts, '\"first\"', '\"renamed\"') WHERE id = '{renamed}'"),
        format!("INSERT INTO snapshots ({columns}) SELECT {copied} FROM snapshots WHERE id = '{renamed}'"),
        format!("DELETE FROM snapshots WHERE id = '{missing}'"),
    ];
    let script = "import sqlite3, sys\nfile = sqlite3.connect(sys.argv[1], timeout=60)\nfor statement in sys.argv[2:]:\n    \
                  assert file.execute(statement).rowcount == 1\nfile.commit()";
    let mut alter = Command::new("python3");
    alter.args(["-c", script]).arg(lab.cluster.catalogue());
    alter.args(statements);
    run(&mut alter).unwrap();
    let wrong = lab.client.snapshots(&guest.vm()).await.unwrap();
    assert_eq!(wrong.iter().map(|one| one.display_name.as_str()).collect::<Vec<_>>(), ["renamed", "renamed"]);

    assert_eq!(reconcile(&lab.client).await.corrected_count, 3);
    let list = lab.agreed(&guest).await.unwrap();
    let told = |list: &[v1::Snapshot]| {
        let words = |one: &v1::Snapshot| (one.name.clone(), one.display_name.clone(), one.parent_snapshot.clone());
        list.iter().map(words).collect::<Vec<_>>()
    };
    assert_eq!(told(&list), told(&right));
    assert_eq!(reconcile(&lab.client).await.corrected_count, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_come_and_go() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    lab.take(&guest, "first").await.unwrap();
    lab.set(&guest, Power::Off).await.unwrap();
    let daemon = lab.daemon().unwrap();
    daemon.virsh(&["undefine", guest.name(), "--snapshots-metadata"]).unwrap();
    let begun = Instant::now();
    while !lab.client.vms().await.unwrap().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(30), "it is listed still");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(lab.client.snapshots(&guest.vm()).await.unwrap_err().reason, "VM_NOT_FOUND");
    assert_eq!(lab.client.hosts().await.unwrap()[0].vm_count, 0);
}

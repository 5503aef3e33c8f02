//! Snapshots by virsh, and machines that come, go and change their names.

use std::process::Command;
use std::time::Duration;

use proto::status::from_status;
use proto::v1::OperationState;
use snapshot_agent::hypervisor::{Hypervisor, Reread};
use snapshot_core::Reason;
use snapshot_core::ids::SnapshotId;
use snapshot_core::operation::{DeleteScope, Request, RunAfter};
use snapshot_core::snapshot::{Origin, SnapshotFacts};
use snapshot_core::vm::VmState;

use super::{Scene, name};
use crate::daemon::kill_in_the_middle;
use crate::guest::{Guest, HOST};
use crate::served::{create, id};

fn names(snapshots: &[SnapshotFacts]) -> Vec<&str> {
    let mut names: Vec<&str> = snapshots.iter().map(|snapshot| snapshot.id.as_str()).collect();
    names.sort_unstable();
    names
}

fn current(snapshots: &[SnapshotFacts]) -> Option<&str> {
    snapshots.iter().find(|snapshot| snapshot.is_current).map(|snapshot| snapshot.id.as_str())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_virsh_does_to_snapshots_is_seen() {
    let mut scene = Scene::start("virsh").await;
    let guest = scene.guest(1).await;
    let domain = name(&guest);
    for running in [false, true] {
        if running {
            guest.start();
            guest.write('A');
        }
        scene.virsh(&["snapshot-create-as", &domain, "one", "the first"]);
        scene
            .told
            .snapshots("a new snapshot", &guest, |all| names(all) == ["one"] && current(all) == Some("one"))
            .await;
        scene.virsh(&["snapshot-create-as", &domain, "two"]);
        scene
            .told
            .snapshots("a second", &guest, |all| names(all) == ["one", "two"] && current(all) == Some("two"))
            .await;

        let edit = |from: &str, to: &str| {
            let mut command = Command::new("virsh");
            command.args(["-q", "-c", &scene.daemon.host.uri, "snapshot-edit", &domain, "one"]);
            command.env("EDITOR", format!("sed -i s/{from}/{to}/"));
            assert!(command.status().unwrap().success());
        };
        edit("the.first", "edited");
        let is_edited = |one: &SnapshotFacts| one.id.as_str() == "one" && one.label.description.as_str() == "edited";
        scene.told.snapshots("an edited text", &guest, |all| all.iter().any(is_edited)).await;

        scene.virsh(&["snapshot-current", &domain, "one"]);
        scene.told.snapshots("another current one", &guest, |all| current(all) == Some("one")).await;
        scene.virsh(&["snapshot-revert", &domain, "two"]);
        scene.told.snapshots("a revert", &guest, |all| current(all) == Some("two")).await;
        scene.virsh(&["snapshot-delete", &domain, "one"]);
        let is_root = |all: &[SnapshotFacts]| names(all) == ["two"] && all[0].parent.is_none();
        scene.told.snapshots("a deletion", &guest, is_root).await;
        scene.virsh(&["snapshot-delete", &domain, "two", "--metadata"]);
        scene.told.snapshots("a record that is gone", &guest, <[_]>::is_empty).await;
        if !running {
            let image = guest.dir.join("vda.qcow2");
            let delete = ["snapshot", "-d", "two", image.to_str().unwrap()];
            assert!(Command::new("qemu-img").args(delete).status().unwrap().success());
        }
    }
    scene.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_come_and_go_and_change_their_names() {
    let mut scene = Scene::start("machines").await;
    let guest = scene.guest(1).await;
    let (vm, domain) = (guest.vm, name(&guest));
    let is = |state: VmState| move |told: &super::Told| told.vms.get(&vm).is_some_and(|told| told.vm.state == state);
    scene.virsh(&["start", &domain]);
    scene.told.until("a start", is(VmState::Running)).await;
    scene.virsh(&["suspend", &domain]);
    scene.told.until("a pause", is(VmState::Paused)).await;
    scene.virsh(&["destroy", &domain]);
    scene.told.until("an end", is(VmState::Shutoff)).await;

    // Under the new name, too, snapshots are seen.
    let named =
        |name: &'static str| move |told: &super::Told| told.vms.get(&vm).is_some_and(|told| told.vm.name == name);
    scene.virsh(&["domrename", &domain, "renamed"]);
    scene.told.until("a new name", named("renamed")).await;
    scene.virsh(&["snapshot-create-as", "renamed", "one"]);
    scene.told.snapshots("a snapshot", &guest, |all| names(all) == ["one"]).await;
    // libvirt takes the folder of its records along.
    if scene.daemon.try_virsh(&["domrename", "renamed", "again"]).is_ok() {
        scene.told.until("another name", named("again")).await;
        scene.virsh(&["snapshot-create-as", "again", "two"]);
        scene.told.snapshots("another snapshot", &guest, |all| names(all) == ["one", "two"]).await;
    }
    let xml = scene.virsh(&["dumpxml", &vm.to_string()]);
    scene.virsh(&["undefine", &vm.to_string(), "--snapshots-metadata"]);
    scene.told.until("the end of it", |told| !told.vms.contains_key(&vm)).await;
    let file = guest.dir.join("again.xml");
    std::fs::write(&file, xml).unwrap();
    scene.virsh(&["define", file.to_str().unwrap()]);
    scene.told.until("its return", |told| told.vms.contains_key(&vm)).await;
    scene.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_of_other_tools_are_used_whatever_they_are_called() {
    let mut scene = Scene::start("foreign").await;
    let guest = scene.guest(1).await;
    let domain = name(&guest);
    let long = "x".repeat(230);
    // Most of these names libvirt takes only while the machine is off.
    for (marker, odd) in ('A'..).zip(["-rf \"<&>' \u{e9}e\u{301} \u{1f393}", "tab\there", long.as_str()]) {
        guest.start();
        guest.write(marker);
        scene.virsh(&["destroy", &domain]);
        scene.virsh(&["snapshot-create-as", "--domain", &domain, "--name", odd]);
        let foreign = SnapshotId::of_name(odd);
        let is_there = |all: &[SnapshotFacts]| names(all) == [foreign.as_str()] && all[0].origin == Origin::Foreign;
        scene.told.snapshots("a foreign snapshot", &guest, is_there).await;
        guest.start();
        guest.write('Z');
        let back = Request::Revert { snapshot: foreign.clone(), run_after: RunAfter::Running, save_current: None };
        let ended = scene.agent.run(guest.vm, back).await.unwrap();
        assert_eq!(ended.state(), OperationState::Succeeded, "{odd}: {:?}", ended.error);
        assert_eq!(guest.report().disk, marker, "{odd}");
        let delete = Request::Delete { snapshot: foreign, scope: DeleteScope::Only, force: false };
        // As long as it runs, QEMU would have to take the name (names.rs holds which it does).
        let refusal = scene.agent.run(guest.vm, delete.clone()).await.unwrap_err();
        let reason = from_status(&refusal, Reason::HostProtocol).reason();
        assert_eq!(reason, Reason::SnapshotNameUnsupported, "{odd}");
        scene.virsh(&["destroy", &domain]);
        let ended = scene.agent.run(guest.vm, delete).await.unwrap();
        assert_eq!(ended.state(), OperationState::Succeeded, "{odd}: {:?}", ended.error);
        let seen = scene.libvirt.observe(guest.vm, Reread::All).unwrap();
        assert!(seen.snapshots.is_empty() && seen.strays.is_empty(), "{odd}: {seen:?}");
    }
    scene.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happened_while_the_agent_was_away_is_known_when_it_is_back() {
    let mut scene = Scene::start("away").await;
    let (guest, gone) = (scene.guest(1).await, scene.guest(1).await);
    let ours = id();
    for vm in [guest.vm, gone.vm] {
        let ended = scene.agent.run(vm, Request::Create(create(&ours))).await.unwrap();
        assert_eq!(ended.state(), OperationState::Succeeded, "{:?}", ended.error);
    }
    let (daemon, dir) = scene.leave().await;
    let domain = name(&guest);
    daemon.virsh(&["snapshot-create-as", &domain, "by-hand"]);
    daemon.virsh(&["snapshot-revert", &domain, ours.as_str()]);
    let image = guest.dir.join("vda.qcow2");
    crate::guest::run(&guest.dir, "qemu-img", &["snapshot", "-d", "by-hand", image.to_str().unwrap()]);
    daemon.virsh(&["undefine", &name(&gone), "--snapshots-metadata"]);
    let new = Guest::on(&daemon.host, 1, "");

    let scene = Scene::come_back(daemon, dir).await;
    assert_eq!(scene.told.vms.keys().collect::<std::collections::BTreeSet<_>>(), [&guest.vm, &new.vm].into());
    assert_eq!(scene.told.left_behind, [gone.vm.to_string()]);
    let told = &scene.told.vms[&guest.vm].snapshots;
    assert_eq!((names(told), current(told)), (vec!["by-hand", ours.as_str()], Some(ours.as_str())));
    let by_hand = told.iter().find(|one| one.id.as_str() == "by-hand").unwrap();
    assert_eq!(by_hand.broken, Some(snapshot_core::Reason::SnapshotBroken));
    scene.agent.stop().await;
}

/// The daemon dies while QEMU saves the memory, and the agent while the daemon is away: the guest stands still, and
/// nobody is left who knows why but the journal.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_guest_that_dead_programs_left_paused_runs_on() {
    let mut scene = Scene::start("paused").await;
    let guest = scene.guest(1).await;
    guest.start();
    guest.write('A');
    for millis in [5, 15, 30, 60] {
        let snapshot = id();
        let spec = crate::served::spec(guest.vm, Request::Create(create(&snapshot)));
        let token = scene.agent.all();
        let (begun, ()) = tokio::join!(scene.agent.begin(&spec, &token), async {
            tokio::task::block_in_place(|| {
                kill_in_the_middle(&mut scene.daemon, &guest, Duration::from_millis(millis));
            });
        });
        drop(begun);
        // The agent is told to stop and gives up waiting for libvirt: what it had taken on is for the next one.
        let (mut daemon, dir) = scene.leave().await;
        daemon.start_again();
        scene = Scene::come_back(daemon, dir).await;
        let running = |told: &super::Told| told.vms[&guest.vm].vm.state == VmState::Running;
        scene.told.until("that it runs", running).await;
        assert_eq!(guest.report().disk, 'A');
        let seen = scene.libvirt.observe(guest.vm, Reread::All).unwrap();
        assert!(seen.strays.is_empty(), "{millis} ms: {:?}", seen.strays);
    }
    scene.agent.stop().await;
}

#[test]
fn libvirts_folder_is_where_it_is_derived_to_be() {
    let guest = Guest::new(1);
    let seen = HOST.libvirt.observe(guest.vm, Reread::All).unwrap();
    let (ours, label) = (id(), snapshot_core::description::Label::foreign("x", ""));
    HOST.libvirt.create_internal(&seen.vm, &ours, &label, false).unwrap();
    let folder = HOST.host.dir.join("lib/qemu/snapshot").join(name(&guest));
    assert!(folder.join(format!("{ours}.xml")).is_file(), "{}", folder.display());
}

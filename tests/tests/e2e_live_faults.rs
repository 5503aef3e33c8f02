//! Snapshots of the disks of machines that run on, when something goes wrong in their middle: all of it is there or none.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use proto::v1;
use tests::client::Client;
use tests::cluster::{Backend, Cluster, HostPlan};
use tests::faults::space::{Space, in_new_namespace, in_own_namespace};
use tests::guest::{Disk, Format, Guest};
use tests::held::{At, Way};
use tests::images;
use tests::lab::{HOST, Lab, Power, id};
use tests::libvirtd::Libvirtd;
use tests::scratch::Scratch;

/// How long a step may take until it is where it is waited for.
const SOON: Duration = Duration::from_secs(60);
/// The size of a file system: what the guest writes is less than one.
const ROOM_MIB: u32 = 8;
/// What is left free, where something is: a snapshot needs a few pages, so some are too little for all that it writes, and for
/// taking it back.
const PAGE: u64 = 4096;

/// What the guest of these tests tells of its disks and its RAM.
fn marks(guest: &Guest) -> (char, char, Option<char>) {
    let report = guest.report().unwrap();
    (report.disk, report.ram, report.second_disk)
}

/// The agent comes to libvirt by the way from now on.
fn agent_through(lab: &mut Lab) -> Way {
    let way = Way::instead_of(&lab.daemon().unwrap().socket()).unwrap();
    let host = lab.cluster.host_mut(HOST).unwrap();
    host.agent().kill().unwrap();
    host.start_agent_again().unwrap();
    way
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_snapshots_are_whole_or_gone_when_the_agent_dies_between_two_calls() {
    let mut lab = Lab::live("").unwrap();
    let guest = Guest::with_two_disks(&lab.images().unwrap(), "desk").unwrap();
    lab.run(&guest).await.unwrap();
    guest.write('A').unwrap();
    let before = lab.take(&guest, "before").await.unwrap();
    let way = agent_through(&mut lab);
    lab.client.vm_in_state(&guest.vm(), v1::VmState::Running).await.unwrap();
    let pid = lab.daemon().unwrap().qemu_pid(&guest).unwrap();
    let mut known = 1;
    for (at, in_images, in_libvirt) in [
        (At::Transaction, false, false),
        (At::TransactionDone, true, false),
        (At::Record, true, false),
        (At::RecordDone, true, true),
    ] {
        guest.write('B').unwrap();
        way.want(at);
        let begun = lab.client.create(&guest.vm(), "at", "").await.unwrap();
        way.wait(SOON).unwrap();
        // It is where it should be when the agent dies.
        let traces: Vec<usize> =
            guest.disks().iter().map(|disk| images::internal_snapshots(disk.path()).unwrap().len()).collect();
        assert_eq!(traces, [known + usize::from(in_images); 2], "{at:?}");
        let listed = lab.daemon().unwrap().snapshots(&guest).unwrap();
        assert_eq!(listed.len(), known + usize::from(in_libvirt), "{at:?}");
        let host = lab.cluster.host_mut(HOST).unwrap();
        host.agent().kill().unwrap();
        way.lose();
        host.start_agent_again().unwrap();

        let ended = lab.client.ended(begun).await.unwrap();
        let left = lab.agreed_soon(&guest).await.unwrap();
        if ended.state() == v1::OperationState::Succeeded {
            known += 1;
            assert!(left.iter().any(|one| one.name == ended.snapshot), "{at:?}: {ended:?}");
        } else {
            assert_eq!(ended.error.clone().unwrap().reason, "INTERRUPTED", "{at:?}: {ended:?}");
        }
        assert_eq!(left.len(), known, "{at:?}: {ended:?}");
        // What is whole in libvirt stays; what nobody has written down is not taken for a snapshot.
        assert_eq!(ended.state() == v1::OperationState::Succeeded, in_libvirt, "{at:?}: {ended:?}");
        assert_eq!(marks(&guest), ('B', 'B', Some('B')), "{at:?}");
        assert_eq!(lab.daemon().unwrap().qemu_pid(&guest).unwrap(), pid, "{at:?}");
        let next = lab.take(&guest, "next").await.unwrap();
        lab.remove(&next, v1::DeleteScope::Only).await.unwrap();
    }
    guest.write('C').unwrap();
    for (snapshot, marker) in
        lab.agreed(&guest).await.unwrap().iter().map(|one| (one, if one.name == before.name { 'A' } else { 'B' }))
    {
        lab.return_to(snapshot).await.unwrap();
        let (disk, _, second) = marks(&guest);
        assert_eq!((disk, second), (marker, Some(marker)));
    }
    lab.set(&guest, Power::Off).await.unwrap();
    guest.disks().iter().for_each(|disk| images::check(disk.path()).unwrap());
}

/// Runs a test of this file in a mount namespace of its own; whether this is in it already.
fn is_alone(test: &str) -> bool {
    if in_own_namespace().unwrap() {
        return true;
    }
    let mut command: Command = in_new_namespace(&std::env::current_exe().unwrap()).unwrap();
    let output = command.args(["--exact", test, "--nocapture"]).output().unwrap();
    let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).join("\n");
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    false
}

/// The room goes when all was planned and QEMU is about to be told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_snapshots_are_of_all_disks_or_of_none_on_a_full_file_system() {
    if !is_alone("live_snapshots_are_of_all_disks_or_of_none_on_a_full_file_system") {
        return;
    }
    // Mounted before the daemon starts, whose namespace is a copy of this one.
    let scratch = Scratch::new().unwrap();
    let folder = scratch.folder("images").unwrap();
    let spaces =
        ["images/one", "images/other"].map(|name| Space::mount(&scratch.folder(name).unwrap(), ROOM_MIB).unwrap());
    let [one, other] = [0, 1].map(|index: usize| spaces[index].path().join("desk.qcow2"));
    let disks = vec![Disk::boot(&one, Format::Qcow2).unwrap(), Disk::empty(&other, Format::Qcow2).unwrap()];
    let guest = Guest::with_disks(&folder, "desk", disks).unwrap();
    let plan = HostPlan::on(HOST, Backend::Daemon(Libvirtd::start().unwrap()));
    let plan = plan.policy("live_snapshots = true\nspace_margin_bytes = 0").images(folder);
    let cluster = Cluster::start(vec![plan]).unwrap();
    let mut lab = Lab { client: Client::admin(&cluster).unwrap(), cluster };
    lab.run(&guest).await.unwrap();
    guest.write('A').unwrap();
    let before = lab.take(&guest, "before").await.unwrap();
    guest.write('B').unwrap();
    let way = agent_through(&mut lab);
    lab.client.vm_in_state(&guest.vm(), v1::VmState::Running).await.unwrap();

    // The disks, by QEMU's names, that had no room.
    let mut full = BTreeSet::new();
    // How many pages are left on each; none: it is not filled.
    let rounds = [
        (Some(0), Some(0)),
        (None, Some(0)),
        (Some(0), None),
        (None, Some(1)),
        (Some(1), Some(0)),
        (Some(2), Some(0)),
        (Some(3), Some(0)),
        (Some(4), Some(1)),
        (Some(6), Some(2)),
    ];
    for round in rounds {
        way.want(At::Transaction);
        let begun = lab.client.create(&guest.vm(), "no room", "").await.unwrap();
        way.wait(SOON).unwrap();
        for (space, pages) in spaces.iter().zip([round.0, round.1]) {
            if let Some(pages) = pages {
                space.fill(pages * PAGE).unwrap();
            }
        }
        way.let_go();
        let ended = lab.client.ended(begun).await.unwrap();
        // While there is no room: the guest runs on, and reads what it wrote.
        assert_eq!(lab.daemon().unwrap().state(&guest).unwrap(), "running", "{round:?}: {ended:?}");
        assert_eq!(marks(&guest), ('B', 'B', Some('B')), "{round:?}: {ended:?}");
        let tags: BTreeSet<_> =
            guest.disks().iter().map(|disk| images::internal_snapshots(disk.path()).unwrap()).collect();
        assert_eq!(tags.len(), 1, "{round:?}: one disk has it and the other has not: {ended:?}");
        spaces.iter().for_each(Space::clear);
        let left = lab.agreed_soon(&guest).await.unwrap();
        let taken = left.iter().find(|one| one.name != before.name);
        if ended.state() == v1::OperationState::Succeeded {
            assert_eq!(taken.unwrap().name, ended.snapshot, "{round:?}");
            lab.remove(taken.unwrap(), v1::DeleteScope::Only).await.unwrap();
        } else {
            assert!(taken.is_none(), "{round:?}: {taken:?}");
            let error = ended.error.unwrap();
            assert_eq!(error.reason, "SPACE_LOW", "{round:?}: {error:?}");
            assert!(error.message.contains("no space was left"), "{round:?}: {error:?}");
            let said = &error.metadata["libvirt_message"];
            assert!(said.contains("transaction") && said.contains("No space left"), "{round:?}: {error:?}");
            full.extend(["libvirt-1-", "libvirt-2-"].into_iter().filter(|node| said.contains(node)));
        }
        // With room again the next is taken, and the guest writes.
        let next = lab.take(&guest, "room").await.unwrap();
        guest.write('C').unwrap();
        guest.write('B').unwrap();
        lab.remove(&next, v1::DeleteScope::Only).await.unwrap();
        assert_eq!(lab.daemon().unwrap().current_snapshot(&guest).unwrap().as_deref(), Some(id(&before.name)));
    }
    assert_eq!(full.len(), 2, "the first had no room, and the second when the first was taken: {full:?}");
    lab.return_to(&before).await.unwrap();
    let (disk, _, second) = marks(&guest);
    assert_eq!((disk, second), ('A', Some('A')));
    lab.set(&guest, Power::Off).await.unwrap();
    // A snapshot that QEMU could not write leaves some clusters of the image that nobody uses.
    guest.disks().iter().for_each(|disk| images::check_consistent(disk.path()).unwrap());
}

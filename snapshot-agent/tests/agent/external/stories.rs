//! What people do, and what they get.

use std::time::Duration;

use super::*;
use crate::guest::run;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Off,
    Live,
    Memory,
    Paused,
}

impl Kind {
    fn content(self) -> Option<Content> {
        match self {
            Self::Off => None,
            Self::Live => Some(Content::Disks),
            Self::Memory | Self::Paused => Some(Content::DisksAndMemory),
        }
    }
}

/// A chain of four, each with another letter on the disks, which then have an E.
async fn chain(guest: Guest, kind: Kind) -> (Bench, Vec<SnapshotId>) {
    let mut bench = Bench::new(guest);
    if kind != Kind::Off {
        bench.guest.start();
    }
    let mut ids = Vec::new();
    for marker in ['A', 'B', 'C', 'D'] {
        bench.write(marker);
        if kind == Kind::Paused {
            bench.guest.domain().suspend().unwrap();
        }
        ids.push(bench.take(kind.content()).await);
        if kind == Kind::Paused {
            bench.guest.domain().resume().unwrap();
        }
    }
    bench.write('E');
    bench.check();
    (bench, ids)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_loses_its_middle_its_root_and_its_leaf() {
    for (kind, disks) in [(Kind::Off, 1), (Kind::Live, 2), (Kind::Memory, 1)] {
        let (mut bench, ids) = chain(Guest::new(disks), kind).await;
        bench.delete(&ids[1], DeleteScope::Only).await;
        bench.delete(&ids[0], DeleteScope::Only).await;
        bench.delete(&ids[3], DeleteScope::Only).await;
        bench.check_all().await;
        bench.purge().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_raw_disk_gets_external_ones_by_itself_and_is_merged_back() {
    for kind in [Kind::Off, Kind::Memory] {
        let (mut bench, ids) = chain(Guest::raw(2), kind).await;
        bench.delete(&ids[0], DeleteScope::Descendants).await;
        bench.check_all().await;
        let fresh = id();
        bench.done(Request::Create(create(&fresh))).await;
        assert_eq!(bench.look().snapshot(&fresh).unwrap().storage, Storage::External);
        bench.expected.insert(fresh, bench.now);
        bench.purge().await;
    }
}

/// A fork of two branches under the second of a chain of four; the machine is on the new one.
async fn fork(guest: Guest, kind: Kind) -> (Bench, Vec<SnapshotId>) {
    let (mut bench, mut ids) = chain(guest, kind).await;
    let running = if kind == Kind::Off { RunAfter::Off } else { RunAfter::Running };
    bench.revert(&ids[1], running).await;
    bench.write('F');
    ids.push(bench.take(kind.content()).await);
    bench.write('G');
    bench.check();
    (bench, ids)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_loses_a_branch_and_the_other_stays() {
    for (kind, scope) in
        [(Kind::Memory, DeleteScope::Subtree), (Kind::Off, DeleteScope::Only), (Kind::Live, DeleteScope::Only)]
    {
        let (mut bench, ids) = fork(Guest::new(1), kind).await;
        bench.delete(&ids[2], scope).await;
        bench.check_all().await;
        bench.delete(&ids[0], DeleteScope::Only).await;
        bench.check_all().await;
        bench.delete(&ids[1], DeleteScope::Subtree).await;
        bench.purge().await;
    }
}

/// The first way of the facts to lose data: the machine is on the deleted snapshot, and its parent has another branch.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_active_leaf_under_a_fork_is_gone_for_the_user_and_the_other_branch_is_not_lost() {
    for kind in [Kind::Off, Kind::Memory] {
        let (mut bench, ids) = fork(Guest::new(2), kind).await;
        bench.delete(&ids[4], DeleteScope::Only).await;
        assert!(bench.look().layers.snapshots[&ids[4]].deleted, "it is put off");
        assert!(bench.look().snapshot(&ids[1]).unwrap().is_current);
        bench.write('H');
        let after = bench.take(kind.content()).await;
        assert_eq!(bench.look().snapshot(&after).unwrap().parent.as_ref(), Some(&ids[1]));
        bench.delete(&after, DeleteScope::Only).await;
        bench.revert(&ids[3], RunAfter::Running).await;
        bench.check();
        assert_eq!(bench.look().layers.deleted(), BTreeSet::new(), "it is removed once the machine has left");
        bench.check_all().await;
        bench.purge().await;
    }
}

/// The first of the tree is deleted, and then the one that the machine is on: libvirt has nothing that is current.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revert_where_no_snapshot_is_current_does_not_kill_libvirt() {
    for kind in [Kind::Off, Kind::Memory] {
        let (mut bench, ids) = fork(Guest::new(1), kind).await;
        bench.delete(&ids[0], DeleteScope::Only).await;
        bench.delete(&ids[1], DeleteScope::Only).await;
        bench.delete(&ids[4], DeleteScope::Only).await;
        assert!(bench.look().snapshots.iter().all(|snapshot| !snapshot.is_current));
        bench.revert(&ids[3], RunAfter::Running).await;
        bench.check();
        bench.check_all().await;
        bench.purge().await;
    }
}

/// Another tool's deletion of metadata leads to the same trap; the revert is guarded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revert_does_not_lose_a_branch_that_libvirt_takes_for_the_active_file() {
    let (mut bench, ids) = fork(Guest::new(1), Kind::Off).await;
    HOST.libvirt.forget(bench.guest.vm, &ids[4]).unwrap();
    bench.expected.remove(&ids[4]);
    bench.revert(&ids[3], RunAfter::Running).await;
    assert_eq!(bench.guest.report().disk, 'D');
    let look = bench.look();
    assert!(look.snapshots.iter().all(|snapshot| snapshot.broken.is_none()), "{look:#?}");
    bench.revert(&ids[2], RunAfter::Running).await;
    assert_eq!(bench.guest.report().disk, 'C');
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_present_is_kept_before_a_revert_and_a_paused_guest_stays_paused() {
    let (mut bench, ids) = chain(Guest::new(2), Kind::Paused).await;
    let present = id();
    let save_current = Some(create(&present));
    let revert = Request::Revert { snapshot: ids[0].clone(), run_after: RunAfter::AsRecorded, save_current };
    bench.done(revert).await;
    bench.expected.insert(present.clone(), 'E');
    assert_eq!(bench.look().vm.state, snapshot_core::vm::VmState::Paused);
    bench.guest.domain().resume().unwrap();
    bench.now = 'A';
    bench.check();
    bench.revert(&present, RunAfter::Off).await;
    assert_eq!(bench.look().vm.state, snapshot_core::vm::VmState::Shutoff);
    bench.check_all().await;
    assert_eq!(bench.guest.report().ram, bench.now);
    bench.purge().await;
}

/// Another machine's disk is a clone on a frozen file: that file stays as it is as long as the other machine is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_machine_lies_on_stays() {
    let (mut bench, ids) = chain(Guest::new(1), Kind::Off).await;
    let frozen = bench.look().layers.snapshots[&ids[1]].frozen["vda"].clone();
    let other = Guest::new(1);
    let image = other.dir.join("vda.qcow2");
    run(
        &other.dir,
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-b", &frozen, "-F", "qcow2", image.to_str().unwrap()],
    );
    bench.delete(&ids[1], DeleteScope::Only).await;
    bench.delete(&ids[2], DeleteScope::Only).await;
    other.start();
    assert_eq!(other.report().disk, 'B');
    other.domain().destroy().unwrap();
    bench.check_all().await;
    other.start();
    assert_eq!(other.report().disk, 'B');
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_exists_is_not_written_over() {
    let bench = Bench::new(Guest::new(1));
    bench.guest.start();
    let id = id();
    let memory = bench.guest.dir.join(format!("vda.{id}.mem"));
    fs::write(&memory, "somebody's").unwrap();
    let request = Request::Create(Create { storage: Some(Storage::External), ..create(&id) });
    let ended = bench.run(request).await;
    assert_eq!(ended.error.unwrap().reason(), snapshot_core::Reason::TargetExists);
    assert_eq!(fs::read_to_string(&memory).unwrap(), "somebody's");
    assert!(bench.look().snapshots.is_empty() && bench.look().layers.depth() == 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_freeze_without_an_agent_is_refused_with_its_reason() {
    let quiesce = |id: &SnapshotId| {
        let content = Some(Content::Disks);
        Request::Create(Create { storage: Some(Storage::External), quiesce: true, content, ..create(id) })
    };
    let channel = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>";
    for (devices, reason) in [("", "GUEST_AGENT_ABSENT"), (channel, "GUEST_AGENT_SILENT")] {
        let bench = Bench::new(Guest::on(&HOST.host, 1, devices));
        bench.guest.start();
        let ended = bench.run(quiesce(&id())).await;
        assert_eq!(ended.error.unwrap().reason().as_str(), reason);
        assert!(bench.look().snapshots.is_empty() && bench.look().layers.depth() == 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn saving_the_running_state_can_be_stopped_and_leaves_nothing() {
    let mut bench = Bench::new(Guest::with_memory(2, 1024));
    bench.guest.start();
    bench.write('A');
    let mut cancelled = 0;
    // What is asked for too late succeeds, so it is tried until it was in time.
    for _ in 0..20 {
        let id = id();
        let request = Request::Create(Create { storage: Some(Storage::External), ..create(&id) });
        let slow = bench.guest.slow_down();
        let operation = bench.start(request).await.unwrap();
        tokio::time::sleep(Duration::from_millis(150)).await;
        // Once it is too late that is said.
        let _ = bench.cancel(&operation);
        let ended = Bench::end(&operation).await;
        drop(slow);
        match ended.outcome {
            Outcome::Succeeded => _ = bench.expected.insert(id, 'A'),
            Outcome::Cancelled => cancelled += 1,
            Outcome::Failed => panic!("{ended:?}"),
        }
        bench.check();
        if cancelled == 2 {
            break;
        }
    }
    assert!(cancelled > 0, "it was never in time");
    bench.check_all().await;
}

/// Stopped in the middle of a merge: the snapshot is gone, everything else is whole, and a later deletion merges the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merge_can_be_stopped_and_is_finished_by_the_next() {
    let mut stopped = 0;
    for (running, millis) in [(false, 30), (false, 120), (true, 30), (true, 120)] {
        let (mut bench, ids) = chain(Guest::new(1), Kind::Off).await;
        let big = bench.look().layers.snapshots[&ids[1]].overlays["vda"].clone();
        let write = ["-f", "qcow2", "-c", "write -q -P 7 2M 60M"];
        let top = bench.look().layers.live["vda"].clone();
        for path in [&big, &top] {
            run(&bench.guest.dir, "qemu-io", &[&write[..], &[path.as_str()]].concat());
        }
        if running {
            bench.guest.start();
        }
        let request = Request::Delete { snapshot: ids[1].clone(), scope: DeleteScope::Descendants, force: false };
        let operation = bench.start(request).await.unwrap();
        tokio::time::sleep(Duration::from_millis(millis)).await;
        let asked = bench.cancel(&operation);
        let ended = Bench::end(&operation).await;
        assert!(asked.is_ok() || ended.outcome == Outcome::Succeeded, "{ended:?}");
        match ended.outcome {
            Outcome::Succeeded => bench.expected.retain(|id, _| ids[..2].contains(id)),
            Outcome::Cancelled => {
                stopped += 1;
                let left: BTreeSet<_> = bench.look().snapshots.into_iter().map(|snapshot| snapshot.id).collect();
                bench.expected.retain(|id, _| left.contains(id));
            }
            Outcome::Failed => panic!("{ended:?}"),
        }
        bench.check();
        bench.delete(&ids[0], DeleteScope::Only).await;
        bench.check_all().await;
        bench.purge().await;
    }
    assert!(stopped > 0, "it was never in time");
}

/// The journal as if nothing of the operation had been marked: everything is begun again on a host where it is done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_may_be_carried_out_twice() {
    let mut bench = Bench::new(Guest::new(2));
    bench.guest.start();
    bench.write('A');
    let first = bench.take(Some(Content::Disks)).await;
    bench.again(Outcome::Succeeded).await;
    bench.write('B');
    let second = bench.take(None).await;
    bench.write('C');
    bench.revert(&first, RunAfter::Running).await;
    bench.again(Outcome::Succeeded).await;
    bench.check();
    bench.revert(&second, RunAfter::Running).await;
    bench.write('D');
    bench.delete(&first, DeleteScope::Only).await;
    bench.again(Outcome::Succeeded).await;
    bench.check();
    bench.check_all().await;
    bench.purge().await;
    bench.again(Outcome::Succeeded).await;
    bench.check();
}

/// libvirt goes on taking snapshots of a machine that is off until it cannot be started any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_with_as_many_layers_as_it_may_have_still_starts() {
    let bench = Bench::new(Guest::new(1));
    let take =
        async || bench.start(Request::Create(Create { storage: Some(Storage::External), ..create(&id()) })).await;
    let mut taken = 0;
    let refusal = loop {
        match take().await {
            Ok(operation) => assert_eq!(Bench::end(&operation).await.outcome, Outcome::Succeeded),
            Err(refusal) => break refusal,
        }
        taken += 1;
        assert!(taken < 60, "there is no bound");
    };
    assert_eq!(refusal.reason(), snapshot_core::Reason::LayerLimit);
    bench.guest.start();
    bench.guest.write('A');
    let purged = bench.run(Request::Purge { force: false }).await;
    assert_eq!(purged.outcome, Outcome::Succeeded, "{purged:?}");
    assert_eq!((bench.look().layers.depth(), bench.guest.report().disk), (1, 'A'));
}

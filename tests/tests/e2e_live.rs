//! Snapshots of the disks of machines that run on: what is in them, asked of real guests.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic, and its helpers are part of it")]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use proto::v1;
use rustix::process::{Pid, Signal, kill_process};
use tests::guest::{Clock, Gap, Guest};
use tests::images;
use tests::lab::{Lab, Power, id, key};
use tests::tools::run;

/// How many are taken of the guest that writes, unless `LIVE_SNAPSHOTS` says otherwise.
const SNAPSHOTS: usize = 15;

fn number(guest: &Guest, file: &str) -> u32 {
    let told = guest.shell(&format!("cat {file}")).unwrap().ok().unwrap();
    told.trim().parse().unwrap_or_else(|_| panic!("{file}: {told:?}"))
}

fn request(guest: &Guest, content: v1::SnapshotContent) -> v1::CreateSnapshotRequest {
    v1::CreateSnapshotRequest {
        parent: guest.vm(),
        snapshot: Some(v1::Snapshot { display_name: "live".to_owned(), ..Default::default() }),
        content: content.into(),
        request_id: key(),
        ..Default::default()
    }
}

/// In the middle of what was measured.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// The records on a disk as a snapshot has it, its journal replayed as by the mount of a machine that boots from it.
fn records(image: &Path, snapshot: &str) -> Vec<u32> {
    let raw = image.with_extension("read");
    run(Command::new("qemu-img").args(["convert", "-l", snapshot, "-O", "raw"]).arg(image).arg(&raw)).unwrap();
    // It says 1 when it has replayed something.
    let replayed = Command::new("e2fsck").args(["-y", "-E", "journal_only"]).arg(&raw).output().unwrap();
    assert!(replayed.status.code().is_some_and(|code| code <= 1), "{replayed:?}");
    let clean = Command::new("e2fsck").args(["-f", "-n"]).arg(&raw).output().unwrap();
    assert!(clean.status.success(), "{}", String::from_utf8_lossy(&clean.stdout));
    let log = run(Command::new("debugfs").args(["-R", "cat /log"]).arg(&raw)).unwrap();
    std::fs::remove_file(&raw).unwrap();
    log.lines().map(|line| line.parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_snapshots_hold_what_was_acknowledged_and_cut_two_disks_at_one_moment() {
    let count = std::env::var("LIVE_SNAPSHOTS").map_or(SNAPSHOTS, |count| count.parse().unwrap());
    let lab = Lab::live("max_snapshots_per_vm = 1000").unwrap();
    let guest = Guest::linux(&lab.images().unwrap(), "linux", 2).unwrap();
    lab.run(&guest).await.unwrap();
    let pid = lab.daemon().unwrap().qemu_pid(&guest).unwrap();
    guest.write_without_end().unwrap();

    let mut taken = Vec::new();
    for _ in 0..count {
        let acknowledged = number(&guest, "/run/acked");
        let asked = lab.client.create_as(request(&guest, v1::SnapshotContent::Unspecified)).await;
        let done = lab.client.done(asked).await.unwrap();
        let begun = number(&guest, "/run/begun");
        assert_eq!(done.method(), v1::OperationMethod::Live);
        taken.push((done.snapshot, acknowledged..=begun));
    }
    assert_eq!(lab.daemon().unwrap().qemu_pid(&guest).unwrap(), pid, "it is the same QEMU");
    guest.shell("touch /run/stop; sleep 1; sync").unwrap().ok().unwrap();
    lab.set(&guest, Power::Off).await.unwrap();

    let mut moved = 0;
    for (name, during) in &taken {
        let [one, other] = [0, 1].map(|disk: usize| records(guest.disks()[disk].path(), id(name)));
        let last = one.last().copied().unwrap_or(0);
        assert!(one.iter().copied().eq(1..=last) && other.iter().copied().eq(1..=other.len() as u32), "no gaps");
        assert!(during.contains(&last), "{name} ends with {last}, and was taken during {during:?}");
        // A record goes to the first disk and then to the second.
        assert!(last - other.len() as u32 <= 1, "{name}: {last} on one disk and {} on the other", other.len());
        assert!(*during.start() <= other.len() as u32, "{name}: the second disk lacks what was acknowledged");
        moved += u32::from(last > *during.start());
    }
    assert!(moved > 0, "the guest wrote nothing while any of them was taken");

    for (name, during) in [taken.first().unwrap(), taken.last().unwrap()] {
        let back = v1::RevertToSnapshotRequest { name: name.clone(), request_id: key(), ..Default::default() };
        lab.client.done(lab.client.revert_as(back).await).await.unwrap();
        assert_eq!(lab.daemon().unwrap().state(&guest).unwrap(), "running", "as recorded is a fresh boot");
        let last: u32 = guest.shell("tail -n 1 /data/log").unwrap().ok().unwrap().trim().parse().unwrap();
        assert!(during.contains(&last), "{name}: the guest reads {last}, and it was taken during {during:?}");
    }
    lab.set(&guest, Power::Off).await.unwrap();
    let purge = v1::PurgeVmRequest { name: guest.vm(), request_id: key(), ..Default::default() };
    lab.client.done(lab.client.purge(purge).await).await.unwrap();
    guest.disks().iter().for_each(|disk| images::check(disk.path()).unwrap());
    lab.agreed(&guest).await.unwrap();
}

/// The measurement is `make bench WHAT=live`; here is that the guest is not held up for longer than the operation says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_snapshots_hold_the_guest_up_for_what_they_say_by_its_own_clock() {
    let lab = Lab::live("").unwrap();
    let daemon = lab.daemon().unwrap();
    let guest = Guest::linux(&lab.images().unwrap(), "linux", 2).unwrap();
    std::fs::write(guest.xml_file(), Clock::xml(&guest).unwrap()).unwrap();
    daemon.virsh(&["define", &guest.xml_file().display().to_string()]).unwrap();
    lab.set(&guest, Power::Running).await.unwrap();
    guest.write_without_end().unwrap();
    let clock = Clock::start(&guest).unwrap();

    // What would be seen if it were held up, or stopped: half a second, which the guest's clock sees or does not.
    let held = Duration::from_millis(500);
    let qemu = Pid::from_raw(daemon.qemu_pid(&guest).unwrap()).unwrap();
    let begun = Instant::now();
    kill_process(qemu, Signal::STOP).unwrap();
    std::thread::sleep(held);
    kill_process(qemu, Signal::CONT).unwrap();
    let seen = clock.gap(begun, Instant::now()).unwrap();
    assert!(seen.guest > held / 2 && seen.host > held / 2, "{seen:?}");
    let begun = Instant::now();
    daemon.pause(&guest).unwrap();
    std::thread::sleep(held);
    daemon.resume(&guest).unwrap();
    let seen = clock.gap(begun, Instant::now()).unwrap();
    assert!(seen.host > held, "{seen:?}");

    let (mut with, mut without, mut told) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..SNAPSHOTS {
        let begun = Instant::now();
        let asked = lab.client.create_as(request(&guest, v1::SnapshotContent::Unspecified)).await;
        let done = lab.client.done(asked).await.unwrap();
        let took = begun.elapsed();
        with.push(clock.gap(begun, begun + took).unwrap());
        told.push(Duration::try_from(done.pause.expect("how long it was held up")).unwrap());
        // As long, and nothing happens.
        let begun = Instant::now();
        tokio::time::sleep(took).await;
        without.push(clock.gap(begun, Instant::now()).unwrap());
    }
    let by = |gaps: &[Gap], clock: fn(&Gap) -> Duration| median(gaps.iter().map(clock).collect());
    let (guest_with, host_with) = (by(&with, |gap| gap.guest), by(&with, |gap| gap.host));
    let (guest_without, host_without) = (by(&without, |gap| gap.guest), by(&without, |gap| gap.host));
    let told = median(told);
    let figures =
        format!("told {told:?}; with {guest_with:?}, {host_with:?}; without {guest_without:?}, {host_without:?}");
    // A machine that does other things holds the guest up as well, with and without.
    let about = Duration::from_millis(50);
    assert!(guest_with <= told + guest_without * 2 + about, "{figures}");
    assert!(host_with <= told + host_without * 2 + about, "{figures}");
    assert!(told <= guest_with + Duration::from_secs(2), "{figures}");
    lab.set(&guest, Power::Off).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_snapshots_are_the_default_and_virsh_works_on_them() {
    use v1::{CapabilityKind, OperationMethod, SnapshotConsistency, SnapshotVmState, StorageKind};
    let lab = Lab::live("").unwrap();
    let guest = Guest::with_two_disks(&lab.images().unwrap(), "desk").unwrap();
    lab.run(&guest).await.unwrap();
    guest.write('A').unwrap();
    let vm = lab.client.vm(&guest.vm()).await.unwrap();
    let disks = vm.capabilities.iter().find(|one| one.kind() == CapabilityKind::CreateDisks).unwrap();
    assert!(disks.available && !disks.pauses, "{disks:?}");
    assert_eq!((disks.method(), disks.storage()), (OperationMethod::Live, StorageKind::Internal));
    let memory = vm.capabilities.iter().find(|one| one.kind() == CapabilityKind::CreateDisksAndMemory).unwrap();
    assert_eq!((memory.method(), memory.pauses), (OperationMethod::Libvirt, true));
    let ask = v1::CreateSnapshotRequest { validate_only: true, ..request(&guest, v1::SnapshotContent::Unspecified) };
    let plan = lab.client.create_as(ask).await.unwrap().plan.unwrap();
    assert_eq!((plan.method(), plan.pauses, plan.bytes_written), (OperationMethod::Live, false, 0));
    assert_eq!((plan.steps[0].kind.as_str(), plan.method_message.as_str()), ("CREATE_LIVE", ""));
    assert_eq!(disks.method_message, "");

    let first = lab.take(&guest, "one").await.unwrap();
    assert_eq!((first.vm_state(), first.consistency()), (SnapshotVmState::DiskOnly, SnapshotConsistency::Crash));
    assert_eq!((first.content(), first.storage()), (v1::SnapshotContent::Disks, StorageKind::Internal));
    let second = lab.take(&guest, "two").await.unwrap();
    assert_eq!(second.parent_snapshot, first.name);
    guest.write('B').unwrap();
    lab.agreed(&guest).await.unwrap();

    let daemon = lab.daemon().unwrap();
    let virsh = |verb: &str, more: &[&str]| {
        let args = [&[verb, guest.name(), id(&first.name)], more].concat();
        daemon.virsh(&args).unwrap()
    };
    let info = virsh("snapshot-info", &[]);
    assert!(info.contains("internal") && info.contains("shutoff"), "{info}");
    let xml = virsh("snapshot-dumpxml", &[]);
    assert!(xml.contains("<memory snapshot='no'/>") && xml.contains("<domain "), "{xml}");
    virsh("snapshot-revert", &["--running"]);
    let report = guest.report().unwrap();
    assert_eq!((report.disk, report.second_disk), ('A', Some('A')), "a fresh boot has the disks of then");
    lab.agreed_soon(&guest).await.unwrap();
    guest.write('C').unwrap();
    virsh("snapshot-delete", &[]);
    let left = lab.agreed_soon(&guest).await.unwrap();
    assert_eq!(left.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), [second.name.as_str()]);
    lab.return_to(&second).await.unwrap();
    assert_eq!(guest.report().unwrap().disk, 'A');
    lab.remove(&second, v1::DeleteScope::Only).await.unwrap();
    lab.nothing_left(&guest, &second).await.unwrap();
    lab.set(&guest, Power::Off).await.unwrap();
    guest.disks().iter().for_each(|disk| images::check(disk.path()).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_snapshots_are_frozen_where_that_is_asked_and_say_so() {
    use v1::SnapshotConsistency::{CrashNoAgent, FileSystem};
    let lab = Lab::live("").unwrap();
    let guest = Guest::linux(&lab.images().unwrap(), "linux", 2).unwrap();
    lab.run(&guest).await.unwrap();
    guest.shell("echo before >/data/file; echo too >/data2/file").unwrap().ok().unwrap();
    let quiesced = || v1::CreateSnapshotRequest { quiesce: true, ..request(&guest, v1::SnapshotContent::Unspecified) };
    let frozen = lab.client.done(lab.client.create_as(quiesced()).await).await.unwrap();
    assert_eq!(lab.client.snapshot(&frozen.snapshot).await.unwrap().consistency(), FileSystem);
    assert!(frozen.pause.is_some());
    guest.shell("echo after >/data/file && sync").unwrap().ok().unwrap();

    // Without the agent it is refused, or taken and told.
    guest.shell("kill $(cat /run/qemu-ga.pid); sleep 1").unwrap().ok().unwrap();
    let refused = lab.client.ended(lab.client.create_as(quiesced()).await.unwrap()).await.unwrap();
    assert_eq!(refused.error.expect("a refusal").reason, "GUEST_AGENT_SILENT");
    let allowed = v1::CreateSnapshotRequest { allow_crash_consistent: true, ..quiesced() };
    let taken = lab.client.done(lab.client.create_as(allowed).await).await.unwrap();
    assert_eq!(lab.client.snapshot(&taken.snapshot).await.unwrap().consistency(), CrashNoAgent);

    let back = v1::RevertToSnapshotRequest { name: frozen.snapshot, request_id: key(), ..Default::default() };
    lab.client.done(lab.client.revert_as(back).await).await.unwrap();
    assert_eq!(guest.shell("cat /data/file /data2/file").unwrap().ok().unwrap(), "before\ntoo\n");
    lab.agreed(&guest).await.unwrap();
    lab.set(&guest, Power::Off).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_snapshots_are_a_policy_and_the_running_state_is_the_fall_back() {
    let lab = Lab::with_policy("live_snapshots = false").unwrap();
    let guest = lab.guest("desk").await.unwrap();
    guest.write('A').unwrap();
    let ask = v1::CreateSnapshotRequest { validate_only: true, ..request(&guest, v1::SnapshotContent::Unspecified) };
    let plan = lab.client.create_as(ask).await.unwrap().plan.unwrap();
    assert_eq!((plan.method(), plan.pauses), (v1::OperationMethod::Libvirt, true));
    assert!(plan.method_message.contains("by its policy"), "{plan:?}");
    let taken = lab.take(&guest, "with memory").await.unwrap();
    assert_eq!(taken.content(), v1::SnapshotContent::DisksAndMemory);
    let refused = lab.client.create_as(request(&guest, v1::SnapshotContent::Disks)).await.unwrap_err();
    assert_eq!(refused.reason, "LIVE_DISKS_UNSUPPORTED");
    lab.set(&guest, Power::Off).await.unwrap();
}

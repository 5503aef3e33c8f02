//! The story this project exists for, on real guests: a snapshot is taken, the disk is changed, the machine goes back,
//! and the guest itself says that the old content is there; then the snapshot is deleted and nothing of it is left.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic, and its helpers are part of it")]

use std::time::{Duration, SystemTime};

use proto::v1;
use tests::guest::{Disk, Format, Guest};
use tests::images;
use tests::lab::{Lab, Power, id, key};

/// How far the host's clock and a snapshot's whole seconds may differ.
const CLOCK: Duration = Duration::from_secs(2);
const RAM: i64 = 16 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn powered_off() {
    let lab = Lab::start().unwrap();
    story(&lab, &Guest::new(&lab.images().unwrap(), "student").unwrap(), Power::Off).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_with_its_memory() {
    let lab = Lab::start().unwrap();
    story(&lab, &Guest::new(&lab.images().unwrap(), "student").unwrap(), Power::Running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paused() {
    let lab = Lab::start().unwrap();
    story(&lab, &Guest::new(&lab.images().unwrap(), "student").unwrap(), Power::Paused).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_disks() {
    let lab = Lab::start().unwrap();
    let folder = lab.images().unwrap();
    story(&lab, &Guest::with_two_disks(&folder, "two-off").unwrap(), Power::Off).await;
    story(&lab, &Guest::with_two_disks(&folder, "two-running").unwrap(), Power::Running).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_whose_base_does_not_change_by_a_byte() {
    let lab = Lab::start().unwrap();
    let folder = lab.images().unwrap();
    let base = Disk::boot(&folder.join("base.qcow2"), Format::Qcow2).unwrap();
    let before = images::sha256(base.path()).unwrap();
    for (name, power) in [("clone-off", Power::Off), ("clone-running", Power::Running)] {
        let clone = Guest::clone_of(&folder, name, &base).unwrap();
        story(&lab, &clone, power).await;
        assert!(lab.client.vm(&clone.vm()).await.unwrap().disks[0].has_backing_file);
        assert_eq!(images::backing_file(clone.disks()[0].path()).unwrap().as_deref(), base.path().to_str());
        assert_eq!(images::sha256(base.path()).unwrap(), before, "the base of {name}");
    }
}

async fn story(lab: &Lab, guest: &Guest, power: Power) {
    lab.run(guest).await.unwrap();
    guest.write('A').unwrap();
    lab.set(guest, power).await.unwrap();
    let taken = take(lab, guest, power).await;

    lab.set(guest, Power::Running).await.unwrap();
    assert_eq!(guest.write('B').unwrap().disk, 'B');
    assert_eq!(lab.agreed(guest).await.unwrap(), std::slice::from_ref(&taken), "the list is as it was");

    let back = lab.return_to(&taken).await.unwrap();
    assert_eq!((back.kind(), &back.snapshot), (v1::OperationKind::Revert, &taken.name));
    assert_eq!(lab.daemon().unwrap().state(guest).unwrap(), power.word(), "after the revert");
    lab.set(guest, Power::Running).await.unwrap();
    let report = guest.report().unwrap();
    assert_eq!((report.disk, report.ram), ('A', 'A'), "the guest reads what it had written before the snapshot");
    assert_eq!(report.second_disk, guest.disks().get(1).map(|_| 'A'));
    // The first boot is in the snapshot. With its memory the machine runs on from there; without, it boots again.
    assert_eq!(report.boots, if power == Power::Off { 2 } else { 1 });
    assert_eq!(lab.agreed(guest).await.unwrap(), std::slice::from_ref(&taken), "a revert leaves the snapshot");

    let gone = lab.remove(&taken, v1::DeleteScope::Only).await.unwrap();
    assert_eq!((gone.kind(), &gone.snapshot), (v1::OperationKind::Delete, &taken.name));
    lab.nothing_left(guest, &taken).await.unwrap();
    assert_eq!(guest.report().unwrap(), report, "a deletion leaves the guest alone");
    lab.set(guest, Power::Off).await.unwrap();
    for disk in guest.disks() {
        images::check(disk.path()).unwrap();
    }
}

/// Takes "before exam" and checks everything that is told of it.
async fn take(lab: &Lab, guest: &Guest, power: Power) -> v1::Snapshot {
    let begun = SystemTime::now();
    let asked = lab.client.create(&guest.vm(), "before exam", "all packages installed").await.unwrap();
    assert_eq!((asked.kind(), asked.vm.as_str()), (v1::OperationKind::Create, guest.vm().as_str()));
    assert!(matches!(asked.state(), v1::OperationState::Running | v1::OperationState::Succeeded), "{asked:?}");
    let done = lab.client.done(Ok(asked)).await.unwrap();
    assert_eq!(done.actor, "ravada/root");
    assert_eq!(done.progress.as_ref().unwrap().percent, 100);
    assert_eq!(done.pause.is_some(), power == Power::Running, "how long a running guest stood still is told: {done:?}");
    let times: Vec<SystemTime> = [done.create_time, done.start_time, done.end_time]
        .into_iter()
        .map(|time| SystemTime::try_from(time.unwrap()).unwrap())
        .collect();
    assert!(times.is_sorted() && times[0] + CLOCK >= begun, "{times:?}");
    assert_eq!(lab.daemon().unwrap().state(guest).unwrap(), power.word(), "a snapshot leaves the guest as it was");

    let list = lab.agreed(guest).await.unwrap();
    let [snapshot] = list.as_slice() else { panic!("not one snapshot: {list:?}") };
    assert_eq!(snapshot.name, done.snapshot);
    assert_eq!(
        (snapshot.display_name.as_str(), snapshot.description.as_str()),
        ("before exam", "all packages installed")
    );
    let time = SystemTime::try_from(snapshot.create_time.unwrap()).unwrap();
    assert!(time + CLOCK >= begun && time <= SystemTime::now() + CLOCK, "{time:?}");
    assert!(snapshot.is_current && snapshot.parent_snapshot.is_empty());
    assert_eq!((snapshot.depth, snapshot.child_count, snapshot.protected), (0, 0, false));
    assert_eq!(snapshot.state(), v1::SnapshotState::Ready);
    assert_eq!(snapshot.origin(), v1::SnapshotOrigin::Service);
    assert_eq!(snapshot.storage(), v1::StorageKind::Internal);
    assert_eq!(snapshot.consistency(), v1::SnapshotConsistency::Complete);
    assert_eq!(snapshot.actor, "ravada/root");
    assert_eq!(snapshot.disks, ["vda", "vdb"][..guest.disks().len()]);
    let (content, vm_state) = match power {
        Power::Off => (v1::SnapshotContent::Disks, v1::SnapshotVmState::Shutoff),
        Power::Running => (v1::SnapshotContent::DisksAndMemory, v1::SnapshotVmState::Running),
        Power::Paused => (v1::SnapshotContent::DisksAndMemory, v1::SnapshotVmState::Paused),
    };
    assert_eq!((snapshot.content(), snapshot.vm_state()), (content, vm_state));
    // Without memory it is a table or two; with it, what of the RAM is not zero, and the devices.
    let sizes = if power == Power::Off { 1..=1 << 20 } else { 64 << 10..=2 * RAM };
    assert!(sizes.contains(&snapshot.size_bytes), "{} bytes", snapshot.size_bytes);
    assert_eq!(lab.client.snapshot(&snapshot.name).await.unwrap(), *snapshot, "GetSnapshot and ListSnapshots agree");

    let told = lab.daemon().unwrap().description(guest, id(&snapshot.name)).unwrap();
    assert!(told.starts_with("before exam\nall packages installed\n"), "virsh shows {told:?}");
    snapshot.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_machine_does_after_a_revert_can_be_chosen() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    guest.write('A').unwrap();
    let running = lab.take(&guest, "running").await.unwrap();
    lab.set(&guest, Power::Paused).await.unwrap();
    let paused = lab.take(&guest, "paused").await.unwrap();
    lab.set(&guest, Power::Off).await.unwrap();
    let off = lab.take(&guest, "off").await.unwrap();
    lab.set(&guest, Power::Running).await.unwrap();
    guest.write('B').unwrap();

    let cases = [
        (&running, v1::RunAfter::Off, Power::Off, 2),
        // From here the machine is off: a revert starts it.
        (&running, v1::RunAfter::AsRecorded, Power::Running, 1),
        (&off, v1::RunAfter::Running, Power::Running, 2),
        (&paused, v1::RunAfter::Running, Power::Running, 1),
        (&paused, v1::RunAfter::Off, Power::Off, 2),
        (&paused, v1::RunAfter::AsRecorded, Power::Paused, 1),
        (&off, v1::RunAfter::Off, Power::Off, 2),
    ];
    for (snapshot, run_after, expected, boots) in cases {
        let case = format!("{} {run_after:?}", snapshot.display_name);
        let request = v1::RevertToSnapshotRequest {
            name: snapshot.name.clone(),
            run_after: run_after.into(),
            request_id: key(),
            ..Default::default()
        };
        lab.client.done(lab.client.revert_as(request).await).await.expect(&case);
        assert_eq!(lab.daemon().unwrap().state(&guest).unwrap(), expected.word(), "{case}");
        assert_eq!(
            lab.client.vm(&guest.vm()).await.unwrap().state(),
            expected.state(),
            "{case}: the API knows at once"
        );
        lab.set(&guest, Power::Running).await.unwrap();
        let report = guest.report().unwrap();
        assert_eq!((report.disk, report.ram, report.boots), ('A', 'A', boots), "{case}");
        let list = lab.agreed(&guest).await.unwrap();
        assert!(list.iter().all(|one| one.is_current == (one.name == snapshot.name)), "{case}: {list:?}");
        guest.write('B').unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn undoing_a_revert_is_a_revert() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    guest.write('A').unwrap();
    let first = lab.take(&guest, "before exam").await.unwrap();
    guest.write('B').unwrap();

    let request = v1::RevertToSnapshotRequest {
        name: first.name.clone(),
        save_current: true,
        request_id: key(),
        ..Default::default()
    };
    let back = lab.client.done(lab.client.revert_as(request.clone()).await).await.unwrap();
    let report = guest.report().unwrap();
    assert_eq!((report.disk, report.ram), ('A', 'A'));
    let list = lab.agreed(&guest).await.unwrap();
    assert_eq!(list.iter().map(|one| one.is_current).collect::<Vec<_>>(), [true, false], "{list:?}");
    let saved = &list[1];
    assert_eq!((&saved.name, &saved.parent_snapshot), (&back.saved_snapshot, &first.name));
    assert_eq!(saved.display_name, "Before the return to before exam");

    let named = v1::RevertToSnapshotRequest {
        name: saved.name.clone(),
        save_current_display_name: "second thoughts".to_owned(),
        request_id: key(),
        ..request
    };
    guest.write('C').unwrap();
    let undone = lab.client.done(lab.client.revert_as(named).await).await.unwrap();
    let report = guest.report().unwrap();
    assert_eq!((report.disk, report.ram, report.boots), ('B', 'B', 1), "what the revert had overwritten is back");
    let list = lab.agreed(&guest).await.unwrap();
    let thoughts = list.iter().find(|one| one.name == undone.saved_snapshot).unwrap();
    assert_eq!((thoughts.display_name.as_str(), &thoughts.parent_snapshot), ("second thoughts", &first.name));
    lab.return_to(thoughts).await.unwrap();
    assert_eq!(guest.report().unwrap().disk, 'C');
}

//! Names of snapshots that are ids of others.

use super::*;
use snapshot_core::plan::PowerState;

/// Case 1: QEMU takes an id before a name.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_name_that_is_the_id_of_another_snapshot_is_not_reverted_to() {
    let case = Case::new(Guest::new(2));
    let ids = ["0", "1", "2"].map(SnapshotId::of_name);
    for (name, marker) in ["0", "1", "2"].into_iter().zip(['A', 'B', 'C']) {
        case.write(marker);
        case.virsh_like_snapshot(name);
    }
    case.write('D');
    // What happens where it is done all the same.
    let [zero, one, two] = &ids;
    case.libvirt.revert_internal(case.guest.vm, one, PowerState::Off).unwrap();
    assert_eq!(case.reads(), ('A', Some('A')), "libvirt reverted to another snapshot");
    for id in [one, two] {
        case.refused(revert(id, RunAfter::AsRecorded), Reason::SnapshotNameAmbiguous, "delete one of the two").await;
    }
    case.done(revert(zero, RunAfter::AsRecorded)).await;
    assert_eq!(case.reads(), ('A', Some('A')));
    // A deletion goes by the name: of "1", off.
    case.done(delete(one)).await;
    for disk in ["vda", "vdb"] {
        assert_eq!(in_image(&case.image(disk)), ["0", "2"]);
    }
    // Nothing has the id 2 any more.
    case.done(revert(two, RunAfter::AsRecorded)).await;
    assert_eq!(case.reads(), ('C', Some('C')));
    assert_eq!(case.capability(CapabilityKind::Revert), Ok(()));
}

/// The same with a VM that is on, for both kinds of revert, in other orders on its two disks, and for one of ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn names_and_ids_that_cross_on_one_disk_of_a_vm_that_is_on() {
    let case = Case::new(Guest::new(2));
    // On the second disk ids are one ahead.
    run(&case.guest.dir, "qemu-img", &["snapshot", "-c", "foreign", "vdb.qcow2"]);
    case.guest.start();
    case.guest.write('A');
    let ours = case.take(Content::DisksAndMemory).await;
    case.virsh_like_snapshot("2");
    case.virsh_like_snapshot("1");
    let [two, one] = ["2", "1"].map(SnapshotId::of_name);
    case.guest.write('B');
    // "2" is the id of itself on the first disk, and of ours on the second.
    for id in [&two, &one] {
        case.refused(revert(id, RunAfter::AsRecorded), Reason::SnapshotNameAmbiguous, "which QEMU would take").await;
        assert_eq!(case.guest.report().disk, 'B');
    }
    case.done(revert(&ours, RunAfter::AsRecorded)).await;
    let report = case.guest.report();
    assert_eq!((report.disk, report.ram, report.second), ('A', 'A', Some('A')));
    // Deleted by its name while the VM is on.
    case.done(delete(&one)).await;
    assert_eq!(in_image(&case.image("vda")), [ours.as_str(), "2"]);
    assert_eq!(in_image(&case.image("vdb")), ["foreign", ours.as_str(), "2"]);
    case.done(delete(&two)).await;
    case.done(revert(&ours, RunAfter::AsRecorded)).await;
    assert_eq!(case.guest.report().second, Some('A'));
}

/// Ids are any text: one that another tool wrote may be the name of one of ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_name_of_ours_as_the_id_of_a_foreign_one() {
    let case = Case::new(Guest::new(2));
    case.write('A');
    let ours = case.take(Content::Disks).await;
    case.write('B');
    let image = case.image("vdb");
    run(&case.guest.dir, "qemu-img", &["snapshot", "-c", &"x".repeat(100), "vdb.qcow2"]);
    case.write('C');
    write_id(&image, &"x".repeat(100), ours.as_str());
    let both = snapshot_agent::qcow2::read(&image).unwrap().tags;
    assert_eq!((both[1].id.as_str(), both[0].name.as_str()), (ours.as_str(), ours.as_str()));
    case.refused(revert(&ours, RunAfter::AsRecorded), Reason::SnapshotNameAmbiguous, "disk vdb").await;
    assert_eq!(case.capability(CapabilityKind::Revert), Err(Reason::SnapshotNameAmbiguous));
    // It is what QEMU would have done.
    fs::copy(&image, case.guest.dir.join("copy.qcow2")).unwrap();
    run(&case.guest.dir, "qemu-img", &["snapshot", "-a", ours.as_str(), "copy.qcow2"]);
    assert_eq!(marker(&case.guest.dir.join("copy.qcow2")), 'B');
    assert_eq!(case.reads(), ('C', Some('C')));
}

/// Gives a snapshot in an image an id at the cost of its name, which has to be longer: both are one run of bytes.
fn write_id(image: &Path, name: &str, id: &str) {
    let mut bytes = fs::read(image).unwrap();
    let at = bytes.windows(name.len()).rposition(|window| window == name.as_bytes()).unwrap();
    // Before the name is its id, of one digit; before that 40 bytes and those of the extra data.
    let lengths = (0..at).rev().find(|place| bytes[*place..*place + 4] == [0, 1, 0, name.len() as u8]).unwrap();
    let rest = 1 + name.len() - id.len();
    bytes[lengths..lengths + 4].copy_from_slice(&[0, id.len() as u8, 0, rest as u8]);
    bytes[at - 1..at - 1 + id.len()].copy_from_slice(id.as_bytes());
    fs::write(image, bytes).unwrap();
}

/// Two of one name: the first is taken for everything, and which one that is nobody can tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_name_that_an_image_has_twice() {
    let case = Case::new(Guest::new(2));
    case.write('A');
    let ours = case.take(Content::Disks).await;
    run(&case.guest.dir, "qemu-img", &["snapshot", "-c", ours.as_str(), "vdb.qcow2"]);
    case.write('B');
    for request in [revert(&ours, RunAfter::AsRecorded), delete(&ours)] {
        case.refused(request, Reason::SnapshotNameAmbiguous, "more than one snapshot").await;
    }
    assert_eq!(case.reads(), ('B', Some('B')));
}

/// Case 10: a snapshot with a disk that the VM no longer has.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_snapshot_of_a_disk_that_is_gone_is_deleted_when_the_vm_is_off() {
    let case = Case::new(Guest::new(2));
    case.write('A');
    let ours = case.take(Content::Disks).await;
    let domain = case.guest.domain();
    let xml = domain.xml_desc(2).unwrap();
    let (start, end) = (xml.rfind("<disk ").unwrap(), xml.rfind("</disk>").unwrap() + "</disk>".len());
    assert!(xml[start..end].contains("vdb"), "{xml}");
    domain.detach_device_flags(&xml[start..end], virt::sys::VIR_DOMAIN_AFFECT_CONFIG).unwrap();
    case.guest.start();
    let failed = case.libvirt.delete_internal(case.guest.vm, &ours);
    assert!(failed.is_err(), "libvirt deletes it by now: {failed:?}");
    case.refused(delete(&ours), Reason::VmStateUnsupported, "switch the machine off").await;
    assert_eq!(case.capability(CapabilityKind::Delete), Err(Reason::VmStateUnsupported));
    case.libvirt.power_off(case.guest.vm).unwrap();
    case.done(delete(&ours)).await;
    assert!(in_image(&case.image("vda")).is_empty() && in_image(&case.image("vdb")).is_empty());
}

/// One disk's part was deleted by hand, and another taken with its name: a revert would mix two moments.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_part_of_a_snapshot_that_was_taken_again_by_hand_is_another_one() {
    let case = Case::new(Guest::new(2));
    case.write('A');
    let offline = case.take(Content::Disks).await;
    case.guest.start();
    let with_memory = case.take(Content::DisksAndMemory).await;
    case.virsh_like_snapshot("foreign");
    let foreign = SnapshotId::of_name("foreign");
    case.libvirt.power_off(case.guest.vm).unwrap();
    case.write('B');
    for id in [&offline, &with_memory, &foreign] {
        assert_eq!(case.plan(revert(id, RunAfter::Off)).await, Ok(()));
        for how in ["-d", "-c"] {
            run(&case.guest.dir, "qemu-img", &["snapshot", how, id.as_str(), "vdb.qcow2"]);
        }
    }
    for id in [&offline, &with_memory, &foreign] {
        case.refused(revert(id, RunAfter::Off), Reason::SnapshotBroken, "cannot be reverted to").await;
    }
    assert_eq!(case.capability(CapabilityKind::Revert), Err(Reason::SnapshotBroken));
    assert_eq!(case.reads(), ('B', Some('B')));
    for id in [&offline, &with_memory, &foreign] {
        case.done(delete(id)).await;
    }
    assert!(["vda", "vdb"].iter().all(|disk| in_image(&case.image(disk)).is_empty()));
    assert_eq!(case.reads(), ('B', Some('B')));
}

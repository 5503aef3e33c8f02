//! Files that cannot be opened as they have to be: backing files that are away, locks, and what the host forbids.

use super::*;
use std::io::{Read as _, Write as _};
use std::process::{Child, Stdio};

use snapshot_core::plan::PowerState;

/// A guest with two disks, off, the second on a base; 'A' is in a snapshot and 'B' on the disks.
async fn on_a_base(reference: &str, format: &str) -> (Case, SnapshotId) {
    let case = Case::new(Guest::new(2));
    fs::rename(case.image("vdb"), case.guest.dir.join("base.img")).unwrap();
    let create = ["create", "-q", "-f", "qcow2", "-b", reference, "-F", format, "vdb.qcow2"];
    run(&case.guest.dir, "qemu-img", &create);
    case.write('A');
    let ours = case.take(Content::Disks).await;
    case.write('B');
    (case, ours)
}

fn fails_half_way(case: &Case, ours: &SnapshotId) {
    let copy = fs::read(case.image("vda")).unwrap();
    let failed = case.libvirt.revert_internal(case.guest.vm, ours, PowerState::Off);
    assert!(failed.is_err(), "libvirt reverts it by now");
    assert_eq!(marker(&case.image("vda")), 'A', "what must not be begun: {failed:?}");
    fs::write(case.image("vda"), copy).unwrap();
}

/// Case 2: the second disk's backing file is away, as when its NFS server is.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_backing_file_that_is_away_keeps_every_disk_from_being_reverted() {
    let (case, ours) = on_a_base("base.img", "qcow2").await;
    let (base, away) = (case.guest.dir.join("base.img"), case.guest.dir.join("away"));
    fs::rename(&base, &away).unwrap();
    fails_half_way(&case, &ours);
    for request in [revert(&ours, RunAfter::AsRecorded), creation(&id(), Content::Disks), delete(&ours)] {
        case.refused(request, Reason::ImageUnavailable, "base.img does not exist").await;
    }
    for kind in [CapabilityKind::Revert, CapabilityKind::CreateDisks, CapabilityKind::Delete] {
        assert_eq!(case.capability(kind), Err(Reason::ImageUnavailable), "{kind:?}");
    }
    // While the VM is on it has the file open; libvirt's revert would end it.
    fs::rename(&away, &base).unwrap();
    case.guest.start();
    let with_memory = case.take(Content::DisksAndMemory).await;
    fs::rename(&base, &away).unwrap();
    case.refused(revert(&ours, RunAfter::Running), Reason::ImageUnavailable, "base.img does not exist").await;
    case.guest.write('C');
    case.done(revert(&with_memory, RunAfter::AsRecorded)).await;
    let report = case.guest.report();
    assert_eq!((report.disk, report.second), ('B', Some('B')), "in place it is reverted to");
    case.done(delete(&with_memory)).await;
    case.libvirt.power_off(case.guest.vm).unwrap();
    fs::rename(&away, &base).unwrap();
    case.done(revert(&ours, RunAfter::AsRecorded)).await;
    assert_eq!(case.reads(), ('A', Some('A')));
}

/// Case 10: backing files however they are named.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_backing_file_is_found_in_json_and_one_on_the_network_is_not_trusted() {
    let json = r#"json:{"file":{"driver":"file","filename":"base.img"}}"#;
    let (case, ours) = on_a_base("base.img", "qcow2").await;
    let named = json.replace("base.img", case.guest.dir.join("base.img").to_str().unwrap());
    run(&case.guest.dir, "qemu-img", &["rebase", "-u", "-F", "qcow2", "-b", &named, "vdb.qcow2"]);
    fs::rename(case.guest.dir.join("base.img"), case.guest.dir.join("away")).unwrap();
    case.refused(revert(&ours, RunAfter::AsRecorded), Reason::ImageUnavailable, "base.img does not exist").await;
    fs::rename(case.guest.dir.join("away"), case.guest.dir.join("base.img")).unwrap();
    case.done(revert(&ours, RunAfter::AsRecorded)).await;
    assert_eq!(case.reads(), ('A', Some('A')));
    case.write('B');
    let network = "nbd://127.0.0.1:1/export";
    run(&case.guest.dir, "qemu-img", &["rebase", "-u", "-F", "raw", "-b", network, "vdb.qcow2"]);
    for request in [revert(&ours, RunAfter::AsRecorded), creation(&id(), Content::Disks)] {
        case.refused(request, Reason::FeatureUnsupported, network).await;
    }
    // libvirt has no parser for it, and does not start the VM.
    let unparsed = named.replace(r#"{"file":"#, r#"{"driver":"qcow2","file":"#);
    run(&case.guest.dir, "qemu-img", &["rebase", "-u", "-F", "qcow2", "-b", &unparsed, "vdb.qcow2"]);
    case.refused(revert(&ours, RunAfter::AsRecorded), Reason::FeatureUnsupported, "json:").await;
    assert!(case.guest.domain().create().is_err());
    // One whose format nobody tells.
    run(&case.guest.dir, "qemu-img", &["rebase", "-u", "-F", "qcow2", "-b", "base.img", "vdb.qcow2"]);
    let mut bytes = fs::read(case.image("vdb")).unwrap();
    let at = bytes.windows(4).position(|window| window == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
    bytes[at..at + 4].copy_from_slice(&[1, 2, 3, 4]);
    fs::write(case.image("vdb"), bytes).unwrap();
    case.refused(revert(&ours, RunAfter::AsRecorded), Reason::FeatureUnsupported, "format").await;
}

/// A program that has an image open until it is dropped.
struct Reader(Child);

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn reader(args: &[&str], image: &Path) -> Reader {
    let mut command = Command::new("qemu-io");
    command.args(args).arg(image).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut process = command.spawn().unwrap();
    process.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
    // Its answer comes when it has the image open, after what it writes before it asks.
    let (mut answer, mut byte) = (String::new(), [0]);
    while !answer.contains("MiB") {
        process.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
        answer.push(char::from(byte[0]));
    }
    Reader(process)
}

/// Locked by a program that reads the second disk: the first is not touched either.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_image_that_another_process_has_locked_keeps_every_disk_from_being_touched() {
    let (case, ours) = on_a_base("base.img", "qcow2").await;
    let locked = reader(&["-r"], &case.image("vdb"));
    fails_half_way(&case, &ours);
    for request in [revert(&ours, RunAfter::AsRecorded), creation(&id(), Content::Disks), delete(&ours)] {
        case.refused(request, Reason::ImageInUse, "locked").await;
    }
    assert_eq!(case.capability(CapabilityKind::Revert), Err(Reason::ImageInUse));
    drop(locked);
    // One that locks nothing is in nobody's way.
    let _shared = reader(&["-r", "-U"], &case.image("vdb"));
    assert_eq!(case.capability(CapabilityKind::Revert), Ok(()));
    // The base is read by who likes, and written by nobody.
    let reading = reader(&["-r"], &case.guest.dir.join("base.img"));
    assert_eq!(case.capability(CapabilityKind::Revert), Ok(()));
    drop(reading);
    let writing = reader(&[], &case.guest.dir.join("base.img"));
    fails_half_way(&case, &ours);
    case.refused(revert(&ours, RunAfter::AsRecorded), Reason::ImageInUse, "base.img is written").await;
    drop(writing);
    case.done(revert(&ours, RunAfter::AsRecorded)).await;
    assert_eq!(case.reads(), ('A', Some('A')));
}

/// Immutable, by `chattr`.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_immutable_image_keeps_every_disk_from_being_touched() {
    let (case, ours) = on_a_base("base.img", "qcow2").await;
    let image = case.image("vdb");
    let mark = |how: &str, path: &Path| Command::new("chattr").arg(how).arg(path).status().is_ok_and(|it| it.success());
    // The base may be: many mark it so, to protect it.
    let base = case.guest.dir.join("base.img");
    assert!(mark("+i", &base), "the file system of the tests has to know immutable files");
    let of_base = case.capability(CapabilityKind::Revert);
    assert!(mark("-i", &base) && mark("+i", &image));
    let seen = case.capability(CapabilityKind::Revert);
    let refused = case.run(revert(&ours, RunAfter::AsRecorded)).await;
    let created = case.run(creation(&id(), Content::Disks)).await;
    let on_first = marker(&case.image("vda"));
    assert!(mark("-i", &image));
    assert_eq!((of_base, seen, on_first), (Ok(()), Err(Reason::ImageUnavailable), 'B'));
    for answer in [refused, created] {
        assert_eq!(answer.map_err(|error| error.reason()).unwrap_err(), Reason::ImageUnavailable);
    }
    case.done(revert(&ours, RunAfter::AsRecorded)).await;
    assert_eq!(case.reads(), ('A', Some('A')));
}

/// A disk in the snapshot whose image, where it was then, is another one's by now: every image that a revert touches is checked.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_images_of_then_are_checked_as_well() {
    let case = Case::new(Guest::new(2));
    case.write('A');
    let ours = case.take(Content::Disks).await;
    // The VM moves to copies, and the first image is in use.
    let xml = case.guest.domain().xml_desc(2).unwrap();
    fs::copy(case.image("vda"), case.guest.dir.join("moved.qcow2")).unwrap();
    let moved = xml.replace("/vda.qcow2", "/moved.qcow2");
    let connection = case.guest.domain().connect().unwrap();
    connection.define_domain_xml(&moved).unwrap();
    case.write('B');
    let locked = reader(&["-r"], &case.image("vda"));
    case.refused(revert(&ours, RunAfter::AsRecorded), Reason::ImageInUse, "vda.qcow2").await;
    assert_eq!(case.capability(CapabilityKind::CreateDisks), Ok(()));
    drop(locked);
    case.done(revert(&ours, RunAfter::AsRecorded)).await;
    assert_eq!(case.reads(), ('A', Some('A')));
}

/// The image was replaced by a copy while the VM runs: what is done by its path is not done to the disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_image_that_is_replaced_under_a_running_vm_is_not_touched() {
    let case = Case::new(Guest::new(2));
    case.guest.start();
    case.guest.write('A');
    let ours = case.take(Content::DisksAndMemory).await;
    case.guest.write('B');
    let (image, original) = (case.image("vdb"), case.guest.dir.join("original"));
    fs::rename(&image, &original).unwrap();
    fs::copy(&original, &image).unwrap();
    let replaced = fs::read(&image).unwrap();
    let with_memory = creation(&id(), Content::DisksAndMemory);
    for request in [creation(&id(), Content::Disks), with_memory, revert(&ours, RunAfter::Running), delete(&ours)] {
        case.refused(request, Reason::ImageUnavailable, "not the file that the VM has open").await;
    }
    for kind in [CapabilityKind::Revert, CapabilityKind::CreateDisks, CapabilityKind::CreateDisksAndMemory] {
        assert_eq!(case.capability(kind), Err(Reason::ImageUnavailable));
    }
    assert_eq!((fs::read(&image).unwrap() == replaced, case.guest.report().second), (true, Some('B')));
    fs::rename(&original, &image).unwrap();
    let later = case.take(Content::Disks).await;
    case.done(revert(&ours, RunAfter::Running)).await;
    assert_eq!(case.guest.report().second, Some('A'));
    case.done(revert(&later, RunAfter::Running)).await;
    assert_eq!(case.guest.report().second, Some('B'));
}

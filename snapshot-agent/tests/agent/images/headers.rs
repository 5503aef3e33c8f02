//! What the headers of images say.

use super::*;
use snapshot_core::plan::PowerState;

/// Sets a bit in the header of an image.
fn set_bit(image: &Path, byte: usize, bit: u8) {
    let mut bytes = fs::read(image).unwrap();
    bytes[byte] |= 1 << bit;
    fs::write(image, bytes).unwrap();
}

/// A guest with two disks, off, that has 'A' in a snapshot and 'B' on its disks.
async fn two_disks() -> (Case, SnapshotId) {
    let case = Case::new(Guest::new(2));
    case.write('A');
    let ours = case.take(Content::Disks).await;
    case.write('B');
    (case, ours)
}

/// A revert that libvirt begins and does not end: the first disk is reverted, the second is not.
fn is_half_reverted(case: &Case, ours: &SnapshotId) {
    let copies = ["vda", "vdb"].map(|disk| (case.image(disk), fs::read(case.image(disk)).unwrap()));
    let failed = case.libvirt.revert_internal(case.guest.vm, ours, PowerState::Off);
    assert!(failed.is_err(), "libvirt reverts it by now");
    assert_eq!(marker(&case.image("vda")), 'A', "what must not be begun: {failed:?}");
    for (image, bytes) in copies {
        fs::write(image, bytes).unwrap();
    }
}

/// Case 3: a bitmap on the second disk, made by `qemu-img`.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn bitmaps_keep_snapshots_from_being_taken_and_reverted_to() {
    let (case, ours) = two_disks().await;
    run(&case.guest.dir, "qemu-img", &["bitmap", "--add", "vdb.qcow2", "backup"]);
    is_half_reverted(&case, &ours);
    for request in [revert(&ours, RunAfter::AsRecorded), creation(&id(), Content::Disks)] {
        case.refused(request, Reason::CheckpointsPresent, "persistent dirty bitmaps").await;
    }
    assert_eq!(case.capability(CapabilityKind::Revert), Err(Reason::CheckpointsPresent));
    assert_eq!(case.capability(CapabilityKind::CreateDisks), Err(Reason::CheckpointsPresent));
    assert_eq!(case.reads(), ('B', Some('B')));
    // While the VM is on, too, where QEMU would refuse and libvirt then end it.
    case.guest.start();
    case.refused(revert(&ours, RunAfter::Running), Reason::CheckpointsPresent, "persistent dirty bitmaps").await;
    case.refused(creation(&id(), Content::DisksAndMemory), Reason::CheckpointsPresent, "backup tool").await;
    assert_eq!(case.guest.report().disk, 'B');
    // A deletion is done, on and off.
    let other = SnapshotId::of_name("other");
    case.libvirt.power_off(case.guest.vm).unwrap();
    case.virsh_like_snapshot("other");
    case.done(delete(&other)).await;
    case.guest.start();
    case.done(delete(&ours)).await;
    case.libvirt.power_off(case.guest.vm).unwrap();
    run(&case.guest.dir, "qemu-img", &["bitmap", "--remove", "vdb.qcow2", "backup"]);
    let again = case.take(Content::Disks).await;
    case.write('C');
    case.done(revert(&again, RunAfter::AsRecorded)).await;
    assert_eq!(case.reads(), ('B', Some('B')));
}

/// The checkpoints of a VM that is on are in QEMU's memory until it closes the images.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn checkpoints_of_a_vm_that_is_on_are_seen() {
    let case = Case::new(Guest::new(2));
    case.guest.start();
    case.guest.write('A');
    let ours = case.take(Content::DisksAndMemory).await;
    case.guest.write('B');
    let xml = c"<domaincheckpoint><name>backup</name></domaincheckpoint>";
    let domain = case.guest.domain();
    // SAFETY: the domain is valid as long as the reference, and the text outlives the call.
    let made = unsafe { virt::sys::virDomainCheckpointCreateXML(domain.as_ptr(), xml.as_ptr(), 0) };
    assert!(!made.is_null());
    for request in [revert(&ours, RunAfter::AsRecorded), creation(&id(), Content::Disks)] {
        case.refused(request, Reason::CheckpointsPresent, "checkpoints").await;
    }
    assert_eq!(case.capability(CapabilityKind::Revert), Err(Reason::CheckpointsPresent));
    assert_eq!(case.guest.report().disk, 'B');
    // Off, they are in the images.
    case.libvirt.power_off(case.guest.vm).unwrap();
    case.refused(revert(&ours, RunAfter::AsRecorded), Reason::CheckpointsPresent, "bitmaps").await;
    case.guest.start();
    // SAFETY: it was made above and is freed once.
    let deleted = unsafe {
        let deleted = virt::sys::virDomainCheckpointDelete(made, 0);
        virt::sys::virDomainCheckpointFree(made);
        deleted
    };
    assert_eq!(deleted, 0);
    case.done(revert(&ours, RunAfter::AsRecorded)).await;
    assert_eq!(case.guest.report().disk, 'A');
}

/// Bitmaps that another tool has made by QEMU's monitor, of which neither libvirt nor the images tell as long as the VM is on.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn bitmaps_that_only_qemu_knows_of_are_seen_before_a_load() {
    let case = Case::new(Guest::new(2));
    case.guest.start();
    case.guest.write('A');
    let ours = case.take(Content::DisksAndMemory).await;
    case.guest.write('B');
    let nodes = monitor(&case, r#"{"execute": "query-block"}"#);
    let blocks: serde_json::Value = serde_json::from_str(&nodes).unwrap();
    let node = blocks["return"][1]["inserted"]["node-name"].as_str().unwrap().to_owned();
    let add = |persistent: bool| {
        let arguments = format!(r#"{{"node": "{node}", "name": "b", "persistent": {persistent}}}"#);
        monitor(&case, &format!(r#"{{"execute": "block-dirty-bitmap-add", "arguments": {arguments}}}"#));
    };
    add(true);
    case.refused(revert(&ours, RunAfter::AsRecorded), Reason::CheckpointsPresent, "persistent dirty bitmap").await;
    assert_eq!(case.guest.report().disk, 'B');
    let remove =
        format!(r#"{{"execute": "block-dirty-bitmap-remove", "arguments": {{"node": "{node}", "name": "b"}}}}"#);
    monitor(&case, &remove);
    // One that ends with the process is no reason to refuse: libvirt ends it.
    add(false);
    case.done(revert(&ours, RunAfter::AsRecorded)).await;
    assert_eq!(case.guest.report().disk, 'A');
}

/// What QEMU answers to a command.
fn monitor(case: &Case, command: &str) -> String {
    let text = case.guest.domain().qemu_monitor_command(command, 0).unwrap();
    assert!(!text.contains("\"error\""), "{text}");
    text
}

/// Case 4, by the header: the definition says nothing of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_encrypted_image_is_neither_snapshotted_nor_reverted() {
    for (format, told) in [("luks", "LUKS"), ("aes", "AES")] {
        let (case, ours) = two_disks().await;
        let secret = ["--object", "secret,id=s,data=geheim"];
        let options = format!("encrypt.format={format},encrypt.key-secret=s");
        let create = ["create", "-q", "-f", "qcow2", "-o", &options, "vdb.qcow2", "64M"];
        run(&case.guest.dir, "qemu-img", &[&create[..1], &secret, &create[1..]].concat());
        case.refused(creation(&id(), Content::Disks), Reason::DiskEncrypted, told).await;
        assert_eq!(case.capability(CapabilityKind::CreateDisks), Err(Reason::DiskEncrypted));
        // It has lost its part of the snapshot, which is told first.
        let refused = case.run(revert(&ours, RunAfter::AsRecorded)).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::SnapshotBroken);
        assert_eq!(marker(&case.image("vda")), 'B');
    }
}

/// Case 10: marked as corrupt, an unknown feature, and extensions that lead nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_image_that_qemu_would_not_open_keeps_every_disk_from_being_touched() {
    for (byte, bit, reason, told) in [
        (79, 1, Reason::ImageUnavailable, "corrupt"),
        (79, 5, Reason::FeatureUnsupported, "bits 0x20"),
        (72, 7, Reason::FeatureUnsupported, "bits 0x8000000000000000"),
    ] {
        let (case, ours) = two_disks().await;
        set_bit(&case.image("vdb"), byte, bit);
        is_half_reverted(&case, &ours);
        let requests = [revert(&ours, RunAfter::AsRecorded), creation(&id(), Content::Disks), delete(&ours)];
        for request in requests {
            case.refused(request, reason, told).await;
        }
        for kind in [CapabilityKind::Revert, CapabilityKind::CreateDisks, CapabilityKind::Delete] {
            assert_eq!(case.capability(kind), Err(reason), "{kind:?}");
        }
    }
}

/// Case 10: where internal snapshots cannot be.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_external_data_file_and_short_counters_hold_no_snapshots() {
    for (options, told) in [
        ("data_file=vdb.data", "external data file"),
        ("refcount_bits=1", "in 1 bits"),
        ("refcount_bits=2", "in 2 bits"),
    ] {
        let case = Case::new(Guest::new(2));
        case.remake("vdb", &["-o", options]);
        case.write('A');
        case.refused(creation(&id(), Content::Disks), Reason::FeatureUnsupported, told).await;
        assert_eq!(case.capability(CapabilityKind::CreateDisks), Err(Reason::FeatureUnsupported));
        case.guest.start();
        for content in [Content::Disks, Content::DisksAndMemory] {
            // libvirt tells of a data file itself then.
            case.refused(creation(&id(), content), Reason::FeatureUnsupported, "disk vdb").await;
        }
        assert_eq!(case.guest.report().disk, 'A');
    }
}

/// With counters of four bits there is room for twelve snapshots: with a thirteenth a revert could not keep the present.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn counters_of_four_bits_hold_twelve_snapshots() {
    let case = Case::new(Guest::new(2));
    case.remake("vdb", &["-o", "refcount_bits=4"]);
    // A cluster that all snapshots share.
    run(&case.guest.dir, "qemu-io", &["-c", "write -P 1 1M 64k", "vdb.qcow2"]);
    for n in 0..11 {
        run(&case.guest.dir, "qemu-img", &["snapshot", "-c", &format!("foreign{n}"), "vdb.qcow2"]);
    }
    case.write('A');
    let ours = case.take(Content::Disks).await;
    case.write('B');
    case.refused(creation(&id(), Content::Disks), Reason::FeatureUnsupported, "in 4 bits").await;
    case.done(revert(&ours, RunAfter::AsRecorded)).await;
    assert_eq!(case.reads(), ('A', Some('A')));
    case.write('C');
    for name in ["twelfth", "thirteenth"] {
        run(&case.guest.dir, "qemu-img", &["snapshot", "-c", name, "vdb.qcow2"]);
    }
    is_half_reverted(&case, &ours);
    case.refused(revert(&ours, RunAfter::AsRecorded), Reason::FeatureUnsupported, "delete some").await;
    assert_eq!(case.reads(), ('C', Some('C')));
    case.done(delete(&ours)).await;
}

/// What is unusual and right.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn unusual_images_are_reverted() {
    for options in [
        "compat=0.10",
        "extended_l2=on",
        "lazy_refcounts=on",
        "refcount_bits=64",
        "cluster_size=512",
        "cluster_size=2M,preallocation=metadata",
    ] {
        let case = Case::new(Guest::new(2));
        case.remake("vda", &["-o", options]);
        case.remake("vdb", &["-c", "-o", "compression_type=zstd"]);
        case.guest.start();
        case.guest.write('A');
        let with_memory = case.take(Content::DisksAndMemory).await;
        let live = case.take(Content::Disks).await;
        case.guest.write('B');
        case.done(revert(&with_memory, RunAfter::AsRecorded)).await;
        let report = case.guest.report();
        assert_eq!((report.disk, report.ram, report.second), ('A', 'A', Some('A')), "{options}");
        case.guest.write('C');
        case.libvirt.power_off(case.guest.vm).unwrap();
        case.done(revert(&live, RunAfter::Off)).await;
        assert_eq!(case.reads(), ('A', Some('A')), "{options}");
        for id in [&live, &with_memory] {
            case.done(delete(id)).await;
        }
        for disk in ["vda.qcow2", "vdb.qcow2"] {
            run(&case.guest.dir, "qemu-img", &["check", "-q", disk]);
        }
    }
}

/// Case 10: an image that is not what the definition says.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_raw_file_under_a_qcow2_disk_is_refused() {
    let case = Case::new(Guest::new(2));
    fs::write(case.image("vdb"), vec![0; 1 << 20]).unwrap();
    case.refused(creation(&id(), Content::Disks), Reason::ImageUnavailable, "not a sound qcow2 image").await;
    assert_eq!(case.capability(CapabilityKind::CreateDisks), Err(Reason::ImageUnavailable));
}

//! Disks that are volumes of a storage pool.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use snapshot_agent::hypervisor::libvirt::Libvirt;
use snapshot_core::Reason;
use snapshot_core::operation::{Create, DeleteScope, Method, Request, RunAfter};
use snapshot_core::plan::CapabilityKind;
use snapshot_core::snapshot::{Content, Storage};

use super::{offered, refused, wanted};
use crate::daemon::{Daemon, connected};
use crate::external::Bench;
use crate::guest::Guest;
use crate::served::{create, id};

/// A guest whose disk is a volume of a pool in its own directory.
fn guest(daemon: &Daemon, pool: &str) -> Guest {
    let guest = Guest::on(&daemon.host, 1, "");
    let dir = guest.dir.display().to_string();
    daemon.virsh(&["pool-define-as", pool, "dir", "--target", &dir]);
    daemon.virsh(&["pool-start", pool]);
    let told = guest.domain().xml_desc(2).unwrap();
    let file = format!("file='{dir}/vda.qcow2'");
    assert!(told.contains(&file), "{told}");
    let volume = told.replace("<disk type='file'", "<disk type='volume'");
    let definition = guest.dir.join("definition.xml");
    fs::write(&definition, volume.replace(&file, &format!("pool='{pool}' volume='vda.qcow2'"))).unwrap();
    daemon.virsh(&["define", definition.to_str().unwrap()]);
    guest
}

#[tokio::test(flavor = "multi_thread")]
async fn case_8_a_volume_is_its_image() {
    let daemon = Daemon::start("volume");
    let libvirt = Arc::new(Libvirt::new(&daemon.host.uri).unwrap());
    connected(&libvirt, true).await;
    let bench = Bench::on(&libvirt, guest(&daemon, "whole"));
    let image = bench.guest.dir.join("vda.qcow2");
    let seen = bench.look();
    assert_eq!(seen.vm.disks[0].path, image.display().to_string());
    assert!(seen.vm.disks[0].free_bytes.is_some() && seen.vm.disks[0].capacity_bytes == 64 << 20, "{seen:?}");
    bench.guest.start();
    let revert = |snapshot| Request::Revert { snapshot, run_after: RunAfter::Running, save_current: None };
    for (content, marker) in [(Content::Disks, 'A'), (Content::DisksAndMemory, 'C')] {
        bench.guest.write(marker);
        let taken = id();
        bench.done(Request::Create(Create { content: Some(content), ..create(&taken) })).await;
        assert!(bench.look().has_whole(&taken), "{:?}", bench.look());
        bench.guest.write('Z');
        bench.done(revert(taken.clone())).await;
        assert_eq!(bench.guest.report().disk, marker);
        // A part of the snapshot that is lost is noticed.
        bench.guest.domain().destroy().unwrap();
        let name = taken.to_string();
        let kept = fs::read(&image).unwrap();
        crate::guest::run(&bench.guest.dir, "qemu-img", &["snapshot", "-d", &name, "vda.qcow2"]);
        assert_eq!(bench.look().snapshot(&taken).unwrap().broken, Some(Reason::SnapshotBroken));
        fs::write(&image, kept).unwrap();
        bench.guest.start();
        bench.done(Request::Delete { snapshot: taken, scope: DeleteScope::Only, force: false }).await;
    }
    let in_place = id();
    bench.guest.write('D');
    bench.done(Request::Create(Create { content: Some(Content::DisksAndMemory), ..create(&in_place) })).await;
    bench.guest.write('E');
    let ended = bench.done(revert(in_place)).await;
    assert_eq!(ended.method, Some(Method::InPlace));
    assert_eq!((bench.guest.report().disk, bench.guest.report().ram), ('D', 'D'));
    refused(
        &bench,
        &[image],
        wanted(Some(Content::Disks), Some(Storage::External)),
        Reason::SnapshotStorageUnsupported,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_8_a_volume_of_a_pool_that_is_not_active_is_refused() {
    let daemon = Daemon::start("inactive");
    let libvirt = Arc::new(Libvirt::new(&daemon.host.uri).unwrap());
    connected(&libvirt, true).await;
    let bench = Bench::on(&libvirt, guest(&daemon, "stopped"));
    let images: [PathBuf; 1] = [bench.guest.dir.join("vda.qcow2")];
    bench.guest.start();
    bench.guest.write('A');
    let taken = id();
    bench.done(Request::Create(Create { content: Some(Content::DisksAndMemory), ..create(&taken) })).await;
    daemon.virsh(&["pool-destroy", "stopped"]);
    for content in [Content::Disks, Content::DisksAndMemory] {
        let error = refused(&bench, &images, wanted(Some(content), None), Reason::ImageUnavailable).await;
        assert!(error.message().contains("pool stopped"), "{error}");
    }
    for request in [
        Request::Revert { snapshot: taken.clone(), run_after: RunAfter::Running, save_current: None },
        Request::Delete { snapshot: taken.clone(), scope: DeleteScope::Only, force: false },
    ] {
        refused(&bench, &images, request, Reason::ImageUnavailable).await;
    }
    for kind in [CapabilityKind::CreateDisks, CapabilityKind::Revert, CapabilityKind::Delete] {
        assert_eq!(offered(&bench.look(), kind), Err(Reason::ImageUnavailable), "{kind:?}");
    }
    assert_eq!(bench.guest.report().disk, 'A', "the guest runs on");
    daemon.virsh(&["pool-start", "stopped"]);
    bench.guest.write('B');
    bench.done(Request::Revert { snapshot: taken, run_after: RunAfter::Running, save_current: None }).await;
    assert_eq!(bench.guest.report().disk, 'A');
}

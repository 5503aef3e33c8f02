//! What the definition of a VM makes unavailable: the closed list, held against the real libvirt and QEMU.

mod volumes;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use snapshot_agent::beneath::Beneath;
use snapshot_agent::hypervisor::Observed;
use snapshot_agent::hypervisor::libvirt::Libvirt;
use snapshot_core::layers::Layers;
use snapshot_core::operation::{Create, DeleteScope, Request, RunAfter};
use snapshot_core::plan::{Capability, CapabilityKind, Situation, capabilities};
use snapshot_core::policy::HostPolicy;
use snapshot_core::snapshot::{Content, Storage};
use snapshot_core::tree::SnapshotTree;
use snapshot_core::{Error, Reason};

use crate::daemon::{Daemon, connected};
use crate::directory::Directory;
use crate::external::Bench;
use crate::guest::{Guest, HOST, run};
use crate::served::{create, id};

fn wanted(content: Option<Content>, storage: Option<Storage>) -> Request {
    Request::Create(Create { content, storage, ..create(&id()) })
}

/// Everything that a refusal may not change: the definition, the images and the QEMU process.
fn state(bench: &Bench, images: &[PathBuf]) -> (String, Vec<Vec<u8>>, Option<u32>) {
    let domain = bench.guest.domain();
    // INACTIVE.
    let definition = domain.xml_desc(2).unwrap();
    (definition, images.iter().map(|image| fs::read(image).unwrap()).collect(), domain.id())
}

/// The request is refused for this reason, and nothing is changed.
async fn refused(bench: &Bench, images: &[PathBuf], request: Request, reason: Reason) -> Error {
    let before = state(bench, images);
    let error = bench.start(request.clone()).await.err().unwrap_or_else(|| panic!("{request:?} is not refused"));
    assert_eq!(error.reason(), reason, "{request:?}: {error}");
    assert!(state(bench, images) == before, "{request:?} changed something");
    error
}

/// What GetVm tells, by what the agent tells of the VM.
fn told(seen: &Observed) -> Vec<Capability> {
    let tree = SnapshotTree::new(seen.snapshots.iter().cloned()).unwrap();
    let policy = HostPolicy { stable_paths: false, ..HostPolicy::default() };
    capabilities(Situation { vm: &seen.vm, tree: &tree, layers: &Layers::default(), policy: &policy }, true)
}

fn offered(seen: &Observed, kind: CapabilityKind) -> Result<(), Reason> {
    let capability = told(seen).into_iter().find(|capability| capability.kind == kind).unwrap();
    capability.outcome.map(drop).map_err(|error| error.reason())
}

fn second_disk(path: &str, attributes: &str, more: &str) -> String {
    format!(
        "<disk type='file' device='disk' {attributes}><driver name='qemu' type='qcow2'/><source file='{path}'/>\
         <target dev='vdb' bus='virtio'/>{more}</disk>"
    )
}

/// A new image in the directory of the shared libvirt.
fn image(name: &str) -> PathBuf {
    let path = HOST.host.dir.join(format!("{name}-{}.qcow2", id()));
    run(&HOST.host.dir, "qemu-img", &["create", "-q", "-f", "qcow2", path.to_str().unwrap(), "16M"]);
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn case_7_transient_and_excluded_disks_are_refused() {
    for (attributes, more) in [("", "<transient/>"), ("snapshot='no'", ""), ("snapshot='manual'", "")] {
        let second = image("second");
        let disk = second_disk(second.to_str().unwrap(), attributes, more);
        let bench = Bench::new(Guest::on(&HOST.host, 1, &disk));
        let images = [bench.guest.dir.join("vda.qcow2"), second];
        for on in [false, true] {
            if on {
                bench.guest.start();
                bench.guest.write('A');
                bench.guest.domain().suspend().unwrap();
                bench.guest.domain().resume().unwrap();
            }
            for content in [None, Some(Content::Disks), Some(Content::DisksAndMemory).filter(|_| on)] {
                for storage in [None, Some(Storage::Internal), Some(Storage::External)] {
                    let error = refused(&bench, &images, wanted(content, storage), Reason::FeatureUnsupported).await;
                    assert_eq!(error.metadata().get("disk").map(String::as_str), Some("vdb"), "{error:?}");
                }
            }
            assert_eq!(offered(&bench.look(), CapabilityKind::CreateDisks), Err(Reason::FeatureUnsupported));
        }
        assert_eq!(bench.guest.report().disk, 'A');
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn case_7_a_disk_with_external_snapshots_has_none_inside() {
    let second = image("second");
    let bench = Bench::new(Guest::on(&HOST.host, 1, &second_disk(second.to_str().unwrap(), "snapshot='external'", "")));
    let images = [bench.guest.dir.join("vda.qcow2"), second];
    refused(&bench, &images, wanted(None, Some(Storage::Internal)), Reason::FeatureUnsupported).await;
    bench.guest.start();
    for content in [Content::Disks, Content::DisksAndMemory] {
        let request = wanted(Some(content), Some(Storage::Internal));
        refused(&bench, &images, request, Reason::FeatureUnsupported).await;
    }
    bench.done(wanted(Some(Content::Disks), Some(Storage::External))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_10_devices_that_qemu_cannot_save_leave_snapshots_of_the_disks() {
    // libvirt does not remove it.
    struct SharedMemory;
    impl Drop for SharedMemory {
        fn drop(&mut self) {
            let _ = std::fs::remove_file("/dev/shm/rs-definition");
        }
    }
    let _shared = SharedMemory;
    for device in [
        "<shmem name='rs-definition'><model type='ivshmem-plain'/><size unit='M'>1</size></shmem>",
        "<channel type='qemu-vdagent'><target type='virtio' name='com.redhat.spice.0'/></channel>",
        "<sound model='virtio'/>",
        "<sound model='usb'/>",
        "<crypto model='virtio' type='qemu'><backend model='builtin'/></crypto>",
    ] {
        let bench = Bench::new(Guest::on(&HOST.host, 1, device));
        bench.guest.start();
        bench.guest.write('A');
        // The restriction is true: libvirt cannot do it either.
        let tried = bench.guest.domain().create_snapshot_xml("<domainsnapshot><name>x</name></domainsnapshot>", 0);
        assert!(tried.is_err(), "{device}: libvirt saves it");
        let images = [bench.guest.dir.join("vda.qcow2")];
        let request = wanted(Some(Content::DisksAndMemory), None);
        refused(&bench, &images, request, Reason::FeatureUnsupported).await;
        let seen = bench.look();
        assert_eq!(offered(&seen, CapabilityKind::CreateDisksAndMemory), Err(Reason::FeatureUnsupported), "{device}");
        assert_eq!(offered(&seen, CapabilityKind::CreateDisks), Ok(()), "{device}");
        let taken = id();
        bench.done(Request::Create(Create { content: Some(Content::Disks), ..create(&taken) })).await;
        bench.guest.write('B');
        bench.done(Request::Revert { snapshot: taken.clone(), run_after: RunAfter::Running, save_current: None }).await;
        assert_eq!(bench.guest.report().disk, 'A', "{device}");
        bench.done(Request::Delete { snapshot: taken, scope: DeleteScope::Only, force: false }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn case_10_filters_hide_an_image_from_live_snapshots_alone() {
    let second = image("second");
    let disk =
        second_disk(second.to_str().unwrap(), "", "").replace("type='qcow2'/>", "type='qcow2' copy_on_read='on'/>");
    let bench = Bench::new(Guest::on(&HOST.host, 1, &disk));
    let images = [bench.guest.dir.join("vda.qcow2"), second];
    bench.guest.start();
    bench.guest.write('A');
    let live = wanted(Some(Content::Disks), Some(Storage::Internal));
    refused(&bench, &images, live, Reason::FeatureUnsupported).await;
    let taken = id();
    let with_memory =
        Create { content: Some(Content::DisksAndMemory), storage: Some(Storage::Internal), ..create(&taken) };
    bench.done(Request::Create(with_memory)).await;
    bench.guest.write('B');
    bench.done(Request::Revert { snapshot: taken, run_after: RunAfter::Running, save_current: None }).await;
    let report = bench.guest.report();
    assert_eq!((report.disk, report.ram), ('A', 'A'));
}

#[tokio::test(flavor = "multi_thread")]
async fn case_10_a_limit_of_throughput_hides_nothing() {
    let second = image("second");
    let limited = second_disk(second.to_str().unwrap(), "", "<iotune><total_iops_sec>1000</total_iops_sec></iotune>");
    let bench = Bench::new(Guest::on(&HOST.host, 1, &limited));
    bench.guest.start();
    bench.guest.write('A');
    let taken = id();
    let live = Create { content: Some(Content::Disks), storage: Some(Storage::Internal), ..create(&taken) };
    bench.done(Request::Create(live)).await;
    bench.guest.write('B');
    bench.done(Request::Revert { snapshot: taken, run_after: RunAfter::Running, save_current: None }).await;
    assert_eq!(bench.guest.report().disk, 'A');
}

#[tokio::test(flavor = "multi_thread")]
async fn case_10_the_space_behind_an_image_on_a_block_device_is_known() {
    struct Loop(String);
    impl Drop for Loop {
        fn drop(&mut self) {
            let _ = Command::new("losetup").args(["-d", &self.0]).status();
        }
    }
    let file = HOST.host.dir.join(format!("loop-{}", id()));
    fs::File::create(&file).unwrap().set_len(66 << 20).unwrap();
    let found = Command::new("losetup").args(["--find", "--show"]).arg(&file).output().unwrap();
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    let device = Loop(String::from_utf8(found.stdout).unwrap().trim().to_owned());
    run(&HOST.host.dir, "qemu-img", &["create", "-q", "-f", "qcow2", &device.0, "64M"]);
    let disk = second_disk("", "", "")
        .replace("type='file'", "type='block'")
        .replace("file=''", &format!("dev='{}'", device.0));
    let bench = Bench::new(Guest::on(&HOST.host, 1, &disk));
    let free = |bench: &Bench| bench.look().vm.disks[1].free_bytes.unwrap();
    let before = free(&bench);
    assert!((65 << 20..66 << 20).contains(&before), "{before}");
    run(&HOST.host.dir, "qemu-io", &["-c", "write 0 63M", &device.0]);
    let after = free(&bench);
    assert!((1 << 20..3 << 20).contains(&after), "{after}");
    let images = [bench.guest.dir.join("vda.qcow2"), file];
    refused(&bench, &images, wanted(None, Some(Storage::Internal)), Reason::SpaceLow).await;
    assert_eq!(offered(&bench.look(), CapabilityKind::CreateDisks), Err(Reason::SpaceLow));
}

#[tokio::test(flavor = "multi_thread")]
async fn case_10_images_out_of_reach_are_told_before_they_are_refused() {
    let daemon = Daemon::start("reach");
    let other = Directory::new();
    let folders = Beneath::open(&[other.path().to_owned()], &[]);
    let libvirt = Arc::new(Libvirt::within(&daemon.host.uri, folders).unwrap());
    connected(&libvirt, true).await;
    let bench = Bench::on(&libvirt, Guest::on(&daemon.host, 1, ""));
    let images = [bench.guest.dir.join("vda.qcow2")];
    for on in [false, true] {
        if on {
            bench.guest.start();
        }
        let error = refused(&bench, &images, wanted(None, None), Reason::ImageOutOfReach).await;
        let seen = bench.look();
        let capability = told(&seen).into_iter().find(|it| it.kind == CapabilityKind::CreateDisks).unwrap();
        let of_capability = capability.outcome.unwrap_err();
        assert_eq!((of_capability.reason(), of_capability.message()), (Reason::ImageOutOfReach, error.message()));
    }
}

const SECRET: &str = "11111111-2222-3333-4444-555555555555";

#[tokio::test(flavor = "multi_thread")]
async fn case_4_encrypted_disks_are_refused() {
    let daemon = Daemon::start("luks");
    let dir = daemon.host.dir.clone();
    let file = |name: &str, text: &str| {
        fs::write(dir.join(name), text).unwrap();
        dir.join(name).display().to_string()
    };
    let second = dir.join("luks.qcow2");
    let secret = format!("<secret ephemeral='no' private='no'><uuid>{SECRET}</uuid></secret>");
    daemon.virsh(&["secret-define", &file("secret.xml", &secret)]);
    daemon.virsh(&["secret-set-value", SECRET, "--plain", "--file", &file("pass", "pass")]);
    let key = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    let path = second.to_str().unwrap();
    run(
        &dir,
        "qemu-img",
        &["create", "-q", "--object", "secret,id=s,data=pass", "-f", "qcow2", "-o", key, path, "16M"],
    );
    let encryption = format!("<encryption format='luks'><secret type='passphrase' uuid='{SECRET}'/></encryption>");
    let disk = second_disk(path, "", "").replace("'/><target", &format!("'>{encryption}</source><target"));
    let libvirt = Arc::new(Libvirt::new(&daemon.host.uri).unwrap());
    connected(&libvirt, true).await;
    let bench = Bench::on(&libvirt, Guest::on(&daemon.host, 1, &disk));
    let images = [bench.guest.dir.join("vda.qcow2"), second];
    for on in [false, true] {
        if on {
            bench.guest.start();
            bench.guest.write('A');
        }
        for content in [None, Some(Content::Disks), Some(Content::DisksAndMemory).filter(|_| on)] {
            for storage in [None, Some(Storage::Internal), Some(Storage::External)] {
                refused(&bench, &images, wanted(content, storage), Reason::DiskEncrypted).await;
            }
        }
        assert_eq!(offered(&bench.look(), CapabilityKind::CreateDisks), Err(Reason::DiskEncrypted));
    }
    assert_eq!(bench.guest.report().disk, 'A', "QEMU lives on");
}

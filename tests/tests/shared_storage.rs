//! Two hosts whose VMs have their images in one directory. What a VM that is off uses is known to the other host by a note alone.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use proto::v1;
use tests::client::Client;
use tests::cluster::{Cluster, HostPlan};
use tests::guest::Guest;
use tests::images;
use tests::lab::{Power, id, key};
use tests::libvirtd::Libvirtd;

const EXTERNAL: &str = "stable_paths = false\nprefer_short_pauses = true\nspace_margin_bytes = 0\n";
/// How long a change of another host may take to be known here: an event, a look, a note, and a look at a turn.
const TOLD: Duration = Duration::from_secs(30);

struct Site {
    cluster: Cluster,
    client: Client,
    directory: tempfile::TempDir,
}

fn creation(guest: &Guest, storage: v1::StorageKind) -> v1::CreateSnapshotRequest {
    let snapshot = v1::Snapshot { display_name: key(), ..Default::default() };
    let (parent, request_id, storage) = (guest.vm(), key(), storage.into());
    v1::CreateSnapshotRequest { parent, snapshot: Some(snapshot), storage, request_id, ..Default::default() }
}

impl Site {
    fn start(policy: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let plan = |name| HostPlan::daemon(name).unwrap().policy(policy).shared_images(directory.path().to_owned());
        let cluster = Cluster::start(vec![plan("alpha"), plan("beta")]).unwrap();
        Self { client: Client::admin(&cluster).unwrap(), cluster, directory }
    }

    fn daemon(&self, host: &str) -> &Libvirtd {
        self.cluster.host(host).unwrap().libvirtd().unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn note(&self, host: &str) -> PathBuf {
        self.path(".ravada-snapshots").join(format!("{host}.json"))
    }

    /// A VM with one disk that runs on alpha.
    async fn desk(&self) -> Guest {
        let guest = Guest::new(self.directory.path(), "desk").unwrap();
        self.daemon("alpha").define_and_start(&guest).unwrap();
        self.client.vm_in_state(&guest.vm(), v1::VmState::Running).await.unwrap();
        guest
    }

    async fn off(&self, guest: &Guest) {
        self.daemon("alpha").power_off(guest).unwrap();
        self.client.vm_in_state(&guest.vm(), Power::Off.state()).await.unwrap();
    }

    async fn take(&self, guest: &Guest, storage: v1::StorageKind) -> v1::Snapshot {
        let created = self.client.create_as(creation(guest, storage)).await;
        let operation = self.client.done(created).await.unwrap();
        self.client.snapshot(&operation.snapshot).await.unwrap()
    }

    async fn delete(&self, snapshot: &v1::Snapshot) {
        let deleted = self.client.delete(&snapshot.name, v1::DeleteScope::Only).await;
        self.client.done(deleted).await.unwrap();
    }

    /// Reverts, and leaves the VM off.
    async fn revert_off(&self, snapshot: &v1::Snapshot) {
        let (name, run_after) = (snapshot.name.clone(), v1::RunAfter::Off.into());
        let request = v1::RevertToSnapshotRequest { name, run_after, request_id: key(), ..Default::default() };
        self.client.done(self.client.revert_as(request).await).await.unwrap();
    }

    fn define_on_beta(&self, xml: &str) {
        let file = self.path("definition.xml");
        fs::write(&file, xml).unwrap();
        self.daemon("beta").virsh(&["define", &file.display().to_string()]).unwrap();
    }

    /// A VM of beta that was never started and has this file as its disk; waits until beta has told alpha so.
    fn neighbour(&self, image: &Path) -> String {
        let uuid = "11111111-2222-4333-8444-555555555557";
        let xml = format!(
            "<domain type='qemu'><name>neighbour</name><uuid>{uuid}</uuid><memory unit='MiB'>16</memory><os><type>hvm</type></os>\
             <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}'/><target dev='vda' \
             bus='virtio'/></disk></devices></domain>",
            image.display()
        );
        self.define_on_beta(&xml);
        let name = image.file_name().unwrap().to_str().unwrap();
        self.told(|note| note.contains(name) && note.contains(uuid));
        uuid.to_owned()
    }

    fn remove_neighbour(&self, image: &Path) {
        self.daemon("beta").virsh(&["undefine", "neighbour"]).unwrap();
        let name = image.file_name().unwrap().to_str().unwrap();
        self.told(|note| !note.contains(name));
    }

    /// Waits until the note of beta, which is empty where there is none, is so.
    fn told(&self, is_so: impl Fn(&str) -> bool) {
        let begun = Instant::now();
        while !is_so(&fs::read_to_string(self.note("beta")).unwrap_or_default()) {
            assert!(begun.elapsed() < TOLD, "{:?}", fs::read_to_string(self.note("beta")));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The reason and the message of what GetVm says of reverts, once it has one; empty ones where a revert is available.
    async fn revert(&self, guest: &Guest, is_so: impl Fn(&v1::Capability) -> bool) -> v1::Capability {
        let begun = Instant::now();
        loop {
            let vm = self.client.vm(&guest.vm()).await.unwrap();
            let found = vm.capabilities.into_iter().find(|one| one.kind() == v1::CapabilityKind::Revert).unwrap();
            if is_so(&found) {
                return found;
            }
            assert!(begun.elapsed() < TOLD, "{found:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_vm_of_another_host_uses_while_it_is_off_is_neither_merged_nor_removed() {
    let mut site = Site::start(EXTERNAL);
    let desk = site.desk().await;
    desk.write('A').unwrap();
    site.off(&desk).await;
    let first = site.take(&desk, v1::StorageKind::External).await;
    let second = site.take(&desk, v1::StorageKind::External).await;
    // What alpha froze for the second snapshot is the disk of a VM of beta.
    let frozen =
        PathBuf::from(images::backing_file(&site.path(&format!("desk.{}", id(&second.name)))).unwrap().unwrap());
    let before = (images::sha256(&frozen).unwrap(), images::sha256(desk.disks()[0].path()).unwrap());
    site.neighbour(&frozen);
    site.delete(&second).await;
    site.delete(&first).await;
    let after = (images::sha256(&frozen).unwrap(), images::sha256(desk.disks()[0].path()).unwrap());
    assert_eq!(before, after, "the neighbour's disk, and what that is on");
    assert!(site.client.snapshots(&desk.vm()).await.unwrap().is_empty());

    // The agent that wrote the note may be away: its VMs are not.
    site.cluster.host_mut("beta").unwrap().agent().kill().unwrap();
    let third = site.take(&desk, v1::StorageKind::External).await;
    site.delete(&third).await;
    assert_eq!(images::sha256(&frozen).unwrap(), before.0);
    site.cluster.host_mut("beta").unwrap().start_agent_again().unwrap();

    // What was put off is done when nobody uses it any more.
    site.remove_neighbour(&frozen);
    let last = site.take(&desk, v1::StorageKind::External).await;
    site.delete(&last).await;
    assert!(!frozen.exists(), "{} is left", frozen.display());
    site.daemon("alpha").power_on(&desk).unwrap();
    assert_eq!(desk.report().unwrap().disk, 'A');
    site.daemon("alpha").power_off(&desk).unwrap();
}

/// Nothing says that beta uses an image: its agent does not run when the VM is defined there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_host_may_use_whose_agent_does_not_run_is_neither_merged_nor_removed() {
    let mut site = Site::start(EXTERNAL);
    let desk = site.desk().await;
    desk.write('A').unwrap();
    site.off(&desk).await;
    let snapshot = site.take(&desk, v1::StorageKind::External).await;
    let overlay = site.path(&format!("desk.{}", id(&snapshot.name)));
    assert!(overlay.exists(), "{}", overlay.display());
    site.cluster.host_mut("beta").unwrap().agent().kill().unwrap();
    // The same VM, as Ravada leaves it on the host that it was moved to.
    let xml = site.daemon("alpha").virsh(&["dumpxml", "--inactive", "desk"]).unwrap();
    site.define_on_beta(&xml);
    let before = images::sha256(&overlay).unwrap();
    site.delete(&snapshot).await;
    assert!(site.client.snapshots(&desk.vm()).await.unwrap().is_empty());
    assert_eq!(images::sha256(&overlay).unwrap(), before, "the disk of the VM of beta");

    // Once beta says what it uses, that is kept; without the VM what was put off is done.
    site.cluster.host_mut("beta").unwrap().start_agent_again().unwrap();
    site.told(|note| note.contains(overlay.file_name().unwrap().to_str().unwrap()));
    let another = site.take(&desk, v1::StorageKind::External).await;
    site.delete(&another).await;
    assert_eq!(images::sha256(&overlay).unwrap(), before);
    site.daemon("beta").virsh(&["undefine", "desk"]).unwrap();
    site.told(|note| !note.contains(overlay.file_name().unwrap().to_str().unwrap()));
    let last = site.take(&desk, v1::StorageKind::External).await;
    site.delete(&last).await;
    assert!(!overlay.exists(), "{} is left", overlay.display());
    site.daemon("alpha").power_on(&desk).unwrap();
    assert_eq!(desk.report().unwrap().disk, 'A');
    site.daemon("alpha").power_off(&desk).unwrap();
}

/// The overlay that a revert created is in no snapshot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_revert_leaves_stays_while_another_host_may_use_it() {
    let mut site = Site::start(EXTERNAL);
    let desk = site.desk().await;
    site.off(&desk).await;
    let snapshot = site.take(&desk, v1::StorageKind::External).await;
    site.revert_off(&snapshot).await;
    let xml = site.daemon("alpha").virsh(&["dumpxml", "--inactive", "desk"]).unwrap();
    let active = PathBuf::from(xml.split("<source file='").nth(1).unwrap().split('\'').next().unwrap());
    site.cluster.host_mut("beta").unwrap().agent().kill().unwrap();
    site.define_on_beta(&xml);
    let before = images::sha256(&active).unwrap();
    site.revert_off(&snapshot).await;
    assert_eq!(images::sha256(&active).unwrap(), before, "the disk of the VM of beta");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revert_does_not_change_what_a_vm_of_another_host_is_backed_by() {
    let site = Site::start("");
    let desk = site.desk().await;
    desk.write('A').unwrap();
    site.off(&desk).await;
    let snapshot = site.take(&desk, v1::StorageKind::Internal).await;
    let clone = site.path("clone.qcow2");
    let base = desk.disks()[0].path();
    let arguments = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"];
    let made = Command::new("qemu-img").args(arguments).arg(base).arg(&clone).status().unwrap();
    assert!(made.success());
    site.neighbour(&clone);
    let told = site.revert(&desk, |revert| revert.message.contains("VM neighbour of host beta")).await;
    assert!(!told.available && told.reason == "IMAGE_IN_USE", "{told:?}");
    let sum = images::sha256(base).unwrap();
    for validate_only in [true, false] {
        let request = v1::RevertToSnapshotRequest {
            name: snapshot.name.clone(),
            validate_only,
            request_id: key(),
            ..Default::default()
        };
        let refused = site.client.revert_as(request).await.unwrap_err();
        assert_eq!(refused.reason, "IMAGE_IN_USE", "{refused:?}");
    }
    assert_eq!(images::sha256(base).unwrap(), sum);
    // Without the VM its image is one that no VM uses.
    site.remove_neighbour(&clone);
    let told = site.revert(&desk, |revert| !revert.message.contains("host beta")).await;
    assert!(!told.available && told.message.contains("clone.qcow2"), "{told:?}");
    fs::remove_file(&clone).unwrap();
    site.revert(&desk, |revert| revert.available).await;
    site.client.done(site.client.revert(&snapshot.name).await).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_note_that_is_not_understood_stands_in_the_way_of_what_it_may_be_about() {
    let site = Site::start(EXTERNAL);
    let desk = site.desk().await;
    site.off(&desk).await;
    let snapshot = site.take(&desk, v1::StorageKind::External).await;
    fs::write(site.note("gamma"), r#"{"format": 2}"#).unwrap();
    let refused = site.client.delete(&snapshot.name, v1::DeleteScope::Only).await.unwrap_err();
    assert!(refused.reason == "IMAGE_UNAVAILABLE" && refused.message.contains("gamma.json"), "{refused:?}");
    assert_eq!(site.client.snapshots(&desk.vm()).await.unwrap().len(), 1, "nothing was changed");
    fs::remove_file(site.note("gamma")).unwrap();
    site.delete(&snapshot).await;
    // The last VM takes the note along.
    site.daemon("alpha").virsh(&["undefine", "desk"]).unwrap();
    let begun = Instant::now();
    while site.note("alpha").exists() {
        assert!(begun.elapsed() < TOLD, "{:?}", fs::read_to_string(site.note("alpha")));
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A file system that is not known to be of one host, as a network's would be.
struct Mounted(PathBuf);

impl Mounted {
    fn new(directory: PathBuf) -> Self {
        fs::create_dir(&directory).unwrap();
        let mounted = Command::new("mount").args(["-t", "ramfs", "ramfs"]).arg(&directory).status().unwrap();
        assert!(mounted.success());
        Self(directory)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_may_be_shared_is_refused_until_somebody_says_how() {
    let directory = tempfile::tempdir().unwrap();
    let images = Mounted::new(directory.path().join("images"));
    let plan = || HostPlan::daemon("alpha").unwrap().policy(EXTERNAL);
    let cluster = Cluster::start(vec![plan().images(images.0.clone())]).unwrap();
    let client = Client::admin(&cluster).unwrap();
    let desk = Guest::new(&images.0, "desk").unwrap();
    cluster.host("alpha").unwrap().libvirtd().unwrap().define(&desk).unwrap();
    client.vm_in_state(&desk.vm(), v1::VmState::Shutoff).await.unwrap();
    let refused = client.create_as(creation(&desk, v1::StorageKind::External)).await.unwrap_err();
    assert!(refused.reason == "IMAGE_OUT_OF_REACH" && refused.message.contains("shared_dirs"), "{refused:?}");
    // What is inside an image is that VM's own.
    let taken = client.done(client.create_as(creation(&desk, v1::StorageKind::Internal)).await).await.unwrap();
    client.done(client.revert(&taken.snapshot).await).await.unwrap();
    client.done(client.delete(&taken.snapshot, v1::DeleteScope::Only).await).await.unwrap();
}

//! VMs that two hosts have: defined on both, moved between them, run by both, and on a host that never returns.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proto::v1;
use rustix::process::Signal;
use tests::client::{Client, HOSTS};
use tests::cluster::{Cluster, HostPlan};
use tests::guest::Guest;
use tests::images;
use tests::lab::key;
use tests::libvirtd::Libvirtd;

/// How long the catalogue may take to have what a host does.
const SEEN: Duration = Duration::from_secs(30);

struct Site {
    cluster: Cluster,
    client: Client,
    directory: tempfile::TempDir,
}

impl Site {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let plan = |name| HostPlan::daemon(name).unwrap().shared_images(directory.path().to_owned());
        let cluster = Cluster::start(vec![plan("alpha"), plan("beta")]).unwrap();
        Self { client: Client::admin(&cluster).unwrap(), cluster, directory }
    }

    fn daemon(&self, host: &str) -> &Libvirtd {
        self.cluster.host(host).unwrap().libvirtd().unwrap()
    }

    /// A VM that runs on alpha, with a snapshot.
    async fn desk(&self) -> (Guest, v1::Snapshot) {
        let desk = Guest::new(self.directory.path(), "desk").unwrap();
        self.daemon("alpha").define_and_start(&desk).unwrap();
        self.client.vm_in_state(&desk.vm(), v1::VmState::Running).await.unwrap();
        desk.write('A').unwrap();
        let taken = self.client.done(self.client.create(&desk.vm(), "first", "").await).await.unwrap();
        desk.write('B').unwrap();
        (desk, self.client.snapshot(&taken.snapshot).await.unwrap())
    }

    /// Defines the VM of alpha on beta, with its images or with others.
    fn define_on_beta(&self, desk: &Guest, image: Option<&Path>) {
        let mut xml = self.daemon("alpha").virsh(&["dumpxml", "--inactive", desk.name()]).unwrap();
        if let Some(image) = image {
            let own = desk.disks()[0].path().display().to_string();
            assert!(xml.contains(&own), "{xml}");
            xml = xml.replace(&own, &image.display().to_string());
        }
        let file = self.directory.path().join("definition.xml");
        fs::write(&file, xml).unwrap();
        self.daemon("beta").virsh(&["define", &file.display().to_string()]).unwrap();
    }

    fn copy(&self, desk: &Guest) -> PathBuf {
        let copy = self.directory.path().join("copy.qcow2");
        fs::copy(desk.disks()[0].path(), &copy).unwrap();
        copy
    }

    /// The VM, once it is so.
    async fn seen(&self, desk: &Guest, what: &str, is_so: impl Fn(&v1::Vm) -> bool) -> v1::Vm {
        let begun = Instant::now();
        loop {
            let vm = self.client.vm(&desk.vm()).await.unwrap();
            if is_so(&vm) {
                return vm;
            }
            assert!(begun.elapsed() < SEEN, "not {what}: {vm:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Has both hosts tell everything again.
    async fn retold(&self) {
        for host in ["alpha", "beta"] {
            let request = v1::ReconcileHostRequest { name: format!("hosts/{host}") };
            let call = self.client.call((HOSTS, "ReconcileHost"), &request);
            let _: v1::ReconcileHostResponse = call.await.unwrap();
        }
    }

    /// The names of the hosts.
    async fn hosts(&self) -> Vec<String> {
        let request = v1::ListHostsRequest::default();
        let call = self.client.call((HOSTS, "ListHosts"), &request);
        let listed: v1::ListHostsResponse = call.await.unwrap();
        listed.hosts.into_iter().map(|host| host.name).collect()
    }

    /// What the trail has of the VM.
    async fn trail(&self, desk: &Guest) -> Vec<v1::AuditOutcome> {
        let events = self.client.audit().await.unwrap();
        events.iter().filter(|event| event.vm == desk.vm()).map(v1::AuditEvent::outcome).collect()
    }
}

fn is_on(host: &str) -> impl Fn(&v1::Vm) -> bool {
    let host = format!("hosts/{host}");
    move |vm| vm.host == host
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_that_is_defined_on_both_and_off_keeps_its_snapshots() {
    let site = Site::start();
    let (desk, first) = site.desk().await;
    site.daemon("alpha").power_off(&desk).unwrap();
    site.client.vm_in_state(&desk.vm(), v1::VmState::Shutoff).await.unwrap();
    site.define_on_beta(&desk, None);
    let is_on_both = |vm: &v1::Vm| is_on("alpha")(vm) && vm.other_hosts == ["hosts/beta"];
    for _ in 0..3 {
        let vm = site.seen(&desk, "on both", is_on_both).await;
        assert_eq!((vm.snapshot_count, vm.conflicting_host.as_str()), (1, ""), "{vm:?}");
        site.retold().await;
    }
    // What is asked reaches the host that has the snapshot.
    site.client.done(site.client.revert(&first.name).await).await.unwrap();
    site.daemon("alpha").power_off(&desk).unwrap();
    // Undefined where it has none.
    site.daemon("beta").virsh(&["undefine", desk.name()]).unwrap();
    let vm = site.seen(&desk, "on alpha alone", |vm| vm.other_hosts.is_empty()).await;
    assert!(is_on("alpha")(&vm) && vm.snapshot_count == 1, "{vm:?}");
    // Started on the other, which is where it is then.
    site.define_on_beta(&desk, None);
    site.seen(&desk, "on both", is_on_both).await;
    site.daemon("beta").power_on(&desk).unwrap();
    let vm = site.seen(&desk, "on beta", is_on("beta")).await;
    assert_eq!((vm.state(), vm.other_hosts.as_slice()), (v1::VmState::Running, &["hosts/alpha".to_owned()][..]));
    assert_eq!(desk.report().unwrap().disk, 'A');
    site.daemon("beta").power_off(&desk).unwrap();
    site.seen(&desk, "where its snapshot is", is_on("alpha")).await;
    let moves = site.trail(&desk).await.into_iter().filter(|it| *it == v1::AuditOutcome::Moved).count();
    assert_eq!(moves, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_vm_that_two_hosts_run_nothing_is_asked() {
    let site = Site::start();
    let (desk, first) = site.desk().await;
    let copy = site.copy(&desk);
    site.define_on_beta(&desk, Some(&copy));
    site.daemon("beta").virsh(&["start", desk.name()]).unwrap();
    let vm = site.seen(&desk, "in conflict", |vm| !vm.conflicting_host.is_empty()).await;
    assert!(is_on("alpha")(&vm) && vm.conflicting_host == "hosts/beta" && vm.snapshot_count == 1, "{vm:?}");
    for capability in &vm.capabilities {
        assert_eq!(capability.reason, "HOST_CONFLICT", "{capability:?}");
        assert!(capability.message.contains("hosts/alpha") && capability.message.contains("hosts/beta"));
    }
    let planned = v1::RevertToSnapshotRequest { name: first.name.clone(), validate_only: true, ..Default::default() };
    let purge = v1::PurgeVmRequest { name: desk.vm(), request_id: key(), ..Default::default() };
    for refused in [
        site.client.create(&desk.vm(), "x", "").await,
        site.client.revert(&first.name).await,
        site.client.revert_as(planned).await,
        site.client.delete(&first.name, v1::DeleteScope::Only).await,
        site.client.purge(purge).await,
    ] {
        let refusal = refused.unwrap_err();
        assert_eq!(refusal.reason, "HOST_CONFLICT", "{refusal}");
    }
    assert_eq!(images::internal_snapshots(desk.disks()[0].path()).unwrap().len(), 1);
    site.daemon("beta").virsh(&["destroy", desk.name()]).unwrap();
    let vm = site.seen(&desk, "settled", |vm| vm.conflicting_host.is_empty()).await;
    assert!(is_on("alpha")(&vm), "{vm:?}");
    site.client.done(site.client.revert(&first.name).await).await.unwrap();
    assert_eq!(desk.report().unwrap().disk, 'A');
    let trail = site.trail(&desk).await;
    assert!(trail.contains(&v1::AuditOutcome::Conflict) && trail.contains(&v1::AuditOutcome::Settled), "{trail:?}");
    site.daemon("alpha").power_off(&desk).unwrap();
}

/// A host that dies in the middle of an operation and never returns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_of_a_lost_host_keeps_nobody_from_the_vm() {
    let mut site = Site::start();
    let (desk, _) = site.desk().await;
    let begun = site.client.create(&desk.vm(), "lost", "").await.unwrap();
    site.cluster.host_mut("alpha").unwrap().agent().kill().unwrap();
    site.seen(&desk, "unreachable", |vm| !vm.host_reachable).await;
    // The snapshot may have been finished just before; then there is no operation to be lost.
    let is_open = !site.client.vm(&desk.vm()).await.unwrap().active_operation.is_empty();
    let definition = || site.define_on_beta(&desk, None);
    definition();
    site.daemon("alpha").power_off(&desk).unwrap();
    site.seen(&desk, "known to beta", |vm| vm.other_hosts == ["hosts/beta"]).await;
    assert_eq!(site.client.vm(&desk.vm()).await.unwrap().host, "hosts/alpha", "until it is known to run elsewhere");
    site.daemon("beta").power_on(&desk).unwrap();
    let vm = site.seen(&desk, "on beta", is_on("beta")).await;
    assert_eq!(vm.active_operation, "");
    let ended = site.client.operation(&begun.name).await.unwrap();
    if is_open {
        let error = ended.error.unwrap();
        assert!(error.reason == "HOST_LOST" && error.message.contains("hosts/beta"), "{error:?}");
    }
    // Everything can be done at once.
    desk.write('C').unwrap();
    let after = site.client.done(site.client.create(&desk.vm(), "after", "").await).await.unwrap();
    desk.write('D').unwrap();
    site.client.done(site.client.revert(&after.snapshot).await).await.unwrap();
    assert_eq!(desk.report().unwrap().disk, 'C');
    // The first returns after all: it takes nothing back.
    site.cluster.host_mut("alpha").unwrap().start_agent_again().unwrap();
    site.seen(&desk, "told of by both", |vm| vm.other_hosts == ["hosts/alpha"] && is_on("beta")(vm)).await;
    assert_eq!(desk.report().unwrap().disk, 'C');
    site.daemon("beta").power_off(&desk).unwrap();
}

/// A host that will not return is taken out of the configuration, and another one comes, while the service runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_are_removed_and_added_without_a_restart() {
    let site = Site::start();
    let (desk, _) = site.desk().await;
    let config = site.cluster.api_config();
    let both = fs::read_to_string(&config).unwrap();
    let mut parts = both.split("[[hosts]]");
    let (rest, alpha, beta) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
    assert!(alpha.contains("alpha") && beta.contains("beta"), "{both}");
    let reload = |text: &str| {
        fs::write(&config, text).unwrap();
        site.cluster.processes().find(|process| process.name() == "snapshot-api").unwrap().signal(Signal::HUP).unwrap();
    };
    // What cannot be used changes nothing.
    reload("hosts = 7");
    let log = || site.cluster.logs().unwrap().into_iter().find(|(name, _)| name == "snapshot-api").unwrap().1;
    let begun = Instant::now();
    while !log().contains("not usable, the hosts from before stay") {
        assert!(begun.elapsed() < SEEN);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(site.hosts().await, ["hosts/alpha", "hosts/beta"]);

    // The VM has an operation on alpha; nobody runs it elsewhere.
    let begun = site.client.create(&desk.vm(), "lost", "").await.unwrap();
    site.define_on_beta(&desk, None);
    site.seen(&desk, "known to beta", |vm| vm.other_hosts == ["hosts/beta"]).await;
    reload(&format!("{rest}[[hosts]]{beta}"));
    let vm = site.seen(&desk, "on beta", is_on("beta")).await;
    assert!(vm.other_hosts.is_empty() && vm.active_operation.is_empty(), "{vm:?}");
    assert_eq!(site.hosts().await, ["hosts/beta"]);
    assert!(site.client.operation(&begun.name).await.unwrap().end_time.is_some());

    // It is back: followed again, with the VM that runs there.
    reload(&both);
    let vm = site.seen(&desk, "on alpha", is_on("alpha")).await;
    assert_eq!(vm.other_hosts, ["hosts/beta"]);
    site.client.done(site.client.create(&desk.vm(), "after", "").await).await.unwrap();
    let told: Vec<String> = site.client.audit().await.unwrap().into_iter().map(|event| event.detail).collect();
    for change in ["hosts/alpha was removed", "hosts/alpha was added"] {
        assert!(told.iter().any(|detail| detail == change), "{told:?}");
    }
    // At another address of the same agent nothing is lost.
    reload(&both.replace("https://127.0.0.1", "https://localhost"));
    let begun = Instant::now();
    while !log().contains("has another address or identity") {
        assert!(begun.elapsed() < SEEN);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    site.seen(&desk, "reachable", |vm| vm.host_reachable).await;
    site.client.done(site.client.create(&desk.vm(), "by another name", "").await).await.unwrap();
    site.daemon("alpha").power_off(&desk).unwrap();
}

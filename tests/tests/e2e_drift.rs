//! What other tools do to machines and snapshots, as a caller of the public API sees it. The agents here compare once a
//! day: what is known within seconds, is known by what was told.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use proto::v1;
use proto::v1::watch_vm_response::Event;
use tests::client::{Client, Grpc, Refusal, VmWatch};
use tests::guest::Guest;
use tests::images::internal_snapshots;
use tests::lab::{HOST, Lab, Power, id, key};
use tonic::Code;

/// It takes a moment; a machine that is busy with other things may take longer.
const SOON: Duration = Duration::from_secs(20);

async fn soon<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < SOON, "waited {SOON:?} for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn in_state(lab: &Lab, snapshot: &v1::Snapshot, state: v1::SnapshotState) -> v1::Snapshot {
    let look = async || lab.client.snapshot(&snapshot.name).await.ok().filter(|now| now.state() == state);
    soon(&format!("{} to be {state:?}", snapshot.name), look).await
}

async fn gone(lab: &Lab, guest: &Guest) {
    soon("the machine to be gone", async || lab.client.vm(&guest.vm()).await.err()).await;
    assert_eq!(lab.client.snapshots(&guest.vm()).await.unwrap_err().reason, "VM_NOT_FOUND");
}

fn purge(guest: &Guest) -> v1::PurgeVmRequest {
    v1::PurgeVmRequest { name: guest.vm(), request_id: key(), ..Default::default() }
}

fn reason<T: std::fmt::Debug>(result: Result<T, Refusal>) -> (Code, String) {
    let refusal = result.unwrap_err();
    (refusal.code, refusal.reason)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_virsh_does_to_snapshots_is_told_to_those_who_watch() {
    let lab = Lab::without_scan().unwrap();
    let guest = lab.guest("student").await.unwrap();
    guest.write('A').unwrap();
    let ours = lab.take(&guest, "ours").await.unwrap();
    let face = Grpc::plain(lab.cluster.ports().gateway).unwrap();
    let token = lab.cluster.identity().admin_token().unwrap();
    let mut watch = VmWatch::open(&face, &token, &guest.vm(), "").await.unwrap();
    watch.until("the whole state", |event| matches!(event, Event::Synced(_))).await.unwrap();

    let daemon = lab.daemon().unwrap();
    let by_hand = format!("{}/snapshots/by-hand", guest.vm());
    daemon.virsh(&["snapshot-create-as", guest.name(), "by-hand", "made with virsh"]).unwrap();
    let is_new = |event: &Event| matches!(event, Event::Snapshot(one) if one.name == by_hand && one.is_current);
    watch.until("a snapshot of virsh's", is_new).await.unwrap();
    lab.agreed_soon(&guest).await.unwrap();

    guest.write('B').unwrap();
    daemon.virsh(&["snapshot-revert", guest.name(), id(&ours.name)]).unwrap();
    let is_current = |event: &Event| matches!(event, Event::Snapshot(one) if one.name == ours.name && one.is_current);
    watch.until("a revert of virsh's", is_current).await.unwrap();
    assert_eq!(guest.report().unwrap().disk, 'A');
    lab.agreed_soon(&guest).await.unwrap();

    daemon.virsh(&["snapshot-delete", guest.name(), id(&ours.name)]).unwrap();
    let is_gone = |event: &Event| matches!(event, Event::RemovedSnapshot(name) if *name == ours.name);
    watch.until("a deletion of virsh's", is_gone).await.unwrap();
    let list = lab.agreed_soon(&guest).await.unwrap();
    assert_eq!(list.iter().map(|one| &one.name).collect::<Vec<_>>(), [&by_hand]);

    daemon.power_off(&guest).unwrap();
    daemon.virsh(&["undefine", guest.name(), "--snapshots-metadata"]).unwrap();
    let end = watch.until("the end of the machine", |_| false).await.unwrap_err();
    assert_eq!(end.downcast_ref::<Refusal>().map(|end| end.reason.as_str()), Some("VM_NOT_FOUND"), "{end:?}");
    gone(&lab, &guest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_without_its_data_is_shown_as_broken_refused_and_deleted() {
    let lab = Lab::without_scan().unwrap();
    let guest = Guest::with_two_disks(&lab.images().unwrap(), "student").unwrap();
    lab.run(&guest).await.unwrap();
    guest.write('A').unwrap();
    lab.set(&guest, Power::Off).await.unwrap();
    let kept = lab.take(&guest, "kept").await.unwrap();
    let (image, away) = (guest.disks()[1].path(), guest.disks()[1].path().with_extension("away"));
    fs::rename(image, &away).unwrap();
    let broken = in_state(&lab, &kept, v1::SnapshotState::Broken).await;
    assert_eq!(broken.state_reason, "SNAPSHOT_BROKEN");
    assert_eq!(lab.client.snapshots(&guest.vm()).await.unwrap(), [broken]);
    let refused = (Code::FailedPrecondition, "SNAPSHOT_BROKEN".to_owned());
    assert_eq!(reason(lab.client.revert(&kept.name).await), refused);
    let vm = lab.client.vm(&guest.vm()).await.unwrap();
    let revert = vm.capabilities.iter().find(|one| one.kind() == v1::CapabilityKind::Revert).unwrap();
    assert_eq!((revert.available, revert.reason.as_str()), (false, "SNAPSHOT_BROKEN"));

    fs::rename(&away, image).unwrap();
    in_state(&lab, &kept, v1::SnapshotState::Ready).await;
    lab.set(&guest, Power::Running).await.unwrap();
    guest.write('B').unwrap();
    lab.return_to(&kept).await.unwrap();
    lab.set(&guest, Power::Running).await.unwrap();
    let report = guest.report().unwrap();
    assert_eq!((report.disk, report.second_disk), ('A', Some('A')));

    lab.set(&guest, Power::Off).await.unwrap();
    let tag = id(&kept.name);
    tests::tools::run(std::process::Command::new("qemu-img").args(["snapshot", "-d", tag]).arg(image)).unwrap();
    in_state(&lab, &kept, v1::SnapshotState::Broken).await;
    assert_eq!(reason(lab.client.revert(&kept.name).await), refused);
    lab.remove(&kept, v1::DeleteScope::Only).await.unwrap();
    lab.nothing_left(&guest, &kept).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_of_a_machine_that_is_gone_finds_what_it_left() {
    let mut lab = Lab::without_scan().unwrap();
    let guest = lab.guest("student").await.unwrap();
    let other = lab.guest("other").await.unwrap();
    for guest in [&guest, &other] {
        lab.set(guest, Power::Off).await.unwrap();
        lab.take(guest, "ours").await.unwrap();
    }
    let protected = v1::CreateSnapshotRequest {
        parent: guest.vm(),
        snapshot: Some(v1::Snapshot { display_name: "kept".into(), protected: true, ..Default::default() }),
        request_id: key(),
        ..Default::default()
    };
    lab.client.done(lab.client.create_as(protected).await).await.unwrap();
    let daemon = lab.daemon().unwrap();
    daemon.virsh(&["snapshot-create-as", guest.name(), "by-hand"]).unwrap();
    daemon.virsh(&["undefine", guest.name(), "--snapshots-metadata"]).unwrap();
    gone(&lab, &guest).await;
    let tags = || internal_snapshots(guest.disks()[0].path()).unwrap();
    assert_eq!(tags().len(), 3);

    // Who may not purge it, is told what anybody is told of a machine that there never was.
    let not_found = (Code::NotFound, "VM_NOT_FOUND".to_owned());
    let others = lab.cluster.identity().token("mallory", &other.uuid().to_string(), &["purge", "read"]).unwrap();
    let mallory = Client::grpc(&lab.cluster, others).unwrap();
    assert_eq!(reason(mallory.purge(purge(&guest)).await), not_found);
    assert_eq!(reason(lab.client.purge(purge(&guest)).await).1, "SNAPSHOT_PROTECTED");
    let forced = v1::PurgeVmRequest { force: true, ..purge(&guest) };
    let plan = v1::PurgeVmRequest { validate_only: true, ..forced.clone() };
    let plan = lab.client.purge(plan).await.unwrap().plan.unwrap();
    assert_eq!((plan.deleted_snapshots.len(), tags().len()), (2, 3));

    // The host is known although nobody can reach it, and although the API was started anew.
    lab.cluster.host_mut(HOST).unwrap().agent().kill().unwrap();
    lab.cluster.api().kill().unwrap();
    lab.cluster.start_api_again().unwrap();
    let missing = v1::PurgeVmRequest { allow_missing: true, ..forced.clone() };
    assert_eq!(reason(lab.client.purge(missing.clone()).await).1, "HOST_UNREACHABLE");
    lab.cluster.host_mut(HOST).unwrap().start_agent_again().unwrap();
    soon("the host", async || lab.client.vm(&other.vm()).await.ok().filter(|vm| vm.host_reachable)).await;

    let begun = lab.client.purge(forced.clone()).await.unwrap();
    let done = lab.client.done(Ok(begun.clone())).await.unwrap();
    assert_eq!((done.kind(), done.vm.as_str()), (v1::OperationKind::Purge, guest.vm().as_str()));
    assert_eq!(tags(), ["by-hand"]);
    assert_eq!(internal_snapshots(other.disks()[0].path()).unwrap().len(), 1);
    assert_eq!(lab.client.snapshots(&other.vm()).await.unwrap().len(), 1);

    // Again: a repeat is the first one, and a new request finds nothing, which may be as good.
    assert_eq!(lab.client.purge(forced.clone()).await.unwrap().name, begun.name);
    assert_eq!(reason(lab.client.purge(purge(&guest)).await), not_found);
    let missing = v1::PurgeVmRequest { request_id: key(), ..missing };
    assert_eq!(lab.client.purge(missing).await.unwrap().state(), v1::OperationState::Succeeded);
    assert!(lab.client.vms().await.unwrap().iter().all(|vm| vm.name != guest.vm()), "a purge makes no machine");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_moves_to_another_host_is_followed() {
    let plans = ["alpha", "beta"].map(|name| Ok(tests::cluster::HostPlan::daemon(name)?.without_scan()));
    let plans: anyhow::Result<Vec<_>> = plans.into_iter().collect();
    let cluster = tests::cluster::Cluster::start(plans.unwrap()).unwrap();
    let lab = Lab { client: Client::admin(&cluster).unwrap(), cluster };
    let guest = lab.guest("student").await.unwrap();
    let beta = lab.cluster.host("beta").unwrap().libvirtd().unwrap();
    let on = async |host: &str, state: v1::VmState| {
        let is_there = |vm: &v1::Vm| vm.host == format!("hosts/{host}") && vm.state() == state;
        soon(host, async || lab.client.vm(&guest.vm()).await.ok().filter(is_there)).await;
    };
    on("alpha", v1::VmState::Running).await;
    let flags = ["--live", "--persistent", "--undefinesource", "--unsafe"];
    let listen = ["--migrateuri", "tcp://127.0.0.1", "--listen-address", "127.0.0.1"];
    let uri = beta.uri();
    let migrate = [&["migrate", guest.name(), &uri][..], &flags, &listen].concat();
    lab.daemon().unwrap().virsh(&migrate).unwrap();
    on("beta", v1::VmState::Running).await;
    beta.virsh(&["destroy", guest.name()]).unwrap();
    on("beta", v1::VmState::Shutoff).await;
    let back = lab.daemon().unwrap().uri();
    let offline = ["migrate", guest.name(), &back, "--offline", "--persistent", "--undefinesource"];
    beta.virsh(&offline).unwrap();
    on("alpha", v1::VmState::Shutoff).await;
    lab.take(&guest, "here").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_of_a_machine_that_is_gone_removes_the_files_that_its_snapshots_made() {
    let lab = Lab::with_policy("stable_paths = false\n").unwrap();
    let guest = lab.guest("student").await.unwrap();
    let listing = || {
        let there = fs::read_dir(lab.images().unwrap()).unwrap().map(|entry| entry.unwrap().file_name());
        there.map(|name| name.into_string().unwrap()).collect::<BTreeSet<_>>()
    };
    let take = async |protected: bool| {
        let request = v1::CreateSnapshotRequest {
            parent: guest.vm(),
            snapshot: Some(v1::Snapshot { display_name: "ours".into(), protected, ..Default::default() }),
            storage: v1::StorageKind::External.into(),
            request_id: key(),
            ..Default::default()
        };
        lab.client.done(lab.client.create_as(request).await).await.unwrap();
    };
    guest.write('A').unwrap();
    lab.set(&guest, Power::Off).await.unwrap();
    let mut before = listing();
    let disk = guest.disks()[0].path();
    lab.set(&guest, Power::Running).await.unwrap();
    // It writes when it boots, and has done so when it answers; from the first snapshot on nobody writes to its image.
    guest.report().unwrap();
    take(false).await;
    let base = tests::images::sha256(disk).unwrap();
    guest.write('B').unwrap();
    take(true).await;
    guest.write('C').unwrap();
    lab.set(&guest, Power::Off).await.unwrap();
    let daemon = lab.daemon().unwrap();
    let list = lab.client.snapshots(&guest.vm()).await.unwrap();
    let made: Vec<String> = listing().difference(&before).cloned().collect();
    assert_eq!((list.len(), made.len()), (2, 4), "an overlay and a running state each: {made:?}");
    // A file of our form that nobody made, and another machine on the first overlay.
    let strange = disk.with_extension("snap-0191f7a0000070008000000000000000");
    fs::write(&strange, "somebody's").unwrap();
    before.insert(strange.file_name().unwrap().to_str().unwrap().to_owned());
    let overlay = disk.with_extension(id(&list[0].name));
    let image = disk.with_file_name("other.qcow2");
    let mut create = std::process::Command::new("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]);
    tests::tools::run(create.args([&overlay, &image])).unwrap();
    let xml = fs::read_to_string(guest.xml_file()).unwrap();
    let with = |xml: &str, old: &str, new: &str| {
        assert!(xml.contains(old), "{old} in {xml}");
        xml.replace(old, new)
    };
    let xml = with(&xml, &format!("<name>{}</name>", guest.name()), "<name>other</name>");
    let xml = with(&xml, &format!("<uuid>{}</uuid>", guest.uuid()), "");
    let xml = with(&xml, disk.to_str().unwrap(), image.to_str().unwrap());
    fs::write(disk.with_file_name("other.xml"), xml).unwrap();
    daemon.virsh(&["define", disk.with_file_name("other.xml").to_str().unwrap()]).unwrap();
    daemon.virsh(&["undefine", guest.name(), "--snapshots-metadata"]).unwrap();
    gone(&lab, &guest).await;

    assert_eq!(reason(lab.client.purge(purge(&guest)).await).1, "SNAPSHOT_PROTECTED");
    let forced = || v1::PurgeVmRequest { force: true, ..purge(&guest) };
    let plan = lab.client.purge(v1::PurgeVmRequest { validate_only: true, ..forced() }).await.unwrap().plan.unwrap();
    assert_eq!(plan.deleted_snapshots.len(), 2);
    lab.client.done(lab.client.purge(forced()).await).await.unwrap();
    let overlay_name = overlay.file_name().unwrap().to_str().unwrap();
    let left = |name: &String| made.contains(name);
    assert_eq!(listing().into_iter().filter(left).collect::<Vec<_>>(), [overlay_name], "the other machine needs it");
    daemon.virsh(&["start", "other"]).unwrap();
    assert_eq!(guest.report().unwrap().disk, 'B', "the other machine, on the same serial port");
    daemon.virsh(&["destroy", "other"]).unwrap();
    daemon.virsh(&["undefine", "other"]).unwrap();
    ["other.qcow2", "other.xml"].iter().for_each(|name| fs::remove_file(disk.with_file_name(name)).unwrap());

    lab.client.done(lab.client.purge(forced()).await).await.unwrap();
    let sockets = |name: &String| !name.ends_with(".sock") && !name.ends_with("serial");
    assert_eq!(
        listing().into_iter().filter(sockets).collect::<BTreeSet<_>>(),
        before.into_iter().filter(sockets).collect()
    );
    assert_eq!(tests::images::sha256(disk).unwrap(), base, "the image is as it was at the first snapshot");
    assert_eq!(reason(lab.client.purge(forced()).await), (Code::NotFound, "VM_NOT_FOUND".to_owned()));
}

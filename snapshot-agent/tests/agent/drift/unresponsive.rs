//! VMs whose storage or whose QEMU does not respond: they are named, and nobody else is affected.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::convert::Inventory;
use proto::status::from_status;
use proto::v1::OperationState;
use rustix::process::Signal;
use snapshot_agent::bounded::{files, jobs};
use snapshot_agent::hypervisor::libvirt::Libvirt;
use snapshot_agent::hypervisor::{Failure, Hypervisor, Reread};
use snapshot_core::Reason;
use snapshot_core::ids::VmId;
use snapshot_core::operation::Request;
use snapshot_core::restriction::RestrictedOperation;
use snapshot_core::vm::VmState;

use super::{Scene, Told, name, settings};
use crate::daemon::{Daemon, connected};
use crate::guest::Guest;
use crate::hung::{FileServer, HungFiles};
use crate::served::{Agent, create, id};

/// Within what other VMs are observed, however many hang.
const OBSERVED: Duration = Duration::from_secs(1);
/// Within what one that does not respond is named, and one that responds again is back.
const NAMED: Duration = Duration::from_secs(10);
const BACK: Duration = Duration::from_secs(5);

fn image(guest: &Guest) -> PathBuf {
    guest.dir.join("vda.qcow2")
}

/// Why nothing can be done to a VM, as it is told.
fn refusal(told: &Told, vm: VmId) -> Option<(Reason, String)> {
    let inventory = told.vms.get(&vm).filter(|inventory| inventory.unobserved)?;
    let [restriction] = &*inventory.vm.restrictions else { return None };
    let is_all = restriction.operations == RestrictedOperation::ALL;
    is_all.then(|| (restriction.reason, restriction.message.clone()))
}

fn is_named(told: &Told, guest: &Guest) -> bool {
    let path = image(guest).display().to_string();
    refusal(told, guest.vm).is_some_and(|(reason, message)| {
        reason == Reason::StorageUnresponsive && message.contains(&path) && message.contains("does not respond")
    })
}

fn is_observed(told: &Told, vm: VmId) -> bool {
    // An image that is not there is another matter.
    let is_hung =
        |inventory: &Inventory| inventory.vm.restrictions.iter().any(|one| one.reason == Reason::StorageUnresponsive);
    let is_so = |inventory: &Inventory| !inventory.unobserved && !is_hung(inventory);
    told.vms.get(&vm).is_some_and(is_so)
}

/// Waits until it is told; fails when that takes longer.
async fn within(limit: Duration, what: &str, told: &mut Told, is_so: impl Fn(&Told) -> bool) {
    let wait = async {
        while !is_so(told) {
            told.next().await;
        }
    };
    let in_time = tokio::time::timeout(limit, wait).await.is_ok();
    let short = |one: &Inventory| (one.vm.name.clone(), one.vm.state, one.unobserved, one.vm.restrictions.clone());
    assert!(in_time, "{what} within {limit:?}: {:#?}", told.vms.values().map(short).collect::<Vec<_>>());
}

/// A name that the agent has to be told of by an event, and to look for.
async fn is_seen(limit: Duration, daemon: &Daemon, told: &mut Told, guest: &Guest, new: &str) {
    let old = told.vms[&guest.vm].vm.name.clone();
    daemon.virsh(&["domrename", &old, new]);
    within(limit, new, told, |told| told.vms[&guest.vm].vm.name == new).await;
}

async fn refused(agent: &Agent, guest: &Guest) -> snapshot_core::Error {
    let begun = Instant::now();
    let refusal = agent.run(guest.vm, Request::Create(create(&id()))).await.unwrap_err();
    assert!(begun.elapsed() < NAMED, "refused within bounds: {:?}", begun.elapsed());
    from_status(&refusal, Reason::Internal)
}

async fn taken(agent: &Agent, guest: &Guest) {
    let ended = agent.run(guest.vm, Request::Create(create(&id()))).await.unwrap();
    assert_eq!(ended.state(), OperationState::Succeeded, "{:?}", ended.error);
}

/// Case 12, first half: an agent is started while an image hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_agent_started_while_an_image_hangs_serves_every_other_vm() {
    let daemon = Daemon::start("restarted");
    let libvirt = Arc::new(Libvirt::new(&daemon.host.uri).unwrap());
    connected(&libvirt, true).await;
    let (hung, other) = (Guest::on(&daemon.host, 1, ""), Guest::on(&daemon.host, 1, ""));
    hung.start();
    hung.write('A');
    libvirt.versions().unwrap();
    let files = HungFiles::new([image(&hung)]).unwrap();
    let begun = Instant::now();
    let agent = Agent::start_with(Arc::clone(&libvirt) as Arc<dyn Hypervisor>, &settings(&daemon)).await;
    let mut told = Told::by(&agent).await;
    assert!(begun.elapsed() < NAMED, "the host can be reached after {:?}", begun.elapsed());
    within(NAMED, "the VM that hangs is named", &mut told, |told| is_named(told, &hung)).await;
    let inventory = &told.vms[&hung.vm];
    assert_eq!((inventory.vm.name.as_str(), inventory.vm.state), (name(&hung).as_str(), VmState::Running));
    assert!(is_observed(&told, other.vm));

    // Others work, and are looked at; the one that hangs is refused for the reason that is told.
    let begun = Instant::now();
    taken(&agent, &other).await;
    assert!(begun.elapsed() < NAMED, "{:?}", begun.elapsed());
    let refusal = refused(&agent, &hung).await;
    let (reason, message) = self::refusal(&told, hung.vm).unwrap();
    assert_eq!((refusal.reason(), refusal.message()), (reason, message.as_str()));
    is_seen(OBSERVED, &daemon, &mut told, &other, "seen-while-one-hangs").await;

    // It is back by itself, and nothing was done to it.
    drop(files);
    within(BACK, "the VM responds again", &mut told, |told| is_observed(told, hung.vm)).await;
    assert_eq!(hung.report().disk, 'A');
    assert!(libvirt.observe(hung.vm, Reread::All).unwrap().snapshots.is_empty());
    taken(&agent, &hung).await;
    libvirt.power_off(hung.vm).unwrap();
    drop(told);
    agent.stop().await;
}

/// Case 12, second half: three, then ten hang while the agent runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn however_many_vms_hang_others_are_observed_within_a_second() {
    let mut scene = Scene::start("ten").await;
    let other = scene.guest(1).await;
    let mut guests = Vec::new();
    for _ in 0..10 {
        guests.push(scene.guest(1).await);
    }
    let mut held = Vec::new();
    let mut hung = 0;
    for many in [3, 10] {
        held.push(HungFiles::new(guests[hung..many].iter().map(image)).unwrap());
        // Each is looked at, because something about it changed.
        for (number, guest) in guests.iter().enumerate().take(many).skip(hung) {
            scene.virsh(&["domrename", &name(guest), &format!("hung-{number}")]);
        }
        hung = many;
        is_seen(OBSERVED, &scene.daemon, &mut scene.told, &other, &format!("seen-while-{many}-hang")).await;
        let all = &guests[..many];
        within(NAMED, "all are named", &mut scene.told, |told| all.iter().all(|guest| is_named(told, guest))).await;
        is_seen(OBSERVED, &scene.daemon, &mut scene.told, &other, &format!("seen-after-{many}-were-named")).await;
        taken(&scene.agent, &other).await;
    }
    assert!(jobs::given_up() >= 10 && files::hanging().len() >= 10);
    let begun = Instant::now();
    for guest in &guests {
        assert_eq!(refused(&scene.agent, guest).await.reason(), Reason::StorageUnresponsive);
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "refused at once: {:?}", begun.elapsed());
    drop(held);
    let is_back = |told: &Told, number: usize, guest: &Guest| {
        is_observed(told, guest.vm) && told.vms[&guest.vm].vm.name == format!("hung-{number}")
    };
    within(BACK, "all respond again", &mut scene.told, |told| {
        guests.iter().enumerate().all(|(number, guest)| is_back(told, number, guest))
    })
    .await;
    drop(scene.told);
    scene.agent.stop().await;
}

/// QEMU does not respond, and a call of another tool waits for it: libvirt then answers nobody about this VM.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn domains_that_libvirt_does_not_answer_for_affect_no_others() {
    let mut scene = Scene::start("monitors").await;
    let other = scene.guest(1).await;
    let mut guests = Vec::new();
    for _ in 0..4 {
        let guest = scene.guest(1).await;
        guest.start();
        guests.push(guest);
    }
    let uri = scene.daemon.host.uri.clone();
    let mut tools = Vec::new();
    for guest in &guests {
        guest.signal(Signal::STOP);
        let mut command = std::process::Command::new("virsh");
        command.args(["-q", "-c", &uri, "snapshot-create-as", &name(guest), "by-virsh"]);
        tools.push(command.spawn().unwrap());
    }
    is_seen(OBSERVED * 2, &scene.daemon, &mut scene.told, &other, "seen-while-monitors-hang").await;
    for guest in &guests {
        let reason = refused(&scene.agent, guest).await.reason();
        assert_eq!(reason, Reason::HypervisorUnavailable);
    }
    is_seen(OBSERVED, &scene.daemon, &mut scene.told, &other, "seen-after-they-were-refused").await;
    taken(&scene.agent, &other).await;
    guests.iter().for_each(|guest| guest.signal(Signal::CONT));
    for mut tool in tools {
        assert!(tool.wait().unwrap().success());
    }
    let is_back = |told: &Told, guest: &Guest| {
        is_observed(told, guest.vm) && told.vms[&guest.vm].snapshots.iter().any(|one| one.id.as_str() == "by-virsh")
    };
    within(NAMED * 3, "all respond again", &mut scene.told, |told| guests.iter().all(|guest| is_back(told, guest)))
        .await;
    for guest in &guests {
        scene.libvirt.power_off(guest.vm).unwrap();
    }
    drop(scene.told);
    scene.agent.stop().await;
}

/// What other VMs use is not known while the storage of one hangs: nothing may be removed by it, and whoever asks is told soon.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_neighbour_that_hangs_uses_is_not_taken_for_unused() {
    let daemon = Daemon::start("neighbours");
    let libvirt = Arc::new(Libvirt::new(&daemon.host.uri).unwrap());
    connected(&libvirt, true).await;
    let (vm, neighbour) = (Guest::on(&daemon.host, 1, ""), Guest::on(&daemon.host, 1, ""));
    let path = std::fs::canonicalize(image(&neighbour)).unwrap().display().to_string();
    let known = tokio::task::block_in_place(|| libvirt.elsewhere(vm.vm).unwrap());
    assert!(known.contains(&path), "{known:?}");
    let hung = HungFiles::new([image(&neighbour)]).unwrap();
    for limit in [NAMED, OBSERVED] {
        let begun = Instant::now();
        let failure = tokio::task::block_in_place(|| libvirt.elsewhere(vm.vm).unwrap_err());
        assert!(begun.elapsed() < limit, "{:?}", begun.elapsed());
        let Failure::Precondition(error) = failure else { panic!("{failure:?}") };
        assert!(error.reason() == Reason::StorageUnresponsive && error.message().contains(&path), "{error:?}");
        // The VM itself is observed.
        assert!(tokio::task::block_in_place(|| libvirt.observe(vm.vm, Reread::New)).is_ok());
    }
    drop(hung);
    let begun = Instant::now();
    while tokio::task::block_in_place(|| libvirt.elsewhere(vm.vm)).ok().as_ref() != Some(&known) {
        assert!(begun.elapsed() < BACK, "it is known again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A whole file system hangs, with the directory that is watched: it costs a bounded number of threads, and the host is served.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_dead_file_server_costs_a_bounded_number_of_threads() {
    const VMS: usize = 40;
    let mut scene = Scene::start("server").await;
    let other = scene.guest(1).await;
    let point = scene.daemon.host.dir.join("mounted");
    std::fs::create_dir(&point).unwrap();
    let server = FileServer::mount(&point).unwrap();
    server.die();
    let mut vms = Vec::new();
    for number in 0..VMS {
        let vm = uuid::Uuid::new_v4();
        let xml = scene.daemon.host.dir.join(format!("{number}.xml"));
        let text = format!(
            "<domain type='qemu'><name>remote-{number}</name><uuid>{vm}</uuid><memory unit='MiB'>16</memory>\
             <os><type arch='x86_64' machine='pc'>hvm</type></os><devices><disk type='file' device='disk'>\
             <driver name='qemu' type='qcow2'/><source file='{}/{number}.qcow2'/><target dev='vda' bus='virtio'/></disk>\
             </devices></domain>",
            point.display()
        );
        std::fs::write(&xml, text).unwrap();
        scene.virsh(&["define", xml.to_str().unwrap()]);
        vms.push(VmId::from_uuid(vm));
    }
    let all = vms.clone();
    let named =
        |told: &Told, vm: VmId| refusal(told, vm).is_some_and(|(reason, _)| reason == Reason::StorageUnresponsive);
    within(NAMED * 2, "all are named", &mut scene.told, |told| all.iter().all(|vm| named(told, *vm))).await;
    let hang = || files::hanging().iter().filter(|path| path.starts_with(&point)).count();
    let hung = hang();
    assert!(hung <= VMS / 4, "{hung} threads hang for {VMS} VMs");
    is_seen(OBSERVED, &scene.daemon, &mut scene.told, &other, "seen-while-a-server-is-dead").await;
    taken(&scene.agent, &other).await;
    tokio::time::sleep(OBSERVED * 3).await;
    assert!(hang() <= hung, "no further threads hang: {} after {hung}", hang());
    server.come_back();
    within(NAMED, "all respond again", &mut scene.told, |told| all.iter().all(|vm| is_observed(told, *vm))).await;
    drop(scene.told);
    scene.agent.stop().await;
}

/// An operation that was interrupted on a VM whose storage hangs now is settled when it responds, and nobody waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn settling_an_operation_on_a_vm_that_hangs_does_not_hold_up_the_start() {
    let daemon = Daemon::start("settling");
    let libvirt = Arc::new(Libvirt::new(&daemon.host.uri).unwrap());
    connected(&libvirt, true).await;
    libvirt.versions().unwrap();
    let agent = Agent::start_with(Arc::clone(&libvirt) as Arc<dyn Hypervisor>, &settings(&daemon)).await;
    let (hung, other) = (Guest::on(&daemon.host, 1, ""), Guest::on(&daemon.host, 1, ""));
    let snapshot = id();
    let ended = agent.run(hung.vm, Request::Create(create(&snapshot))).await.unwrap();
    assert_eq!(ended.state(), OperationState::Succeeded, "{:?}", ended.error);
    let dir = agent.stop().await;
    // As it is when the agent is killed in the middle of the last operation.
    let journal = dir.path().join("operations");
    let entries = std::fs::read_dir(&journal).unwrap().map(|entry| entry.unwrap().path());
    let last = entries.filter(|path| path.extension().is_some_and(|it| it == "jsonl")).max().unwrap();
    let text = std::fs::read_to_string(&last).unwrap();
    std::fs::write(&last, format!("{}\n{{\"begun\":0}}\n", text.lines().next().unwrap())).unwrap();

    let files = HungFiles::new([image(&hung)]).unwrap();
    let begun = Instant::now();
    let agent = Agent::start_in(dir, Arc::clone(&libvirt) as Arc<dyn Hypervisor>, &settings(&daemon)).await;
    assert!(begun.elapsed() < NAMED, "the agent serves after {:?}", begun.elapsed());
    let mut told = Told::by(&agent).await;
    taken(&agent, &other).await;
    // Its VM is held: what was interrupted is not known to have been done.
    assert_eq!(refused(&agent, &hung).await.reason(), Reason::VmBusy);
    drop(files);
    let is_back = |told: &Told| is_observed(told, hung.vm) && told.vms[&hung.vm].snapshots.len() == 1;
    within(NAMED, "the operation is settled", &mut told, is_back).await;
    assert_eq!(told.vms[&hung.vm].snapshots[0].id, snapshot);
    let begun = Instant::now();
    while agent.run(hung.vm, Request::Create(create(&id()))).await.is_err() {
        assert!(begun.elapsed() < NAMED, "the VM is free again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(told);
    agent.stop().await;
}

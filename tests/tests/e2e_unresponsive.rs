//! Storage that does not respond, on a whole cluster: its VM is named, with the path, in GetVm, in refusals and by the doctor; every
//! other VM works, and nothing that the catalogue knew of is lost.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use proto::v1;
use tests::guest::Guest;
use tests::hung::{FileServer, HungFiles};
use tests::lab::{HOST, Lab};
use tests::tools::binary;
use tonic::Code;

/// Within what a host is served again whose agent was started anew, and a VM is named or back.
const SOON: Duration = Duration::from_secs(30);
/// Within what others are served meanwhile.
const AT_ONCE: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(50);
const REASON: &str = "STORAGE_UNRESPONSIVE";

/// Waits until the VM is told so.
async fn told(lab: &Lab, guest: &Guest, what: &str, is_so: impl Fn(&v1::Vm) -> bool) -> v1::Vm {
    let begun = Instant::now();
    loop {
        let vm = lab.client.vm(&guest.vm()).await.unwrap();
        if is_so(&vm) {
            return vm;
        }
        assert!(begun.elapsed() < SOON, "{what}: {vm:#?}");
        tokio::time::sleep(AGAIN).await;
    }
}

fn is_named(vm: &v1::Vm, path: &Path) -> bool {
    let path = path.display().to_string();
    let says = |one: &v1::Capability| !one.available && one.reason == REASON && one.message.contains(&path);
    vm.host_reachable && !vm.capabilities.is_empty() && vm.capabilities.iter().all(says)
}

fn is_available(vm: &v1::Vm) -> bool {
    vm.host_reachable && vm.capabilities.iter().any(|one| one.available)
}

fn start_agent_again(lab: &mut Lab) {
    let host = lab.cluster.host_mut(HOST).unwrap();
    host.agent().kill().unwrap();
    host.start_agent_again().unwrap();
}

/// What an administrator reads on the host.
fn doctor(lab: &Lab) -> String {
    let mut command = Command::new(binary("snapshot-agent").unwrap());
    let output = command.arg("doctor").arg("--config").arg(lab.cluster.agent_config(HOST)).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn metrics(lab: &Lab) -> String {
    let port = lab.cluster.host(HOST).unwrap().metrics_port();
    let url = format!("http://127.0.0.1:{port}/metrics");
    let output = Command::new("curl").args(["-s", "--max-time", "10", &url]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_hangs_makes_its_own_vm_unavailable_and_says_so() {
    let mut lab = Lab::start().unwrap();
    let (hung, other) = (lab.guest("hung").await.unwrap(), lab.guest("other").await.unwrap());
    hung.write('A').unwrap();
    let before = lab.take(&hung, "before").await.unwrap();
    hung.write('B').unwrap();
    let image = hung.disks()[0].path().to_owned();
    let files = HungFiles::new([&image]).unwrap();
    start_agent_again(&mut lab);
    told(&lab, &hung, "the VM that hangs is named", |vm| is_named(vm, &image)).await;

    // Everything that was known of it is there; nothing can be done to it, for the reason that GetVm gives.
    assert_eq!(lab.client.snapshots(&hung.vm()).await.unwrap(), std::slice::from_ref(&before));
    let begun = Instant::now();
    let operations = [
        lab.client.create(&hung.vm(), "while it hangs", "").await,
        lab.client.revert(&before.name).await,
        lab.client.delete(&before.name, v1::DeleteScope::Only).await,
    ];
    for refused in operations {
        let refusal = refused.unwrap_err();
        assert_eq!((refusal.code, refusal.reason.as_str()), (Code::Unavailable, REASON), "{refusal}");
        assert!(refusal.message.contains(&image.display().to_string()), "{refusal}");
    }
    // The other VM works.
    other.write('C').unwrap();
    let snapshot = lab.take(&other, "meanwhile").await.unwrap();
    other.write('D').unwrap();
    lab.return_to(&snapshot).await.unwrap();
    assert_eq!(other.report().unwrap().disk, 'C');
    assert!(begun.elapsed() < AT_ONCE * 2, "{:?}", begun.elapsed());
    assert_eq!(hung.report().unwrap().disk, 'B', "the guest runs on");
    let seen = doctor(&lab);
    assert!(seen.contains("does not respond") && seen.contains(&image.display().to_string()), "{seen}");
    let counted = metrics(&lab);
    assert!(counted.contains("snapshot_agent_vms_unresponsive 1"), "{counted}");
    assert!(counted.contains("snapshot_agent_hung_threads"), "{counted}");

    drop(files);
    told(&lab, &hung, "the VM responds again", is_available).await;
    lab.return_to(&before).await.unwrap();
    assert_eq!(hung.report().unwrap().disk, 'A');
    lab.agreed_soon(&hung).await.unwrap();
    assert!(metrics(&lab).contains("snapshot_agent_vms_unresponsive 0"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_directory_that_hangs_does_not_keep_the_agent_from_starting() {
    let mut lab = Lab::start().unwrap();
    let guest = lab.guest("desk").await.unwrap();
    guest.write('A').unwrap();
    let point = lab.cluster.folder().join("mounted");
    std::fs::create_dir(&point).unwrap();
    let server = FileServer::mount(&point).unwrap();
    let config = lab.cluster.agent_config(HOST);
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace("image_dirs = [", &format!("image_dirs = [\"{}\", ", point.display()));
    std::fs::write(&config, text).unwrap();
    server.die();
    start_agent_again(&mut lab);
    told(&lab, &guest, "the host is served", is_available).await;
    let begun = Instant::now();
    let snapshot = lab.take(&guest, "meanwhile").await.unwrap();
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    let seen = doctor(&lab);
    assert!(seen.contains("does not respond") && seen.contains(&point.display().to_string()), "{seen}");

    // When the storage is back the agent ends, and whoever started it starts it again.
    server.come_back();
    let agent = lab.cluster.host_mut(HOST).unwrap().agent();
    let begun = Instant::now();
    while agent.is_running() {
        assert!(begun.elapsed() < SOON, "it ends, to be started again");
        tokio::time::sleep(AGAIN).await;
    }
    assert!(agent.tail().contains("responds again"), "{}", agent.tail());
    lab.cluster.host_mut(HOST).unwrap().start_agent_again().unwrap();
    told(&lab, &guest, "the host is served", is_available).await;
    guest.write('B').unwrap();
    lab.return_to(&snapshot).await.unwrap();
    assert_eq!(guest.report().unwrap().disk, 'A');
    assert!(!doctor(&lab).contains("does not respond"));
}

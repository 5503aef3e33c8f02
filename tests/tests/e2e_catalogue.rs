//! The catalogue lost, copied, put back, damaged, and out of room.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use proto::v1;
use rustix::process::{Pid, Signal, kill_process};
use tests::client::{Client, Grpc, HOSTS, OPERATIONS, Refusal, VmWatch};
use tests::cluster::{ALL_ACTIONS, Cluster};
use tests::guest::Guest;
use tests::lab::{HOST, Lab, key};
use tests::processes::{Launch, Process};
use tests::tools::{binary, run};
use tonic::Code;

/// How long what was held up may take to come right.
const SOON: Duration = Duration::from_secs(60);
const RETRY: &str = "google.rpc.RetryInfo";

async fn operations(client: &Client) -> Vec<v1::Operation> {
    let request = v1::ListOperationsRequest::default();
    let answer: v1::ListOperationsResponse = client.call((OPERATIONS, "ListOperations"), &request).await.unwrap();
    answer.operations
}

/// A snapshot without what is made anew with a catalogue: the etag.
fn lasting(list: &[v1::Snapshot]) -> Vec<v1::Snapshot> {
    list.iter().map(|one| v1::Snapshot { etag: String::new(), ..one.clone() }).collect()
}

fn remove(catalogue: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let path = PathBuf::from(format!("{}{suffix}", catalogue.display()));
        if path.exists() {
            std::fs::remove_file(path).unwrap();
        }
    }
}

fn backup(cluster: &Cluster, to: &Path, more: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(binary("snapshot-api").unwrap());
    run(command.arg("backup").arg("--config").arg(cluster.api_config()).arg("--to").arg(to).args(more))
}

/// A tree with a fork, in every word that a user can choose, one of them protected.
async fn tree(lab: &Lab, guest: &Guest) -> Vec<v1::Snapshot> {
    guest.write('A').unwrap();
    let teacher = Client::grpc(
        &lab.cluster,
        lab.cluster.identity().token("teacher", &guest.uuid().to_string(), &ALL_ACTIONS).unwrap(),
    )
    .unwrap();
    let snapshot = v1::Snapshot {
        display_name: "before <exam> & \"after\" 🎓".to_owned(),
        description: "two\u{20}\u{20}spaces, ümläut, and ]]>".to_owned(),
        protected: true,
        ..Default::default()
    };
    let request = v1::CreateSnapshotRequest {
        parent: guest.vm(),
        snapshot: Some(snapshot),
        request_id: key(),
        ..Default::default()
    };
    let first = teacher.done(teacher.create_as(request).await).await.unwrap().snapshot;
    guest.write('B').unwrap();
    lab.take(guest, "second").await.unwrap();
    let first = lab.client.snapshot(&first).await.unwrap();
    lab.return_to(&first).await.unwrap();
    guest.write('C').unwrap();
    lab.take(guest, "fork").await.unwrap();
    let list = lab.agreed(guest).await.unwrap();
    assert_eq!(list.len(), 3);
    assert!(
        list[0].protected && list[0].actor == "ravada/teacher" && list[2].parent_snapshot == first.name,
        "{list:?}"
    );
    list
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catalogue_that_is_lost_is_filled_from_the_hosts() {
    let mut lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    let before = tree(&lab, &guest).await;
    let machine = lab.client.vm(&guest.vm()).await.unwrap();
    assert!(lab.cluster.api().stop().unwrap().success());
    remove(&lab.cluster.catalogue());
    lab.cluster.start_api_again().unwrap();
    lab.client.vm_in_state(&guest.vm(), v1::VmState::Running).await.unwrap();

    let after = lab.agreed(&guest).await.unwrap();
    assert_eq!(lasting(&after), lasting(&before), "names, words, protection, who asked, parents, times, and the order");
    assert_eq!(lab.client.vm(&guest.vm()).await.unwrap().current_snapshot, machine.current_snapshot);
    assert_eq!(operations(&lab.client).await, [], "what was done before is history, and gone");
    // What was read from the lost catalogue says nothing about this one.
    for (old, new) in before.iter().zip(&after) {
        assert_ne!(old.etag, new.etag);
    }
    let request = v1::DeleteSnapshotRequest {
        name: before[1].name.clone(),
        etag: before[1].etag.clone(),
        request_id: key(),
        ..Default::default()
    };
    assert_eq!(lab.client.delete_as(request).await.unwrap_err().reason, "ETAG_MISMATCH");
    // Asked to read the host again, nothing is found to be wrong.
    let request = v1::ReconcileHostRequest { name: format!("hosts/{HOST}") };
    let answer: v1::ReconcileHostResponse = lab.client.call((HOSTS, "ReconcileHost"), &request).await.unwrap();
    assert_eq!(answer.corrected_count, 0);
    assert_eq!(lab.agreed(&guest).await.unwrap(), after);

    lab.return_to(&after[1]).await.unwrap();
    assert_eq!(guest.report().unwrap().disk, 'B');
    let refused = lab.client.delete(&after[0].name, v1::DeleteScope::Only).await.unwrap_err();
    assert_eq!(refused.reason, "SNAPSHOT_PROTECTED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_put_back_and_the_hosts_say_what_came_after_it() {
    let mut lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    guest.write('A').unwrap();
    let kept = lab.take(&guest, "kept").await.unwrap();
    let known = operations(&lab.client).await;
    let copy = lab.cluster.folder().join("copy.db");
    // While the service runs and writes.
    let begun = lab.client.create(&guest.vm(), "at the same time", "").await.unwrap();
    backup(&lab.cluster, &copy, &[]).unwrap();
    lab.client.ended(begun).await.unwrap();
    let refused = backup(&lab.cluster, &copy, &[]).unwrap_err().to_string();
    assert!(refused.contains("exists") && refused.contains("--force"), "{refused}");
    backup(&lab.cluster, &copy, &["--force"]).unwrap();
    let list = lab.agreed(&guest).await.unwrap();
    lab.remove(&kept, v1::DeleteScope::Only).await.unwrap();
    let late = lab.take(&guest, "late").await.unwrap();

    lab.cluster.api().kill().unwrap();
    let catalogue = lab.cluster.catalogue();
    remove(&catalogue);
    std::fs::copy(&copy, &catalogue).unwrap();
    lab.cluster.start_api_again().unwrap();
    lab.client.vm_in_state(&guest.vm(), v1::VmState::Running).await.unwrap();
    let after = lab.agreed(&guest).await.unwrap();
    assert_eq!(after.iter().map(|one| &one.name).collect::<Vec<_>>(), [&list[1].name, &late.name]);
    let remembered = operations(&lab.client).await;
    assert!(known.iter().all(|operation| remembered.contains(operation)), "{remembered:?}");
}

/// A second process on the same file, by the same configuration or by one that has other ports.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_api_on_the_same_catalogue_ends_and_says_whose_it_is() {
    let mut cluster = Cluster::with_daemons(&[]).unwrap();
    let (program, catalogue) = (binary("snapshot-api").unwrap(), cluster.catalogue().display().to_string());
    let other = cluster.folder().join("other.toml");
    let text = std::fs::read_to_string(cluster.api_config()).unwrap();
    let port = |port: u16| format!("127.0.0.1:{port}\"");
    let ports = cluster.ports();
    let text = [ports.internal, ports.public, ports.api_metrics]
        .iter()
        .fold(text, |text, it| text.replace(&port(*it), &port(0)));
    std::fs::write(&other, text).unwrap();
    for round in 0..2 {
        let holder = cluster.api().id().unwrap();
        for config in [&cluster.api_config(), &other] {
            let mut second = Command::new("timeout");
            let refused =
                run(second.arg("60").arg(&program).args(["serve", "--config"]).arg(config)).unwrap_err().to_string();
            for word in [catalogue.clone(), format!("process {holder} on ")] {
                assert!(refused.contains(&word), "{word}: {refused}");
            }
        }
        backup(&cluster, &cluster.folder().join(format!("copy-{round}.db")), &[]).unwrap();
        run(Command::new(&program).args(["audit", "verify", "--config"]).arg(cluster.api_config())).unwrap();
        assert!(cluster.api().is_running());
        // Killed, it leaves nothing that holds the next one up.
        cluster.api().kill().unwrap();
        cluster.start_api_again().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_catalogue_is_told_of_and_left_alone() {
    let mut lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    lab.take(&guest, "kept").await.unwrap();
    assert!(lab.cluster.api().stop().unwrap().success());
    let catalogue = lab.cluster.catalogue();
    let length = std::fs::metadata(&catalogue).unwrap().len();
    OpenOptions::new().write(true).open(&catalogue).unwrap().set_len(length / 2).unwrap();
    let broken = std::fs::read(&catalogue).unwrap();
    let mut command = Command::new("timeout");
    let program = binary("snapshot-api").unwrap();
    command.arg("60").arg(program).arg("serve").arg("--config").arg(lab.cluster.api_config());
    let refused = run(&mut command).unwrap_err().to_string();
    for word in ["cannot be used", "backup", "filled from the hosts", &catalogue.display().to_string()] {
        assert!(refused.contains(word), "{refused}");
    }
    assert!(std::fs::read(&catalogue).unwrap() == broken);
    remove(&catalogue);
    lab.cluster.start_api_again().unwrap();
    lab.client.vm_in_state(&guest.vm(), v1::VmState::Running).await.unwrap();
    assert_eq!(lab.agreed(&guest).await.unwrap().len(), 1);
}

/// A file that takes all the room there is.
fn fill(folder: &Path) -> PathBuf {
    let path = folder.join("filler");
    let mut file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
    for size in [1 << 16, 1 << 12, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    path
}

fn unavailable(refusal: &Refusal) {
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::Unavailable, "CATALOGUE_UNAVAILABLE"), "{refusal}");
    assert!(refusal.details.contains(&RETRY.to_owned()), "{refusal}");
}

/// What those who are to send no calls to a service that cannot work are told: by the gateway's readiness, and of each service.
fn told(cluster: &Cluster) -> Vec<String> {
    let (gateway, name) =
        (format!("http://127.0.0.1:{}", cluster.ports().gateway), "ravada.snapshot.v1.SnapshotService");
    let ask = |words: &[&str]| {
        let text = run(Command::new("curl")
            .args(["-s", "--max-time", "20", "-H", "content-type: application/json"])
            .args(words));
        text.unwrap_or_else(|error| error.to_string()).trim().to_owned()
    };
    let health = format!("{gateway}/grpc.health.v1.Health/Check");
    let service = format!("{{\"service\":\"{name}\"}}");
    vec![ask(&[&format!("{gateway}/readyz")]), ask(&["-d", "{}", &health]), ask(&["-d", &service, &health])]
}

async fn until_told(cluster: &Cluster, wanted: [&str; 3]) {
    let begun = Instant::now();
    while told(cluster) != wanted {
        assert!(begun.elapsed() < SOON, "{:?}", told(cluster));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

const WELL: [&str; 3] = ["ready", r#"{"status":"SERVING"}"#, r#"{"status":"SERVING"}"#];
const UNWELL: [&str; 3] = ["the API does not serve", r#"{"status":"NOT_SERVING"}"#, r#"{"status":"NOT_SERVING"}"#];

/// On a file system of a few megabytes, which only the API sees. No `Lab`: that takes an error in a log for a fault.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_changes_and_nothing_else_and_room_heals_it() {
    let mut cluster = Cluster::with_daemons(&[HOST]).unwrap();
    let folder = cluster.catalogue().parent().unwrap().to_owned();
    let mount = "mount -t tmpfs -o size=3m none \"$0\" && exec \"$@\"";
    cluster.api().stop().unwrap();
    let folder_text = folder.display().to_string();
    cluster.api().start_through("unshare", &["-m", "--propagation", "private", "sh", "-c", mount, &folder_text]);
    cluster.start_api_again().unwrap();
    let client = Client::admin(&cluster).unwrap();
    let inside = PathBuf::from(format!("/proc/{}/root{folder_text}", cluster.api().id().unwrap()));
    let daemon = cluster.host(HOST).unwrap().libvirtd().unwrap();
    let (guest, other) = (
        Guest::new(&daemon.images().unwrap(), "student").unwrap(),
        Guest::new(&daemon.images().unwrap(), "other").unwrap(),
    );
    for guest in [&guest, &other] {
        daemon.define_and_start(guest).unwrap();
        client.vm_in_state(&guest.vm(), v1::VmState::Running).await.unwrap();
    }
    let kept = client.done(client.create(&guest.vm(), "kept", "").await).await.unwrap().snapshot;
    let token = cluster.identity().admin_token().unwrap();
    let mut watch =
        VmWatch::open(&Grpc::plain(cluster.ports().gateway).unwrap(), &token, &guest.vm(), "").await.unwrap();
    watch.until("the whole state", |event| matches!(event, v1::watch_vm_response::Event::Synced(_))).await.unwrap();

    until_told(&cluster, WELL).await;
    // One is under way when the room runs out, and ends while there is none.
    let qemu = Pid::from_raw(daemon.qemu_pid(&other).unwrap()).unwrap();
    kill_process(qemu, Signal::STOP).unwrap();
    let running = client.create(&other.vm(), "under way", "").await.unwrap();
    let filler = fill(&inside);
    kill_process(qemu, Signal::CONT).unwrap();
    let begun = Instant::now();
    while daemon.snapshots(&other).unwrap().is_empty() {
        assert!(begun.elapsed() < SOON, "the host goes on without the catalogue");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    for _ in 0..5 {
        unavailable(&client.create(&guest.vm(), "no room", "").await.unwrap_err());
        unavailable(&client.delete(&kept, v1::DeleteScope::Only).await.unwrap_err());
        assert_eq!(client.snapshots(&guest.vm()).await.unwrap().len(), 1);
        assert_eq!(client.operation(&running.name).await.unwrap().state(), v1::OperationState::Running);
        assert!(client.vm(&guest.vm()).await.unwrap().host_reachable, "the host can be reached all the same");
    }
    until_told(&cluster, UNWELL).await;
    assert_eq!(daemon.snapshots(&guest).unwrap().len(), 1, "nothing that was refused has reached the host");
    assert_eq!(operations(&client).await.len(), 2, "and nothing of it was written down");

    std::fs::remove_file(filler).unwrap();
    until_told(&cluster, WELL).await;
    let ended = client.ended(running).await.unwrap();
    assert_eq!(ended.state(), v1::OperationState::Succeeded, "{ended:?}");
    let begun = Instant::now();
    let taken = loop {
        match client.create(&guest.vm(), "room", "").await {
            Err(refusal) if begun.elapsed() < SOON => unavailable(&refusal),
            other => break client.done(other).await.unwrap().snapshot,
        }
    };
    let told = |event: &v1::watch_vm_response::Event| {
        matches!(event, v1::watch_vm_response::Event::Snapshot(one)
            if one.name == taken && one.state() == v1::SnapshotState::Ready)
    };
    watch.until("what was taken since", told).await.unwrap();
    assert_eq!(client.snapshots(&other.vm()).await.unwrap().len(), 1);
    assert!(cluster.api().is_running());
}

/// The file system outlives the API here: a process of its own keeps it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_that_is_started_on_a_full_disk_reads_and_refuses_until_there_is_room() {
    let mut cluster = Cluster::with_daemons(&[HOST]).unwrap();
    let folder = cluster.catalogue().parent().unwrap().to_owned();
    cluster.api().stop().unwrap();
    let folder_text = folder.display().to_string();
    let mount = "mount -t tmpfs -o size=3m none \"$0\" && touch \"$0/ready\" && exec tail -f \"$0/ready\"";
    let mut keeper = Process::start(Launch {
        name: "keeper".to_owned(),
        program: "unshare".into(),
        arguments: ["-m", "--propagation", "private", "sh", "-c", mount, &folder_text].map(str::to_owned).to_vec(),
        environment: Vec::new(),
        log: cluster.folder().join("keeper.log"),
    })
    .unwrap();
    let pid = keeper.id().unwrap().to_string();
    let inside = PathBuf::from(format!("/proc/{pid}/root{folder_text}"));
    keeper.wait_ready(SOON, || inside.join("ready").exists()).unwrap();
    cluster.api().start_through("nsenter", &["-t", &pid, "-m"]);
    cluster.start_api_again().unwrap();
    let client = Client::admin(&cluster).unwrap();
    let daemon = cluster.host(HOST).unwrap().libvirtd().unwrap();
    let guest = Guest::new(&daemon.images().unwrap(), "student").unwrap();
    daemon.define_and_start(&guest).unwrap();
    client.vm_in_state(&guest.vm(), v1::VmState::Running).await.unwrap();
    let kept = client.done(client.create(&guest.vm(), "kept", "").await).await.unwrap().snapshot;

    for how in ["killed", "stopped"] {
        let filler = fill(&inside);
        match how {
            "killed" => cluster.api().kill().unwrap(),
            _ => drop(cluster.api().stop().unwrap()),
        }
        // What it wrote at its end may have made room.
        fill(&inside);
        cluster.start_api_again().unwrap();
        assert_eq!(client.snapshot(&kept).await.unwrap().name, kept, "{how}");
        // The host is there; what it tells cannot be written down, and a change would be planned by what is not known.
        let begun = Instant::now();
        while !client.hosts().await.unwrap()[0].unreachable_reason.contains("catalogue") {
            assert!(begun.elapsed() < SOON, "{how}: it does not say what is wrong");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for _ in 0..3 {
            assert_eq!(client.snapshots(&guest.vm()).await.unwrap().len(), 1, "{how}");
            let refused = client.create(&guest.vm(), "no room", "").await.unwrap_err();
            assert_eq!((refused.code, refused.reason.as_str()), (Code::Unavailable, "HOST_UNREACHABLE"), "{refused}");
            assert!(refused.message.contains("catalogue") && refused.details.contains(&RETRY.to_owned()), "{refused}");
        }
        std::fs::remove_file(filler).unwrap();
        let begun = Instant::now();
        let taken = loop {
            match client.create(&guest.vm(), "room", "").await {
                Err(refusal) if begun.elapsed() < SOON => {
                    assert_eq!(refusal.code, Code::Unavailable, "{how}: {refusal}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                other => break client.done(other).await.unwrap().snapshot,
            }
        };
        client.done(client.delete(&taken, v1::DeleteScope::Only).await).await.unwrap();
        assert_eq!(daemon_snapshots(&cluster, &guest), 1, "{how}");
    }
}

fn daemon_snapshots(cluster: &Cluster, guest: &Guest) -> usize {
    cluster.host(HOST).unwrap().libvirtd().unwrap().snapshots(guest).unwrap().len()
}

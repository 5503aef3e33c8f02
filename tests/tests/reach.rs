//! What an agent can touch: all that it needs, and nothing else.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::symlink;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use proto::v1;
use tests::client::Refusal;
use tests::guest::{Disk, Format, Guest};
use tests::lab::{HOST, Lab, Power, key};
use tests::{images, ports, scratch::Scratch, tools};
use tonic::Code;

/// Of each thing that was tried, how that went.
fn tried(mode: &str) -> BTreeMap<String, String> {
    let scratch = Scratch::new().unwrap();
    let at = |name: &str| scratch.path().join(name);
    for folder in ["images", "bases", "outside", "pki", "state"] {
        fs::create_dir(at(folder)).unwrap();
    }
    for file in ["bases/base", "outside/secret", "pki/file"] {
        fs::write(at(file), "x").unwrap();
    }
    fs::copy("/bin/true", at("images/program")).unwrap();
    let (port, own) = (TcpListener::bind("127.0.0.1:0").unwrap(), ports::free().unwrap());
    let number = port.local_addr().unwrap().port();
    let name = SocketAddr::from_abstract_name(number.to_string()).unwrap();
    let _abstracted = UnixListener::bind_addr(&name).unwrap();
    let root = scratch.path().display();
    let config = format!(
        r#"host = "alpha"
listen = "127.0.0.1:{own}"
image_dirs = ["{root}/images"]
read_dirs = ["{root}/bases"]
state_dir = "{root}/state"
peers = ["spiffe://example.test/snapshot-api"]
[tls]
ca = "{root}/pki/file"
certificate = "{root}/pki/file"
key = "{root}/pki/file"
[[issuers]]
issuer = "ravada"
jwks = "{root}/pki/file"
actions = ["create"]
"#
    );
    fs::write(at("agent.toml"), config).unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "--uts", "--propagation", "private"])
        .arg(tools::binary("trespass").unwrap())
        .args([at("agent.toml").as_os_str(), mode.as_ref(), scratch.path().as_os_str(), number.to_string().as_ref()])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}{stderr}");
    stdout
        .lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(what, how)| (what.to_owned(), how.to_owned()))
        .collect()
}

#[test]
fn what_is_not_on_the_list_is_refused_and_what_is_works() {
    let (open, narrowed) = (tried("open"), tried("narrowed"));
    assert!(open.keys().eq(narrowed.keys()));
    assert!(open.keys().filter(|what| what.starts_with("may not")).count() >= 40, "{open:#?}");
    for (what, how) in &open {
        // Where root itself cannot do it, its refusal to others would tell nothing; this kernel may have no modules, say.
        assert!(
            how == "done" || how.contains("os error 38"),
            "without narrowing, root may do all of it: {what}: {how}"
        );
    }
    for (what, how) in &narrowed {
        let is_refused = ["(os error 1)", "(os error 13)", "(os error 18)", "(os error 38)"]
            .iter()
            .any(|error| how.ends_with(error));
        match what.starts_with("may not") {
            true => assert!(is_refused, "{what}: {how}"),
            false => assert_eq!(how, "done", "{what}"),
        }
    }
}

/// The lines of `/proc/PID/task/TID/status` that tell what a thread may.
fn rights(status: &str) -> BTreeMap<&str, &str> {
    let fields = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"];
    let lines = status.lines().filter_map(|line| line.split_once(":\t"));
    lines.filter(|(name, _)| fields.contains(name)).collect()
}

/// Each thread of the agent by its name, and all of them narrowed.
fn narrowed_threads(pid: u32) -> Vec<String> {
    // CAP_DAC_OVERRIDE (1) and CAP_LEASE (28).
    let kept = format!("{:016x}", (1_u64 << 1) | (1 << 28));
    let (none, kept) = ("0000000000000000", kept.as_str());
    let expected = BTreeMap::from([
        ("CapInh", none),
        ("CapPrm", kept),
        ("CapEff", kept),
        ("CapBnd", kept),
        ("CapAmb", none),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ]);
    let mut names = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        // It may have ended since.
        let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
        assert_eq!(rights(&status), expected, "{status}");
        names.extend(fs::read_to_string(task.path().join("comm")).map(|name| name.trim().to_owned()));
    }
    names
}

/// Snapshots inside images and beside them, merges by QEMU and by qemu-img: the whole of what an agent does, by a real one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_does_its_work_with_two_capabilities_in_every_thread() {
    let mut lab = Lab::with_policy("stable_paths = false\nprefer_short_pauses = true").unwrap();
    let guest = lab.guest("student").await.unwrap();
    let pid = lab.cluster.host_mut(HOST).unwrap().agent().id().unwrap();
    guest.write('A').unwrap();
    let first = lab.take(&guest, "first").await.unwrap();
    guest.write('B').unwrap();
    let second = lab.take(&guest, "second").await.unwrap();
    guest.write('C').unwrap();
    lab.return_to(&second).await.unwrap();
    assert_eq!(guest.report().unwrap().disk, 'B');
    let names = narrowed_threads(pid);
    assert!(names.iter().any(|name| name == "libvirt-events") && names.len() > 3, "{names:?}");

    lab.set(&guest, Power::Off).await.unwrap();
    let image = guest.disks()[0].path();
    assert!(!images::read(image, "qcow2", 0, 512).unwrap().is_empty());
    // What lies between is merged by qemu-img, because no QEMU has it open.
    lab.remove(&first, v1::DeleteScope::Only).await.unwrap();
    lab.return_to(&second).await.unwrap();
    lab.set(&guest, Power::Running).await.unwrap();
    assert_eq!(guest.report().unwrap().disk, 'B');
    let left = lab.client.snapshots(&guest.vm()).await.unwrap();
    assert_eq!(left.iter().map(|one| &one.name).collect::<Vec<_>>(), [&second.name]);
    let merged = fs::read_dir(lab.images().unwrap()).unwrap().flatten().map(|entry| entry.path());
    let first = tests::lab::id(&first.name);
    assert_eq!(merged.filter(|path| path.display().to_string().contains(first)).count(), 0, "its overlay is merged");
    narrowed_threads(pid);
    let log = fs::read_to_string(lab.cluster.host_mut(HOST).unwrap().agent().log()).unwrap();
    assert!(log.contains("reach is narrowed to what it needs"), "{log}");
    let metrics = format!("http://127.0.0.1:{}/metrics", lab.cluster.host(HOST).unwrap().metrics_port());
    let told = tools::run(Command::new("curl").args(["-sf", &metrics])).unwrap();
    assert!(told.lines().any(|line| line == "snapshot_agent_reach_narrowed 1"), "{told}");
}

fn out_of_reach(result: Result<v1::Operation, Refusal>, path: &Path, key: &str) {
    let refusal = result.unwrap_err();
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::FailedPrecondition, "IMAGE_OUT_OF_REACH"), "{refusal}");
    assert_eq!(refusal.metadata["path"], path.display().to_string());
    assert_eq!(refusal.metadata["folder"], path.parent().unwrap().display().to_string());
    assert_eq!(refusal.metadata["key"], key);
}

async fn create(lab: &Lab, guest: &Guest) -> Result<v1::Operation, Refusal> {
    let snapshot = Some(v1::Snapshot { display_name: "x".to_owned(), ..Default::default() });
    let request = v1::CreateSnapshotRequest { parent: guest.vm(), snapshot, request_id: key(), ..Default::default() };
    lab.client.create_as(request).await
}

/// Who may define machines, or upload images, may name any file as a disk, as a link to one, or as what an image lies on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_elsewhere_is_refused_by_a_word_that_says_what_to_do() {
    let lab = Lab::start().unwrap();
    let (folder, daemon) = (lab.images().unwrap(), lab.daemon().unwrap());
    let elsewhere = daemon.folder().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let away = Disk::boot(&elsewhere.join("away.qcow2"), Format::Qcow2).unwrap();
    let digest = images::sha256(away.path()).unwrap();

    let plain = Guest::with_disks(&folder, "plain", vec![away.clone()]).unwrap();
    let clone = Guest::clone_of(&folder, "clone", &away).unwrap();
    let linked = Guest::new(&folder, "linked").unwrap();
    fs::remove_file(linked.disks()[0].path()).unwrap();
    symlink(away.path(), linked.disks()[0].path()).unwrap();
    for (guest, key) in [(&plain, "image_dirs"), (&clone, "read_dirs"), (&linked, "image_dirs")] {
        daemon.define(guest).unwrap();
        // It is listed like any other.
        lab.client.vm_in_state(&guest.vm(), v1::VmState::Shutoff).await.unwrap();
        out_of_reach(create(&lab, guest).await, away.path(), key);
        assert_eq!(daemon.snapshots(guest).unwrap(), [""; 0]);
    }
    assert_eq!(images::sha256(away.path()).unwrap(), digest, "nobody wrote it");
    // Another one goes on as if nothing were.
    let guest = lab.guest("student").await.unwrap();
    lab.take(&guest, "first").await.unwrap();
    lab.agreed(&guest).await.unwrap();
}

/// Who may define machines may write what is told of their snapshots, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshots_record_that_names_somebody_elses_file_removes_nothing() {
    let lab = Lab::with_policy("stable_paths = false\nprefer_short_pauses = true").unwrap();
    let guest = lab.guest("student").await.unwrap();
    lab.set(&guest, Power::Off).await.unwrap();
    let snapshot = lab.take(&guest, "first").await.unwrap();
    let (daemon, id) = (lab.daemon().unwrap(), tests::lab::id(&snapshot.name).to_owned());
    let victim = daemon.folder().join(format!("student.{id}"));
    fs::write(&victim, "somebody else's").unwrap();
    let xml = daemon.virsh(&["snapshot-dumpxml", guest.name(), &id]).unwrap();
    let entries = fs::read_dir(lab.images().unwrap()).unwrap().flatten().map(|entry| entry.path());
    let overlay = entries.into_iter().find(|path| path.display().to_string().contains(&id)).unwrap();
    let told = xml.replacen(&overlay.display().to_string(), &victim.display().to_string(), 1);
    assert_ne!(told, xml);
    let file = daemon.folder().join("told.xml");
    fs::write(&file, told).unwrap();
    daemon.virsh(&["snapshot-create", guest.name(), &file.display().to_string(), "--redefine", "--current"]).unwrap();
    // It may be asked before the agent has read that; whichever comes first, the file stays.
    let deleted = lab.client.delete(&snapshot.name, v1::DeleteScope::Only).await;
    if let Err(refusal) = &deleted {
        assert_eq!(refusal.reason, "IMAGE_OUT_OF_REACH", "{refusal}");
    }
    if let Ok(operation) = deleted {
        lab.client.ended(operation).await.unwrap();
    }
    assert_eq!(fs::read_to_string(&victim).unwrap(), "somebody else's");
}

/// Certificates are renewed by renaming new ones over the old; they are in the list by their folder.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_is_replaced_is_read() {
    let mut lab = Lab::start().unwrap();
    let identity = lab.cluster.identity();
    let (old, new) = (identity.agent(HOST), identity.issue("renewed", &format!("agent/{HOST}")).unwrap());
    fs::rename(&new.certificate, &old.certificate).unwrap();
    fs::rename(&new.key, &old.key).unwrap();
    let log = lab.cluster.host_mut(HOST).unwrap().agent().log().to_owned();
    let begun = Instant::now();
    while !fs::read_to_string(&log).unwrap().contains("certificates reloaded") {
        assert!(begun.elapsed() < Duration::from_secs(60), "{}", fs::read_to_string(&log).unwrap());
        // It looks when it is called anew.
        lab.cluster.api().kill().unwrap();
        lab.cluster.start_api_again().unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let guest = lab.guest("student").await.unwrap();
    lab.take(&guest, "first").await.unwrap();
}

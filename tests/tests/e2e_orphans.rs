//! Orphans from end to end: every face lists them alike and to administrators alone, snapctl shows what one holds and asks, JSON deletes
//! one, and the audit trail tells what was deleted.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use proto::v1;
use proto::v1::AuditOutcome as Told;
use tests::client::{Client, Curl, HOSTS, Refusal, faces};
use tests::guest::{Disk, Format, Guest};
use tests::lab::{HOST, Lab, Power, id};
use tests::tools::binary;
use tonic::Code;

const SOON: Duration = Duration::from_secs(60);

async fn list(client: &Client, parent: &str) -> Result<v1::ListOrphansResponse, Refusal> {
    let request = v1::ListOrphansRequest { parent: parent.to_owned(), ..Default::default() };
    client.call((HOSTS, "ListOrphans"), &request).await
}

async fn delete(client: &Client, orphan: &v1::Orphan, validate_only: bool) -> Result<v1::Orphan, Refusal> {
    let (name, etag) = (orphan.name.clone(), orphan.etag.clone());
    client.call((HOSTS, "DeleteOrphan"), &v1::DeleteOrphanRequest { name, etag, validate_only }).await
}

/// The orphans by their paths, once there are so many.
async fn listed(lab: &Lab, count: usize) -> Vec<v1::Orphan> {
    let begun = Instant::now();
    loop {
        let mut all = list(&lab.client, "hosts/-").await.unwrap().orphans;
        if all.len() == count {
            all.sort_by(|one, other| one.path.cmp(&other.path));
            return all;
        }
        assert!(begun.elapsed() < SOON, "{all:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A guest of three disks, off, of which two were detached after an external snapshot.
async fn detached(lab: &Lab) -> Guest {
    let images = lab.images().unwrap();
    let at = |name: &str| images.join(name);
    let mut disks = vec![Disk::boot(&at("student.qcow2"), Format::Qcow2).unwrap()];
    disks.extend(["second.qcow2", "third.qcow2"].map(|name| Disk::empty(&at(name), Format::Qcow2).unwrap()));
    let guest = Guest::with_disks(&images, "student", disks).unwrap();
    lab.run(&guest).await.unwrap();
    lab.set(&guest, Power::Off).await.unwrap();
    lab.take_external(&guest, "before exam").await.unwrap();
    assert!(list(&lab.client, "hosts/-").await.unwrap().orphans.is_empty());
    assert_eq!(lab.client.vm(&guest.vm()).await.unwrap().orphans, None);
    for target in ["vdb", "vdc"] {
        lab.daemon().unwrap().virsh(&["detach-disk", guest.name(), target, "--config"]).unwrap();
    }
    guest
}

/// snapctl through the gateway, for an administrator.
fn snapctl(lab: &Lab, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("snapctl").unwrap());
    command.args(arguments).env_clear().env("HOME", lab.cluster.folder());
    command.env("SNAPCTL_ENDPOINT", format!("http://127.0.0.1:{}", lab.cluster.ports().gateway));
    command.env("SNAPCTL_TOKEN", lab.cluster.identity().admin_token().unwrap());
    command
}

fn said(command: &mut Command, input: &[u8]) -> (i32, String) {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It may not read it.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    (output.status.code().unwrap(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

/// The same at a terminal, which answers this.
fn at_a_terminal(lab: &Lab, arguments: &[&str], input: &[u8]) -> (i32, String) {
    let settings = snapctl(lab, arguments);
    let line = format!("{} {}", binary("snapctl").unwrap().display(), arguments.join(" "));
    let mut terminal = Command::new("script");
    terminal.args(["-qefc", &line, "/dev/null"]).env("TERM", "xterm");
    terminal.envs(settings.get_envs().filter_map(|(name, value)| Some((name, value?))));
    said(&mut terminal, input)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphans_are_listed_everywhere_and_deleted_by_whoever_was_shown_them() {
    let lab = Lab::with_policy("stable_paths = false\n").unwrap();
    let guest = detached(&lab).await;
    let all = listed(&lab, 2).await;
    let [second, third] = all.as_slice() else { unreachable!() };
    assert!(second.path.contains("/second.snap-") && third.path.contains("/third.snap-"), "{all:#?}");
    assert_eq!((second.vm.as_str(), second.vm_display_name.as_str()), (guest.vm().as_str(), "student"));
    assert!(second.deletable && second.vm_exists && second.snapshot_display_name == "before exam", "{second:#?}");

    // Every face tells the same; and nobody but an administrator is told anything.
    let identity = lab.cluster.identity();
    let student = identity.token("student", &guest.uuid().to_string(), &["read", "delete", "purge"]).unwrap();
    for face in faces(&lab.cluster).unwrap() {
        let client = Client::new(face, identity.admin_token().unwrap());
        let mut told = list(&client, &format!("hosts/{HOST}")).await.unwrap().orphans;
        told.sort_by(|one, other| one.path.cmp(&other.path));
        assert_eq!(told, all, "{}", client.face());
    }
    for face in faces(&lab.cluster).unwrap() {
        let client = Client::new(face, &*student);
        for refusal in [list(&client, "hosts/-").await.err(), delete(&client, second, false).await.err()] {
            let refusal = refusal.unwrap();
            assert_eq!((refusal.code, refusal.reason.as_str()), (Code::PermissionDenied, "ACTION_NOT_GRANTED"));
        }
    }
    // Who may read the VM is told how much it is.
    let own = Client::grpc(&lab.cluster, &*student).unwrap().vm(&guest.vm()).await.unwrap().orphans.unwrap();
    assert_eq!((own.count, own.allocation_bytes), (2, second.allocation_bytes + third.allocation_bytes));
    pages(&lab, &all).await;

    // snapctl shows what it is and asks.
    let (code, table) = said(&mut snapctl(&lab, &["orphans"]), b"");
    let head = table.lines().next().unwrap();
    assert!(code == 0 && head.starts_with("ID") && table.contains("2 orphans, "), "{table}");
    assert!(table.contains("a disk since “before exam”") && table.contains("yes"), "{table}");
    let short = &id(&second.name)[..8];
    let (code, text) = said(&mut snapctl(&lab, &["delete-orphan", short]), b"");
    assert!(code == 5 && text.contains(&second.path) && text.contains("--yes"), "{code}: {text}");
    let (code, text) = at_a_terminal(&lab, &["delete-orphan", short], b"n\n");
    assert!(code == 5 && text.contains(&second.path) && text.contains("cannot be restored. [y/N]"), "{code}: {text}");
    let (code, text) = said(&mut snapctl(&lab, &["delete-orphan", &second.name, "--dry-run"]), b"");
    assert!(code == 0 && text.contains(&second.path), "{text}");
    assert!(Path::new(&second.path).exists());
    let (code, text) = at_a_terminal(&lab, &["delete-orphan", short], b"y\n");
    assert!(code == 0 && text.contains(&format!("deleted {}", second.path)), "{code}: {text}");
    assert!(!Path::new(&second.path).exists() && Path::new(&third.path).exists());

    // JSON, with the etag of a listing before somebody wrote to it; then with its own.
    let json = Client::new(Box::new(Curl::new(lab.cluster.ports().gateway)), identity.admin_token().unwrap());
    let stale = v1::Orphan { etag: second.etag.clone(), ..third.clone() };
    assert_eq!(delete(&json, &stale, false).await.unwrap_err().reason, "ETAG_MISMATCH");
    assert_eq!(delete(&json, third, true).await.unwrap(), *third);
    assert!(Path::new(&third.path).exists());
    assert_eq!(delete(&json, third, false).await.unwrap(), *third);
    assert!(!Path::new(&third.path).exists());
    assert_eq!(delete(&json, third, false).await.unwrap_err().reason, "ORPHAN_NOT_FOUND");
    listed(&lab, 0).await;
    let begun = Instant::now();
    while lab.client.vm(&guest.vm()).await.unwrap().orphans.is_some() {
        assert!(begun.elapsed() < SOON, "it is told still");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    audited(&lab, &guest, &all).await;
    // The VM is as it was.
    lab.set(&guest, Power::Running).await.unwrap();
    guest.report().unwrap();
}

/// Page by page there are the same, each once.
async fn pages(lab: &Lab, all: &[v1::Orphan]) {
    let mut request = v1::ListOrphansRequest { parent: "hosts/-".to_owned(), page_size: 1, ..Default::default() };
    let mut told: Vec<v1::Orphan> = Vec::new();
    loop {
        let page: v1::ListOrphansResponse = lab.client.call((HOSTS, "ListOrphans"), &request).await.unwrap();
        assert!(page.orphans.len() <= 1 && told.len() <= 2, "{page:?}");
        told.extend(page.orphans);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    told.sort_by(|one, other| one.path.cmp(&other.path));
    assert_eq!(told, all);
    request.page_token = "0123456789abcdef.x".to_owned();
    let refusal = lab.client.call::<_, v1::ListOrphansResponse>((HOSTS, "ListOrphans"), &request).await.unwrap_err();
    assert_eq!(refusal.reason, "INVALID_PAGE_TOKEN");
    let unknown = list(&lab.client, "hosts/nowhere").await.unwrap_err();
    assert_eq!(unknown.reason, "HOST_NOT_FOUND");
}

/// What was deleted is in the trail, before and after; and so is what was refused.
async fn audited(lab: &Lab, guest: &Guest, all: &[v1::Orphan]) {
    let events = lab.client.audit().await.unwrap();
    let of = |outcome| events.iter().filter(move |it| it.method == "DeleteOrphan" && it.outcome() == outcome);
    for outcome in [Told::Accepted, Told::Succeeded] {
        let told: Vec<_> = of(outcome).collect();
        assert_eq!(told.len(), 2, "{events:#?}");
        for (event, orphan) in told.iter().zip(all) {
            assert_eq!((event.vm.as_str(), event.actor.as_str()), (guest.vm().as_str(), "ravada/root"));
            assert_eq!(event.snapshot, orphan.snapshot);
            let what = format!("orphan {}, {} bytes: {}", id(&orphan.name), orphan.allocation_bytes, orphan.path);
            assert!(what.starts_with(&*event.detail) && event.detail.len() > 60, "{event:?}");
        }
    }
    assert!(of(Told::Succeeded).all(|event| event.peer == format!("hosts/{HOST}")));
    let reasons: Vec<&str> = of(Told::Refused).map(|event| event.reason.as_str()).collect();
    assert!(reasons.contains(&"ETAG_MISMATCH") && reasons.contains(&"ACTION_NOT_GRANTED"), "{reasons:?}");
    assert_eq!(of(Told::Failed).count(), 0);
}

/// A host that is away is named, and the others are listed; asked for alone it is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_away_is_named() {
    let mut lab = Lab::with_hosts(&[HOST, "beta"]).unwrap();
    lab.cluster.host_mut("beta").unwrap().agent().kill().unwrap();
    let begun = Instant::now();
    loop {
        let told = list(&lab.client, "hosts/-").await.unwrap();
        if told.unreachable == ["hosts/beta"] {
            break;
        }
        assert!(begun.elapsed() < SOON, "{told:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(list(&lab.client, "hosts/beta").await.unwrap_err().reason, "HOST_UNREACHABLE");
    let name = format!("hosts/beta/orphans/{}", uuid::Uuid::nil());
    let orphan = v1::Orphan { name, etag: "shown".to_owned(), ..Default::default() };
    assert_eq!(delete(&lab.client, &orphan, false).await.unwrap_err().reason, "HOST_UNREACHABLE");
    let (code, text) = said(&mut snapctl(&lab, &["orphans"]), b"");
    assert!(code == 0 && text.contains("orphans of beta are not listed"), "{text}");
}

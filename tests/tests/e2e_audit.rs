//! Who asked for what, as the audit trail tells it; and that what is done to the trail shows.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use proto::v1;
use proto::v1::AuditOutcome as Told;
use tests::client::{AUDIT, Client, faces};
use tests::cluster::signature_and_secret;
use tests::lab::{HOST, Lab, key};
use tests::tools::binary;
use tonic::Code;

/// How long what nobody waits for may take.
const SOON: Duration = Duration::from_secs(60);
const UNKNOWN: &str = "vms/0191f7a0-0000-7000-8000-00000000000a";

/// What `audit verify` printed, and its exit status.
fn verify(database: &Path, after: Option<&str>) -> (String, i32) {
    let mut command = Command::new(binary("snapshot-api").unwrap());
    command.args(["audit", "verify", "--database"]).arg(database);
    let output = command.args(after.map(|head| ["--after", head]).into_iter().flatten()).output().unwrap();
    let printed = [output.stdout, output.stderr].concat();
    (String::from_utf8(printed).unwrap(), output.status.code().unwrap())
}

fn head(printed: &str) -> String {
    printed.lines().find_map(|line| line.strip_prefix("head: ")).unwrap().to_owned()
}

fn backup(lab: &Lab, name: &str) -> PathBuf {
    let to = lab.cluster.folder().join(name);
    let mut command = Command::new(binary("snapshot-api").unwrap());
    command.arg("backup").arg("--config").arg(lab.cluster.api_config()).arg("--to").arg(&to);
    assert!(command.status().unwrap().success());
    to
}

/// Writes into a file as somebody would who knows nothing of databases: every place where a word is.
fn replace(file: &Path, word: &str, other: &str) -> usize {
    assert_eq!(word.len(), other.len());
    let mut bytes = std::fs::read(file).unwrap();
    let places: Vec<usize> =
        (0..bytes.len() - word.len()).filter(|at| bytes[*at..].starts_with(word.as_bytes())).collect();
    for at in &places {
        bytes[*at..at + other.len()].copy_from_slice(other.as_bytes());
    }
    std::fs::write(file, bytes).unwrap();
    places.len()
}

/// The events, once there are so many: nobody waits until a refusal is written down.
async fn events_soon(lab: &Lab, count: usize) -> Vec<v1::AuditEvent> {
    let begun = Instant::now();
    loop {
        let events = lab.client.audit().await.unwrap();
        if events.len() >= count || begun.elapsed() > SOON {
            return events;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn brief(event: &v1::AuditEvent) -> (Told, &str, &str, &str) {
    (event.outcome(), event.method.as_str(), event.actor.as_str(), event.reason.as_str())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trail_tells_the_story_and_is_verified() {
    let mut lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    let identity = lab.cluster.identity();
    let eve = identity.token("eve-intruder", &guest.uuid().to_string(), &["read"]).unwrap();
    let reader = Client::grpc(&lab.cluster, &*eve).unwrap().traced("trace-of-eve");

    let taken = lab.take(&guest, "kept").await.unwrap();
    assert_eq!(reader.revert(&taken.name).await.unwrap_err().code, Code::PermissionDenied);
    assert_eq!(reader.vm(UNKNOWN).await.unwrap_err().code, Code::NotFound);
    assert_eq!(
        lab.client.vm(UNKNOWN).await.unwrap_err().code,
        Code::NotFound,
        "that one does not exist: no refusal of a right"
    );
    reader.vm(&guest.vm()).await.unwrap();
    assert_eq!(reader.audit().await.unwrap_err().code, Code::PermissionDenied);
    let request = v1::DeleteSnapshotRequest { name: taken.name.clone(), request_id: key(), ..Default::default() };
    let deleted = lab.client.done(lab.client.delete_as(request.clone()).await).await.unwrap();
    assert_eq!(lab.client.delete_as(request.clone()).await.unwrap().name, deleted.name);
    let plan = v1::DeleteSnapshotRequest { validate_only: true, ..request.clone() };
    assert_eq!(lab.client.delete_as(plan).await.unwrap_err().code, Code::NotFound);
    let unnamed = v1::DeleteSnapshotRequest { name: "rubbish".to_owned(), ..request };
    assert_eq!(lab.client.delete_as(unnamed).await.unwrap_err().code, Code::InvalidArgument);
    let stranger = Client::grpc(&lab.cluster, "rubbish").unwrap();
    for _ in 0..5 {
        assert_eq!(stranger.vm(&guest.vm()).await.unwrap_err().code, Code::Unauthenticated);
    }

    let events = events_soon(&lab, 12).await;
    let (root, eves) = ("ravada/root", "ravada/eve-intruder");
    assert_eq!(
        events.iter().map(brief).collect::<Vec<_>>(),
        [
            (Told::Begun, "", "", ""),
            (Told::Accepted, "CreateSnapshot", root, ""),
            (Told::Succeeded, "CreateSnapshot", root, ""),
            (Told::Refused, "RevertToSnapshot", eves, "ACTION_NOT_GRANTED"),
            (Told::Refused, "GetVm", eves, "VM_NOT_FOUND"),
            (Told::Refused, "ListAuditEvents", eves, "ACTION_NOT_GRANTED"),
            (Told::Accepted, "DeleteSnapshot", root, ""),
            (Told::Succeeded, "DeleteSnapshot", root, ""),
            (Told::Replayed, "DeleteSnapshot", root, ""),
            (Told::Refused, "DeleteSnapshot", root, "SNAPSHOT_NOT_FOUND"),
            (Told::Refused, "DeleteSnapshot", root, "INVALID_FIELD"),
            (Told::Refused, "GetVm", "", "TOKEN_INVALID"),
        ]
    );
    let gateway = identity.spiffe("gateway");
    assert_eq!(events.iter().map(|event| event.sequence).collect::<Vec<_>>(), (1..=12).collect::<Vec<_>>());
    let [_, _, _, refused, unseen, _, begun, ended, replayed, planned, ..] = events.as_slice() else { unreachable!() };
    assert_eq!((refused.vm.as_str(), refused.detail.as_str()), (guest.vm().as_str(), "needs revert"));
    assert_eq!((refused.peer.as_str(), refused.request_id.as_str()), (gateway.as_str(), "trace-of-eve"));
    assert!(!refused.token_id.is_empty() && refused.token_id == unseen.token_id && unseen.vm == UNKNOWN);
    assert_eq!((begun.operation.as_str(), begun.snapshot.as_str()), (deleted.name.as_str(), taken.name.as_str()));
    assert_eq!(
        (ended.operation.as_str(), ended.peer.as_str()),
        (deleted.name.as_str(), format!("hosts/{HOST}").as_str())
    );
    assert_eq!((replayed.operation.as_str(), planned.detail.as_str()), (deleted.name.as_str(), "validate_only"));
    assert_eq!(begun.token_id, ended.token_id);

    // It is whole, while the service runs and in a copy; and nothing of a token's signature or secret is in it.
    let (printed, status) = verify(&lab.cluster.catalogue(), None);
    assert_eq!((status, head(&printed)), (0, format!("12:{}", events[11].hash)), "{printed}");
    let noted = head(&printed);
    let copy = backup(&lab, "copy.db");
    assert_eq!(verify(&copy, Some(&noted)).1, 0);
    let bytes = std::fs::read(&copy).unwrap();
    for private in signature_and_secret(&eve) {
        assert!(!bytes.windows(private.len()).any(|window| window == private.as_bytes()));
    }

    // Somebody puts the blame on another.
    assert!(replace(&copy, "eve-intruder", "bob-innocent") >= 3);
    let (printed, status) = verify(&copy, None);
    assert_eq!(status, 1, "{printed}");
    assert!(printed.contains("tampered with: event 4: its hash is not that of its content"), "{printed}");

    // What was counted of the stranger is written when the service stops, and what is noted in its log is its head.
    assert!(lab.cluster.api().stop().unwrap().success());
    let (printed, status) = verify(&lab.cluster.catalogue(), Some(&noted));
    assert_eq!((status, printed.starts_with("whole: events 1 to 13\n")), (0, true), "{printed}");
    let last = head(&printed);
    let logs = lab.cluster.logs().unwrap();
    assert!(logs.iter().any(|(process, log)| process == "snapshot-api" && log.contains(&last)), "{last} is in no log");
    // A copy from before is told from one whose end was cut off by nothing but what was noted since.
    let older = lab.cluster.folder().join("older.db");
    std::fs::copy(lab.cluster.catalogue(), &older).unwrap();
    lab.cluster.start_api_again().unwrap();
    let events = lab.client.audit().await.unwrap();
    assert_eq!((brief(&events[12]), events[12].count), ((Told::Refused, "", "", "TOKEN_INVALID"), 4));
    lab.client.vm_in_state(&guest.vm(), v1::VmState::Running).await.unwrap();
    lab.take(&guest, "later").await.unwrap();
    let (printed, _) = verify(&lab.cluster.catalogue(), Some(&last));
    assert_eq!(verify(&older, None).1, 0);
    let (cut, status) = verify(&older, Some(&head(&printed)));
    assert_eq!(status, 1, "{cut}");
    assert!(cut.contains("the end was cut off"), "{cut}");

    assert_eq!(verify(Path::new("/nowhere/catalogue.db"), None).1, 2);
    assert_eq!(verify(&older, Some("12:abc")).1, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_listed_over_every_face_in_pages_and_by_what_they_are_about() {
    let lab = Lab::start().unwrap();
    let (one, other) = (lab.guest("one").await.unwrap(), lab.guest("other").await.unwrap());
    let token = lab.cluster.identity().token("teacher", "*", &["read", "create", "delete"]).unwrap();
    let teacher = Client::grpc(&lab.cluster, token).unwrap();
    let taken = teacher.done(teacher.create(&one.vm(), "first", "").await).await.unwrap();
    lab.take(&other, "second").await.unwrap();
    let list = async |request: v1::ListAuditEventsRequest| -> v1::ListAuditEventsResponse {
        lab.client.call((AUDIT, "ListAuditEvents"), &request).await.unwrap()
    };
    let all = list(v1::ListAuditEventsRequest::default()).await.events;
    assert_eq!(all.iter().map(|event| event.sequence).collect::<Vec<_>>(), [5, 4, 3, 2, 1], "the newest first");
    let by_vm = list(v1::ListAuditEventsRequest { vm: one.vm(), ..Default::default() }).await.events;
    assert_eq!(by_vm.iter().map(|event| event.operation.as_str()).collect::<Vec<_>>(), [&taken.name, &taken.name]);
    let by_actor = list(v1::ListAuditEventsRequest { actor: "ravada/teacher".to_owned(), ..Default::default() }).await;
    assert_eq!(by_actor.events, by_vm);
    let since = v1::ListAuditEventsRequest { start_time: by_vm[0].time, oldest_first: true, ..Default::default() };
    assert!(list(since).await.events.contains(&by_vm[0]));
    let until = v1::ListAuditEventsRequest { end_time: by_vm[1].time, ..Default::default() };
    assert!(!list(until).await.events.contains(&by_vm[1]));

    // A page goes on where it ended, although there are newer events by now.
    let page = v1::ListAuditEventsRequest { page_size: 2, ..Default::default() };
    let first = list(page.clone()).await;
    teacher.done(teacher.delete(&taken.snapshot, v1::DeleteScope::Only).await).await.unwrap();
    let second = list(v1::ListAuditEventsRequest { page_token: first.next_page_token.clone(), ..page.clone() }).await;
    assert_eq!(second.events, all[2..4]);
    let moved = v1::ListAuditEventsRequest { page_token: first.next_page_token, vm: one.vm(), ..page };
    let refused = lab.client.call::<_, v1::ListAuditEventsResponse>((AUDIT, "ListAuditEvents"), &moved).await;
    assert_eq!(refused.unwrap_err().reason, "INVALID_PAGE_TOKEN");

    let expected = lab.client.audit().await.unwrap();
    for face in faces(&lab.cluster).unwrap() {
        let client = Client::new(face, lab.cluster.identity().admin_token().unwrap());
        assert_eq!(client.audit().await.unwrap(), expected, "{}", client.face());
    }
}

/// The intent and its event are in one transaction: whenever the service is killed there are both or neither.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_leaves_an_operation_with_its_event_or_neither() {
    let mut lab = Lab::start().unwrap();
    let mut guests = Vec::new();
    for number in 0..4 {
        guests.push(lab.guest(&format!("desk-{number}")).await.unwrap());
    }
    for _ in 0..3 {
        let clients: Vec<_> = guests.iter().map(|_| Client::admin(&lab.cluster).unwrap()).collect();
        let calls = guests.iter().zip(&clients).map(async |(guest, client)| {
            let vm = guest.vm();
            client.create(&vm, "at the kill", "").await.is_ok()
        });
        let calls = futures_util::future::join_all(calls);
        // Between the first that was accepted and the last: whoever is first ends the wait.
        tokio::select! {
            _ = calls => {}
            () = one_is_recorded(&lab) => {}
        }
        lab.cluster.api().kill().unwrap();
        lab.cluster.start_api_again().unwrap();
        for guest in &guests {
            lab.client.vm_in_state(&guest.vm(), v1::VmState::Running).await.unwrap();
        }
        let request = v1::ListOperationsRequest { page_size: 1000, ..Default::default() };
        let path = (tests::client::OPERATIONS, "ListOperations");
        let operations: v1::ListOperationsResponse = lab.client.call(path, &request).await.unwrap();
        let told = |outcomes: &[Told], events: &[v1::AuditEvent]| -> BTreeSet<String> {
            let of = events.iter().filter(|event| outcomes.contains(&event.outcome()) && !event.operation.is_empty());
            of.map(|event| event.operation.clone()).collect()
        };
        let recorded: BTreeSet<String> = operations.operations.iter().map(|one| one.name.clone()).collect();
        for operation in operations.operations {
            lab.client.ended(operation).await.unwrap();
        }
        let events = lab.client.audit().await.unwrap();
        assert!(!recorded.is_empty());
        assert_eq!(told(&[Told::Accepted], &events), recorded);
        assert_eq!(told(&[Told::Succeeded, Told::Failed], &events), recorded);
        assert_eq!(verify(&lab.cluster.catalogue(), None).1, 0);
    }
}

async fn one_is_recorded(lab: &Lab) {
    let path = (tests::client::OPERATIONS, "ListOperations");
    let request = v1::ListOperationsRequest { active_only: true, ..Default::default() };
    loop {
        let answer: Result<v1::ListOperationsResponse, _> = lab.client.call(path, &request).await;
        if answer.is_ok_and(|answer| !answer.operations.is_empty()) {
            return;
        }
    }
}

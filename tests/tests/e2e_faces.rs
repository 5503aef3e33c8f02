//! The story over every face of the API: gRPC through the gateway and straight to the API, gRPC-Web, JSON by curl, and
//! grpcurl at both. A refusal says the same on all of them.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic, and its helpers are part of it"
)]

use std::process::Command;

use proto::v1;
use tests::client::{Client, Refusal, SNAPSHOTS, faces};
use tests::guest::Guest;
use tests::lab::{Lab, key};
use tests::tools::{run, tool};
use tonic::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_face_tells_the_same_story() {
    // libvirt's own revert takes long enough to be watched from its beginning over each face.
    let lab = Lab::with_policy("in_place_reverts = false\n").unwrap();
    let guest = lab.guest("student").await.unwrap();
    let token = lab.cluster.identity().admin_token().unwrap();
    for face in faces(&lab.cluster).unwrap() {
        story(&lab, &Client::new(face, token.clone()), &guest).await;
    }
}

async fn story(lab: &Lab, client: &Client, guest: &Guest) {
    let face = client.face();
    guest.write('A').unwrap();
    let operation = client.done(client.create(&guest.vm(), "before exam", "über <&> 🎓").await).await.expect(face);
    guest.write('B').unwrap();

    let list = client.snapshots(&guest.vm()).await.expect(face);
    let [snapshot] = list.as_slice() else { panic!("{face}: not one snapshot: {list:?}") };
    assert_eq!(snapshot.name, operation.snapshot, "{face}");
    assert_eq!(
        (snapshot.display_name.as_str(), snapshot.description.as_str()),
        ("before exam", "über <&> 🎓"),
        "{face}"
    );
    assert!(snapshot.is_current && snapshot.create_time.is_some() && snapshot.size_bytes > 0, "{face}: {snapshot:?}");
    assert_eq!(lab.agreed(guest).await.unwrap(), list, "{face} tells what the others tell");
    let vms = client.vms().await.expect(face);
    assert_eq!(vms.iter().map(|vm| &vm.name).collect::<Vec<_>>(), [&guest.vm()], "{face}");

    let started = client.revert(&snapshot.name).await.expect(face);
    let seen = client.watch(&started.name).await.expect(face);
    assert!(seen.len() >= 2, "{face}: a watch tells the state and the end: {seen:?}");
    assert_eq!(seen.last().map(v1::Operation::state), Some(v1::OperationState::Succeeded), "{face}: {seen:?}");
    let report = guest.report().unwrap();
    assert_eq!((report.disk, report.ram, report.boots), ('A', 'A', 1), "{face}");

    client.done(client.delete(&snapshot.name, v1::DeleteScope::Only).await).await.expect(face);
    lab.nothing_left(guest, snapshot).await.expect(face);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_face_refuses_in_the_same_words() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    let token = lab.cluster.identity().admin_token().unwrap();
    let unknown = "vms/0191f7a0-0000-7000-8000-00000000000a";
    let mut first: Option<Vec<Refusal>> = None;
    for face in faces(&lab.cluster).unwrap() {
        let client = Client::new(face, token.clone());
        let refused = |result: Result<v1::Operation, Refusal>| result.expect_err(client.face());
        let disks = v1::CreateSnapshotRequest {
            parent: guest.vm(),
            snapshot: Some(v1::Snapshot { display_name: "x".to_owned(), ..Default::default() }),
            content: v1::SnapshotContent::Disks.into(),
            ..Default::default()
        };
        let validated = v1::CreateSnapshotRequest { validate_only: true, ..disks };
        let all = vec![
            refused(client.create(unknown, "x", "").await),
            refused(client.create(&guest.vm(), "a\u{7}b", "").await),
            refused(client.create_as(validated).await),
            client.watch("operations/0191f7a0-0000-7000-8000-00000000000a").await.expect_err(client.face()),
        ];
        let codes: Vec<Code> = all.iter().map(|refusal| refusal.code).collect();
        let expected = [Code::NotFound, Code::InvalidArgument, Code::FailedPrecondition, Code::NotFound];
        assert_eq!(codes, expected, "{}: {all:#?}", client.face());
        assert_eq!(&all, first.get_or_insert_with(|| all.clone()), "{}", client.face());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpcurl_needs_no_proto_files_and_finds_the_public_services_alone() {
    let lab = Lab::with_hosts(&[]).unwrap();
    let (ports, ca) = (lab.cluster.ports(), lab.cluster.identity().ca().display().to_string());
    let gateway = ["-plaintext".to_owned(), format!("127.0.0.1:{}", ports.gateway)];
    let api = ["-cacert".to_owned(), ca, format!("127.0.0.1:{}", ports.public)];
    for at in [gateway.as_slice(), api.as_slice()] {
        let ask = |words: &[&str]| run(Command::new(tool("grpcurl").unwrap()).args(at).args(words)).unwrap();
        let services = ask(&["list"]);
        let ours: Vec<&str> = services.lines().filter(|line| line.starts_with("ravada")).collect();
        let expected = ["AuditService", "HostService", "OperationService", "SnapshotService"];
        assert_eq!(ours, expected.map(|service| format!("ravada.snapshot.v1.{service}")));
        assert!(ask(&["describe", SNAPSHOTS]).contains("rpc RevertToSnapshot"));
        assert!(ask(&["grpc.health.v1.Health/Check"]).contains("SERVING"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_to_the_service_learns_nothing() {
    let lab = Lab::with_hosts(&[]).unwrap();
    for face in faces(&lab.cluster).unwrap() {
        let client = Client::new(face, "");
        let refused = client.vms().await.expect_err(client.face());
        assert_eq!((refused.code, refused.reason.as_str()), (Code::Unauthenticated, "TOKEN_MISSING"), "{refused}");
        let request = v1::PurgeVmRequest { name: "vms/x".to_owned(), request_id: key(), ..Default::default() };
        assert_eq!(client.purge(request).await.expect_err(client.face()), refused, "{}", client.face());
    }
}

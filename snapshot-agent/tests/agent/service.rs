//! The service as the API calls it, on real guests.

use std::time::Duration;

use proto::agent::watch_host_response::Event;
use proto::agent::{
    AttachOperationRequest, CancelOperationRequest, PlanOperationRequest, WatchHostRequest, WatchHostResponse,
};
use proto::convert::Spec;
use proto::status::from_status;
use proto::v1::OperationState;
use snapshot_core::Reason;
use snapshot_core::authority::{Action, Grant, VmSelector};
use snapshot_core::ids::VmId;
use snapshot_core::operation::{DeleteScope, Request, RunAfter};
use snapshot_core::snapshot::Origin;
use snapshot_core::vm::VmState;
use tonic::{Code, Status, Streaming};
use uuid::Uuid;

use crate::guest::Guest;
use crate::served::{Agent, create, end, id, inventory, spec, with_token};

fn reason(status: &Status) -> Reason {
    from_status(status, Reason::HostProtocol).reason()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_story_with_two_disks_running() {
    let agent = Agent::start().await;
    let guest = Guest::new(2);
    guest.start();
    guest.write('A');
    let first = id();
    let ended = agent.run(guest.vm, Request::Create(create(&first))).await.unwrap();
    assert_eq!(ended.state(), OperationState::Succeeded, "{:?}", ended.error);
    assert!(ended.pause.is_some());
    let seen = inventory(ended.inventory);
    let snapshot = &seen.snapshots[0];
    assert_eq!(snapshot.label.display_name, create(&first).display_name);
    assert_eq!(snapshot.label.description, create(&first).description);
    assert_eq!((snapshot.label.actor.as_str(), snapshot.origin), ("ravada/alice", Origin::Service));
    assert!(snapshot.is_current && snapshot.size_bytes > 0);

    guest.write('B');
    let second = id();
    let revert = Request::Revert {
        snapshot: first.clone(),
        run_after: RunAfter::AsRecorded,
        save_current: Some(create(&second)),
    };
    let ended = agent.run(guest.vm, revert).await.unwrap();
    assert_eq!(ended.state(), OperationState::Succeeded, "{:?}", ended.error);
    let report = guest.report();
    assert_eq!((report.disk, report.ram, report.second), ('A', 'A', Some('A')));

    // Undoing a revert is a revert like any other.
    let back = Request::Revert { snapshot: second.clone(), run_after: RunAfter::Off, save_current: None };
    let ended = agent.run(guest.vm, back).await.unwrap();
    assert_eq!(ended.state(), OperationState::Succeeded, "{:?}", ended.error);
    assert_eq!(inventory(ended.inventory).vm.state, VmState::Shutoff);
    guest.start();
    assert_eq!((guest.report().disk, guest.report().second), ('B', Some('B')));

    let subtree = Request::Delete { snapshot: first, scope: DeleteScope::Subtree, force: false };
    let ended = agent.run(guest.vm, subtree).await.unwrap();
    assert_eq!(ended.state(), OperationState::Succeeded, "{:?}", ended.error);
    assert!(inventory(ended.inventory).snapshots.is_empty());
    for disk in ["vda", "vdb"] {
        assert!(snapshot_agent::qcow2::read(&guest.dir.join(format!("{disk}.qcow2"))).unwrap().tags.is_empty());
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_opens_what_it_names_and_nothing_else() {
    let agent = Agent::start().await;
    let guest = Guest::new(1);
    let only = |actions: &[Action]| {
        agent.token(vec![Grant { vm: VmSelector::One(guest.vm), actions: actions.iter().copied().collect() }], 0)
    };
    let elsewhere = VmId::from_uuid(Uuid::new_v4());
    let other =
        agent.token(vec![Grant { vm: VmSelector::One(elsewhere), actions: [Action::Create, Action::Read].into() }], 0);
    let old = agent.token(vec![], 1000);
    let create = || spec(guest.vm, Request::Create(create(&id())));
    let save =
        Request::Revert { snapshot: id(), run_after: RunAfter::AsRecorded, save_current: Some(self::create(&id())) };
    let save = || spec(guest.vm, save.clone());
    let unknown = Spec { vm: elsewhere, ..create() };
    let delete = |force| spec(guest.vm, Request::Delete { snapshot: id(), scope: DeleteScope::Only, force });
    let purge = || spec(guest.vm, Request::Purge { force: true });
    for (spec, token, code, expected) in [
        (create(), String::new(), Code::Unauthenticated, Reason::TokenMissing),
        (create(), "rubbish".to_owned(), Code::Unauthenticated, Reason::TokenInvalid),
        (create(), old, Code::Unauthenticated, Reason::TokenExpired),
        (create(), only(&[Action::Read]), Code::PermissionDenied, Reason::ActionNotGranted),
        (create(), only(&[Action::Delete]), Code::NotFound, Reason::VmNotFound),
        (delete(false), only(&[Action::Read, Action::Delete]), Code::NotFound, Reason::SnapshotNotFound),
        (delete(true), only(&[Action::Read, Action::Delete]), Code::PermissionDenied, Reason::ActionNotGranted),
        (delete(true), only(&[Action::Delete, Action::Force]), Code::NotFound, Reason::SnapshotNotFound),
        (delete(true), only(&[Action::Force]), Code::NotFound, Reason::VmNotFound),
        (purge(), only(&[Action::Read, Action::Purge]), Code::PermissionDenied, Reason::ActionNotGranted),
        (create(), other.clone(), Code::NotFound, Reason::VmNotFound),
        (unknown, other, Code::NotFound, Reason::VmNotFound),
        (save(), only(&[Action::Revert]), Code::NotFound, Reason::VmNotFound),
        (save(), only(&[Action::Revert, Action::Create]), Code::NotFound, Reason::SnapshotNotFound),
    ] {
        let request = PlanOperationRequest { spec: Some((&spec).into()) };
        let planned = agent.client.clone().plan_operation(with_token(request, &token)).await.unwrap_err();
        let started = agent.begin(&spec, &token).await.map(drop).unwrap_err();
        for status in [planned, started] {
            assert_eq!((status.code(), reason(&status)), (code, expected), "{status:?}");
        }
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_not_listed_gets_nowhere() {
    let agent = Agent::start().await;
    let mut other = agent.connect_as("other");
    assert!(other.watch_host(with_token(WatchHostRequest {}, &agent.all())).await.is_err());
    let attach = AttachOperationRequest { operation_id: Uuid::now_v7().to_string() };
    assert!(other.attach_operation(with_token(attach, &agent.all())).await.is_err());
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_is_followed_again_also_by_the_next_process() {
    let agent = Agent::start().await;
    let guest = Guest::new(1);
    let spec = spec(guest.vm, Request::Create(create(&id())));
    let attach = || AttachOperationRequest { operation_id: spec.operation.to_string() };
    // One that was said not to be known is not taken on later: whoever asked has drawn conclusions.
    let late = self::spec(guest.vm, Request::Create(create(&id())));
    let ask = AttachOperationRequest { operation_id: late.operation.to_string() };
    let unknown = agent.client.clone().attach_operation(with_token(ask, &agent.all())).await.map(drop).unwrap_err();
    assert_eq!(reason(&unknown), Reason::OperationNotFound);
    let refused = agent.begin(&late, &agent.all()).await.map(drop).unwrap_err();
    assert_eq!(reason(&refused), Reason::AuthorizationExpired);
    // The caller goes away at once; the operation is finished all the same.
    drop(agent.begin(&spec, &agent.all()).await.unwrap());
    let mut stream =
        agent.client.clone().attach_operation(with_token(attach(), &agent.all())).await.unwrap().into_inner();
    let mut last = None;
    while let Some(response) = stream.message().await.unwrap() {
        last = response.event.and_then(|event| event.event);
    }
    assert!(
        matches!(last, Some(proto::agent::operation_event::Event::Ended(ended)) if ended.state() == OperationState::Succeeded)
    );
    let cancel = CancelOperationRequest { operation_id: spec.operation.to_string() };
    let late = agent.client.clone().cancel_operation(with_token(cancel, &agent.all())).await.unwrap_err();
    assert_eq!(reason(&late), Reason::NotCancellable);

    let dir = agent.stop().await;
    let next = Agent::start_in(dir, crate::guest::HOST.libvirt.clone(), "scan_seconds = 1").await;
    let again = end(next.begin(&spec, &next.all()).await.unwrap()).await;
    assert_eq!(again.state(), OperationState::Succeeded);
    next.stop().await;
}

async fn next(stream: &mut Streaming<WatchHostResponse>) -> Event {
    let message = tokio::time::timeout(Duration::from_secs(30), stream.message());
    message.await.expect("in time").unwrap().unwrap().event.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_host_is_watched() {
    let agent = Agent::start().await;
    let guest = Guest::new(1);
    let mut stream =
        agent.client.clone().watch_host(with_token(WatchHostRequest {}, &agent.all())).await.unwrap().into_inner();
    let Event::Host(host) = next(&mut stream).await else { panic!("the host comes first") };
    assert!(!host.libvirt_version.is_empty() && !host.qemu_version.is_empty());
    assert_eq!(host.file_systems.len(), 1);
    while next(&mut stream).await != Event::Synced(proto::agent::watch_host_response::Synced {}) {}

    let vm = guest.vm;
    let until = async |stream: &mut Streaming<WatchHostResponse>, so: &dyn Fn(&proto::convert::Inventory) -> bool| {
        loop {
            if let Event::Vm(wire) = next(stream).await {
                let inventory = inventory(Some(wire));
                if inventory.vm.id == vm && so(&inventory) {
                    return;
                }
            }
        }
    };
    // By an event.
    guest.domain().create().unwrap();
    until(&mut stream, &|inventory| inventory.vm.state == VmState::Running).await;
    // By an operation.
    agent.run(vm, Request::Create(create(&id()))).await.unwrap();
    until(&mut stream, &|inventory| inventory.snapshots.len() == 1).await;
    // By another tool.
    let xml = "<domainsnapshot><name>by-virsh</name></domainsnapshot>";
    guest.domain().create_snapshot_xml(xml, 0).unwrap();
    until(&mut stream, &|inventory| {
        inventory.snapshots.iter().any(|snapshot| snapshot.origin == Origin::Foreign && snapshot.is_current)
    })
    .await;
    drop(guest);
    while next(&mut stream).await != Event::RemovedVmId(vm.to_string()) {}
    agent.stop().await;
    // The stream of an agent that stops ends with a reason.
    let status = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended without a word"),
            Err(status) => break status,
        }
    };
    assert_eq!(reason(&status), Reason::ShuttingDown);
}

//! Tokens of users, which pass through the API.

use proto::v1;
use snapshot_core::ids::VmId;
use snapshot_core::operation::{DeleteScope, Request};
use tests::client::Client;
use tests::cluster::ALL_ACTIONS;
use tests::lab::{HOST, Lab, key};
use tonic::Code;
use uuid::Uuid;

use super::thief::{Thief, delete, harmful, new_snapshot, revert, spec, vm};
use super::{Case, refused};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stolen_api_with_one_users_token_reaches_that_users_machine_alone() {
    let case = Case::start().await;
    let other = case.lab.guest("other").await.unwrap();
    other.write('A').unwrap();
    let of_other = case.lab.take(&other, "mine").await.unwrap();
    other.write('B').unwrap();
    let token = case.lab.cluster.identity().token("bob", &other.uuid().to_string(), &ALL_ACTIONS[..6]).unwrap();
    let thief = Thief::with(&case.lab, &token);

    refused("watch", thief.watch().await.map(drop), Code::PermissionDenied, "ACTION_NOT_GRANTED");
    // A machine of somebody else, and none at all: not a byte tells them apart.
    let (theirs, nobodys) = (vm(&case.guest), VmId::from_uuid(Uuid::now_v7()));
    let mut all = harmful(&case.snapshot);
    all.push(Request::Create(new_snapshot("x")));
    for request in all {
        for start in [false, true] {
            let ask = async |vm: VmId| {
                let spec = spec(vm, request.clone());
                let result = if start { thief.start(&spec).await.map(drop) } else { thief.plan(&spec).await };
                refused("a machine", result, Code::NotFound, "VM_NOT_FOUND").to_string().replace(&vm.to_string(), "VM")
            };
            assert_eq!(ask(theirs).await, ask(nobodys).await, "{request:?}");
        }
    }
    let unknown = Uuid::now_v7().to_string();
    let known = case.operation.trim_start_matches("operations/");
    let attached = async |operation: &str| {
        let result = thief.attach(operation).await.map(drop);
        refused("attach", result, Code::NotFound, "OPERATION_NOT_FOUND").to_string().replace(operation, "ID")
    };
    assert_eq!(attached(known).await, attached(&unknown).await);
    let cancelled = async |operation: &str| {
        let result = thief.cancel(operation).await;
        refused("cancel", result, Code::NotFound, "OPERATION_NOT_FOUND").to_string().replace(operation, "ID")
    };
    assert_eq!(cancelled(known).await, cancelled(&unknown).await);
    case.unchanged("by another user's token").await;

    // To ask for an operation that has not arrived yet keeps nobody from it.
    let late = spec(theirs, Request::Create(new_snapshot("late")));
    refused("attach", thief.attach(&late.operation.to_string()).await.map(drop), Code::NotFound, "OPERATION_NOT_FOUND");
    let owner = Thief::with(&case.lab, &case.lab.cluster.identity().admin_token().unwrap());
    assert_eq!(owner.start(&late).await.unwrap().state(), v1::OperationState::Succeeded);
    case.goes_back().await;

    // On that user's own machine it does what the user may: there the token is what it is.
    let snapshot = tests::lab::id(&of_other.name).parse().unwrap();
    let back = spec(vm(&other), revert(&snapshot, None));
    let ended = thief.start(&back).await.unwrap();
    assert_eq!(ended.state(), v1::OperationState::Succeeded, "{:?}", ended.error);
    assert_eq!(other.report().unwrap().disk, 'A');
    // And not what they may not: a token for less is no more in other hands.
    let reads = case.lab.cluster.identity().token("bob", &other.uuid().to_string(), &["read"]).unwrap();
    let reader = Thief::with(&case.lab, &reads);
    for request in harmful(&snapshot) {
        let result = reader.start(&spec(vm(&other), request)).await;
        refused("a reader", result.map(drop), Code::PermissionDenied, "ACTION_NOT_GRANTED");
    }
    let operation = back.operation.to_string();
    refused("a reader", reader.cancel(&operation).await, Code::PermissionDenied, "ACTION_NOT_GRANTED");
    assert!(reader.attach(&operation).await.is_ok(), "it may be seen");
}

/// A host whose agent lets a token of users destroy something once.
fn once(lab: &mut Lab) {
    let file = lab.cluster.agent_config(HOST);
    let text = std::fs::read_to_string(&file).unwrap();
    let once = text.replace("destructive_uses = 1000000", "destructive_uses = 1");
    assert_ne!(text, once);
    std::fs::write(&file, once).unwrap();
    restart_agent(lab);
}

fn restart_agent(lab: &mut Lab) {
    let host = lab.cluster.host_mut(HOST).unwrap();
    host.agent().kill().unwrap();
    host.start_agent_again().unwrap();
}

async fn is_back(lab: &Lab) {
    let back = async || lab.client.hosts().await.unwrap()[0].reachable;
    let begun = std::time::Instant::now();
    while !back().await {
        assert!(begun.elapsed().as_secs() < 60, "the host is not back");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stolen_api_destroys_nothing_with_a_token_that_was_used() {
    let mut lab = Lab::start().unwrap();
    once(&mut lab);
    is_back(&lab).await;
    let mut case = Case::of(lab, "student").await;
    let identity = case.lab.cluster.identity();
    let actions = [&ALL_ACTIONS[..6], &["force"]].concat();
    let token = identity.token("alice", &case.guest.uuid().to_string(), &actions).unwrap();
    let fresh = identity.token("alice", &case.guest.uuid().to_string(), &actions).unwrap();
    let (alice, again) =
        (Client::grpc(&case.lab.cluster, &token).unwrap(), Client::grpc(&case.lab.cluster, &fresh).unwrap());
    let name = format!("{}/snapshots/{}", case.guest.vm(), case.snapshot);

    // What the user does with it: plans as often as they like, one revert, and snapshots.
    for _ in 0..3 {
        let plan = v1::RevertToSnapshotRequest { name: name.clone(), validate_only: true, ..Default::default() };
        alice.revert_as(plan).await.unwrap();
    }
    let request = v1::RevertToSnapshotRequest { name: name.clone(), request_id: key(), ..Default::default() };
    let done = alice.done(alice.revert_as(request.clone()).await).await.unwrap();
    assert_eq!(alice.revert_as(request.clone()).await.unwrap().name, done.name, "a repeat is the same operation");
    alice.done(alice.create(&case.guest.vm(), "after it", "").await).await.unwrap();
    case.guest.write('B').unwrap();
    case.before = case.lab.traces(&case.guest).await.unwrap();

    for restarted in [false, true] {
        if restarted {
            restart_agent(&mut case.lab);
            is_back(&case.lab).await;
        }
        let thief = Thief::with(&case.lab, &token);
        for request in harmful(&case.snapshot) {
            if matches!(request, Request::Update { .. }) {
                continue;
            }
            let result = thief.start(&spec(vm(&case.guest), request)).await;
            let refusal = refused("a used token", result.map(drop), Code::Unauthenticated, "TOKEN_SPENT");
            assert_eq!(refusal.metadata["destructive_uses"], "1");
        }
        let mut repeat = spec(vm(&case.guest), revert(&case.snapshot, None));
        repeat.operation = done.name.trim_start_matches("operations/").parse().unwrap();
        // The operation that it was used for is told of, and not done again.
        assert_eq!(thief.start(&repeat).await.unwrap().state(), v1::OperationState::Succeeded);
        case.unchanged("by a used token").await;
    }

    // The user, through the API: told why, and the same request by a new token is carried out.
    let delete_it = v1::DeleteSnapshotRequest { name: name.clone(), request_id: key(), ..Default::default() };
    let spent = refused("delete", alice.delete_as(delete_it.clone()).await, Code::Unauthenticated, "TOKEN_SPENT");
    let recorded = alice.operation(&spent.metadata["operation"]).await.unwrap();
    assert_eq!(recorded.state(), v1::OperationState::Failed);
    assert_eq!(recorded.error.unwrap().reason, "TOKEN_SPENT");
    case.unchanged("refused through the API").await;
    let deleted = again.done(again.delete_as(delete_it).await).await.unwrap();
    assert_ne!(deleted.name, recorded.name);
    assert_eq!(case.guest.report().unwrap().disk, 'B');
    let once_more = spec(vm(&case.guest), delete(&case.snapshot, DeleteScope::Only));
    let more = Thief::with(&case.lab, &fresh).start(&once_more).await;
    refused("once more", more.map(drop), Code::NotFound, "SNAPSHOT_NOT_FOUND");
}

//! Callers who have not shown who they are, or who may not do what they ask.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use prost::Message as _;
use proto::v1;
use tests::client::{Call, Client, Curl, OPERATIONS, Refusal, SNAPSHOTS};
use tests::cluster::ALL_ACTIONS;
use tests::lab::{id, key};
use tonic::Code;

use super::{Case, UNKNOWN, refused};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_who_may_not() {
    let case = Case::start().await;
    let other = case.lab.guest("other").await.unwrap();
    let identity = case.lab.cluster.identity();
    let caller = |token: &str| Client::grpc(&case.lab.cluster, token).unwrap();
    let unauthenticated = |token: &str, reason: &str| {
        let (client, reason, vm) = (caller(token), reason.to_owned(), case.guest.vm());
        async move { refused("a token", client.create(&vm, "x", "").await, Code::Unauthenticated, &reason, &[]) }
    };
    unauthenticated("", "TOKEN_MISSING").await;
    unauthenticated(&identity.expired_token().unwrap(), "TOKEN_EXPIRED").await;
    unauthenticated("rubbish", "TOKEN_INVALID").await;
    let good = identity.admin_token().unwrap();
    let (head, signature) = good.rsplit_once('.').unwrap();
    let forged: String = signature.chars().rev().collect();
    unauthenticated(&format!("{head}.{forged}"), "TOKEN_INVALID").await;

    let reader = caller(&identity.token("eve", &case.guest.uuid().to_string(), &["read"]).unwrap());
    let denied = |what: &str, result: Result<v1::Operation, Refusal>, action: &str| {
        let refusal = refused(what, result, Code::PermissionDenied, "ACTION_NOT_GRANTED", &[]);
        assert_eq!(refusal.metadata["action"], action, "{what}");
    };
    assert_eq!(reader.snapshots(&case.guest.vm()).await.unwrap(), case.before.catalogue, "reading is granted");
    denied("create", reader.create_as(case.create("x")).await, "create");
    denied("update", reader.update(case.update(|_| {}, &["protected"])).await, "update");
    denied("revert", reader.revert_as(case.revert()).await, "revert");
    denied("delete", reader.delete_as(case.delete()).await, "delete");
    let purge = v1::PurgeVmRequest { name: case.guest.vm(), request_id: key(), ..Default::default() };
    denied("purge", reader.purge(purge).await, "purge");
    refused("hosts", reader.hosts().await, Code::PermissionDenied, "ACTION_NOT_GRANTED", &[]);
    let vms = reader.vms().await.unwrap();
    assert_eq!(vms.iter().map(|vm| &vm.name).collect::<Vec<_>>(), [&case.guest.vm()], "the other is not listed");

    // Somebody else's machine and none at all: not a byte tells them apart.
    let mine = identity.token("eve", &case.guest.uuid().to_string(), &ALL_ACTIONS).unwrap();
    let everyone = identity.admin_token().unwrap();
    let taken = case.lab.take(&other, "hidden").await.unwrap();
    for method in ["GetVm", "CreateSnapshot", "ListSnapshots", "GetSnapshot", "RevertToSnapshot", "DeleteSnapshot"] {
        let curl = Curl::new(case.lab.cluster.ports().gateway);
        let theirs = answer(&curl, &mine, method, &other.uuid().to_string(), id(&taken.name)).await;
        let nobodys = answer(&curl, &mine, method, UNKNOWN, id(&taken.name)).await;
        assert_eq!(theirs, nobodys, "{method}");
        assert_eq!(theirs, answer(&curl, &everyone, method, UNKNOWN, id(&taken.name)).await, "{method}");
        assert_eq!(theirs.1, 404, "{method}: {}", theirs.0);
    }
    let client = caller(&mine);
    let request = v1::ListOperationsRequest { vm: other.vm(), ..Default::default() };
    let theirs: v1::ListOperationsResponse =
        case.lab.client.call((OPERATIONS, "ListOperations"), &request).await.unwrap();
    let hidden = &theirs.operations[0];
    refused("operation", client.operation(&hidden.name).await, Code::NotFound, "OPERATION_NOT_FOUND", &[]);
    case.unchanged().await;
}

/// The body and the HTTP status, with the machine's id taken out.
async fn answer(curl: &Curl, token: &str, method: &str, uuid: &str, snapshot: &str) -> (String, u16) {
    let vm = format!("vms/{uuid}");
    let name = format!("{vm}/snapshots/{snapshot}");
    let label = v1::Snapshot { display_name: "x".to_owned(), ..Default::default() };
    let request = match method {
        "GetVm" => v1::GetVmRequest { name: vm }.encode_to_vec(),
        "ListSnapshots" => v1::ListSnapshotsRequest { parent: vm, ..Default::default() }.encode_to_vec(),
        "CreateSnapshot" => {
            v1::CreateSnapshotRequest { parent: vm, snapshot: Some(label), ..Default::default() }.encode_to_vec()
        }
        "GetSnapshot" => v1::GetSnapshotRequest { name }.encode_to_vec(),
        "RevertToSnapshot" => {
            v1::RevertToSnapshotRequest { name, request_id: key(), ..Default::default() }.encode_to_vec()
        }
        _ => v1::DeleteSnapshotRequest { name, request_id: key(), ..Default::default() }.encode_to_vec(),
    };
    let call = Call { service: SNAPSHOTS, method, request: &request, token, request_id: "" };
    let (body, status) = curl.bytes(&call).await.unwrap();
    // In the message, and in the details, which Connect shows both in base64 and readable.
    let body = String::from_utf8(body).unwrap();
    (without_id(&body, uuid), status)
}

fn without_id(body: &str, uuid: &str) -> String {
    let mut json: serde_json::Value = serde_json::from_str(body).unwrap();
    for detail in json["details"].as_array_mut().unwrap() {
        let value = STANDARD_NO_PAD.decode(detail["value"].as_str().unwrap()).unwrap();
        detail["value"] = String::from_utf8_lossy(&value).into_owned().into();
    }
    json.to_string().replace(uuid, "UUID")
}

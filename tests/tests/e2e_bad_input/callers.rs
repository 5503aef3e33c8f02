//! Callers who have not shown who they are, or who may not do what they ask.

use proto::v1;
use tests::client::{Client, Refusal};
use tests::lab::key;
use tonic::Code;

use super::{Case, refused};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_who_may_not() {
    let case = Case::start().await;
    // Another machine, which is not for everybody to see.
    case.lab.guest("other").await.unwrap();
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
    let (token, secret) = good.split_once('~').unwrap();
    let (head, signature) = token.rsplit_once('.').unwrap();
    let reversed = |text: &str| text.chars().rev().collect::<String>();
    unauthenticated(&format!("{head}.{}~{secret}", reversed(signature)), "TOKEN_INVALID").await;
    unauthenticated(&format!("{token}~{}", reversed(secret)), "TOKEN_INVALID").await;
    unauthenticated(token, "TOKEN_INVALID").await;

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

    case.unchanged().await;
}

//! Requests that are wrong in themselves, whatever the machine does.

use proto::v1;
use tests::client::{Client, Curl, Grpc, GrpcWeb, HOSTS, OPERATIONS, Refusal, SNAPSHOTS};
use tests::lab::{Lab, id, key};
use tonic::Code;

use super::{BAD_REQUEST, Case, UNKNOWN, invalid, refused};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_exist_and_what_is_no_id() {
    let case = Case::start().await;
    let client = &case.lab.client;
    let vm = format!("vms/{UNKNOWN}");
    let gone = format!("{}/snapshots/snap-0191f7a0000070008000000000000000", case.guest.vm());
    let list = |parent: &str| v1::ListSnapshotsRequest { parent: parent.to_owned(), ..Default::default() };
    let of_unknown = refused("create", client.create(&vm, "x", "").await, Code::NotFound, "VM_NOT_FOUND", &[]);
    assert_eq!(of_unknown.metadata["vm"], vm);
    refused("get", client.vm(&vm).await, Code::NotFound, "VM_NOT_FOUND", &[]);
    refused("list", client.snapshots(&vm).await, Code::NotFound, "VM_NOT_FOUND", &[]);
    let purge = v1::PurgeVmRequest { name: vm.clone(), request_id: key(), ..Default::default() };
    refused("purge", client.purge(purge).await, Code::NotFound, "VM_NOT_FOUND", &[]);
    let of_unknown = format!("{vm}/snapshots/{}", id(&case.snapshot.name));
    refused("revert", client.revert(&of_unknown).await, Code::NotFound, "VM_NOT_FOUND", &[]);
    refused("snapshot", client.snapshot(&gone).await, Code::NotFound, "SNAPSHOT_NOT_FOUND", &[]);
    refused("revert", client.revert(&gone).await, Code::NotFound, "SNAPSHOT_NOT_FOUND", &[]);
    let only = v1::DeleteScope::Only;
    refused("delete", client.delete(&gone, only).await, Code::NotFound, "SNAPSHOT_NOT_FOUND", &[]);
    let update = case.update(|snapshot| snapshot.name.clone_from(&gone), &["protected"]);
    refused("update", client.update(update).await, Code::NotFound, "SNAPSHOT_NOT_FOUND", &[]);
    let operation = format!("operations/{UNKNOWN}");
    refused("operation", client.operation(&operation).await, Code::NotFound, "OPERATION_NOT_FOUND", &[]);
    let host = v1::GetHostRequest { name: "hosts/nowhere".to_owned() };
    let host: Result<v1::Host, Refusal> = client.call((HOSTS, "GetHost"), &host).await;
    refused("host", host, Code::NotFound, "HOST_NOT_FOUND", &[]);
    let missing = v1::DeleteSnapshotRequest { name: gone, allow_missing: true, ..case.delete() };
    let nothing = client.delete_as(missing).await.unwrap();
    assert_eq!((nothing.state(), nothing.name.as_str()), (v1::OperationState::Succeeded, ""), "allow_missing");

    let uuid = case.guest.uuid();
    let spellings =
        [String::new(), "vms".into(), "vms/".into(), format!("vms/{}", uuid.simple()), format!("vm/{uuid}")];
    let more = [format!("vms/{}", uuid.to_string().to_uppercase()), format!("vms/{uuid}/"), "vms/../../etc".into()];
    for name in spellings.iter().chain(&more) {
        invalid(name, client.vm(name).await, "name");
        invalid(name, client.create(name, "x", "").await, "parent");
        let answer: Result<v1::ListSnapshotsResponse, Refusal> =
            client.call((SNAPSHOTS, "ListSnapshots"), &list(name)).await;
        invalid(name, answer, "parent");
    }
    let vm = case.guest.vm();
    for name in [vm.clone(), format!("{vm}/snapshots/"), format!("{vm}/snapshots/.x"), format!("{vm}/snapshots/a/b")] {
        invalid(&name, client.revert(&name).await, "name");
        invalid(&name, client.delete(&name, only).await, "name");
    }
    invalid("operation", client.operation("operations/1").await, "name");
    case.unchanged().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_with_values_they_may_not_have() {
    let case = Case::start().await;
    let client = &case.lab.client;
    let vm = case.guest.vm();
    for name in ["", "   ", "a\nb", "a\tb", "a\0b", "\u{7f}", "\u{85}", "x\u{ffff}", &"é".repeat(129)] {
        invalid(&format!("{name:?}"), client.create(&vm, name, "").await, "snapshot.display_name");
        let update = case.update(|snapshot| name.clone_into(&mut snapshot.display_name), &["display_name"]);
        invalid(&format!("{name:?}"), client.update(update).await, "snapshot.display_name");
    }
    for text in ["a\nb", "\u{1b}[0m", &"🎓".repeat(4097)] {
        invalid(&format!("{text:?}"), client.create(&vm, "x", text).await, "snapshot.description");
        let update = case.update(|snapshot| text.clone_into(&mut snapshot.description), &["description"]);
        invalid(&format!("{text:?}"), client.update(update).await, "snapshot.description");
    }
    invalid(
        "none",
        client.create_as(v1::CreateSnapshotRequest { snapshot: None, ..case.create("x") }).await,
        "snapshot",
    );
    invalid("content", client.create_as(v1::CreateSnapshotRequest { content: 9, ..case.create("x") }).await, "content");
    invalid("storage", client.create_as(v1::CreateSnapshotRequest { storage: 9, ..case.create("x") }).await, "storage");
    invalid("scope", client.delete_as(v1::DeleteSnapshotRequest { scope: 9, ..case.delete() }).await, "scope");
    let run_after = v1::RevertToSnapshotRequest { run_after: 9, ..case.revert() };
    invalid("run_after", client.revert_as(run_after).await, "run_after");
    for mask in ["name", "create_time", "display_name.x", ""] {
        invalid(mask, client.update(case.update(|_| {}, &[mask])).await, "update_mask");
    }

    let without = String::new;
    let revert = v1::RevertToSnapshotRequest { request_id: without(), ..case.revert() };
    invalid("revert", client.revert_as(revert).await, "request_id");
    let delete = v1::DeleteSnapshotRequest { request_id: without(), ..case.delete() };
    invalid("delete", client.delete_as(delete).await, "request_id");
    let purge = v1::PurgeVmRequest { name: vm.clone(), ..Default::default() };
    invalid("purge", client.purge(purge).await, "request_id");
    for bad in ["1", "not-a-uuid", &UNKNOWN.to_uppercase()] {
        let create = v1::CreateSnapshotRequest { request_id: bad.to_owned(), ..case.create("x") };
        invalid(bad, client.create_as(create).await, "request_id");
    }
    case.unchanged().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_other_queries_and_stale_etags() {
    let mut case = Case::start().await;
    let other = case.lab.guest("other").await.unwrap();
    for name in ["one", "two"] {
        case.lab.take(&other, name).await.unwrap();
    }
    case.before = case.lab.traces(&case.guest).await.unwrap();
    let client = &case.lab.client;
    let request = v1::ListSnapshotsRequest { parent: other.vm(), page_size: 1, ..Default::default() };
    let page: v1::ListSnapshotsResponse = client.call((SNAPSHOTS, "ListSnapshots"), &request).await.unwrap();
    let token = page.next_page_token;
    for (vm, page_token) in
        [(case.guest.vm(), token.clone()), (other.vm(), format!("{token}x")), (other.vm(), "x".into())]
    {
        let request = v1::ListSnapshotsRequest { parent: vm, page_token, ..Default::default() };
        let answer: Result<v1::ListSnapshotsResponse, Refusal> =
            client.call((SNAPSHOTS, "ListSnapshots"), &request).await;
        refused("page", answer, Code::InvalidArgument, "INVALID_PAGE_TOKEN", &[BAD_REQUEST]);
    }
    let request = v1::ListVmsRequest { page_token: token.clone(), ..Default::default() };
    let answer: Result<v1::ListVmsResponse, Refusal> = client.call((SNAPSHOTS, "ListVms"), &request).await;
    refused("vms", answer, Code::InvalidArgument, "INVALID_PAGE_TOKEN", &[BAD_REQUEST]);
    let request = v1::ListOperationsRequest { page_token: token, ..Default::default() };
    let answer: Result<v1::ListOperationsResponse, Refusal> =
        client.call((OPERATIONS, "ListOperations"), &request).await;
    refused("operations", answer, Code::InvalidArgument, "INVALID_PAGE_TOKEN", &[BAD_REQUEST]);
    let negative = v1::ListSnapshotsRequest { parent: other.vm(), page_size: -1, ..Default::default() };
    let answer: Result<v1::ListSnapshotsResponse, Refusal> = client.call((SNAPSHOTS, "ListSnapshots"), &negative).await;
    invalid("page_size", answer, "page_size");

    let newer = case.update(|snapshot| "renamed".clone_into(&mut snapshot.display_name), &["display_name"]);
    client.done(client.update(newer).await).await.unwrap();
    case.before = case.lab.traces(&case.guest).await.unwrap();
    for etag in [case.snapshot.etag.clone(), "x".to_owned(), "0-0".to_owned()] {
        let revert = v1::RevertToSnapshotRequest { etag: etag.clone(), ..case.revert() };
        refused("revert", client.revert_as(revert).await, Code::Aborted, "ETAG_MISMATCH", &[]);
        let delete = v1::DeleteSnapshotRequest { etag: etag.clone(), ..case.delete() };
        refused("delete", client.delete_as(delete).await, Code::Aborted, "ETAG_MISMATCH", &[]);
        let update = case.update(|snapshot| snapshot.etag.clone_from(&etag), &["protected"]);
        refused("update", client.update(update).await, Code::Aborted, "ETAG_MISMATCH", &[]);
    }
    case.unchanged().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_too_large() {
    let lab = Lab::with_hosts(&[]).unwrap();
    let (ports, identity, vm) = (lab.cluster.ports(), lab.cluster.identity(), format!("vms/{UNKNOWN}"));
    let token = identity.admin_token().unwrap();
    let json = Client::new(Box::new(Curl::new(ports.gateway)), token.clone());
    let web = Client::new(Box::new(GrpcWeb::new(ports.gateway)), token.clone());
    let straight = Client::new(Box::new(Grpc::tls(ports.public, &identity.ca()).unwrap()), token);
    for (bytes, clients) in
        [(100_000, [&lab.client, &straight, &json, &web].as_slice()), (8 << 20, &[&lab.client, &straight])]
    {
        let text = "x".repeat(bytes);
        for client in clients {
            let what = format!("{bytes} bytes over {}", client.face());
            let refusal = client.create(&vm, "x", &text).await.expect_err(&what);
            let told = (refusal.code, refusal.reason.as_str());
            assert_eq!(told, (Code::ResourceExhausted, "REQUEST_TOO_LARGE"), "{what}: {refusal}");
        }
    }
    refused("and then", lab.client.create(&vm, "x", "").await, Code::NotFound, "VM_NOT_FOUND", &[]);
}

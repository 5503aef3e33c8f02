//! Somebody else's things, and such as there are not: not a byte tells them apart, whatever is asked, through JSON and gRPC. Every
//! method of the public services has a row here, or the test fails. That it takes as long is held where statements can be
//! counted, in `snapshot-api/src/service/no_oracle.rs`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use prost::Message;
use prost_reflect::DescriptorPool;
use proto::v1;
use tests::client::{Call, Curl, Face, Grpc, HOSTS, SNAPSHOTS};
use tests::cluster::ALL_ACTIONS;
use tests::lab::{HOST, id, key};
use uuid::Uuid;

use super::{Case, UNKNOWN};

/// The names of somebody else's things, or such as there are not.
#[derive(Clone)]
struct Named {
    vm: String,
    snapshot: String,
    operation: String,
    /// Of the caller's own machine.
    mine: String,
    host: String,
    etag: String,
    page_token: String,
    request_id: String,
}

fn bytes(message: &impl Message) -> Vec<u8> {
    message.encode_to_vec()
}

/// The requests of a method that name something. A new method needs a row.
fn requests(method: &str, named: &Named) -> Vec<Vec<u8>> {
    let Named { vm, operation, host, etag, page_token, request_id, .. } = named.clone();
    let label = v1::Snapshot { display_name: "x".to_owned(), ..Default::default() };
    let snapshots = [&vm, &named.mine].map(|vm| format!("{vm}/snapshots/{}", named.snapshot));
    let each = |make: &dyn Fn(String) -> Vec<u8>| snapshots.iter().cloned().map(make).collect::<Vec<_>>();
    match method {
        "ListVms" => vec![bytes(&v1::ListVmsRequest { page_token, ..Default::default() })],
        "GetVm" => vec![bytes(&v1::GetVmRequest { name: vm })],
        "CreateSnapshot" => {
            let plain = v1::CreateSnapshotRequest { parent: vm, snapshot: Some(label), ..Default::default() };
            let plan = v1::CreateSnapshotRequest { validate_only: true, ..plain.clone() };
            vec![bytes(&plain), bytes(&plan), bytes(&v1::CreateSnapshotRequest { request_id, ..plain })]
        }
        "GetSnapshot" => each(&|name| bytes(&v1::GetSnapshotRequest { name })),
        "ListSnapshots" => {
            let plain = v1::ListSnapshotsRequest { parent: vm, ..Default::default() };
            vec![bytes(&plain), bytes(&v1::ListSnapshotsRequest { page_token, ..plain })]
        }
        "UpdateSnapshot" => each(&|name| {
            let snapshot = Some(v1::Snapshot { name, etag: etag.clone(), ..label.clone() });
            bytes(&v1::UpdateSnapshotRequest { snapshot, request_id: request_id.clone(), ..Default::default() })
        }),
        "RevertToSnapshot" => {
            let plain =
                |name| v1::RevertToSnapshotRequest { name, request_id: request_id.clone(), ..Default::default() };
            let mut all = each(&|name| bytes(&plain(name)));
            all.extend(each(&|name| bytes(&v1::RevertToSnapshotRequest { save_current: true, ..plain(name) })));
            all.extend(each(&|name| bytes(&v1::RevertToSnapshotRequest { validate_only: true, ..plain(name) })));
            all
        }
        "DeleteSnapshot" => {
            let plain = |name| v1::DeleteSnapshotRequest { name, request_id: request_id.clone(), ..Default::default() };
            let mut all = each(&|name| bytes(&plain(name)));
            all.extend(each(&|name| bytes(&v1::DeleteSnapshotRequest { allow_missing: true, ..plain(name) })));
            all.extend(each(&|name| bytes(&v1::DeleteSnapshotRequest { validate_only: true, ..plain(name) })));
            all
        }
        "PurgeVm" => {
            let plain = v1::PurgeVmRequest { name: vm, request_id, ..Default::default() };
            vec![bytes(&plain), bytes(&v1::PurgeVmRequest { allow_missing: true, ..plain })]
        }
        "WatchVm" => {
            let plain = v1::WatchVmRequest { name: vm, resume_token: String::new() };
            vec![bytes(&plain), bytes(&v1::WatchVmRequest { resume_token: etag, ..plain })]
        }
        "GetOperation" => vec![bytes(&v1::GetOperationRequest { name: operation })],
        "CancelOperation" => vec![bytes(&v1::CancelOperationRequest { name: operation })],
        "WatchOperation" => vec![bytes(&v1::WatchOperationRequest { name: operation })],
        "ListOperations" => vec![bytes(&v1::ListOperationsRequest { vm, ..Default::default() })],
        "ListAuditEvents" => vec![bytes(&v1::ListAuditEventsRequest { vm, ..Default::default() })],
        // Nothing is named.
        "ListHosts" => vec![bytes(&v1::ListHostsRequest::default())],
        "GetHost" => vec![bytes(&v1::GetHostRequest { name: host })],
        "ListOrphans" => vec![bytes(&v1::ListOrphansRequest { parent: host, page_token, ..Default::default() })],
        "DeleteOrphan" => {
            let plain =
                v1::DeleteOrphanRequest { name: format!("{host}/orphans/{}", Uuid::nil()), etag, ..Default::default() };
            vec![bytes(&plain), bytes(&v1::DeleteOrphanRequest { validate_only: true, ..plain })]
        }
        "ReconcileHost" => vec![bytes(&v1::ReconcileHostRequest { name: host })],
        other => panic!("{other} has no row here: what does it answer for what may not be seen?"),
    }
}

/// The methods, by their services, and whether they answer with a stream.
fn methods() -> Vec<(&'static str, String, bool)> {
    let pool = DescriptorPool::decode(proto::PUBLIC_DESCRIPTORS).unwrap();
    let of = |service: &'static str| {
        let methods: Vec<_> = pool.get_service_by_name(service).unwrap().methods().collect();
        methods.into_iter().map(move |method| (service, method.name().to_owned(), method.is_server_streaming()))
    };
    assert_eq!(pool.services().count(), proto::SERVICES.len(), "a service that is not looked at here");
    proto::SERVICES.into_iter().flat_map(of).collect()
}

/// An answer with what any of the callers has said taken out of it.
fn without_names(said: &str, both: [&Named; 2]) -> String {
    let names = both.into_iter().flat_map(|Named { vm, snapshot, operation, host, .. }| {
        [vm.trim_start_matches("vms/"), operation.trim_start_matches("operations/"), snapshot, host]
    });
    names.fold(said.to_owned(), |said, name| said.replace(name, "NAME"))
}

fn text(message: &[u8]) -> String {
    String::from_utf8_lossy(message).into_owned()
}

/// Of an error in JSON, whose details are in base64 beside the readable ones.
fn readable(body: &[u8]) -> String {
    let mut json: serde_json::Value = serde_json::from_slice(body).unwrap();
    for detail in json["details"].as_array_mut().into_iter().flatten() {
        let value = STANDARD_NO_PAD.decode(detail["value"].as_str().unwrap()).unwrap();
        detail["value"] = String::from_utf8_lossy(&value).into_owned().into();
    }
    json.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_not_be_seen_does_not_exist_at_any_face() {
    let case = Case::start().await;
    let other = case.lab.guest("other").await.unwrap();
    let request_id = key();
    let label = v1::Snapshot { display_name: "hidden".to_owned(), ..Default::default() };
    let (parent, snapshot) = (other.vm(), Some(label));
    let create = v1::CreateSnapshotRequest { parent, snapshot, request_id: request_id.clone(), ..Default::default() };
    let created = case.lab.client.create_as(create).await;
    let created = case.lab.client.done(created).await.unwrap();
    let taken = case.lab.client.snapshot(&created.snapshot).await.unwrap();
    let one_a_page = v1::ListVmsRequest { page_size: 1, ..Default::default() };
    let page: v1::ListVmsResponse = case.lab.client.call((SNAPSHOTS, "ListVms"), &one_a_page).await.unwrap();
    assert!(!page.next_page_token.is_empty());
    let before = case.lab.traces(&other).await.unwrap();
    let theirs = Named {
        vm: other.vm(),
        snapshot: id(&taken.name).to_owned(),
        operation: created.name.clone(),
        mine: case.guest.vm(),
        host: format!("hosts/{HOST}"),
        etag: taken.etag.clone(),
        page_token: page.next_page_token.clone(),
        request_id,
    };
    let nobodys = Named {
        vm: format!("vms/{UNKNOWN}"),
        snapshot: format!("snap-{}", Uuid::now_v7().simple()),
        operation: format!("operations/{}", Uuid::now_v7()),
        host: "hosts/nowhere".to_owned(),
        request_id: key(),
        ..theirs.clone()
    };
    let identity = case.lab.cluster.identity();
    let actions = &ALL_ACTIONS[..6];
    let token = |subject: &str| identity.token(subject, &case.guest.uuid().to_string(), actions).unwrap();
    // The last under the name of who made it, with a token for another machine. Their own request ids are no secret to them.
    let as_maker = Named { request_id: key(), ..theirs.clone() };
    let callers = [(token("eve"), theirs), (token("root"), as_maker)];
    let gateway = case.lab.cluster.ports().gateway;
    let (curl, grpc) = (Curl::new(gateway), Grpc::plain(gateway).unwrap());
    for (service, method, stream) in methods() {
        for (token, theirs) in &callers {
            let pairs = requests(&method, theirs).into_iter().zip(requests(&method, &nobodys));
            for (number, (hidden, absent)) in pairs.enumerate() {
                let what = format!("{method} {number}");
                let both = [theirs, &nobodys];
                let ask = async |face: &dyn Face, request: &[u8]| {
                    let call = Call { service, method: &method, request, token, request_id: "" };
                    let said = match stream {
                        true => face.stream(call).await.map(|messages| text(&messages.concat())),
                        false => face.unary(call).await.map(|message| text(&message)),
                    };
                    let refused = said.is_err();
                    let said = said.unwrap_or_else(|refusal| refusal.to_string());
                    (without_names(&said, both), refused)
                };
                for face in [&curl as &dyn Face, &grpc] {
                    let hidden = ask(face, &hidden).await;
                    let absent = ask(face, &absent).await;
                    assert_eq!(hidden, absent, "{what}, {}", face.name());
                    let of_administrators = service == HOSTS || service.ends_with(".AuditService");
                    let expected = if of_administrators { "PermissionDenied" } else { "NotFound" };
                    // A list leaves out; a deletion that takes a missing one for deleted says so of one's own machine.
                    let is_fine = method == "ListVms" || (method == "DeleteSnapshot" && number == 3);
                    assert!(is_fine || (hidden.1 && hidden.0.starts_with(expected)), "{what}: {}", hidden.0);
                    assert!(!hidden.0.contains("other") && !hidden.0.contains("hidden"), "{what}: {}", hidden.0);
                }
                if !stream {
                    let raw = async |request: &[u8]| {
                        let call = Call { service, method: &method, request, token, request_id: "" };
                        let (body, status) = curl.bytes(&call).await.unwrap();
                        (without_names(&readable(&body), both), status)
                    };
                    assert_eq!(raw(&hidden).await, raw(&absent).await, "{what}: every byte");
                }
            }
        }
    }
    assert_eq!(case.lab.traces(&other).await.unwrap(), before);
    case.unchanged().await;
}

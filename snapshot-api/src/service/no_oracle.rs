//! What a caller may not see answers as what does not exist: with the same bytes, and after the same statements to the
//! catalogue in the same order, which found as many rows, so that the time it takes says nothing either.
//!
//! Every method of every public service has a row here, or the test fails.

use std::sync::Arc;

use capability::{IssuerConfig, Signer, Verifier, generate_issuer_key};
use http_body_util::BodyExt as _;
use prost::Message;
use proto::{names, v1};
use snapshot_core::authority::{Action, Grant, VmSelector};
use snapshot_core::ids::{RequestId, VmId};
use snapshot_core::quota::Limits;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::service::Routes;
use tower::ServiceExt as _;
use uuid::Uuid;

use super::Services;
use crate::app::App;
use crate::audit::Audit;
use crate::clock::Clock;
use crate::store::tests::{create, host, intent, inventory, statements};
use crate::store::{NewOperation, Store};

const MINE: u128 = 1;
const THEIRS: u128 = 2;

/// The names of somebody else's things, or such as there are not.
#[derive(Clone)]
struct Named {
    vm: String,
    snapshot: String,
    operation: String,
    host: String,
    /// Of a snapshot of theirs, of a watch, of a list, and of a request.
    etag: String,
    resume_token: String,
    request_id: String,
}

impl Named {
    fn snapshots(&self) -> [String; 2] {
        // Below a machine that is not to be seen, and below one's own.
        let of = |vm: &str| format!("{vm}/snapshots/{}", self.snapshot);
        [of(&self.vm), of(&names::vm(vm(MINE)))]
    }
}

fn vm(number: u128) -> VmId {
    VmId::from_uuid(Uuid::from_u128(number))
}

/// All the requests of a method that name something.
fn requests(method: &str, named: &Named) -> Vec<Vec<u8>> {
    let Named { vm, operation, host, etag, resume_token, request_id, .. } = named.clone();
    let label = Some(v1::Snapshot { display_name: "x".to_owned(), ..v1::Snapshot::default() });
    let key = Uuid::from_u128(77).to_string();
    let of_snapshots = |make: &dyn Fn(String) -> Vec<u8>| named.snapshots().into_iter().map(make).collect::<Vec<_>>();
    match method {
        "ListVms" => vec![bytes(&v1::ListVmsRequest { host, ..Default::default() })],
        "GetVm" => vec![bytes(&v1::GetVmRequest { name: vm })],
        "CreateSnapshot" => {
            let plain = v1::CreateSnapshotRequest { parent: vm, snapshot: label, ..Default::default() };
            let plan = v1::CreateSnapshotRequest { validate_only: true, ..plain.clone() };
            vec![bytes(&plain), bytes(&plan), bytes(&v1::CreateSnapshotRequest { request_id, ..plain })]
        }
        "GetSnapshot" => of_snapshots(&|name| bytes(&v1::GetSnapshotRequest { name })),
        "ListSnapshots" => {
            let plain = v1::ListSnapshotsRequest { parent: vm, ..Default::default() };
            let page = v1::ListSnapshotsRequest { page_token: "0123456789abcdef.1".to_owned(), ..plain.clone() };
            vec![bytes(&plain), bytes(&page)]
        }
        "UpdateSnapshot" => of_snapshots(&|name| {
            let (etag, request_id) = (etag.clone(), request_id.clone());
            let snapshot = Some(v1::Snapshot { name, etag, display_name: "x".to_owned(), ..Default::default() });
            bytes(&v1::UpdateSnapshotRequest { snapshot, request_id, ..Default::default() })
        }),
        "RevertToSnapshot" => {
            let plain =
                |name: String| v1::RevertToSnapshotRequest { name, request_id: key.clone(), ..Default::default() };
            let mut all = of_snapshots(&|name| bytes(&plain(name)));
            all.extend(of_snapshots(&|name| bytes(&v1::RevertToSnapshotRequest { save_current: true, ..plain(name) })));
            all.extend(of_snapshots(&|name| {
                bytes(&v1::RevertToSnapshotRequest { validate_only: true, ..plain(name) })
            }));
            let of_theirs = |name| {
                let (etag, request_id) = (etag.clone(), request_id.clone());
                bytes(&v1::RevertToSnapshotRequest { etag, request_id, ..plain(name) })
            };
            all.extend(of_snapshots(&of_theirs));
            all
        }
        "DeleteSnapshot" => {
            let plain =
                |name: String| v1::DeleteSnapshotRequest { name, request_id: key.clone(), ..Default::default() };
            let mut all = of_snapshots(&|name| bytes(&plain(name)));
            all.extend(of_snapshots(&|name| bytes(&v1::DeleteSnapshotRequest { allow_missing: true, ..plain(name) })));
            let of_theirs = |name| {
                let (etag, request_id) = (etag.clone(), request_id.clone());
                bytes(&v1::DeleteSnapshotRequest { etag, request_id, ..plain(name) })
            };
            all.extend(of_snapshots(&of_theirs));
            all
        }
        "PurgeVm" => {
            let plain = v1::PurgeVmRequest { name: vm, request_id: key, ..Default::default() };
            let gone = v1::PurgeVmRequest { allow_missing: true, ..plain.clone() };
            let plan = v1::PurgeVmRequest { validate_only: true, ..plain.clone() };
            vec![bytes(&plain), bytes(&gone), bytes(&plan), bytes(&v1::PurgeVmRequest { request_id, ..plain })]
        }
        "WatchVm" => vec![
            bytes(&v1::WatchVmRequest { name: vm.clone(), resume_token: String::new() }),
            bytes(&v1::WatchVmRequest { name: vm, resume_token }),
        ],
        "GetOperation" => vec![bytes(&v1::GetOperationRequest { name: operation })],
        "CancelOperation" => vec![bytes(&v1::CancelOperationRequest { name: operation })],
        "WatchOperation" => vec![bytes(&v1::WatchOperationRequest { name: operation })],
        "ListOperations" => vec![bytes(&v1::ListOperationsRequest { vm, ..Default::default() })],
        "ListAuditEvents" => vec![bytes(&v1::ListAuditEventsRequest { vm, ..Default::default() })],
        // Nothing is named.
        "ListHosts" => vec![bytes(&v1::ListHostsRequest::default())],
        "GetHost" => vec![bytes(&v1::GetHostRequest { name: format!("hosts/{host}") })],
        "ListOrphans" => {
            let of = |parent: String| bytes(&v1::ListOrphansRequest { parent, ..Default::default() });
            vec![of(format!("hosts/{host}")), of("hosts/-".to_owned())]
        }
        "DeleteOrphan" => {
            let name = format!("hosts/{host}/orphans/{}", Uuid::from_u128(8));
            let plain = v1::DeleteOrphanRequest { name, etag, ..Default::default() };
            vec![bytes(&plain), bytes(&v1::DeleteOrphanRequest { validate_only: true, ..plain })]
        }
        "ReconcileHost" => vec![bytes(&v1::ReconcileHostRequest { name: format!("hosts/{host}") })],
        other => panic!("{other} has no row here: what does it answer for what may not be seen?"),
    }
}

fn bytes(message: &impl Message) -> Vec<u8> {
    message.encode_to_vec()
}

/// An API with a machine of the caller's and one of somebody else's, each with a snapshot and an operation.
struct Api {
    routes: Routes,
    signer: Signer,
    theirs: Named,
    nobodys: Named,
    _folder: TempDir,
}

impl Api {
    async fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let (key, jwks) = (folder.path().join("key.pem"), folder.path().join("jwks.json"));
        generate_issuer_key(&key, &jwks, "k").unwrap();
        let issuer = IssuerConfig { any_vm: true, ..IssuerConfig::new("ravada", jwks, Action::ALL) };
        let store = Store::open(&folder.path().join("catalogue.db")).unwrap();
        let elsewhere = "beta".parse().unwrap();
        store.put_inventory(host(), inventory(MINE, &[("snap-mine", None)]), 1).await.unwrap();
        store.put_inventory(elsewhere, inventory(THEIRS, &[("snap-theirs", None)]), 1).await.unwrap();
        let request_id: RequestId = Uuid::from_u128(5).to_string().parse().unwrap();
        let operation = NewOperation {
            request_id: Some(request_id),
            host: "beta".parse().unwrap(),
            ..intent(THEIRS, create("snap-2"))
        };
        let operation_id = operation.id;
        store.begin(operation).await.unwrap();

        let epoch = store.epoch().to_owned();
        let theirs = Named {
            vm: names::vm(vm(THEIRS)),
            snapshot: "snap-theirs".to_owned(),
            operation: names::operation(operation_id),
            host: "beta".to_owned(),
            etag: crate::etag::encode(&epoch, 1),
            resume_token: crate::etag::encode(&epoch, 1),
            request_id: Uuid::from_u128(5).to_string(),
        };
        let nobodys = Named {
            vm: names::vm(vm(99)),
            snapshot: "snap-nobody".to_owned(),
            operation: names::operation(snapshot_core::ids::OperationId::from_uuid(Uuid::from_u128(9))),
            host: "none".to_owned(),
            etag: crate::etag::encode(&epoch, 9),
            resume_token: crate::etag::encode(&epoch, 9),
            request_id: Uuid::from_u128(9).to_string(),
        };
        let (hosts, stopping) = (Arc::default(), CancellationToken::new());
        let verifier = Arc::new(Verifier::load(vec![issuer]).unwrap());
        let (clock, limits, user_quota) = (Clock::system(), Arc::default(), Limits::default());
        let audit = Audit::new(store.clone(), clock.clone());
        let services = Services::new(App { store, hosts, verifier, limits, audit, user_quota, clock, stopping });
        let routes = Routes::new(services.snapshots()).add_service(services.operations());
        let routes = routes.add_service(services.hosts()).add_service(services.audit());
        let signer = Signer::load(&key, "k", "ravada").unwrap();
        Self { routes: routes.prepare(), signer, theirs, nobodys, _folder: folder }
    }

    fn token(&self, subject: &str, grants: &[(VmSelector, &[Action])]) -> String {
        let grant =
            |(vm, actions): &(VmSelector, &[Action])| Grant { vm: *vm, actions: actions.iter().copied().collect() };
        self.signer.mint(subject, grants.iter().map(grant).collect(), 300, Clock::system().now_s()).unwrap()
    }

    /// The answer's status and bytes, and the statements it took.
    async fn ask(&self, path: &str, token: &str, message: &[u8]) -> (String, Vec<String>) {
        let mut body = vec![0];
        body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        body.extend(message);
        let request = http::Request::post(format!("http://api{path}"))
            .header("content-type", "application/grpc")
            .header("authorization", format!("Bearer {token}"))
            .body(tonic::body::Body::new(http_body_util::Full::new(body.into())))
            .unwrap();
        statements::taken();
        let answer = self.routes.clone().oneshot(request).await.unwrap();
        let (parts, body) = answer.into_parts();
        let collected = body.collect().await.unwrap();
        let trailers = collected.trailers().cloned().unwrap_or_default();
        let bytes = collected.to_bytes();
        let status = Status::from_header_map(&parts.headers).or_else(|| Status::from_header_map(&trailers)).unwrap();
        let details = String::from_utf8_lossy(status.details()).into_owned();
        let said = format!("{:?} {:?} {details:?} {bytes:?}", status.code(), status.message());
        (said, statements::taken())
    }
}

/// Takes out what the caller has said, which both answers may repeat. The names are as long as each other.
fn without_names(said: &str, named: &Named) -> String {
    let Named { vm, snapshot, operation, host, .. } = named;
    let uuid = vm.trim_start_matches("vms/");
    [vm, uuid, snapshot, operation, host].into_iter().fold(said.to_owned(), |said, name| said.replace(name, "NAME"))
}

fn methods() -> Vec<(String, String)> {
    let set = prost_types::FileDescriptorSet::decode(proto::PUBLIC_DESCRIPTORS).unwrap();
    let mut all = Vec::new();
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                all.push((method.name().to_owned(), path));
            }
        }
    }
    assert!(all.len() >= 19, "{all:?}");
    all
}

#[tokio::test]
async fn what_may_not_be_seen_is_told_and_looked_for_like_what_is_not_there() {
    let api = Api::start().await;
    let (mine, theirs) = (VmSelector::One(vm(MINE)), VmSelector::One(vm(THEIRS)));
    let callers = [
        ("with rights over another machine", api.token("eve", &[(mine, &Action::ALL)])),
        ("without any right", api.token("eve", &[])),
        ("with an administrator's right alone", api.token("eve", &[(VmSelector::Any, &[Action::Admin])])),
    ];
    // The first statement on a connection reads the schema.
    for _ in 0..8 {
        api.ask("/ravada.snapshot.v1.SnapshotService/ListVms", &callers[0].1, &[]).await;
    }
    // What is refused before anything is looked for would pass whatever the rest does: these look.
    let mut looked = Vec::new();
    for (method, path) in methods() {
        for (who, token) in &callers {
            // Administrators see the hosts, and the trail of every machine.
            let about_hosts = path.contains("HostService") || path.contains("AuditService");
            if about_hosts && who.contains("administrator") {
                continue;
            }
            let asked = requests(&method, &api.theirs).into_iter().zip(requests(&method, &api.nobodys));
            for (number, (hidden, absent)) in asked.enumerate() {
                let (hidden, statements) = api.ask(&path, token, &hidden).await;
                let (absent, expected) = api.ask(&path, token, &absent).await;
                let what = format!("{method} {number}, {who}");
                assert_eq!(without_names(&hidden, &api.theirs), without_names(&absent, &api.nobodys), "{what}");
                assert_eq!(statements, expected, "{what}: {hidden}");
                let list = method.starts_with("List");
                let refused = hidden.starts_with(if about_hosts { "PermissionDenied" } else { "NotFound" });
                assert!(refused || list || hidden.starts_with("Unavailable"), "{what}: {hidden}");
                if !statements.is_empty() && !looked.contains(&method) {
                    looked.push(method.clone());
                }
            }
        }
    }
    for method in ["GetOperation", "CancelOperation", "WatchOperation", "GetSnapshot", "UpdateSnapshot"] {
        assert!(looked.iter().any(|one| one == method), "{method} looks for what is asked for: {looked:?}");
    }

    // Who may see it gets another answer, by other statements: the comparison can fail.
    let owner = api.token("owner", &[(theirs, &Action::ALL), (VmSelector::One(vm(99)), &Action::ALL)]);
    for (method, path) in
        methods().into_iter().filter(|(name, _)| ["GetVm", "GetOperation", "GetSnapshot"].contains(&&**name))
    {
        let there = api.ask(&path, &owner, &requests(&method, &api.theirs)[0]).await;
        let absent = api.ask(&path, &owner, &requests(&method, &api.nobodys)[0]).await;
        assert!(there.0.starts_with("Ok") && absent.0.starts_with("NotFound"), "{method}: {} {}", there.0, absent.0);
    }
}

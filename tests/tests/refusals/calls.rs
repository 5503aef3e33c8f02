//! The rows: every RPC that the descriptors know, with a request that would succeed.

use prost::Message as _;
use prost_reflect::DescriptorPool;
use proto::agent::operation_spec::Action as Spec;
use proto::{agent, v1};
use tests::client::{Client, SNAPSHOTS};
use tests::cluster::forwarded;
use tests::lab::{id, key};
use uuid::Uuid;

use crate::world::World;

/// The full name of the agent's service.
pub(crate) const AGENT: &str = "ravada.snapshot.agent.v1.AgentService";

/// What a call is about, and so how it is refused to somebody whose token is for something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum About {
    /// One machine, which takes this action.
    Machine(&'static str),
    /// All machines that may be read: others are left out.
    Everything,
    /// The hosts, which only administrators see; this action on `*`.
    Hosts(&'static str),
}

/// One call.
pub(crate) struct Call {
    pub(crate) service: &'static str,
    pub(crate) method: String,
    pub(crate) about: About,
    pub(crate) request: Vec<u8>,
}

impl Call {
    /// Whether it may destroy something, so that a token is good for few of them.
    pub(crate) fn is_destructive(&self) -> bool {
        let destroys = matches!(self.about, About::Machine("revert" | "delete" | "purge"));
        destroys && !matches!(self.method.as_str(), "PlanOperation" | "CancelOperation")
    }

    /// What is sent with this call of a credential: agents are sent the token alone.
    pub(crate) fn sent<'a>(&self, credential: &'a str) -> &'a str {
        if self.service == AGENT { forwarded(credential) } else { credential }
    }

    pub(crate) fn right(&self) -> &'static str {
        match self.about {
            About::Machine(action) | About::Hosts(action) => action,
            About::Everything => "read",
        }
    }
}

fn methods(service: &'static str) -> Vec<String> {
    let pool = DescriptorPool::decode(proto::DESCRIPTORS).unwrap();
    let service = pool.get_service_by_name(service).unwrap();
    service.methods().map(|method| method.name().to_owned()).collect()
}

/// What can be called at the API and through the gateway; those that change something last, and in an order in which each
/// finds what it needs.
pub(crate) fn public(world: &World) -> Vec<Call> {
    let row = |service| {
        move |method: String| {
            let (about, request) = public_request(world, &method);
            Call { service, method, about, request }
        }
    };
    let mut calls: Vec<Call> =
        proto::SERVICES.into_iter().flat_map(|service| methods(service).into_iter().map(row(service))).collect();
    calls.sort_by_key(|call| order(&call.method));
    calls
}

fn order(method: &str) -> usize {
    const LAST: [&str; 5] = ["CreateSnapshot", "UpdateSnapshot", "RevertToSnapshot", "DeleteSnapshot", "PurgeVm"];
    LAST.iter().position(|last| *last == method).map_or(0, |place| place + 1)
}

fn public_request(world: &World, method: &str) -> (About, Vec<u8>) {
    use About::{Everything, Hosts, Machine};
    let (vm, name, operation) = (world.vm(), world.snapshot.name.clone(), world.operation.clone());
    let host = format!("hosts/{}", tests::lab::HOST);
    let request_id = key();
    match method {
        "ListVms" => (Everything, v1::ListVmsRequest::default().encode_to_vec()),
        "GetVm" => (Machine("read"), v1::GetVmRequest { name: vm }.encode_to_vec()),
        "CreateSnapshot" => {
            let snapshot = Some(v1::Snapshot { display_name: "new".to_owned(), ..Default::default() });
            let request = v1::CreateSnapshotRequest { parent: vm, snapshot, request_id, ..Default::default() };
            (Machine("create"), request.encode_to_vec())
        }
        "GetSnapshot" => (Machine("read"), v1::GetSnapshotRequest { name }.encode_to_vec()),
        "ListSnapshots" => {
            (Machine("read"), v1::ListSnapshotsRequest { parent: vm, ..Default::default() }.encode_to_vec())
        }
        "UpdateSnapshot" => {
            let snapshot = v1::Snapshot { name, display_name: "renamed".to_owned(), ..Default::default() };
            let update_mask = Some(prost_types::FieldMask { paths: vec!["display_name".to_owned()] });
            let request =
                v1::UpdateSnapshotRequest { snapshot: Some(snapshot), update_mask, request_id, ..Default::default() };
            (Machine("update"), request.encode_to_vec())
        }
        "RevertToSnapshot" => {
            let request = v1::RevertToSnapshotRequest { name, request_id, ..Default::default() };
            (Machine("revert"), request.encode_to_vec())
        }
        "DeleteSnapshot" => {
            let request = v1::DeleteSnapshotRequest { name, request_id, ..Default::default() };
            (Machine("delete"), request.encode_to_vec())
        }
        "PurgeVm" => {
            let request = v1::PurgeVmRequest { name: vm, request_id, ..Default::default() };
            (Machine("purge"), request.encode_to_vec())
        }
        "WatchVm" => (Machine("read"), v1::WatchVmRequest { name: vm, ..Default::default() }.encode_to_vec()),
        "GetOperation" => (Machine("read"), v1::GetOperationRequest { name: operation }.encode_to_vec()),
        "ListOperations" => (Everything, v1::ListOperationsRequest::default().encode_to_vec()),
        // It was a create, and who may begin something may stop it.
        "CancelOperation" => (Machine("create"), v1::CancelOperationRequest { name: operation }.encode_to_vec()),
        "WatchOperation" => (Machine("read"), v1::WatchOperationRequest { name: operation }.encode_to_vec()),
        "ListHosts" => (Hosts("admin"), v1::ListHostsRequest::default().encode_to_vec()),
        "GetHost" => (Hosts("admin"), v1::GetHostRequest { name: host }.encode_to_vec()),
        "ListAuditEvents" => (Hosts("admin"), v1::ListAuditEventsRequest::default().encode_to_vec()),
        "ReconcileHost" => (Hosts("admin"), v1::ReconcileHostRequest { name: host }.encode_to_vec()),
        "ListOrphans" => {
            (Hosts("admin"), v1::ListOrphansRequest { parent: host, ..Default::default() }.encode_to_vec())
        }
        "DeleteOrphan" => {
            let (name, etag) = (format!("{host}/orphans/{}", Uuid::nil()), "shown".to_owned());
            (Hosts("admin"), v1::DeleteOrphanRequest { name, etag, validate_only: false }.encode_to_vec())
        }
        other => panic!("{other} has no row: say what it is about, and give a request that would succeed"),
    }
}

/// What can be called at an agent; StartOperation once for every kind of operation, and in an order in which each finds
/// what it needs.
pub(crate) fn of_agent(world: &World) -> Vec<Call> {
    let operation_id = id(&world.operation).to_owned();
    let mut calls = Vec::new();
    let mut row = |method: &str, about, request| {
        calls.push(Call { service: AGENT, method: method.to_owned(), about, request });
    };
    for method in methods(AGENT) {
        match method.as_str() {
            "WatchHost" => row(&method, About::Hosts("read"), agent::WatchHostRequest::default().encode_to_vec()),
            "AttachOperation" => {
                let request = agent::AttachOperationRequest { operation_id: operation_id.clone() };
                row(&method, About::Machine("read"), request.encode_to_vec());
            }
            "CancelOperation" => {
                let request = agent::CancelOperationRequest { operation_id: operation_id.clone() };
                row(&method, About::Machine("create"), request.encode_to_vec());
            }
            "PlanOperation" => {
                for (right, action) in actions(world) {
                    let request = agent::PlanOperationRequest { spec: Some(spec(world, action)) };
                    row(&method, About::Machine(right), request.encode_to_vec());
                }
            }
            "ListOrphans" => row(&method, About::Hosts("admin"), agent::ListOrphansRequest::default().encode_to_vec()),
            "DeleteOrphan" => {
                let (orphan_id, etag) = (Uuid::nil().to_string(), "shown".to_owned());
                let request = agent::DeleteOrphanRequest { orphan_id, etag, validate_only: false };
                row(&method, About::Hosts("admin"), request.encode_to_vec());
            }
            "StartOperation" => {}
            other => panic!("{other} has no row: say what it is about, and give a request that would succeed"),
        }
    }
    for (right, action) in actions(world) {
        let request = agent::StartOperationRequest { spec: Some(spec(world, action)) };
        row("StartOperation", About::Machine(right), request.encode_to_vec());
    }
    calls
}

fn actions(world: &World) -> [(&'static str, Spec); 5] {
    let snapshot_id = id(&world.snapshot.name).to_owned();
    let display_name = "new".to_owned();
    let new = format!("snap-{}", Uuid::now_v7());
    let create = agent::CreateAction { snapshot_id: new, display_name: display_name.clone(), ..Default::default() };
    let update = agent::UpdateAction { snapshot_id: snapshot_id.clone(), display_name, ..Default::default() };
    let revert = agent::RevertAction { snapshot_id: snapshot_id.clone(), ..Default::default() };
    let delete = agent::DeleteAction { snapshot_id, scope: v1::DeleteScope::Only.into(), force: false };
    [
        ("create", Spec::Create(create)),
        ("update", Spec::Update(update)),
        ("revert", Spec::Revert(revert)),
        ("delete", Spec::Delete(delete)),
        ("purge", Spec::Purge(agent::PurgeAction { force: false })),
    ]
}

fn spec(world: &World, action: Spec) -> agent::OperationSpec {
    let operation_id = Uuid::now_v7().to_string();
    agent::OperationSpec { operation_id, vm_id: world.guest.uuid().to_string(), action: Some(action) }
}

/// Uses a token for something destructive that is nobody's loss: a snapshot of another machine, which is deleted.
pub(crate) async fn spend(world: &World, token: &str) {
    let taken = world.lab.take(&world.spare, "to be deleted").await.unwrap();
    let client = Client::grpc(&world.lab.cluster, token).unwrap();
    client.done(client.delete(&taken.name, v1::DeleteScope::Only).await).await.unwrap();
    let again = v1::DeleteSnapshotRequest { name: taken.name, request_id: key(), ..Default::default() };
    let gone = client.call::<_, v1::Operation>((SNAPSHOTS, "DeleteSnapshot"), &again).await.unwrap_err();
    assert_ne!(gone.reason, "", "{gone}");
}

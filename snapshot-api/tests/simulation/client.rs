//! Those who ask for things, ask again, and hang up in the middle.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fastrand::Rng;
use proto::v1::operation_service_client::OperationServiceClient;
use proto::v1::snapshot_service_client::SnapshotServiceClient;
use proto::{names, v1};
use snapshot_core::Reason;
use snapshot_core::ids::VmId;
use tokio::time::{sleep, timeout};
use tonic::Status;
use tonic::transport::Channel;

use crate::net;
use crate::world::{API, World};

const REQUESTS: usize = 7;
/// How many times something is asked for before it is given up.
const ATTEMPTS: usize = 8;
/// How many times an operation is looked at before a client loses interest.
const LOOKS: usize = 40;

/// One request as a client made it, with every answer.
#[derive(Debug, Clone)]
pub struct Asked {
    pub request_id: String,
    /// The operations named in answers to it, one an answer.
    pub acknowledged: Vec<String>,
    /// Ends that the client saw.
    pub ended: Vec<v1::Operation>,
}

struct Client {
    world: Arc<World>,
    chance: Rng,
    snapshots: SnapshotServiceClient<Channel>,
    operations: OperationServiceClient<Channel>,
}

/// What is asked for; a repeat is byte for byte the same.
enum Change {
    Create(v1::CreateSnapshotRequest),
    Update(v1::UpdateSnapshotRequest),
    Revert(v1::RevertToSnapshotRequest),
    Delete(v1::DeleteSnapshotRequest),
}

pub async fn run(world: Arc<World>, name: &'static str) {
    let channel = net::channel(API);
    let (snapshots, operations) = (SnapshotServiceClient::new(channel.clone()), OperationServiceClient::new(channel));
    let mut client = Client { chance: world.chance(name), world: world.clone(), snapshots, operations };
    for _ in 0..REQUESTS {
        client.pause(6000).await;
        let asked = client.one_request().await;
        world.asked.lock().unwrap().push(asked);
    }
    world.clients_left.fetch_sub(1, Ordering::Relaxed);
}

impl Client {
    async fn pause(&mut self, most: u64) {
        sleep(Duration::from_millis(self.chance.u64(..most))).await;
    }

    /// How long an answer is waited for: mostly long enough, sometimes too short for any.
    fn patience(&mut self) -> Duration {
        Duration::from_millis(if self.chance.u8(..3) == 0 { self.chance.u64(5..1500) } else { 25_000 })
    }

    async fn one_request(&mut self) -> Asked {
        let request_id = uuid::Builder::from_random_bytes(self.chance.u128(..).to_be_bytes()).into_uuid().to_string();
        let change = self.choose(&request_id).await;
        let mut asked = Asked { request_id, acknowledged: Vec::new(), ended: Vec::new() };
        for _ in 0..ATTEMPTS {
            match self.ask(&change).await {
                Ok(operation) => {
                    let name = operation.name.clone();
                    asked.acknowledged.push(operation.name);
                    // Now and then the answer is forgotten, and the request made again.
                    if self.chance.u8(..4) > 0 {
                        asked.ended.extend(self.look_after(&name).await);
                        if self.chance.u8(..4) > 0 {
                            break;
                        }
                    }
                }
                Err(status) if is_final(&status) => break,
                Err(_) => {}
            }
            self.pause(4000).await;
        }
        asked
    }

    async fn choose(&mut self, request_id: &str) -> Change {
        let machines = World::machines();
        let vm = machines[self.chance.usize(..machines.len())];
        let there = self.list(vm).await;
        let text = format!("{}", self.chance.u16(..));
        let request_id = request_id.to_owned();
        let choice = self.chance.u8(..10);
        let target = if there.is_empty() { None } else { Some(there[self.chance.usize(..there.len())].name.clone()) };
        match (target, choice) {
            (Some(name), 4..6) => Change::Update(v1::UpdateSnapshotRequest {
                snapshot: Some(v1::Snapshot { name, display_name: text, ..v1::Snapshot::default() }),
                request_id,
                ..v1::UpdateSnapshotRequest::default()
            }),
            (Some(name), 6..8) => Change::Revert(v1::RevertToSnapshotRequest {
                name,
                request_id,
                ..v1::RevertToSnapshotRequest::default()
            }),
            (Some(name), 8..10) => {
                Change::Delete(v1::DeleteSnapshotRequest { name, request_id, ..v1::DeleteSnapshotRequest::default() })
            }
            _ => Change::Create(v1::CreateSnapshotRequest {
                parent: names::vm(vm),
                snapshot: Some(v1::Snapshot { display_name: text, ..v1::Snapshot::default() }),
                request_id,
                ..v1::CreateSnapshotRequest::default()
            }),
        }
    }

    async fn list(&mut self, vm: VmId) -> Vec<v1::Snapshot> {
        let request = v1::ListSnapshotsRequest { parent: names::vm(vm), ..v1::ListSnapshotsRequest::default() };
        let call = self.snapshots.list_snapshots(self.world.request(request));
        match timeout(Duration::from_secs(3), call).await {
            Ok(Ok(answer)) => answer.into_inner().snapshots,
            Ok(Err(_)) | Err(_) => Vec::new(),
        }
    }

    async fn ask(&mut self, change: &Change) -> Result<v1::Operation, Status> {
        let patience = self.patience();
        let (world, client) = (self.world.clone(), &mut self.snapshots);
        let call = async {
            match change {
                Change::Create(request) => client.create_snapshot(world.request(request.clone())).await,
                Change::Update(request) => client.update_snapshot(world.request(request.clone())).await,
                Change::Revert(request) => client.revert_to_snapshot(world.request(request.clone())).await,
                Change::Delete(request) => client.delete_snapshot(world.request(request.clone())).await,
            }
        };
        match timeout(patience, call).await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded("the client has hung up")),
        }
    }

    /// Looks at an operation until it has ended, or for a while.
    async fn look_after(&mut self, name: &str) -> Option<v1::Operation> {
        for _ in 0..LOOKS {
            self.pause(2000).await;
            let request = v1::GetOperationRequest { name: name.to_owned() };
            let call = self.operations.get_operation(self.world.request(request));
            if let Ok(Ok(answer)) = timeout(Duration::from_secs(3), call).await
                && is_ended(answer.get_ref())
            {
                return Some(answer.into_inner());
            }
        }
        None
    }
}

/// Whether an operation has ended.
pub fn is_ended(operation: &v1::Operation) -> bool {
    !matches!(operation.state(), v1::OperationState::Pending | v1::OperationState::Running)
}

/// Whether asking again is of no use.
fn is_final(status: &Status) -> bool {
    let reason = proto::status::reason(status);
    // When the API's clock is wrong, every token is.
    let clock = [Reason::TokenExpired, Reason::TokenInvalid, Reason::AuthorizationExpired];
    reason.is_some_and(|reason| !reason.retryable() && !clock.contains(&reason))
}

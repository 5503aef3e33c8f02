//! Somebody with the API's certificate and key, at the door of an agent.

use mtls::TlsFiles;
use mtls::client::{ClientTimeouts, PeerChannel, channel};
use proto::agent::agent_service_client::AgentServiceClient;
use proto::agent::operation_event::{Ended, Event};
use proto::agent::{
    AttachOperationRequest, CancelOperationRequest, DeleteOrphanRequest, ListOrphansRequest, OperationEvent,
    PlanOperationRequest, StartOperationRequest, WatchHostRequest, WatchHostResponse,
};
use proto::convert::Spec;
use snapshot_core::ids::{OperationId, SnapshotId, VmId};
use snapshot_core::operation::{Create, DeleteScope, Request, RunAfter};
use snapshot_core::text::{Description, DisplayName};
use tests::client::Refusal;
use tests::cluster::forwarded;
use tests::guest::Guest;
use tests::lab::{HOST, Lab};
use tonic::{Status, Streaming};
use uuid::Uuid;

/// A caller of the agent itself, with what the API's machine has.
pub struct Thief {
    client: AgentServiceClient<PeerChannel>,
    token: String,
}

impl Thief {
    /// With this token, as the API would send it: without its secret. None when it is empty.
    pub fn with(lab: &Lab, token: &str) -> Self {
        let (identity, leaf) = (lab.cluster.identity(), lab.cluster.identity().api());
        let files = TlsFiles { ca: identity.ca(), certificate: leaf.certificate, key: leaf.key, crl: None };
        let uri = format!("https://127.0.0.1:{}", lab.cluster.host(HOST).unwrap().port());
        let agent = identity.spiffe(&format!("agent/{HOST}")).parse().unwrap();
        let channel = channel(&uri, files, agent, ClientTimeouts::default()).unwrap();
        Self { client: AgentServiceClient::new(channel), token: forwarded(token).to_owned() }
    }

    fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        if !self.token.is_empty() {
            request.metadata_mut().insert("authorization", format!("Bearer {}", self.token).parse().unwrap());
        }
        request
    }

    pub async fn watch(&self) -> Result<Streaming<WatchHostResponse>, Refusal> {
        let stream = self.client.clone().watch_host(self.request(WatchHostRequest {})).await?.into_inner();
        Ok(stream)
    }

    pub async fn plan(&self, spec: &Spec) -> Result<(), Refusal> {
        let request = self.request(PlanOperationRequest { spec: Some(spec.into()) });
        Ok(self.client.clone().plan_operation(request).await.map(drop)?)
    }

    /// Begins an operation and follows it to its end.
    pub async fn start(&self, spec: &Spec) -> Result<Ended, Refusal> {
        let request = self.request(StartOperationRequest { spec: Some(spec.into()) });
        let mut stream = self.client.clone().start_operation(request).await?.into_inner();
        while let Some(message) = stream.message().await? {
            if let Some(OperationEvent { event: Some(Event::Ended(ended)) }) = message.event {
                return Ok(ended);
            }
        }
        Err(Refusal::lost("the stream ended before the operation"))
    }

    /// Follows an operation to its end, or to the end of the stream.
    pub async fn attach(&self, operation: &str) -> Result<Ended, Refusal> {
        let request = self.request(AttachOperationRequest { operation_id: bare(operation) });
        let mut stream = self.client.clone().attach_operation(request).await?.into_inner();
        while let Some(message) = stream.message().await? {
            if let Some(OperationEvent { event: Some(Event::Ended(ended)) }) = message.event {
                return Ok(ended);
            }
        }
        Err(Refusal::lost("the stream ended before the operation"))
    }

    /// Lists the orphans of the host, and deletes one.
    pub async fn orphans(&self) -> [Result<(), Refusal>; 2] {
        let listed = self.client.clone().list_orphans(self.request(ListOrphansRequest::default())).await;
        let (orphan_id, etag) = (Uuid::nil().to_string(), "guessed".to_owned());
        let request = self.request(DeleteOrphanRequest { orphan_id, etag, validate_only: false });
        let deleted = self.client.clone().delete_orphan(request).await;
        [listed.map(drop).map_err(Refusal::from), deleted.map(drop).map_err(Refusal::from)]
    }

    pub async fn cancel(&self, operation: &str) -> Result<(), Refusal> {
        let request = self.request(CancelOperationRequest { operation_id: bare(operation) });
        Ok(self.client.clone().cancel_operation(request).await.map(drop)?)
    }
}

/// How a stream ended.
pub async fn end_of<T>(stream: &mut Streaming<T>) -> Status {
    loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => return Status::ok("without a word"),
            Err(status) => return status,
        }
    }
}

fn bare(operation: &str) -> String {
    operation.trim_start_matches("operations/").to_owned()
}

pub fn vm(guest: &Guest) -> VmId {
    VmId::from_uuid(guest.uuid())
}

pub fn spec(vm: VmId, request: Request) -> Spec {
    Spec { operation: OperationId::from_uuid(Uuid::now_v7()), vm, request }
}

pub fn new_snapshot(name: &str) -> Create {
    Create {
        snapshot: SnapshotId::from_uuid(Uuid::now_v7()),
        display_name: DisplayName::parse(name).unwrap(),
        description: Description::default(),
        protected: false,
        content: None,
        storage: None,
        quiesce: false,
        allow_crash_consistent: false,
    }
}

pub fn revert(snapshot: &SnapshotId, save_current: Option<Create>) -> Request {
    Request::Revert { snapshot: snapshot.clone(), run_after: RunAfter::AsRecorded, save_current }
}

pub fn delete(snapshot: &SnapshotId, scope: DeleteScope) -> Request {
    Request::Delete { snapshot: snapshot.clone(), scope, force: false }
}

pub fn forced(snapshot: &SnapshotId, scope: DeleteScope) -> Request {
    Request::Delete { snapshot: snapshot.clone(), scope, force: true }
}

pub fn update(snapshot: &SnapshotId) -> Request {
    let (display_name, description) = (DisplayName::parse("stolen").unwrap(), Description::default());
    Request::Update { snapshot: snapshot.clone(), display_name, description, protected: true }
}

/// Everything that a user's snapshot could come to harm by.
pub fn harmful(snapshot: &SnapshotId) -> Vec<Request> {
    vec![
        revert(snapshot, None),
        revert(snapshot, Some(new_snapshot("saved"))),
        delete(snapshot, DeleteScope::Only),
        delete(snapshot, DeleteScope::Subtree),
        forced(snapshot, DeleteScope::Only),
        update(snapshot),
        Request::Purge { force: false },
        Request::Purge { force: true },
    ]
}

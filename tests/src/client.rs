//! The public API as its callers meet it, over every face it has.
//!
//! A [`Face`] carries one call: the method's name, a protobuf message in, messages or a [`Refusal`] out. Faces that
//! speak JSON convert by the descriptors on the way. [`Client`] has the calls of the story over any face, so that one
//! story is told over all of them. A watch that stays open is [`VmWatch`]'s, over gRPC.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use async_trait::async_trait;
use prost::Message;
use proto::v1;
use uuid::Uuid;

use crate::cluster::Cluster;

mod connect;
mod grpc;
mod grpc_web;
mod grpcurl;
mod json;
mod refusal;
mod watch;

pub use self::connect::Curl;
pub use self::grpc::Grpc;
pub use self::grpc_web::GrpcWeb;
pub use self::grpcurl::Grpcurl;
pub use self::refusal::Refusal;
pub use self::watch::{Mirror, VmWatch};

/// The full name of SnapshotService.
pub const SNAPSHOTS: &str = "ravada.snapshot.v1.SnapshotService";
/// The full name of OperationService.
pub const OPERATIONS: &str = "ravada.snapshot.v1.OperationService";
/// The full name of HostService.
pub const HOSTS: &str = "ravada.snapshot.v1.HostService";
/// The full name of AuditService.
pub const AUDIT: &str = "ravada.snapshot.v1.AuditService";

/// How long an operation may take: a revert of a running guest alone takes 2 s.
const OPERATION: Duration = Duration::from_secs(120);
/// How long the agent may take to tell of a machine.
const KNOWN: Duration = Duration::from_secs(60);

/// One call on its way.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// The service's full name.
    pub service: &'a str,
    /// The method's name.
    pub method: &'a str,
    /// The request, encoded.
    pub request: &'a [u8],
    /// The bearer token; none when empty.
    pub token: &'a str,
    /// What `x-request-id` is to follow the call through the logs; none when empty.
    pub request_id: &'a str,
}

impl Call<'_> {
    /// The headers it carries.
    fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = Vec::new();
        if !self.token.is_empty() {
            headers.push(("authorization", format!("Bearer {}", self.token)));
        }
        if !self.request_id.is_empty() {
            headers.push(("x-request-id", self.request_id.to_owned()));
        }
        headers
    }

    /// `{service}/{method}`.
    pub fn path(&self) -> String {
        format!("{}/{}", self.service, self.method)
    }
}

/// A way to call the API.
#[async_trait]
pub trait Face: Send + Sync {
    /// What it is called in messages.
    fn name(&self) -> &'static str;
    /// A call with one answer.
    async fn unary(&self, call: Call<'_>) -> Result<Vec<u8>, Refusal>;
    /// A call with a stream of answers, collected until the server ends it.
    async fn stream(&self, call: Call<'_>) -> Result<Vec<Vec<u8>>, Refusal>;
}

/// Every face of a cluster: gRPC through the gateway and straight to the API, gRPC-Web, JSON by curl, and grpcurl at both.
pub fn faces(cluster: &Cluster) -> Result<Vec<Box<dyn Face>>> {
    faces_at(cluster.ports().gateway, cluster.ports().public, &cluster.identity().ca())
}

/// Every face of an installation on 127.0.0.1, by the ports of its gateway and of its public listener.
pub fn faces_at(gateway: u16, public: u16, ca: &Path) -> Result<Vec<Box<dyn Face>>> {
    Ok(vec![
        Box::new(Grpc::plain(gateway)?),
        Box::new(Grpc::tls(public, ca)?),
        Box::new(GrpcWeb::new(gateway)),
        Box::new(Curl::new(gateway)),
        Box::new(Grpcurl::plain(gateway)?),
        Box::new(Grpcurl::tls(public, ca)?),
    ])
}

/// A caller with a token.
pub struct Client {
    face: Box<dyn Face>,
    token: String,
    request_id: String,
}

impl Client {
    /// A caller over a face.
    pub fn new(face: Box<dyn Face>, token: impl Into<String>) -> Self {
        Self { face, token: token.into(), request_id: String::new() }
    }

    /// A caller over gRPC through the gateway.
    pub fn grpc(cluster: &Cluster, token: impl Into<String>) -> Result<Self> {
        Ok(Self::new(Box::new(Grpc::plain(cluster.ports().gateway)?), token))
    }

    /// Its calls carry this `x-request-id` from now on.
    #[must_use]
    pub fn traced(mut self, request_id: &str) -> Self {
        request_id.clone_into(&mut self.request_id);
        self
    }

    /// An administrator over gRPC through the gateway: what most tests need.
    pub fn admin(cluster: &Cluster) -> Result<Self> {
        Self::grpc(cluster, cluster.identity().admin_token()?)
    }

    /// The face's name.
    pub fn face(&self) -> &'static str {
        self.face.name()
    }

    /// Any call with one answer.
    pub async fn call<Q: Message, A: Message + Default>(&self, path: (&str, &str), request: &Q) -> Result<A, Refusal> {
        let bytes = request.encode_to_vec();
        decode(&self.face.unary(self.carried(path, &bytes)).await?)
    }

    fn carried<'a>(&'a self, path: (&'a str, &'a str), request: &'a [u8]) -> Call<'a> {
        Call { service: path.0, method: path.1, request, token: &self.token, request_id: &self.request_id }
    }

    /// ListVms, all pages.
    pub async fn vms(&self) -> Result<Vec<v1::Vm>, Refusal> {
        let mut request = v1::ListVmsRequest::default();
        let mut all = Vec::new();
        loop {
            let answer: v1::ListVmsResponse = self.call((SNAPSHOTS, "ListVms"), &request).await?;
            all.extend(answer.vms);
            if answer.next_page_token.is_empty() {
                return Ok(all);
            }
            request.page_token = answer.next_page_token;
        }
    }

    /// GetVm.
    pub async fn vm(&self, name: &str) -> Result<v1::Vm, Refusal> {
        self.call((SNAPSHOTS, "GetVm"), &v1::GetVmRequest { name: name.to_owned() }).await
    }

    /// Asks for the machine until `state` is what it is in: the agent hears of changes by libvirt's events.
    pub async fn vm_in_state(&self, name: &str, state: v1::VmState) -> Result<v1::Vm> {
        let start = Instant::now();
        loop {
            let seen = self.vm(name).await;
            match seen {
                Ok(vm) if vm.state() == state && vm.host_reachable => return Ok(vm),
                _ if start.elapsed() > KNOWN => bail!("{name} is not {state:?} after {KNOWN:?}: {seen:?}"),
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// CreateSnapshot with a name and a description; everything else automatic.
    pub async fn create(&self, vm: &str, display_name: &str, description: &str) -> Result<v1::Operation, Refusal> {
        let (display_name, description) = (display_name.to_owned(), description.to_owned());
        let snapshot = v1::Snapshot { display_name, description, ..Default::default() };
        self.create_as(v1::CreateSnapshotRequest {
            parent: vm.to_owned(),
            snapshot: Some(snapshot),
            request_id: Uuid::new_v4().to_string(),
            ..Default::default()
        })
        .await
    }

    /// CreateSnapshot.
    pub async fn create_as(&self, request: v1::CreateSnapshotRequest) -> Result<v1::Operation, Refusal> {
        self.call((SNAPSHOTS, "CreateSnapshot"), &request).await
    }

    /// GetSnapshot.
    pub async fn snapshot(&self, name: &str) -> Result<v1::Snapshot, Refusal> {
        self.call((SNAPSHOTS, "GetSnapshot"), &v1::GetSnapshotRequest { name: name.to_owned() }).await
    }

    /// ListSnapshots, all pages.
    pub async fn snapshots(&self, vm: &str) -> Result<Vec<v1::Snapshot>, Refusal> {
        let mut request = v1::ListSnapshotsRequest { parent: vm.to_owned(), ..Default::default() };
        let mut all = Vec::new();
        loop {
            let answer: v1::ListSnapshotsResponse = self.call((SNAPSHOTS, "ListSnapshots"), &request).await?;
            all.extend(answer.snapshots);
            if answer.next_page_token.is_empty() {
                return Ok(all);
            }
            request.page_token = answer.next_page_token;
        }
    }

    /// UpdateSnapshot.
    pub async fn update(&self, request: v1::UpdateSnapshotRequest) -> Result<v1::Operation, Refusal> {
        self.call((SNAPSHOTS, "UpdateSnapshot"), &request).await
    }

    /// RevertToSnapshot, as recorded.
    pub async fn revert(&self, snapshot: &str) -> Result<v1::Operation, Refusal> {
        self.revert_as(v1::RevertToSnapshotRequest {
            name: snapshot.to_owned(),
            request_id: Uuid::new_v4().to_string(),
            ..Default::default()
        })
        .await
    }

    /// RevertToSnapshot.
    pub async fn revert_as(&self, request: v1::RevertToSnapshotRequest) -> Result<v1::Operation, Refusal> {
        self.call((SNAPSHOTS, "RevertToSnapshot"), &request).await
    }

    /// DeleteSnapshot.
    pub async fn delete(&self, snapshot: &str, scope: v1::DeleteScope) -> Result<v1::Operation, Refusal> {
        self.delete_as(v1::DeleteSnapshotRequest {
            name: snapshot.to_owned(),
            scope: scope.into(),
            request_id: Uuid::new_v4().to_string(),
            ..Default::default()
        })
        .await
    }

    /// DeleteSnapshot.
    pub async fn delete_as(&self, request: v1::DeleteSnapshotRequest) -> Result<v1::Operation, Refusal> {
        self.call((SNAPSHOTS, "DeleteSnapshot"), &request).await
    }

    /// PurgeVm.
    pub async fn purge(&self, request: v1::PurgeVmRequest) -> Result<v1::Operation, Refusal> {
        self.call((SNAPSHOTS, "PurgeVm"), &request).await
    }

    /// GetOperation.
    pub async fn operation(&self, name: &str) -> Result<v1::Operation, Refusal> {
        self.call((OPERATIONS, "GetOperation"), &v1::GetOperationRequest { name: name.to_owned() }).await
    }

    /// Every message of WatchOperation, until the operation has ended.
    pub async fn watch(&self, operation: &str) -> Result<Vec<v1::Operation>, Refusal> {
        let bytes = v1::WatchOperationRequest { name: operation.to_owned() }.encode_to_vec();
        let answers = self.face.stream(self.carried((OPERATIONS, "WatchOperation"), &bytes)).await?;
        answers
            .iter()
            .filter_map(|bytes| decode(bytes).map(|a: v1::WatchOperationResponse| a.operation).transpose())
            .collect()
    }

    /// Waits for the operation's end by WatchOperation.
    pub async fn ended(&self, operation: v1::Operation) -> Result<v1::Operation> {
        let name = operation.name;
        let seen = tokio::time::timeout(OPERATION, self.watch(&name));
        let seen = seen.await.with_context(|| format!("{name} has not ended after {OPERATION:?}"))??;
        let last = seen.into_iter().next_back().with_context(|| format!("a watch of {name} said nothing"))?;
        if matches!(last.state(), v1::OperationState::Pending | v1::OperationState::Running) {
            bail!("the watch of {name} ended while it was {:?}", last.state());
        }
        Ok(last)
    }

    /// Waits until the operation has succeeded; any other end is an error.
    pub async fn done(&self, operation: Result<v1::Operation, Refusal>) -> Result<v1::Operation> {
        let operation = self.ended(operation?).await?;
        if operation.state() != v1::OperationState::Succeeded {
            bail!("{} ended {:?}: {:?}", operation.name, operation.state(), operation.error);
        }
        Ok(operation)
    }

    /// ListAuditEvents, all pages, the oldest first.
    pub async fn audit(&self) -> Result<Vec<v1::AuditEvent>, Refusal> {
        let mut request = v1::ListAuditEventsRequest { oldest_first: true, ..Default::default() };
        let mut all = Vec::new();
        loop {
            let answer: v1::ListAuditEventsResponse = self.call((AUDIT, "ListAuditEvents"), &request).await?;
            all.extend(answer.events);
            if answer.next_page_token.is_empty() {
                return Ok(all);
            }
            request.page_token = answer.next_page_token;
        }
    }

    /// ListHosts.
    pub async fn hosts(&self) -> Result<Vec<v1::Host>, Refusal> {
        let answer: v1::ListHostsResponse = self.call((HOSTS, "ListHosts"), &v1::ListHostsRequest::default()).await?;
        Ok(answer.hosts)
    }
}

fn decode<A: Message + Default>(bytes: &[u8]) -> Result<A, Refusal> {
    A::decode(bytes).map_err(|error| Refusal::harness(format!("cannot decode an answer: {error}")))
}

//! An agent that answers while the catalogue cannot be written.

use std::time::Instant;

use hyper_util::rt::TokioIo;
use proto::agent::agent_service_server::{AgentService, AgentServiceServer};
use proto::agent::operation_event::{Accepted, Ended, Event};
use proto::agent::{
    AttachOperationRequest, AttachOperationResponse, CancelOperationRequest, CancelOperationResponse,
    DeleteOrphanRequest, DeleteOrphanResponse, ListOrphansRequest, ListOrphansResponse, OperationEvent,
    PlanOperationRequest, PlanOperationResponse, StartOperationRequest, StartOperationResponse, WatchHostRequest,
    WatchHostResponse,
};
use proto::convert::Spec;
use proto::v1;
use snapshot_core::ids::VmId;
use snapshot_core::operation::{OperationState, Outcome};
use tempfile::TempDir;
use tokio_stream::Iter;
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tonic::{Request, Response, Status};
use tower::service_fn;

use super::*;
use crate::store::OperationRow;
use crate::store::tests::full::lock_writes;
use crate::store::tests::{create, host, intent, inventory};

/// Refuses everything, or has done it before it is asked twice.
#[derive(Clone, Copy)]
enum Peer {
    Refuses,
    Succeeds,
    /// Tells of VMs, of which some make no sense.
    Tells,
}

type Told<T> = Iter<std::vec::IntoIter<Result<T, Status>>>;

fn told<T>(wrap: fn(OperationEvent) -> T) -> Told<T> {
    let mut ended = Ended { inventory: Some((&inventory(1, &[("snap-1", None)])).into()), ..Ended::default() };
    ended.set_state(Outcome::Succeeded.into());
    let events = [Event::Accepted(Accepted { cancellable: false }), Event::Ended(ended)];
    let messages: Vec<_> = events.into_iter().map(|event| Ok(wrap(OperationEvent { event: Some(event) }))).collect();
    tokio_stream::iter(messages)
}

#[tonic::async_trait]
impl AgentService for Peer {
    type WatchHostStream = Told<WatchHostResponse>;
    type StartOperationStream = Told<StartOperationResponse>;
    type AttachOperationStream = Told<AttachOperationResponse>;

    async fn watch_host(&self, _: Request<WatchHostRequest>) -> Result<Response<Self::WatchHostStream>, Status> {
        match self {
            Self::Refuses | Self::Succeeds => Err(Status::unimplemented("not asked for")),
            Self::Tells => Ok(Response::new(tokio_stream::iter(strange_host()))),
        }
    }

    async fn plan_operation(
        &self,
        _: Request<PlanOperationRequest>,
    ) -> Result<Response<PlanOperationResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn start_operation(
        &self,
        _: Request<StartOperationRequest>,
    ) -> Result<Response<Self::StartOperationStream>, Status> {
        match self {
            Self::Refuses => Err(proto::status::to_status(&Error::new(Reason::SpaceLow, "too little"))),
            Self::Succeeds | Self::Tells => {
                Ok(Response::new(told(|event| StartOperationResponse { event: Some(event) })))
            }
        }
    }

    async fn attach_operation(
        &self,
        request: Request<AttachOperationRequest>,
    ) -> Result<Response<Self::AttachOperationStream>, Status> {
        match self {
            Self::Refuses => {
                let id = request.into_inner().operation_id;
                Err(proto::status::to_status(&Error::new(Reason::OperationNotFound, id)))
            }
            Self::Succeeds | Self::Tells => {
                Ok(Response::new(told(|event| AttachOperationResponse { event: Some(event) })))
            }
        }
    }

    async fn cancel_operation(
        &self,
        _: Request<CancelOperationRequest>,
    ) -> Result<Response<CancelOperationResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn list_orphans(&self, _: Request<ListOrphansRequest>) -> Result<Response<ListOrphansResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn delete_orphan(&self, _: Request<DeleteOrphanRequest>) -> Result<Response<DeleteOrphanResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}

/// What a host tells that is newer, broken or hostile: VM 1 is whole, each of the others makes no sense in one way.
fn strange_host() -> Vec<Result<WatchHostResponse, Status>> {
    use proto::agent::watch_host_response::Event as Told;
    let vm = |number: u128| proto::agent::VmInventory::from(&inventory(number, &[("snap-1", None)]));
    let strange = |number: u128, change: fn(&mut proto::agent::SnapshotFacts)| {
        let mut wire = vm(number);
        change(&mut wire.snapshots[0]);
        wire
    };
    let mut vms = vec![
        strange(2, |snapshot| snapshot.content = 99),
        strange(3, |snapshot| snapshot.parent_id = "\n".to_owned()),
        strange(4, |snapshot| snapshot.display_name = "x".repeat(10_000)),
        strange(5, |snapshot| snapshot.parent_id.clone_from(&snapshot.snapshot_id)),
        strange(6, |snapshot| snapshot.size_bytes = u64::MAX),
        vm(1),
    ];
    let mut twice = vm(7);
    twice.snapshots.push(twice.snapshots[0].clone());
    vms.push(twice);
    vms.push(proto::agent::VmInventory::default());
    let synced = Told::Synced(proto::agent::watch_host_response::Synced::default());
    let events = vms.into_iter().map(Told::Vm).chain([Told::RemovedVmId("?".to_owned()), synced]);
    events.map(|event| Ok(WatchHostResponse { event: Some(event) })).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_vm_that_makes_no_sense_hides_none_of_the_others() {
    let (fixture, _claim) = Fixture::begun(Peer::Tells).await;
    let following = tokio::spawn(fixture.agent.clone().follow());
    let begun = Instant::now();
    // The stream ends after it has told everything, and the host is away then.
    while fixture.agent.state().synced.0 == 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", fixture.agent.state());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let row = |number: u128| fixture.store.vm(VmId::from_uuid(uuid::Uuid::from_u128(number))).unwrap();
    assert_eq!((row(1).facts.restrictions.len(), row(6).facts.restrictions.len()), (0, 0));
    for number in [2, 3, 4, 5, 7] {
        let restrictions = row(number).facts.restrictions;
        assert!(restrictions.iter().any(|one| one.reason == Reason::HostProtocol), "{number}: {restrictions:?}");
    }
    fixture.agent.stopping.cancel();
    following.await.unwrap();
}

/// A channel to this peer, in memory.
fn channel_to(peer: Peer) -> Channel {
    Endpoint::from_static("http://peer").connect_with_connector_lazy(service_fn(move |_: Uri| async move {
        let (here, there) = tokio::io::duplex(1 << 16);
        let connections = tokio_stream::once(Ok::<_, std::io::Error>(there));
        tokio::spawn(Server::builder().add_service(AgentServiceServer::new(peer)).serve_with_incoming(connections));
        Ok::<_, std::io::Error>(TokioIo::new(here))
    }))
}

struct Fixture {
    agent: Agent,
    store: Store,
    spec: Spec,
    folder: TempDir,
}

impl Fixture {
    /// An operation whose intent is written down.
    async fn begun(peer: Peer) -> (Self, Claim) {
        let folder = TempDir::new().unwrap();
        let store = Store::open(&folder.path().join("catalogue.db")).unwrap();
        store.put_inventory(host(), inventory(1, &[]), 0).await.unwrap();
        let own = Arc::new(crate::own_tokens::tests::some(&folder, Clock::system()));
        let stopping = CancellationToken::new();
        let agent = Agent::new(host(), channel_to(peer), store.clone(), Clock::system(), own, stopping);
        let new = intent(1, create("snap-1"));
        let spec = Spec { operation: new.id, vm: new.vm, request: new.request.clone() };
        let claim = agent.claim(new.id).unwrap();
        store.begin(new).await.unwrap();
        (Self { agent, store, spec, folder }, claim)
    }

    /// Hands the operation over while the catalogue takes nothing.
    async fn start_unwritten(&self, claim: Claim) -> Result<OperationRow, Error> {
        let _locked = lock_writes(&self.folder.path().join("catalogue.db"));
        self.agent.start(claim, "token", "r", &self.spec).await
    }

    /// The operation once it has ended; in time, because nobody but the API itself is at work.
    async fn ended(&self) -> OperationRow {
        let begun = Instant::now();
        loop {
            let row = self.store.operation(self.spec.operation).unwrap();
            if row.state.is_ended() {
                return row;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "stuck: {row:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_that_could_not_be_written_down_frees_the_machine_later() {
    let (fixture, claim) = Fixture::begun(Peer::Refuses).await;
    let refusal = fixture.start_unwritten(claim).await.unwrap_err();
    assert_eq!(refusal.reason(), Reason::SpaceLow);
    assert_eq!(fixture.store.operation(fixture.spec.operation).unwrap().state, OperationState::Pending);
    let row = fixture.ended().await;
    assert_eq!((row.state, row.error.unwrap().reason()), (OperationState::Failed, Reason::SpaceLow));
    fixture.store.begin(intent(1, create("snap-2"))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outcome_that_could_not_be_written_down_is_asked_for_again() {
    let (fixture, claim) = Fixture::begun(Peer::Succeeds).await;
    let row = fixture.start_unwritten(claim).await.unwrap();
    assert_eq!((row.id, row.state), (fixture.spec.operation, OperationState::Pending), "it is under way, and says so");
    assert_eq!(fixture.ended().await.state, OperationState::Succeeded);
    let operation: v1::Operation = crate::view::operation(&fixture.ended().await);
    assert_eq!(operation.state(), v1::OperationState::Succeeded);
}

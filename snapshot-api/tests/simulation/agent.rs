//! A fake agent that keeps the agent's contract and takes its time.
//!
//! - An operation is in the journal before anybody is told that it is taken on; what is in the journal is finished, also by the
//!   process after this one, and nothing is in it twice. Ended operations are remembered.
//! - A refusal leaves nothing behind. One operation on a machine at a time.
//! - A watch, and following an operation again, take a token that may read everything, and end with it.
//! - Who attaches to an operation that this process does not know is told so, and from then on it will not be taken on:
//!   it may be on its way still.
//!
//! The journal and the machines ([`Disk`]) outlive the process. An effect is done at one moment; what is before and after it may
//! be cut off by a kill.

mod carry_out;
mod disk;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use capability::Verifier;
use fastrand::Rng;
use proto::agent::agent_service_server::AgentService;
use proto::agent::operation_event::{Accepted, Ended, Event};
use proto::agent::watch_host_response::{Event as Told, Synced};
use proto::agent::{
    AttachOperationRequest, AttachOperationResponse, CancelOperationRequest, CancelOperationResponse,
    DeleteOrphanRequest, DeleteOrphanResponse, HostFacts, ListOrphansRequest, ListOrphansResponse, OperationEvent,
    PlanOperationRequest, PlanOperationResponse, StartOperationRequest, StartOperationResponse, VmInventory,
    WatchHostRequest, WatchHostResponse,
};
use proto::convert::{Inventory, Spec};
use proto::v1;
use snapshot_core::authority::{Denied, authorize_inventory};
use snapshot_core::ids::{OperationId, VmId};
use snapshot_core::operation::Outcome;
use snapshot_core::{Error, Reason};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

pub use disk::Disk;

const HEARTBEAT: Duration = Duration::from_secs(5);

/// One process of an agent; clones share it.
#[derive(Clone)]
pub struct Agent(Arc<Shared>);

struct Shared {
    disk: Arc<Mutex<Disk>>,
    verifier: Arc<Verifier>,
    now_ms: fn() -> i64,
    chance: Mutex<Rng>,
    in_hand: Arc<AtomicUsize>,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    operations: BTreeMap<OperationId, Arc<Operation>>,
    /// Those that somebody was told are not known.
    denied: BTreeSet<OperationId>,
    held: BTreeMap<VmId, OperationId>,
    sequence: u64,
}

struct Operation {
    spec: Spec,
    phase: watch::Sender<Phase>,
}

/// Something to do, until this is dropped: it is done, or the process was killed.
struct InHand(Arc<AtomicUsize>);

impl Drop for InHand {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Clone)]
enum Phase {
    Accepting,
    Refused(Error),
    Running { percent: i32 },
    Ended(Outcome),
}

impl Agent {
    /// A new process over what the one before has left.
    pub fn start(
        disk: Arc<Mutex<Disk>>,
        verifier: Arc<Verifier>,
        now_ms: fn() -> i64,
        chance: Rng,
        in_hand: Arc<AtomicUsize>,
    ) -> Self {
        let (chance, state, changed) = (Mutex::new(chance), Mutex::default(), watch::Sender::new(0));
        let agent = Self(Arc::new(Shared { disk, verifier, now_ms, chance, in_hand, state, changed }));
        agent.settle();
        agent
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.disk.lock().unwrap()
    }

    /// A time: mostly short, now and then longer than anybody waits.
    async fn while_away(&self, usual: u64, long: u64) {
        let millis = {
            let mut chance = self.0.chance.lock().unwrap();
            if chance.u8(..16) == 0 { chance.u64(..long) } else { chance.u64(..usual) }
        };
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    fn take_in_hand(&self) -> InHand {
        self.0.in_hand.fetch_add(1, Ordering::Relaxed);
        InHand(self.0.in_hand.clone())
    }

    fn known(&self, id: OperationId) -> Option<Arc<Operation>> {
        self.state().operations.get(&id).cloned()
    }

    /// The machine as it is now, with the number of this telling.
    fn inventory(&self, vm: VmId) -> VmInventory {
        let mut state = self.state();
        state.sequence += 1;
        let snapshots = self.disk().machines[&vm].clone();
        (&Inventory { vm: disk::facts(vm), snapshots, sequence: state.sequence, unobserved: false }).into()
    }

    /// What happens to an operation, as the real agent tells it.
    fn follow<T: Send + 'static>(&self, operation: Arc<Operation>, wrap: fn(OperationEvent) -> T) -> Events<T> {
        let (sender, receiver) = mpsc::channel(4);
        let agent = self.clone();
        tokio::spawn(async move {
            let send = async |event| sender.send(Ok(wrap(OperationEvent { event: Some(event) }))).await.is_ok();
            let mut phases = operation.phase.subscribe();
            let mut accepted = false;
            loop {
                let phase = phases.borrow_and_update().clone();
                if !accepted && matches!(phase, Phase::Running { .. } | Phase::Ended(_)) {
                    accepted = true;
                    if !send(Event::Accepted(Accepted { cancellable: false })).await {
                        return;
                    }
                }
                match phase {
                    Phase::Accepting => {}
                    Phase::Refused(refusal) => {
                        let _ = sender.send(Err(proto::status::to_status(&refusal))).await;
                        return;
                    }
                    Phase::Running { percent } => {
                        let progress = v1::OperationProgress { percent, ..v1::OperationProgress::default() };
                        if percent > 0 && !send(Event::Progress(progress)).await {
                            return;
                        }
                    }
                    Phase::Ended(outcome) => {
                        let mut ended =
                            Ended { inventory: Some(agent.inventory(operation.spec.vm)), ..Ended::default() };
                        ended.set_state(outcome.into());
                        if outcome == Outcome::Failed {
                            let error = Error::new(Reason::HypervisorFailed, "it came to nothing");
                            ended.error = Some((&error).into());
                        }
                        send(Event::Ended(ended)).await;
                        return;
                    }
                }
                tokio::select! {
                    changed = phases.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                }
            }
        });
        ReceiverStream::new(receiver)
    }

    /// Checks the token of who wants to see everything; returns when it ends.
    fn reads<T>(&self, request: &Request<T>) -> Result<Instant, Status> {
        let now = (self.0.now_ms)() / 1000;
        let check = || -> Result<i64, Error> {
            let caller = self.0.verifier.verify_token(capability::bearer(request.metadata().as_ref())?, now)?;
            Ok(authorize_inventory(&caller).map_err(Denied::over_hosts)?.expires_at_unix())
        };
        let end = check().map_err(|refusal| proto::status::to_status(&refusal))?;
        Ok(Instant::now() + Duration::from_secs(u64::try_from(end - now).unwrap_or(0)))
    }

    async fn tell(&self, sender: &mpsc::Sender<Result<WatchHostResponse, Status>>) -> Option<()> {
        let send = async |event| sender.send(Ok(WatchHostResponse { event: Some(event) })).await.ok();
        let mut changed = self.0.changed.subscribe();
        send(Told::Host(HostFacts::default())).await?;
        let machines: Vec<VmId> = self.disk().machines.keys().copied().collect();
        let mut synced = false;
        loop {
            changed.borrow_and_update();
            for vm in &machines {
                send(Told::Vm(self.inventory(*vm))).await?;
            }
            if !synced {
                synced = true;
                send(Told::Synced(Synced {})).await?;
            }
            loop {
                tokio::select! {
                    _ = changed.changed() => break,
                    () = sender.closed() => return None,
                    () = tokio::time::sleep(HEARTBEAT) => send(Told::Host(HostFacts::default())).await?,
                }
            }
        }
    }
}

type Events<T> = ReceiverStream<Result<T, Status>>;

fn unknown(id: OperationId) -> Status {
    proto::status::to_status(&Error::new(Reason::OperationNotFound, format!("operations/{id} is not known")))
}

#[tonic::async_trait]
impl AgentService for Agent {
    type WatchHostStream = Events<WatchHostResponse>;
    type StartOperationStream = Events<StartOperationResponse>;
    type AttachOperationStream = Events<AttachOperationResponse>;

    async fn watch_host(&self, request: Request<WatchHostRequest>) -> Result<Response<Self::WatchHostStream>, Status> {
        let until = self.reads(&request)?;
        let (sender, receiver) = mpsc::channel(8);
        let agent = self.clone();
        tokio::spawn(async move {
            if tokio::time::timeout_at(until, agent.tell(&sender)).await.is_err() {
                let over = Error::new(Reason::TokenExpired, "the token of the stream has ended");
                let _ = sender.send(Err(proto::status::to_status(&over))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn plan_operation(
        &self,
        _: Request<PlanOperationRequest>,
    ) -> Result<Response<PlanOperationResponse>, Status> {
        Ok(Response::new(PlanOperationResponse { plan: Some(v1::OperationPlan::default()) }))
    }

    async fn start_operation(
        &self,
        request: Request<StartOperationRequest>,
    ) -> Result<Response<Self::StartOperationStream>, Status> {
        let agent = self.clone();
        // A request that was read is acted upon, also when whoever sent it has gone away meanwhile.
        let entered = tokio::spawn(async move { agent.enter(request).await });
        let operation = entered.await.unwrap().map_err(|refusal| proto::status::to_status(&refusal))?;
        let wrap = |event| StartOperationResponse { event: Some(event) };
        Ok(Response::new(self.follow(operation, wrap)))
    }

    async fn attach_operation(
        &self,
        request: Request<AttachOperationRequest>,
    ) -> Result<Response<Self::AttachOperationStream>, Status> {
        self.reads(&request)?;
        let id: OperationId = request.get_ref().operation_id.parse().unwrap();
        self.while_away(20, 3000).await;
        let Some(operation) = self.known(id) else {
            self.state().denied.insert(id);
            return Err(unknown(id));
        };
        let wrap = |event| AttachOperationResponse { event: Some(event) };
        Ok(Response::new(self.follow(operation, wrap)))
    }

    async fn cancel_operation(
        &self,
        request: Request<CancelOperationRequest>,
    ) -> Result<Response<CancelOperationResponse>, Status> {
        let refusal = Error::new(Reason::NotCancellable, request.get_ref().operation_id.clone());
        Err(proto::status::to_status(&refusal))
    }

    async fn list_orphans(&self, _: Request<ListOrphansRequest>) -> Result<Response<ListOrphansResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn delete_orphan(&self, _: Request<DeleteOrphanRequest>) -> Result<Response<DeleteOrphanResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}

//! Carrying operations out.
//!
//! 1. **Enter.** The operation's id is looked up: a repeat follows the first. A new one takes its machine, or is told
//!    which operation is in the way.
//! 2. **Accept.** The machine is looked at, the planner plans, the journal is written. Up to here nothing has been
//!    changed and any refusal is final; from here on the operation is finished whatever becomes of the caller.
//! 3. **Run** ([`work`], [`steps`], [`revert`], [`in_place`], [`external`], [`merge`]). Each step is marked in the journal, carried out, and what came of it is looked at.
//!    "Already so" is success. What failed may have happened, or half of it: it is looked at and never guessed.
//!    What makes no progress for long is given up ([`overdue`]), and goes on.
//! 4. **End.** The machine is published as it now is, the end is marked, the machine is given back.
//!
//! When the process starts, what the journal has without an end is settled first ([`settle`]).
//!
//! Accepting and running are one blocking task, and the machine is held by an asynchronous one around it: if the
//! blocking task panics, the operation is settled like after a restart, before anybody else gets the machine.

mod external;
mod guest_clock;
mod in_place;
mod live;
mod merge;
pub mod operation;
pub(crate) mod orphans;
mod overdue;
mod registry;
mod revert;
mod safety;
mod settle;
mod spent;
mod steps;
mod vanished;
mod waiting;
mod work;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::convert::Spec;
use snapshot_core::authority::Permit;
use snapshot_core::ids::OperationId;
use snapshot_core::operation::{DeleteScope, Request};
use snapshot_core::plan::Plan;
use snapshot_core::policy::HostPolicy;
use snapshot_core::{Error, Reason};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use self::operation::{Operation, Phase};
use self::registry::{Entered, Registry};
use self::spent::Spent;
use self::work::Work;
use crate::hypervisor::{Hypervisor, Reread};
use crate::journal::Journal;
use crate::locks::Locks;
use crate::machines::Machines;

/// How long the start waits for what was interrupted to be settled, before the rest of the host is served. What takes
/// longer goes on beside it, with its machines held.
const SETTLE_WAIT: Duration = Duration::from_secs(20);

/// Plans that are made at a time.
const PLANS: usize = 8;

/// Carries operations out. Clones share everything.
#[derive(Clone)]
pub struct Executor {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) hypervisor: Arc<dyn Hypervisor>,
    pub(crate) journal: Journal,
    pub(crate) locks: Arc<Locks>,
    pub(crate) machines: Arc<Machines>,
    pub(crate) policy: HostPolicy,
    /// How long an operation may make no progress before its followers are told that it failed.
    silence: Duration,
    registry: Registry,
    /// What tokens were used for.
    spent: Spent,
    /// Cancelled when the process is to end: nothing new is begun.
    pub(crate) stopping: CancellationToken,
    tasks: TaskTracker,
    /// Plans that are made at a time, besides operations.
    plans: Semaphore,
}

/// Somebody who asks, and what for: what an operation needs besides its plan.
#[derive(Debug, Clone)]
pub struct Order {
    /// The operation.
    pub spec: Spec,
    /// Who may have it done.
    pub permit: Permit,
    /// The caller's id of the request.
    pub request_id: String,
}

impl Executor {
    /// Carries operations out on this hypervisor. Those that make no progress for `silence` are given up: see
    /// [`overdue`]. Call [`Executor::settle`] before the first.
    pub fn new(
        hypervisor: Arc<dyn Hypervisor>,
        journal: Journal,
        locks: Arc<Locks>,
        machines: Arc<Machines>,
        policy: HostPolicy,
        silence: Duration,
    ) -> Self {
        let (registry, stopping, tasks) = (Registry::default(), CancellationToken::new(), TaskTracker::new());
        let (plans, spent) = (Semaphore::new(PLANS), Spent::default());
        let shared =
            Shared { hypervisor, journal, locks, machines, policy, silence, registry, spent, stopping, tasks, plans };
        Self { shared: Arc::new(shared) }
    }

    /// Tells what an operation would do.
    pub async fn plan(&self, permit: &Permit, spec: Spec) -> Result<Plan, Error> {
        check_permit(permit, &spec)?;
        let (shared, permit) = (Arc::clone(&self.shared), permit.clone());
        // Waiting here costs nothing; waiting for libvirt costs a thread.
        let _turn = self.shared.plans.acquire().await;
        blocking(move || shared.look_and_plan(&spec, &permit).map(|(_, plan)| plan)).await
    }

    /// Takes an operation on, or follows the one that was taken on under this id. When this returns it is journalled.
    pub async fn start(&self, permit: &Permit, spec: Spec, request_id: String) -> Result<Arc<Operation>, Error> {
        check_permit(permit, &spec)?;
        let operation = match self.shared.registry.enter(&spec) {
            Entered::Known(operation) => {
                operation.check_same(spec.vm, &spec.request)?;
                operation
            }
            Entered::Denied => {
                let message =
                    "contact was lost before the operation was taken on, and it was given up; nothing was done";
                return Err(Error::new(Reason::AuthorizationExpired, message));
            }
            Entered::New(operation) => {
                let order = Order { spec, permit: permit.clone(), request_id };
                self.launch(Arc::clone(&operation), order);
                operation
            }
        };
        operation.accepted().await?;
        Ok(operation)
    }

    /// The operation with this id.
    pub fn get(&self, id: OperationId) -> Result<Arc<Operation>, Error> {
        self.shared.registry.get(id).ok_or_else(|| unknown(id))
    }

    /// The operation with this id, for who has lost sight of it. One that is not known is not taken on later either: whoever
    /// asks here counts it as never begun, and the request to begin it may still be on its way, in a connection that was given
    /// up. A process that starts anew has no such connection, so this need not be remembered longer than the process lives.
    pub fn find_again(&self, id: OperationId) -> Result<Arc<Operation>, Error> {
        self.shared.registry.get_or_deny(id).ok_or_else(|| unknown(id))
    }

    /// Asks for an operation to be stopped between two steps. The permit is for what the operation does to its machine.
    pub fn cancel(&self, permit: &Permit, id: OperationId) -> Result<(), Error> {
        let operation = self.get(id)?;
        if (permit.vm(), permit.action()) != (operation.vm(), operation.kind().into()) {
            return Err(unknown(id));
        }
        operation.cancel()
    }

    /// Settles what the journal has without an end. Returns when all of it is settled, or after a while.
    pub async fn settle(&self) -> io::Result<()> {
        let interrupted = settle::load(&self.shared)?;
        let settling: Vec<_> = interrupted
            .into_iter()
            .map(|interrupted| {
                let (shared, waits_for_its_vm) = (Arc::clone(&self.shared), interrupted.waits_for_its_vm());
                let settled = self.shared.tasks.spawn(settle::drive(shared, interrupted));
                // One whose VM does not respond goes on beside the rest of the host, with its VM held.
                async move {
                    tokio::select! {
                        _ = settled => {}
                        () = waits_for_its_vm => {}
                    }
                }
            })
            .collect();
        let all = futures_util::future::join_all(settling);
        if tokio::time::timeout(SETTLE_WAIT, all).await.is_err() {
            tracing::warn!("interrupted operations take long to settle; serving the rest of the host meanwhile");
        }
        Ok(())
    }

    /// Takes nothing on any more and waits for what is under way: a deletion of many stops between two steps and is
    /// gone on with at the next start. Returns whether all of it came to a stop in time.
    pub async fn stop(&self, wait: Duration) -> bool {
        self.shared.stopping.cancel();
        self.shared.tasks.close();
        tokio::time::timeout(wait, self.shared.tasks.wait()).await.is_ok()
    }

    fn launch(&self, operation: Arc<Operation>, order: Order) {
        let shared = Arc::clone(&self.shared);
        let span = tracing::info_span!(
            "operation",
            operation = %order.spec.operation,
            vm = %order.spec.vm,
            kind = ?order.spec.request.kind(),
            actor = %order.permit.actor(),
            request_id = order.request_id,
        );
        self.shared.tasks.spawn(
            async move {
                if let Err(refusal) = shared.take_on(&operation, order).await {
                    tracing::info!(reason = %refusal.reason(), "refused: {refusal}");
                    shared.registry.forget(operation.id());
                    operation.set(Phase::Refused(refusal));
                }
            }
            .instrument(span),
        );
    }
}

/// The refusal of an operation that there is not, or that the caller may not see: the two must not differ in one byte.
pub fn unknown(id: OperationId) -> Error {
    let name = proto::names::operation(id);
    Error::new(Reason::OperationNotFound, format!("{name} is not known to this host")).with("operation", name)
}

/// The permit is the proof that somebody may do this to this machine; for another machine it proves nothing.
fn check_permit(permit: &Permit, spec: &Spec) -> Result<(), Error> {
    if permit.vm() == spec.vm { Ok(()) } else { Err(Error::vm_not_found(spec.vm)) }
}

/// What has to be read again for a request: whatever its plan hangs on. Only a deletion of several hangs on the shape of
/// the tree, and only a create on nothing that is written.
fn needed(request: &Request) -> Reread<'_> {
    match request {
        Request::Create(_) => Reread::New,
        Request::Update { snapshot, .. }
        | Request::Revert { snapshot, .. }
        | Request::Delete { snapshot, scope: DeleteScope::Only, .. } => Reread::One(snapshot),
        Request::Delete { scope: DeleteScope::Subtree | DeleteScope::Descendants, .. } | Request::Purge { .. } => {
            Reread::All
        }
    }
}

/// Runs something that blocks. A panic in it is an error of the service.
async fn blocking<T: Send + 'static>(call: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    let span = tracing::Span::current();
    let joined = spawn_blocking(move || span.in_scope(call)).await;
    joined.unwrap_or_else(|_| Err(Error::new(Reason::Internal, "the agent failed; its log says how")))
}

impl Shared {
    /// From the lock to the end. An error is a refusal: nothing was taken on.
    async fn take_on(self: &Arc<Self>, operation: &Arc<Operation>, order: Order) -> Result<(), Error> {
        if self.stopping.is_cancelled() {
            return Err(Error::new(Reason::ShuttingDown, "the agent is stopping"));
        }
        let guard = self.locks.take(order.spec.vm, order.spec.operation)?;
        let (shared, followed) = (Arc::clone(self), Arc::clone(operation));
        let work = blocking(move || Work::accept(&shared, &followed, order).map(|mut work| work.run()));
        let worked = overdue::bounded(operation, self.silence, work).await;
        let end = match worked {
            Err(panic) if !matches!(operation.phase(), Phase::Accepting) => {
                tracing::error!("an operation panicked; settling it: {panic}");
                settle::again(self, operation).await
            }
            other => other?,
        };
        drop(guard);
        if let Some(end) = end {
            operation.set(end);
        }
        self.prepare_next();
        Ok(())
    }

    /// Has the journal made ready for the next operation, while nobody waits for it.
    fn prepare_next(self: &Arc<Self>) {
        let shared = Arc::clone(self);
        spawn_blocking(move || {
            if let Err(error) = shared.journal.make_spares() {
                tracing::warn!(%error, "the journal could not be prepared; taking on the next operation will say more");
            }
        });
    }

    /// Counts an operation that has ended, for the metrics and for pruning.
    fn ended(&self, kind: &'static str, outcome: &'static str, since: Instant) {
        metrics::counter!("snapshot_agent_operations_total", "kind" => kind, "outcome" => outcome).increment(1);
        metrics::histogram!("snapshot_agent_operation_seconds", "kind" => kind).record(since.elapsed());
        self.registry.count_end(&self.journal, &self.spent);
    }
}

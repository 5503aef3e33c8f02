//! Operations that the journal has without an end: the process was stopped in the middle of them.
//!
//! What they did is not remembered but looked at.
//!
//! - An **update** and a **deletion** are gone on with: their steps can be repeated.
//! - A **create** whose snapshot is whole has succeeded. Of any other the remains are removed, and it has failed. libvirt goes
//!   on with a call whose caller is gone, so what is under way is waited for first.
//! - A **revert** that was begun is finished, because the machine may be halfway. One that was not is begun only shortly
//!   after it was taken on: somebody who finds the desktop as it was goes on working, and must not lose that work to a
//!   wish of an hour ago. The snapshot of the present that came before it is kept.
//!
//! The machine is held from the first moment, so nothing else gets in between.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use snapshot_core::ids::{OperationId, SnapshotId, VmId};
use snapshot_core::operation::{Outcome, Request};
use snapshot_core::plan::{PowerState, Step};
use snapshot_core::vm::VmState;
use snapshot_core::{Error, Reason};
use tokio::task::spawn_blocking;

use super::external::After;
use super::in_place::is_in_place;
use super::operation::{Operation, Phase, Progress};
use super::safety::Protection;
use super::work::{Halt, Work};
use super::{Shared, overdue};
use crate::clock::unix_now;
use crate::hypervisor::{Failure, Observed};
use crate::journal::{Ended, Recorded};
use crate::locks::Guard;

/// How long after it was taken on a revert may still be begun.
pub(super) const BEGIN_WITHIN: Duration = Duration::from_secs(120);

/// How long it is waited until libvirt is no more at work on a machine, how often in a row it has to say so, and the
/// time in between. It is asked more than once because a call that another one held up begins a moment after that has ended.
const IDLE_WITHIN: Duration = Duration::from_secs(15 * 60);
const IDLE_LOOKS: u32 = 5;
const IDLE_PAUSE: Duration = Duration::from_millis(50);

/// What was interrupted on one machine, which is held.
pub(super) struct Interrupted {
    operations: Vec<(Arc<Operation>, Recorded)>,
    guard: Option<Guard>,
}

impl Interrupted {
    /// Waits until one of them cannot go on because its VM does not respond.
    pub(super) fn waits_for_its_vm(&self) -> impl Future<Output = ()> + Send + use<> {
        let operations: Vec<_> = self.operations.iter().map(|(operation, _)| Arc::clone(operation)).collect();
        async move {
            if operations.is_empty() {
                return std::future::pending().await;
            }
            let waiting = operations.iter().map(|operation| Box::pin(operation.waits_for_its_vm()));
            _ = futures_util::future::select_all(waiting).await;
        }
    }
}

/// Reads the journal: ended operations can be followed again, the others are to be driven.
pub(super) fn load(shared: &Shared) -> io::Result<Vec<Interrupted>> {
    let mut interrupted: BTreeMap<VmId, Vec<(Arc<Operation>, Recorded)>> = BTreeMap::new();
    let mut ended = Vec::new();
    for recorded in shared.journal.load()? {
        let entry = &recorded.entry;
        shared.spent.recall(entry);
        let cancellable = entry.cancellable;
        let phase = match &recorded.ended {
            Some(end) => Phase::Ended { cancellable, ended: end.clone(), seen: true },
            None => Phase::Running { cancellable, progress: Progress::default() },
        };
        let operation = Operation::new(entry.operation, entry.vm, entry.request.clone(), phase);
        let operation = shared.registry.add(operation);
        if recorded.ended.is_some() {
            ended.push(operation.id());
        } else {
            interrupted.entry(entry.vm).or_default().push((operation, recorded));
        }
    }
    ended.retain(|id| !shared.spent.needs(*id));
    for id in shared.journal.prune(ended) {
        shared.registry.forget(id);
    }
    for id in shared.journal.unreadable()? {
        shared.registry.add(unreadable(id));
    }
    let hold = |(vm, operations): (VmId, Vec<(Arc<Operation>, Recorded)>)| {
        let first = operations.first().map(|(operation, _)| operation.id());
        let guard = first.and_then(|id| shared.locks.retake(vm, id).ok());
        Interrupted { operations, guard }
    };
    Ok(interrupted.into_iter().map(hold).collect())
}

/// An operation of which only the id is known. NOT_FOUND would be the promise that nothing was done.
fn unreadable(id: OperationId) -> Operation {
    let message = "the host's journal entry of the operation cannot be read: the operation was accepted, and may have been \
                   carried out in part; check the VM and its snapshots";
    let ended = Ended {
        outcome: Outcome::Failed,
        error: Some(Error::new(Reason::Internal, message).with("operation", proto::names::operation(id))),
        method: None,
        pause_ms: None,
        predicted_pause_ms: None,
        notes: Vec::new(),
    };
    let phase = Phase::Ended { cancellable: false, ended, seen: false };
    Operation::new(id, VmId::from_uuid(uuid::Uuid::nil()), Request::Purge { force: false }, phase)
}

/// Settles what was interrupted on one machine, in the order in which it was taken on. Nobody is told of an end before
/// the machine is free.
pub(super) async fn drive(shared: Arc<Shared>, interrupted: Interrupted) {
    let mut ends = Vec::new();
    for (operation, recorded) in interrupted.operations {
        ends.push((settle(&shared, &operation, recorded).await, operation));
    }
    drop(interrupted.guard);
    for (end, operation) in ends {
        end.into_iter().for_each(|end| operation.set(end));
    }
}

/// Settles an operation that panicked.
pub(super) async fn again(shared: &Arc<Shared>, operation: &Arc<Operation>) -> Option<Phase> {
    match shared.journal.read(operation.id()) {
        Ok(recorded) => settle(shared, operation, recorded).await,
        Err(error) => {
            tracing::error!(%error, "the journal of an operation cannot be read");
            operation.give_up(cannot_settle());
            None
        }
    }
}

async fn settle(shared: &Arc<Shared>, operation: &Arc<Operation>, recorded: Recorded) -> Option<Phase> {
    let entry = &recorded.entry;
    let span = tracing::info_span!(
        "operation",
        operation = %entry.operation,
        vm = %entry.vm,
        kind = ?entry.request.kind(),
        actor = entry.actor,
        request_id = entry.request_id,
        settling = true,
    );
    let (worker, followed) = (Arc::clone(shared), Arc::clone(operation));
    let settled = spawn_blocking(move || {
        span.in_scope(|| {
            tracing::info!(next = recorded.next, begun = recorded.begun, "was interrupted");
            let Recorded { entry, next, begun, merging, safety, log, .. } = recorded;
            let (operation, started) = (&followed, Instant::now());
            let mut work = Work {
                shared: &worker,
                operation,
                entry,
                log,
                seen: None,
                stale: true,
                pause: None,
                notes: Vec::new(),
                is_loading: false,
                is_second_load: false,
                protection: safety.map(Protection::recorded),
                done: next,
                merging,
                started,
            };
            let result = work.settle(next, begun);
            work.conclude(result)
        })
    });
    overdue::bounded(operation, shared.silence, settled).await.unwrap_or_else(|_| {
        operation.give_up(cannot_settle());
        None
    })
}

/// Of an operation that cannot even be settled. The journal keeps it open, so the next start tries again.
fn cannot_settle() -> Error {
    Error::new(Reason::Internal, "the agent failed in the middle; it will look again at its next start")
}

impl Work<'_> {
    fn settle(&mut self, next: usize, begun: bool) -> Result<(), Halt> {
        self.done = next;
        let Some(step) = self.entry.steps.get(next).cloned() else {
            // Everything was done, and only the end not marked.
            if self.entry.steps.iter().any(is_in_place) {
                self.forget_load();
            }
            return self.clear_deleted();
        };
        match (&self.entry.request, step) {
            (Request::Update { .. } | Request::Delete { .. } | Request::Purge { .. }, _) => self.run_steps(next),
            (Request::Create(_), Step::CreateInternal { snapshot, .. }) => self.settle_create(&snapshot, begun),
            (Request::Revert { .. }, Step::CreateInternal { snapshot, .. }) => {
                self.settle_create(&snapshot, begun)?;
                self.settle(next + 1, false)
            }
            (Request::Revert { .. }, Step::RevertInternal { snapshot, then }) => {
                self.settle_revert(next, begun, &snapshot, then)
            }
            (Request::Create(_), Step::CreateLive { snapshot, quiesce }) => self.settle_live(&snapshot, quiesce, begun),
            (Request::Revert { .. }, Step::CreateLive { snapshot, quiesce }) => {
                self.settle_live(&snapshot, quiesce, begun)?;
                self.settle(next + 1, false)
            }
            (Request::Revert { .. }, Step::RevertInPlace { snapshot, then, .. }) => {
                self.settle_in_place(next, begun, &snapshot, then)
            }
            (Request::Create(_), Step::CreateExternal { snapshot, quiesce, .. }) => {
                self.settle_external(&snapshot, quiesce, begun)
            }
            (Request::Revert { .. }, Step::CreateExternal { snapshot, quiesce, .. }) => {
                self.settle_external(&snapshot, quiesce, begun)?;
                self.settle(next + 1, false)
            }
            (Request::Revert { .. }, Step::RevertExternal { snapshot, then }) => {
                if begun {
                    self.wait_for_libvirt()?;
                }
                let seen = self.look()?;
                let ago = self
                    .entry
                    .accepted
                    .elapsed()
                    .map_or(i64::MAX, |ago| i64::try_from(ago.as_secs()).unwrap_or(i64::MAX));
                if let Some(owned) = self.shared.machines.owned() {
                    owned.laid(&seen, &snapshot, unix_now().saturating_sub(ago).saturating_sub(2));
                }
                let settled = self.settle_revert(next, begun, &snapshot, then);
                if !matches!(settled, Err(Halt::LeftOff)) {
                    let seen = self.look()?;
                    self.unguard(&self.guardable(&seen));
                }
                settled
            }
            (Request::Revert { .. }, Step::PowerOff) => match self.look()?.vm.state {
                // Nothing has run since the revert, so nothing is lost.
                VmState::Paused | VmState::Shutoff => self.run_steps(next),
                VmState::Unknown | VmState::Running | VmState::Crashed | VmState::Suspended => {
                    Err(self.interrupted("the machine was taken back, and runs instead of being off"))
                }
            },
            (Request::Create(_) | Request::Revert { .. }, _) => self.run_steps(next),
        }
    }

    pub(super) fn settle_create(&mut self, id: &SnapshotId, begun: bool) -> Result<(), Halt> {
        if self.look()?.has_whole(id) {
            return Ok(());
        }
        self.clear_remains(id, begun)?;
        Err(self.interrupted("the snapshot was not taken, and nothing is left of it"))
    }

    fn settle_external(&mut self, id: &SnapshotId, quiesce: bool, begun: bool) -> Result<(), Halt> {
        let is_whole = self.look()?.has_whole(id);
        if quiesce && begun {
            self.thaw()?;
        }
        if begun && !is_whole {
            self.wait_for_libvirt()?;
        }
        // What was taken after the thaw is not what was asked for.
        if is_whole || (!quiesce && self.look()?.has_whole(id)) {
            return Ok(());
        }
        if begun {
            self.undo_external(id, After::Restart)?;
        }
        Err(self.interrupted("the snapshot was not taken, and nothing is left of it"))
    }

    /// libvirt goes on with what it was asked to do by an agent that is no more, and begins with what it had to put off.
    pub(super) fn wait_for_libvirt(&mut self) -> Result<(), Halt> {
        let (since, mut idle) = (Instant::now(), 0);
        while idle < IDLE_LOOKS && since.elapsed() < IDLE_WITHIN {
            if self.shared.stopping.is_cancelled() {
                return Err(Halt::LeftOff);
            }
            match self.shared.hypervisor.is_busy(self.entry.vm) {
                Ok(false) => idle += 1,
                Ok(true) | Err(Failure::Unreachable(_) | Failure::Unresponsive(_)) => idle = 0,
                Err(failure) => {
                    tracing::warn!(%failure, "whether libvirt is at work on the machine cannot be found out");
                    return Ok(());
                }
            }
            std::thread::sleep(IDLE_PAUSE);
        }
        Ok(())
    }

    fn settle_revert(&mut self, next: usize, begun: bool, id: &SnapshotId, then: PowerState) -> Result<(), Halt> {
        let seen = self.look()?;
        if begun && self.is_reverted(&seen, id, then) {
            self.remember_reverted(&seen, id);
            return self.run_steps(next + 1);
        }
        self.protect_anew(&seen);
        let since = self.entry.accepted.elapsed();
        let is_fresh = since.is_some_and(|since| since <= BEGIN_WITHIN);
        let was_and_is_off = self.entry.before.instance.is_none() && seen.instance.is_none();
        // What the disks hold tells it of a VM that is off, which has no number of its run.
        let is_unchanged = begun && since.is_some() && was_and_is_off && self.has_changed_no_disk(id)?;
        if is_fresh || (self.is_halfway(&seen, begun, since) && !is_unchanged) {
            return self.run_steps(next);
        }
        self.back_out(&seen)
    }

    /// A VM that still runs as it did has gone on since its state was protected.
    pub(super) fn protect_anew(&mut self, seen: &Observed) {
        if self.is_untouched(seen)
            && let Some(protection) = &mut self.protection
        {
            protection.is_set = false;
        }
    }

    /// Ends a revert that has changed nothing and that nobody expects any more.
    pub(super) fn back_out(&mut self, seen: &Observed) -> Result<(), Halt> {
        self.resume_paused(seen)?;
        self.restore_definition();
        Err(self.interrupted("the machine was not taken back, and is as it was"))
    }

    /// Whether a revert may have changed something already. Numbers of runs begin anew when the host is booted, and a
    /// mark may have been lost with it: then a machine that is on is taken for one that somebody uses.
    pub(super) fn is_halfway(&self, seen: &Observed, begun: bool, since: Option<Duration>) -> bool {
        match (begun, since) {
            (true, Some(_)) => !self.is_untouched(seen),
            (true, None) => true,
            (false, Some(_)) => false,
            (false, None) => seen.instance.is_none(),
        }
    }

    pub(super) fn interrupted(&self, what: &str) -> Halt {
        let mut message = format!("the agent was stopped in the middle: {what}");
        if let (Request::Revert { .. }, Some(create)) = (&self.entry.request, self.create_request())
            && self.done > 0
        {
            message += &format!("; what it was is in snapshot {}", create.snapshot);
        }
        Error::new(Reason::Interrupted, message).with("vm", proto::names::vm(self.entry.vm)).into()
    }
}

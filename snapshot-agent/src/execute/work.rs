//! One operation from its acceptance to its end, on a blocking thread that it has for itself.

use std::time::{Duration, Instant};

use snapshot_core::ids::SnapshotId;
use snapshot_core::operation::{Note, OperationKind, Outcome, Request};
use snapshot_core::plan::Step;
use snapshot_core::{Error, Reason};

use super::in_place::is_in_place;
use super::operation::{Operation, Phase, Progress};
use super::safety::Protection;
use super::{Order, Shared};
use crate::clock::Moment;
use crate::hypervisor::{Failure, Observed, Reread};
use crate::journal::{Before, Ended, Entry, Log, Merging};

/// An operation at work.
pub(super) struct Work<'a> {
    pub(super) shared: &'a Shared,
    pub(super) operation: &'a Operation,
    pub(super) entry: Entry,
    pub(super) log: Log,
    /// The machine as it was last seen.
    pub(super) seen: Option<Observed>,
    /// Whether something was changed since.
    pub(super) stale: bool,
    /// How long the guest stood still.
    pub(super) pause: Option<Duration>,
    /// What a person should know if it succeeds.
    pub(super) notes: Vec<Note>,
    /// Whether QEMU may have loaded some of a snapshot into the process that is there.
    pub(super) is_loading: bool,
    /// Whether that is tried for the second time.
    pub(super) is_second_load: bool,
    /// What a revert is undone by.
    pub(super) protection: Option<Protection>,
    /// Steps that are done.
    pub(super) done: usize,
    /// Merges that are not known to be done.
    pub(super) merging: Vec<Merging>,
    pub(super) started: Instant,
}

/// Why the steps did not run to their end.
#[derive(Debug)]
pub(super) enum Halt {
    /// One failed.
    Failed(Error),
    /// Somebody asked for it.
    Cancelled,
    /// The process is to end; the next one goes on.
    LeftOff,
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl<'a> Work<'a> {
    /// Looks, plans and writes the journal. An error is a refusal.
    pub(super) fn accept(shared: &'a Shared, operation: &'a Operation, order: Order) -> Result<Self, Error> {
        let started = Instant::now();
        let (seen, plan) = shared.look_and_plan(&order.spec, &order.permit)?;
        let actor = order.permit.actor();
        let entry = Entry {
            operation: order.spec.operation,
            vm: order.spec.vm,
            request: order.spec.request,
            actor: actor.to_string(),
            issuer: actor.issuer.clone(),
            token_id: actor.token_id.clone(),
            request_id: order.request_id,
            method: plan.method,
            predicted_pause_ms: plan.predicted_pause_ms,
            cancellable: plan.cancellable(),
            steps: plan.steps,
            before: Before { state: seen.vm.state, instance: seen.instance },
            active: seen.layers.live.clone(),
            accepted: Moment::now(),
        };
        let looked = started.elapsed();
        shared.spent.take(&entry, order.permit.destructive_uses())?;
        let log = shared.journal.accept(&entry).map_err(|error| {
            shared.spent.give_back(entry.operation);
            tracing::error!(%error, "the journal cannot be written");
            Error::new(Reason::Internal, "the agent's journal cannot be written").with("cause", error.to_string())
        })?;
        metrics::histogram!("snapshot_agent_accept_seconds").record(started.elapsed());
        tracing::info!(
            steps = entry.steps.len(),
            look_us = u64::try_from(looked.as_micros()).unwrap_or(u64::MAX),
            accept_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
            "taken on"
        );
        operation.set(Phase::Running { cancellable: entry.cancellable, progress: Progress::default() });
        // What a purge is planned by may be remembered and not seen.
        let stale = matches!(entry.request, Request::Purge { .. });
        shared.expect(&seen, &entry);
        let (seen, merging) = (Some(seen), Vec::new());
        Ok(Self {
            shared,
            operation,
            entry,
            log,
            seen,
            stale,
            pause: None,
            notes: Vec::new(),
            is_loading: false,
            is_second_load: false,
            protection: None,
            done: 0,
            merging,
            started,
        })
    }

    /// Runs all steps to the end of the operation. What it returns is for followers to see once the machine is free:
    /// who sees an end may begin the next operation at once. It is `None` when the next process is to go on.
    pub(super) fn run(&mut self) -> Option<Phase> {
        let result = self.run_steps(0);
        self.conclude(result)
    }

    /// Runs the steps from this one on.
    pub(super) fn run_steps(&mut self, first: usize) -> Result<(), Halt> {
        self.done = first;
        for step in self.entry.steps.clone().into_iter().skip(first) {
            self.check_halt()?;
            self.tell_progress(&step);
            // Without this mark the next process would take the step for one that was never begun.
            self.log.begun(self.done).map_err(|error| {
                Error::new(Reason::Internal, "the agent's journal cannot be written").with("cause", error.to_string())
            })?;
            self.step_or_clear(&step)?;
            match self.log.done(self.done) {
                Ok(()) if is_in_place(&step) => self.forget_load(),
                Ok(()) => {}
                Err(error) => tracing::warn!(%error, "a step that is done could not be marked so"),
            }
            self.done += 1;
        }
        self.set_guest_clock();
        self.clear_deleted()
    }

    fn check_halt(&self) -> Result<(), Halt> {
        if self.operation.is_cancelled() && self.entry.cancellable {
            Err(Halt::Cancelled)
        } else if self.shared.stopping.is_cancelled() && self.entry.cancellable {
            Err(Halt::LeftOff)
        } else {
            Ok(())
        }
    }

    fn tell_progress(&self, step: &Step) {
        let percent = u8::try_from(self.done * 100 / self.entry.steps.len().max(1)).unwrap_or(100);
        self.operation.progress(Progress { phase: step.to_string(), percent });
    }

    /// Ends the operation, unless the next process is to go on with it.
    pub(super) fn conclude(&mut self, result: Result<(), Halt>) -> Option<Phase> {
        let (outcome, error) = match result {
            Ok(()) => (Outcome::Succeeded, None),
            Err(Halt::Failed(error)) => (Outcome::Failed, Some(error)),
            Err(Halt::Cancelled) => (Outcome::Cancelled, Some(self.cancelled())),
            Err(Halt::LeftOff) => {
                tracing::info!(done = self.done, of = self.entry.steps.len(), "left off for the next start");
                return None;
            }
        };
        if outcome == Outcome::Succeeded {
            self.unmix();
        }
        self.remove_tags();
        let pause_ms = self.pause.map(|pause| u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
        let (method, predicted_pause_ms) = (self.entry.method, self.entry.predicted_pause_ms);
        let notes = std::mem::take(&mut self.notes);
        let ended = Ended { outcome, error, method, pause_ms, predicted_pause_ms, notes };
        let seen = self.publish();
        if let Err(error) = self.log.ended(&ended) {
            tracing::error!(%error, "the end could not be marked; it will be settled at the next start");
        }
        match &ended.error {
            None => tracing::info!(ms = self.started.elapsed().as_millis(), "succeeded"),
            Some(error) => {
                tracing::warn!(reason = %error.reason(), metadata = ?error.metadata(), "{outcome:?}: {error}");
            }
        }
        let kind = kind_text(self.entry.request.kind());
        // Counted before anybody is told: who looks at the metrics then finds it there.
        self.shared.ended(kind, outcome_text(outcome), self.started);
        Some(Phase::Ended { cancellable: self.entry.cancellable, ended, seen })
    }

    fn cancelled(&self) -> Error {
        let deletes = |steps: &[Step]| steps.iter().filter(|step| step.deletes().is_some()).count();
        let (done, all) = (deletes(self.entry.steps.get(..self.done).unwrap_or_default()), deletes(&self.entry.steps));
        if all == 0 {
            return Error::new(Reason::Cancelled, "stopped on request; nothing was changed");
        }
        let message =
            format!("stopped on request: {done} of {all} snapshots were deleted, the others are as they were");
        Error::new(Reason::Cancelled, message)
            .with("deleted", done.to_string())
            .with("remaining", (all - done).to_string())
    }

    /// Publishes the machine as it is. One that cannot be read now is left to the next look.
    fn publish(&mut self) -> bool {
        let vm = self.entry.vm;
        let seen = match self.seen.take() {
            Some(seen) if !self.stale => Ok(seen),
            Some(before) => self.shared.hypervisor.observe_again(&before),
            None => self.shared.hypervisor.observe(vm, Reread::New),
        };
        match seen {
            Ok(seen) => self.shared.machines.saw(&seen),
            Err(Failure::VmGone) => self.shared.machines.vanished(vm),
            Err(failure) => {
                tracing::warn!(%failure, "the machine cannot be read after the operation");
                self.shared.hypervisor.inbox().tell(vm);
                return false;
            }
        }
        true
    }

    /// The error of a call that failed.
    pub(super) fn error(&self, failure: &Failure, snapshot: Option<&SnapshotId>, while_doing: &str) -> Error {
        failure.to_error(self.entry.vm, snapshot, while_doing)
    }

    /// The request to take a snapshot that is part of this operation, if one is.
    pub(super) fn create_request(&self) -> Option<&snapshot_core::operation::Create> {
        match &self.entry.request {
            Request::Create(create) => Some(create),
            Request::Revert { save_current, .. } => save_current.as_ref(),
            Request::Update { .. } | Request::Delete { .. } | Request::Purge { .. } => None,
        }
    }
}

fn kind_text(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::Create => "create",
        OperationKind::Update => "update",
        OperationKind::Revert => "revert",
        OperationKind::Delete => "delete",
        OperationKind::Purge => "purge",
    }
}

fn outcome_text(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded => "succeeded",
        Outcome::Failed => "failed",
        Outcome::Cancelled => "cancelled",
    }
}

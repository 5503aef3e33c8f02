//! An operation of this host, as others may follow it.

use std::sync::atomic::{AtomicBool, Ordering};

use snapshot_core::ids::{OperationId, VmId};
use snapshot_core::operation::{OperationKind, Outcome, Request};
use snapshot_core::{Error, Reason};
use tokio::sync::watch;

use super::waiting::UNRESPONSIVE;
use crate::journal::Ended;

/// How far an operation has come.
///
/// ```text
///   Accepting --> Refused
///       |
///       +-------> Running --> Ended
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// The machine is being looked at, and the plan made.
    Accepting,
    /// Not taken on; nothing was changed.
    Refused(Error),
    /// Taken on.
    Running {
        /// Whether it can be stopped between steps.
        cancellable: bool,
        /// What it is at.
        progress: Progress,
    },
    /// Over.
    Ended {
        /// Whether it could be stopped between steps.
        cancellable: bool,
        /// How.
        ended: Ended,
        /// Whether the machine was seen and published since.
        seen: bool,
    },
}

/// What an operation is at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// The step that runs now, in words.
    pub phase: String,
    /// Of the steps, how many of a hundred are done.
    pub percent: u8,
}

/// An operation and its phase.
#[derive(Debug)]
pub struct Operation {
    id: OperationId,
    vm: VmId,
    request: Request,
    phase: watch::Sender<Phase>,
    cancelled: AtomicBool,
    /// Whether its followers were told of an end that it has not come to.
    given_up: AtomicBool,
}

impl Operation {
    pub(super) fn new(id: OperationId, vm: VmId, request: Request, phase: Phase) -> Self {
        let phase = watch::Sender::new(phase);
        Self { id, vm, request, phase, cancelled: AtomicBool::new(false), given_up: AtomicBool::new(false) }
    }

    /// Its id.
    pub fn id(&self) -> OperationId {
        self.id
    }

    /// The machine it is for.
    pub fn vm(&self) -> VmId {
        self.vm
    }

    /// What it does.
    pub fn kind(&self) -> OperationKind {
        self.request.kind()
    }

    /// Follows it from where it is. Who is slow misses progress and never the end.
    pub fn follow(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// It has come to this. What followers were told of an end stands.
    pub(super) fn set(&self, phase: Phase) {
        self.given_up.store(false, Ordering::Relaxed);
        self.phase.send_if_modified(|now| {
            let stands = matches!(now, Phase::Ended { .. });
            if !stands {
                *now = phase;
            }
            !stands
        });
    }

    /// Tells followers that it failed, although it has come to no end: the journal keeps it open.
    pub(super) fn give_up(&self, error: Error) {
        self.phase.send_if_modified(|now| {
            let Phase::Running { cancellable, .. } = *now else { return false };
            self.given_up.store(true, Ordering::Relaxed);
            let ended = Ended {
                outcome: Outcome::Failed,
                error: Some(error),
                method: None,
                pause_ms: None,
                predicted_pause_ms: None,
                notes: Vec::new(),
            };
            *now = Phase::Ended { cancellable, ended, seen: false };
            true
        });
    }

    /// Whether it has come to its end, in the journal, too.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase(), Phase::Ended { .. }) && !self.given_up.load(Ordering::Relaxed)
    }

    pub(super) fn progress(&self, progress: Progress) {
        self.phase.send_if_modified(|phase| match phase {
            Phase::Running { progress: now, .. } => std::mem::replace(now, progress.clone()) != progress,
            Phase::Accepting | Phase::Refused(_) | Phase::Ended { .. } => false,
        });
    }

    /// How far it has come.
    pub fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    /// A repeat has to be the same request; anything else under this id is another operation.
    pub(super) fn check_same(&self, vm: VmId, request: &Request) -> Result<(), Error> {
        if (self.vm, &self.request) == (vm, request) {
            return Ok(());
        }
        let message = format!("operations/{} was used for another request", self.id);
        Err(Error::new(Reason::RequestIdReused, message))
    }

    /// Waits until it is seen that its VM does not respond.
    pub(super) async fn waits_for_its_vm(&self) {
        let mut phase = self.follow();
        let waits = |phase: &Phase| matches!(phase, Phase::Running { progress, .. } if progress.phase == UNRESPONSIVE);
        let _ = phase.wait_for(waits).await;
    }

    /// Waits until it was taken on or refused.
    pub(super) async fn accepted(&self) -> Result<(), Error> {
        let mut phase = self.follow();
        // The sender is part of `self`, so it cannot be gone.
        let _ = phase.wait_for(|phase| !matches!(phase, Phase::Accepting)).await;
        match &*phase.borrow() {
            Phase::Refused(refusal) => Err(refusal.clone()),
            Phase::Accepting | Phase::Running { .. } | Phase::Ended { .. } => Ok(()),
        }
    }

    /// Asks for it to be stopped between two steps.
    pub(super) fn cancel(&self) -> Result<(), Error> {
        match &*self.phase.borrow() {
            Phase::Running { cancellable: true, .. } => {
                self.cancelled.store(true, Ordering::Relaxed);
                Ok(())
            }
            Phase::Accepting | Phase::Refused(_) | Phase::Running { .. } | Phase::Ended { .. } => {
                let message = format!("operations/{} can no longer be stopped", self.id);
                Err(Error::new(Reason::NotCancellable, message))
            }
        }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

//! Taking operations on and carrying them out.

use std::sync::Arc;

use proto::agent::StartOperationRequest;
use proto::convert::Spec;
use snapshot_core::operation::{Outcome, busy};
use snapshot_core::{Error, Reason};
use tokio::sync::watch;
use tonic::Request;

use super::{Agent, Operation, Phase};

impl Agent {
    /// Takes an operation on, or refuses it.
    pub(super) async fn enter(&self, request: Request<StartOperationRequest>) -> Result<Arc<Operation>, Error> {
        let _in_hand = self.take_in_hand();
        // It was read, and waits for its turn.
        self.while_away(20, 30_000).await;
        let token = capability::bearer(request.metadata().as_ref())?;
        self.0.verifier.verify_token(token, (self.0.now_ms)() / 1000)?;
        let spec = Spec::try_from(request.into_inner().spec.expect("a spec"))?;
        let operation = self.known_or_new(spec)?;
        let mut phase = operation.phase.subscribe();
        let decided = phase.wait_for(|phase| !matches!(phase, Phase::Accepting)).await;
        if let Phase::Refused(refusal) = &*decided.expect("the operation is held here") {
            return Err(refusal.clone());
        }
        Ok(operation)
    }

    fn known_or_new(&self, spec: Spec) -> Result<Arc<Operation>, Error> {
        let id = spec.operation;
        let mut state = self.state();
        if state.denied.contains(&id) {
            return Err(Error::new(Reason::AuthorizationExpired, "it was given up before it arrived"));
        }
        if let Some(known) = state.operations.get(&id) {
            assert_eq!(known.spec, spec, "an id was used twice");
            return Ok(known.clone());
        }
        let operation = Arc::new(Operation { spec, phase: watch::Sender::new(Phase::Accepting) });
        state.operations.insert(id, operation.clone());
        drop(state);
        let (agent, taken) = (self.clone(), operation.clone());
        let in_hand = self.take_in_hand();
        tokio::spawn(async move {
            let _in_hand = in_hand;
            if let Err(refusal) = agent.take_on(&taken).await {
                agent.state().operations.remove(&id);
                taken.phase.send_replace(Phase::Refused(refusal));
            }
        });
        Ok(operation)
    }

    /// From the lock to the end. An error is a refusal: nothing was taken on.
    async fn take_on(&self, operation: &Arc<Operation>) -> Result<(), Error> {
        let (vm, id) = (operation.spec.vm, operation.spec.operation);
        {
            let mut state = self.state();
            if let Some(other) = state.held.get(&vm) {
                return Err(busy(vm, other));
            }
            state.held.insert(vm, id);
        }
        self.while_away(300, 24_000).await;
        let low = self.0.chance.lock().unwrap().u8(..12) == 0;
        let refused = match self.disk().refusal(&operation.spec) {
            None if low => Some(Error::new(Reason::SpaceLow, "too little space is left")),
            refusal => refusal,
        };
        if let Some(refusal) = refused {
            self.state().held.remove(&vm);
            return Err(refusal);
        }
        self.disk().accept(&operation.spec);
        operation.phase.send_replace(Phase::Running { percent: 0 });
        self.carry_out(operation).await;
        Ok(())
    }

    async fn carry_out(&self, operation: &Operation) {
        self.while_away(2000, 8000).await;
        operation.phase.send_replace(Phase::Running { percent: 50 });
        let fails = self.0.chance.lock().unwrap().u8(..12) == 0;
        if !fails {
            self.disk().apply(&operation.spec);
            self.0.changed.send_modify(|count| *count += 1);
        }
        self.while_away(500, 5000).await;
        self.end(operation, if fails { Outcome::Failed } else { Outcome::Succeeded });
    }

    fn end(&self, operation: &Operation, outcome: Outcome) {
        self.disk().end(operation.spec.operation, outcome);
        self.state().held.remove(&operation.spec.vm);
        operation.phase.send_replace(Phase::Ended(outcome));
    }

    /// What the process before this one left: remembered, or finished.
    pub(super) fn settle(&self) {
        let recorded = self.disk().recorded();
        for (spec, ended, applied) in recorded {
            let first = ended.map_or(Phase::Running { percent: 0 }, Phase::Ended);
            let (id, vm) = (spec.operation, spec.vm);
            let operation = Arc::new(Operation { spec, phase: watch::Sender::new(first) });
            let mut state = self.state();
            state.operations.insert(id, operation.clone());
            if ended.is_some() {
                continue;
            }
            let other = state.held.insert(vm, id);
            assert!(other.is_none(), "two operations on a machine");
            let (agent, in_hand) = (self.clone(), self.take_in_hand());
            tokio::spawn(async move {
                let _in_hand = in_hand;
                agent.while_away(200, 8000).await;
                let undone = agent.0.chance.lock().unwrap().bool();
                match (applied, undone) {
                    (true, _) => agent.end(&operation, Outcome::Succeeded),
                    (false, true) => agent.end(&operation, Outcome::Failed),
                    (false, false) => agent.carry_out(&operation).await,
                }
            });
        }
    }
}

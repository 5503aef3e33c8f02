//! The operations that this host knows of: those under way, and the last of those that have ended.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proto::convert::Spec;
use snapshot_core::ids::OperationId;

use super::operation::{Operation, Phase};
use super::spent::Spent;
use crate::journal::Journal;

/// After how many ends the journal is pruned.
const PRUNE_EVERY: usize = 50;

/// How many ids that are not to be taken on are remembered. One is of use as long as a connection from before it lives.
const DENIED: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct Registry {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    operations: HashMap<OperationId, Arc<Operation>>,
    ends_since_prune: usize,
    /// The ids that somebody asked for and was told are not known, oldest first.
    denied: VecDeque<OperationId>,
}

/// Whether an id was known.
pub(super) enum Entered {
    Known(Arc<Operation>),
    New(Arc<Operation>),
    /// Somebody was told that it is not known, and has drawn conclusions.
    Denied,
}

impl Registry {
    /// The operation with this id, which is made if there is none.
    pub(super) fn enter(&self, spec: &Spec) -> Entered {
        let mut state = self.lock();
        if let Some(known) = state.operations.get(&spec.operation) {
            return Entered::Known(Arc::clone(known));
        }
        if state.denied.contains(&spec.operation) {
            return Entered::Denied;
        }
        let new = Operation::new(spec.operation, spec.vm, spec.request.clone(), Phase::Accepting);
        let new = Arc::new(new);
        state.operations.insert(spec.operation, Arc::clone(&new));
        Entered::New(new)
    }

    /// Adds one that the journal told of.
    pub(super) fn add(&self, operation: Operation) -> Arc<Operation> {
        let operation = Arc::new(operation);
        self.lock().operations.insert(operation.id(), Arc::clone(&operation));
        operation
    }

    /// The operation with this id. If there is none, from now on there will be none.
    pub(super) fn get_or_deny(&self, id: OperationId) -> Option<Arc<Operation>> {
        let mut state = self.lock();
        let known = state.operations.get(&id).cloned();
        if known.is_none() && !state.denied.contains(&id) {
            if state.denied.len() >= DENIED {
                state.denied.pop_front();
            }
            state.denied.push_back(id);
        }
        known
    }

    pub(super) fn get(&self, id: OperationId) -> Option<Arc<Operation>> {
        self.lock().operations.get(&id).cloned()
    }

    /// Forgets one that was refused: nothing was done under its id.
    pub(super) fn forget(&self, id: OperationId) {
        self.lock().operations.remove(&id);
    }

    /// One more has ended. Now and then the oldest are forgotten, here and in the journal, but for those by which uses of tokens
    /// are counted.
    pub(super) fn count_end(&self, journal: &Journal, spent: &Spent) {
        let mut state = self.lock();
        state.ends_since_prune += 1;
        if state.ends_since_prune < PRUNE_EVERY {
            return;
        }
        state.ends_since_prune = 0;
        let over = state.operations.values().filter(|operation| operation.is_over()).map(|operation| operation.id());
        let mut ended: Vec<_> = over.collect();
        drop(state);
        ended.retain(|id| !spent.needs(*id));
        for id in journal.prune(ended) {
            self.forget(id);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

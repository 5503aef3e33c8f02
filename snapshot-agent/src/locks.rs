//! One operation per machine, and a bound on all of them.
//!
//! An operation that takes very long does not count for that bound: a few guests whose QEMU hangs must not keep the whole
//! host from its work.
//!
//! libvirt lets a second caller of the same machine wait 30 s and then fail, and its workers run out when many wait; so
//! who comes second is refused here, at once, and told which operation is in the way.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use snapshot_core::ids::{OperationId, VmId};
use snapshot_core::operation::busy;
use snapshot_core::{Error, Reason};

/// How long an operation counts for the bound. Writing 64 GiB of RAM takes about as long.
const COUNTS: Duration = Duration::from_secs(5 * 60);

/// The machines that an operation has for itself.
#[derive(Debug)]
pub struct Locks {
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: BTreeMap<VmId, Held>,
    /// How often each machine was taken, so that somebody who only looks can tell whether it was meanwhile.
    taken: BTreeMap<VmId, u64>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    by: OperationId,
    since: Instant,
}

/// A machine that an operation has for itself, until this is dropped.
#[derive(Debug)]
pub struct Guard {
    locks: Arc<Locks>,
    vm: VmId,
}

impl Locks {
    /// Allows this many operations at a time.
    pub fn new(most: usize) -> Self {
        Self { most, state: Mutex::default() }
    }

    /// Takes a machine for an operation, or says what is in the way.
    pub fn take(self: &Arc<Self>, vm: VmId, operation: OperationId) -> Result<Guard, Error> {
        let state = self.lock();
        if let Some(other) = state.held.get(&vm) {
            return Err(busy(vm, other.by));
        }
        if state.held.values().filter(|held| held.since.elapsed() < COUNTS).count() >= self.most {
            let message = format!("the host runs {} operations, which is the most it may", self.most);
            return Err(Error::new(Reason::HostBusy, message).with("limit", self.most.to_string()));
        }
        Ok(self.enter(state, vm, operation))
    }

    /// Takes a machine for an operation that was taken on before this process began: it counts, and is not refused for
    /// the number of them.
    pub fn retake(self: &Arc<Self>, vm: VmId, operation: OperationId) -> Result<Guard, Error> {
        let state = self.lock();
        match state.held.get(&vm) {
            Some(other) => Err(busy(vm, other.by)),
            None => Ok(self.enter(state, vm, operation)),
        }
    }

    fn enter(self: &Arc<Self>, mut state: MutexGuard<'_, State>, vm: VmId, operation: OperationId) -> Guard {
        state.held.insert(vm, Held { by: operation, since: Instant::now() });
        *state.taken.entry(vm).or_default() += 1;
        Guard { locks: Arc::clone(self), vm }
    }

    /// A number that stays the same as long as no operation takes the machine; `None` while one has it.
    pub fn stamp(&self, vm: VmId) -> Option<u64> {
        let state = self.lock();
        if state.held.contains_key(&vm) { None } else { Some(state.taken.get(&vm).copied().unwrap_or(0)) }
    }

    /// The operations that have a machine.
    pub fn running(&self) -> Vec<OperationId> {
        self.lock().held.values().map(|held| held.by).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.locks.lock().held.remove(&self.vm);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn ids(n: u128) -> (VmId, OperationId) {
        (VmId::from_uuid(Uuid::from_u128(n)), OperationId::from_uuid(Uuid::from_u128(n + 100)))
    }

    #[test]
    fn the_second_is_refused_and_told_who_is_first() {
        let locks = Arc::new(Locks::new(2));
        let (vm, first) = ids(1);
        let guard = locks.take(vm, first).unwrap();
        let refusal = locks.take(vm, ids(2).1).unwrap_err();
        assert_eq!(refusal.reason(), Reason::VmBusy);
        assert_eq!(refusal.metadata()["operation"], format!("operations/{first}"));
        assert_eq!(locks.running(), [first]);
        drop(guard);
        assert!(locks.take(vm, ids(2).1).is_ok());
    }

    #[test]
    fn the_host_has_a_bound_that_what_was_begun_before_may_exceed() {
        let locks = Arc::new(Locks::new(1));
        let _held = locks.take(ids(1).0, ids(1).1).unwrap();
        assert_eq!(locks.take(ids(2).0, ids(2).1).unwrap_err().reason(), Reason::HostBusy);
        assert!(locks.retake(ids(3).0, ids(3).1).is_ok());
    }

    #[test]
    fn an_operation_that_takes_very_long_does_not_count() {
        let locks = Arc::new(Locks::new(1));
        let _stuck = locks.take(ids(1).0, ids(1).1).unwrap();
        let Some(long_ago) = Instant::now().checked_sub(COUNTS) else { return };
        locks.lock().held.values_mut().for_each(|held| held.since = long_ago);
        let _next = locks.take(ids(2).0, ids(2).1).unwrap();
        assert_eq!(locks.take(ids(1).0, ids(3).1).unwrap_err().reason(), Reason::VmBusy);
        assert_eq!(locks.take(ids(3).0, ids(3).1).unwrap_err().reason(), Reason::HostBusy);
    }

    #[test]
    fn a_stamp_tells_whether_somebody_was_there() {
        let locks = Arc::new(Locks::new(1));
        let (vm, operation) = ids(1);
        let before = locks.stamp(vm);
        assert_eq!(locks.stamp(vm), before);
        let guard = locks.take(vm, operation).unwrap();
        assert_eq!(locks.stamp(vm), None);
        drop(guard);
        assert_ne!(locks.stamp(vm), before);
    }
}

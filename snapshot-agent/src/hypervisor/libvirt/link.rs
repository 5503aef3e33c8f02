//! A connection that opens itself, and calls over it.
//!
//! 1. A call takes the connection, opening one if there is none or the one there is has died. After a failure to open,
//!    others fail at once for a moment instead of queueing to find out the same.
//! 2. It waits for one of the connection's [`SLOTS`] places: with five calls under way libvirt lets the sixth wait, even
//!    one that would be over at once. A connection on which a call has been under way for [`LONG`], or all calls for
//!    [`CROWDED`], is left to them, and the next call opens another one: a guest whose QEMU hangs, or whose RAM takes minutes to write, holds up nobody
//!    else.
//! 3. It runs with panics contained: `virt` panics where libvirt refuses to release something.
//! 4. If it failed and the connection has died, the connection is dropped and the failure is
//!    [`Failure::Unreachable`]. A look that failed so on a connection from before is tried once more on a new one; an
//!    action is not, because it may have been carried out.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use snapshot_core::ids::VmId;
use virt::connect::Connect;
use virt::domain::Domain;

use super::super::Failure;
use super::super::inbox::Inbox;
use crate::bounded::{Doing, jobs};

/// Calls under way at a time.
const SLOTS: usize = 4;
/// How long a call waits for a slot, and how often it looks meanwhile whether the connection was left to a long call.
const SLOT_WAIT: Duration = Duration::from_secs(30);
const SLOT_LOOK: Duration = Duration::from_millis(100);
/// How long a call may be under way before others use another connection.
const LONG: Duration = Duration::from_secs(10);
/// How long all calls on a connection may be under way before others use another connection: quick ones do not wait for slow ones.
const CROWDED: Duration = Duration::from_millis(300);
/// The most connections that are left to long calls. libvirt's daemon works on 20 calls at a time.
const LEFT_MOST: usize = 8;
/// How long others fail at once after a connection could not be opened.
const REOPEN_PAUSE: Duration = Duration::from_millis(100);
/// A connection whose other end is silent this long, in seconds, three times in a row, is dead.
const KEEPALIVE_SECONDS: i32 = 5;
const KEEPALIVE_COUNT: u32 = 3;

/// A connection to libvirt, for many threads.
pub(super) struct Link {
    uri: String,
    /// Tells whether the connection for events is there; then there is somebody to connect to.
    inbox: Arc<Inbox>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connection: Option<Arc<Connection>>,
    /// Connections that were left to long calls, which keep them.
    left: Vec<Weak<Connection>>,
    failed: Option<(Instant, Failure)>,
}

/// A connection, and handles of machines on it.
pub(super) struct Connection {
    /// Dropped before the connection that they refer to.
    domains: Mutex<BTreeMap<VmId, Arc<Domain>>>,
    connect: Connect,
    /// When each call that is under way was begun, by its number.
    calls: Mutex<BTreeMap<u64, Instant>>,
    freed: Condvar,
    /// Whether it leads to a daemon, which serves one connection's calls five at a time. The embedded driver does not, and is not
    /// opened more often than need be.
    is_remote: bool,
}

impl Connection {
    /// Everything that is not about one machine.
    pub(super) fn connect(&self) -> &Connect {
        &self.connect
    }

    /// The handle of a machine. libvirt goes by the UUID in it whenever it is used, so it stays good as long as there is
    /// a machine with that UUID, and saves a round trip.
    pub(super) fn domain(&self, vm: VmId) -> Result<Arc<Domain>, Failure> {
        if let Some(domain) = self.domains().get(&vm) {
            return Ok(Arc::clone(domain));
        }
        let domain = Arc::new(self.connect.lookup_domain_by_uuid_string(&vm.to_string())?);
        self.domains().insert(vm, Arc::clone(&domain));
        Ok(domain)
    }

    /// Lets go of all handles, because one of them is of a machine that is gone; which is not known here. They are made
    /// anew when they are needed.
    fn forget_domains(&self) {
        let domains = std::mem::take(&mut *self.domains());
        if catch_unwind(AssertUnwindSafe(move || drop(domains))).is_err() {
            tracing::warn!("libvirt did not release a machine's handle");
        }
    }

    fn domains(&self) -> MutexGuard<'_, BTreeMap<VmId, Arc<Domain>>> {
        self.domains.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_alive(&self) -> bool {
        is_alive(&self.connect)
    }

    fn calls(&self) -> MutexGuard<'_, BTreeMap<u64, Instant>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place among the calls under way, waiting a little for one to be free.
    fn enter(&self) -> Option<u64> {
        let full = |calls: &mut BTreeMap<u64, Instant>| calls.len() >= SLOTS;
        let waited = self.freed.wait_timeout_while(self.calls(), SLOT_LOOK, full);
        let mut calls = waited.unwrap_or_else(PoisonError::into_inner).0;
        if calls.len() >= SLOTS {
            return None;
        }
        let number = calls.last_key_value().map_or(0, |(last, _)| last + 1);
        calls.insert(number, Instant::now());
        Some(number)
    }

    /// Whether a call has been under way for long, or every slot is taken by one that is not over at once.
    fn is_held_up(&self) -> bool {
        let calls = self.calls();
        let is_crowded =
            || self.is_remote && calls.len() >= SLOTS && calls.values().all(|begun| begun.elapsed() >= CROWDED);
        calls.values().any(|begun| begun.elapsed() >= LONG) || is_crowded()
    }
}

impl Link {
    pub(super) fn new(uri: &str, inbox: Arc<Inbox>) -> Self {
        Self { uri: uri.to_owned(), inbox, state: Mutex::default() }
    }

    /// Calls something that changes nothing.
    pub(super) fn look<T>(
        &self,
        name: &'static str,
        call: impl Fn(&Connection) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let slot = self.slot()?;
        let is_new = slot.is_new;
        match self.run(name, slot, &call) {
            Err(Failure::Unreachable(_)) if !is_new => self.run(name, self.slot()?, &call),
            result => result,
        }
    }

    /// Calls something that changes a machine.
    pub(super) fn act<T>(
        &self,
        name: &'static str,
        call: impl Fn(&Connection) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.run(name, self.slot()?, &call)
    }

    fn run<T>(
        &self,
        name: &'static str,
        slot: Slot,
        call: &impl Fn(&Connection) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let Some(connection) = &slot.connection else {
            return Err(Failure::Unintelligible("a place without a connection".to_owned()));
        };
        let start = Instant::now();
        let before = jobs::doing(Doing::Libvirt(name));
        let guarded = catch_unwind(AssertUnwindSafe(|| call(connection)));
        jobs::doing(before);
        let result =
            guarded.unwrap_or_else(|_| Err(Failure::Unintelligible("the libvirt binding panicked".to_owned())));
        metrics::histogram!("snapshot_agent_libvirt_call_seconds", "call" => name).record(start.elapsed());
        match result {
            Err(failure @ (Failure::Refused { .. } | Failure::Unintelligible(_))) if !connection.is_alive() => {
                self.discard(connection);
                Err(Failure::Unreachable(failure.to_string()))
            }
            Err(Failure::VmGone) => {
                connection.forget_domains();
                Err(Failure::VmGone)
            }
            result => result,
        }
    }

    /// The connection, and whether it was opened just now.
    fn connection(&self) -> Result<(Arc<Connection>, bool), Failure> {
        let state = &mut *self.lock();
        match &state.connection {
            Some(connection) if connection.is_alive() => {
                state.left.retain(|left| left.strong_count() > 0);
                if !connection.is_held_up() || state.left.len() >= LEFT_MOST {
                    return Ok((Arc::clone(connection), false));
                }
                state.left.push(Arc::downgrade(connection));
                state.connection = None;
                tracing::warn!(left = state.left.len(), "a call to libvirt takes long; others use another connection");
            }
            Some(_) => state.connection.take().into_iter().for_each(drop_contained),
            None => {}
        }
        if let Some((when, failure)) = &state.failed
            && when.elapsed() < REOPEN_PAUSE
            && !self.inbox.is_connected()
        {
            return Err(failure.clone());
        }
        match open(&self.uri) {
            Ok(connect) => {
                let (domains, calls, freed) = (Mutex::default(), Mutex::default(), Condvar::new());
                let is_remote = !is_embedded(&self.uri);
                let connection = Arc::new(Connection { domains, connect, calls, freed, is_remote });
                (state.connection, state.failed) = (Some(Arc::clone(&connection)), None);
                Ok((connection, true))
            }
            Err(failure) => {
                state.failed = Some((Instant::now(), failure.clone()));
                Err(failure)
            }
        }
    }

    fn discard(&self, dead: &Arc<Connection>) {
        let mut state = self.lock();
        let ours = state.connection.as_ref().is_some_and(|connection| Arc::ptr_eq(connection, dead));
        if ours && let Some(connection) = state.connection.take() {
            drop(state);
            drop_contained(connection);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place on the connection, which is opened if need be.
    fn slot(&self) -> Result<Slot, Failure> {
        let begun = Instant::now();
        let before = jobs::doing(Doing::Slot);
        loop {
            let (connection, is_new) = self.connection()?;
            if let Some(number) = connection.enter() {
                jobs::doing(before);
                return Ok(Slot { connection: Some(connection), number, is_new });
            }
            if begun.elapsed() >= SLOT_WAIT {
                return Err(Failure::Unreachable("too many calls are waiting for an answer".to_owned()));
            }
        }
    }
}

/// A place among the calls under way on a connection.
struct Slot {
    connection: Option<Arc<Connection>>,
    number: u64,
    /// Whether the connection was opened for it.
    is_new: bool,
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.calls().remove(&self.number);
            connection.freed.notify_one();
            drop_contained(connection);
        }
    }
}

/// Held while the embedded driver is opened: the first to open it initializes it, and one who opens it meanwhile gets a
/// connection to a driver that is half initialized, and crashes (seen with libvirt 11.3).
static EMBEDDED: Mutex<()> = Mutex::new(());

fn is_embedded(uri: &str) -> bool {
    uri.starts_with("qemu:///embed")
}

/// Opens a connection that notices when the other end goes silent.
pub(super) fn open(uri: &str) -> Result<Connect, Failure> {
    let _alone = is_embedded(uri).then(|| EMBEDDED.lock().unwrap_or_else(PoisonError::into_inner));
    let connection = Connect::open(Some(uri)).map_err(|error| Failure::Unreachable(error.message().to_owned()))?;
    // The embedded driver has no other end, and says that it does not support this.
    if let Err(error) = connection.set_keep_alive(KEEPALIVE_SECONDS, KEEPALIVE_COUNT) {
        tracing::debug!(%error, "no keepalive on this connection");
    }
    Ok(connection)
}

pub(super) fn is_alive(connection: &Connect) -> bool {
    connection.is_alive().unwrap_or(false)
}

/// Releasing a connection panics in `virt` when libvirt refuses; a connection that is of no more use is no reason for
/// that.
fn drop_contained(connection: Arc<Connection>) {
    if catch_unwind(AssertUnwindSafe(move || drop(connection))).is_err() {
        tracing::warn!("libvirt did not release a connection");
    }
}

//! A connection that opens itself, and calls over it.
//!
//! 1. A call waits for one of [`SLOTS`] places: with five calls under way libvirt lets the sixth wait, even one that
//!    would be over at once.
//! 2. It takes the connection, opening one if there is none or the one there is has died. After a failure to open, others
//!    fail at once for a moment instead of queueing to find out the same.
//! 3. It runs with panics contained: `virt` panics where libvirt refuses to release something.
//! 4. If it failed and the connection has died, the connection is dropped and the failure is
//!    [`Failure::Unreachable`]. A look that failed so on a connection from before is tried once more on a new one; an
//!    action is not, because it may have been carried out.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use snapshot_core::ids::VmId;
use virt::connect::Connect;
use virt::domain::Domain;

use super::super::Failure;
use super::super::inbox::Inbox;

/// Calls under way at a time.
const SLOTS: u32 = 4;
/// How long a call waits for a slot.
const SLOT_WAIT: Duration = Duration::from_secs(30);
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
    free: Mutex<u32>,
    freed: Condvar,
}

#[derive(Default)]
struct State {
    connection: Option<Arc<Connection>>,
    failed: Option<(Instant, Failure)>,
}

/// A connection, and handles of machines on it.
pub(super) struct Connection {
    /// Dropped before the connection that they refer to.
    domains: Mutex<BTreeMap<VmId, Arc<Domain>>>,
    connect: Connect,
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
}

impl Link {
    pub(super) fn new(uri: &str, inbox: Arc<Inbox>) -> Self {
        Self { uri: uri.to_owned(), inbox, state: Mutex::default(), free: Mutex::new(SLOTS), freed: Condvar::new() }
    }

    /// Calls something that changes nothing.
    pub(super) fn look<T>(
        &self,
        name: &'static str,
        call: impl Fn(&Connection) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let _slot = self.slot()?;
        let (connection, is_new) = self.connection()?;
        match self.run(name, connection, &call) {
            Err(Failure::Unreachable(_)) if !is_new => self.run(name, self.connection()?.0, &call),
            result => result,
        }
    }

    /// Calls something that changes a machine.
    pub(super) fn act<T>(
        &self,
        name: &'static str,
        call: impl Fn(&Connection) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let _slot = self.slot()?;
        self.run(name, self.connection()?.0, &call)
    }

    fn run<T>(
        &self,
        name: &'static str,
        connection: Arc<Connection>,
        call: &impl Fn(&Connection) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let start = Instant::now();
        let guarded = catch_unwind(AssertUnwindSafe(|| call(&connection)));
        let result =
            guarded.unwrap_or_else(|_| Err(Failure::Unintelligible("the libvirt binding panicked".to_owned())));
        metrics::histogram!("snapshot_agent_libvirt_call_seconds", "call" => name).record(start.elapsed());
        match result {
            Err(failure @ (Failure::Refused { .. } | Failure::Unintelligible(_))) if !connection.is_alive() => {
                self.discard(&connection);
                drop_contained(connection);
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
        let mut state = self.lock();
        match &state.connection {
            Some(connection) if connection.is_alive() => return Ok((Arc::clone(connection), false)),
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
                let connection = Arc::new(Connection { domains: Mutex::default(), connect });
                *state = State { connection: Some(Arc::clone(&connection)), failed: None };
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

    fn slot(&self) -> Result<Slot<'_>, Failure> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut free, waited) =
            self.freed.wait_timeout_while(free, SLOT_WAIT, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() && *free == 0 {
            return Err(Failure::Unreachable("too many calls are waiting for an answer".to_owned()));
        }
        *free -= 1;
        Ok(Slot(self))
    }
}

/// A place among the calls under way.
struct Slot<'a>(&'a Link);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}

/// Held while the embedded driver is opened: the first to open it initializes it, and one who opens it meanwhile gets a
/// connection to a driver that is half initialized, and crashes (seen with libvirt 11.3).
static EMBEDDED: Mutex<()> = Mutex::new(());

/// Opens a connection that notices when the other end goes silent.
pub(super) fn open(uri: &str) -> Result<Connect, Failure> {
    let is_embedded = uri.starts_with("qemu:///embed");
    let _alone = is_embedded.then(|| EMBEDDED.lock().unwrap_or_else(PoisonError::into_inner));
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

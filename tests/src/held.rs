//! A way to libvirt's daemon on which one call can be held: what dies then has died between two calls, and not at a moment that a
//! timer guessed.
//!
//! It takes the place of the daemon's socket, so whoever connects afterwards comes through it. It understands of libvirt's
//! protocol what it needs: a message is its length, five numbers, and what is said (libvirt's `docs/kbase/internals/rpc.rst`).

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// Length, program, version, procedure, kind, serial, status: four bytes each.
const HEADER: usize = 28;
/// Longer than any message of libvirt's.
const LONGEST: usize = 64 << 20;
/// The calls of libvirt, and those of its QEMU driver.
const REMOTE: u32 = 0x2000_8086;
const QEMU: u32 = 0x2000_8087;
const SNAPSHOT_CREATE_XML: u32 = 185;
const MONITOR_COMMAND: u32 = 1;
const CALL: u32 = 0;
const REPLY: u32 = 1;

/// What is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// QEMU is to take the disks of a running machine, and has not been told.
    Transaction,
    /// It has, and who asked for it does not know.
    TransactionDone,
    /// libvirt is to be told of a snapshot, and has not been.
    Record,
    /// It has, and who told it does not know.
    RecordDone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Through,
    Wanted(At),
    Held,
    /// What was held is never passed on.
    Lost,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: State) {
        *self.lock() = state;
        self.changed.notify_all();
    }

    /// Waits while it is held. Whether it goes on.
    fn hold(&self) -> bool {
        self.set(State::Held);
        let mut state = self.lock();
        while *state == State::Held {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        *state != State::Lost
    }
}

/// The way. It is open until something is to be held. Dropped, it lets go of what it holds.
#[derive(Debug)]
pub struct Way {
    socket: PathBuf,
    moved: PathBuf,
    shared: Arc<Shared>,
}

impl Way {
    /// Takes the place of a daemon's socket. Connections that are there stay what they are.
    pub fn instead_of(socket: &Path) -> Result<Self> {
        let moved = socket.with_extension("daemon");
        fs::rename(socket, &moved)?;
        let listener = UnixListener::bind(socket)?;
        let shared = Arc::new(Shared { state: Mutex::new(State::Through), changed: Condvar::new() });
        let (to, of_all) = (moved.clone(), Arc::clone(&shared));
        // It ends with the test's process.
        thread::spawn(move || {
            for caller in listener.incoming().flatten() {
                let _ = carry(&caller, &to, &of_all);
            }
        });
        Ok(Self { socket: socket.to_owned(), moved, shared })
    }

    /// Holds the next of these.
    pub fn want(&self, at: At) {
        self.shared.set(State::Wanted(at));
    }

    /// Waits until it is held.
    pub fn wait(&self, limit: Duration) -> Result<()> {
        let since = Instant::now();
        let mut state = self.shared.lock();
        while *state != State::Held {
            ensure!(since.elapsed() < limit, "waited {limit:?} for a call to libvirt: {state:?}");
            state = self.shared.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Passes it on.
    pub fn let_go(&self) {
        self.shared.set(State::Through);
    }

    /// Never passes it on, and is open for what comes then. Whoever it was from should be dead.
    pub fn lose(&self) {
        self.shared.set(State::Lost);
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.shared.set(State::Lost);
        let _ = fs::rename(&self.moved, &self.socket);
    }
}

/// Both directions of a connection, each in a thread that ends with it.
fn carry(caller: &UnixStream, to: &Path, shared: &Arc<Shared>) -> Result<()> {
    let daemon = UnixStream::connect(to)?;
    // Of the call whose answer is wanted.
    let awaited = Arc::new(Mutex::new(None));
    for (from, to, is_call) in [(caller, &daemon, true), (&daemon, caller, false)] {
        let (from, to) = (from.try_clone()?, to.try_clone()?);
        let (shared, awaited) = (Arc::clone(shared), Arc::clone(&awaited));
        thread::spawn(move || {
            let _ = pass(&from, &to, is_call, &shared, &awaited);
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
    Ok(())
}

fn pass(
    mut from: &UnixStream,
    mut to: &UnixStream,
    is_call: bool,
    shared: &Shared,
    awaited: &Mutex<Option<u32>>,
) -> Result<()> {
    loop {
        let mut message = vec![0; HEADER];
        from.read_exact(&mut message)?;
        let length = usize::try_from(number(&message, 0))?;
        ensure!((HEADER..LONGEST).contains(&length), "a message of {length} bytes");
        message.resize(length, 0);
        from.read_exact(&mut message[HEADER..])?;
        let serial = number(&message, 5);
        let mut awaited = awaited.lock().unwrap_or_else(PoisonError::into_inner);
        let holds = if is_call {
            let wanted = *shared.lock();
            match wanted {
                State::Wanted(at) if is(at, &message) => {
                    let before = matches!(at, At::Transaction | At::Record);
                    *awaited = (!before).then_some(serial);
                    before
                }
                _ => false,
            }
        } else {
            number(&message, 4) == REPLY && awaited.take_if(|awaited| *awaited == serial).is_some()
        };
        drop(awaited);
        if holds {
            ensure!(shared.hold(), "lost");
        }
        to.write_all(&message)?;
    }
}

/// Whether a message asks for this.
fn is(at: At, message: &[u8]) -> bool {
    let (program, procedure, kind) = (number(message, 1), number(message, 3), number(message, 4));
    let asks = |words: &[u8]| message.windows(words.len()).any(|part| part == words);
    kind == CALL
        && match at {
            At::Transaction | At::TransactionDone => {
                (program, procedure) == (QEMU, MONITOR_COMMAND) && asks(b"blockdev-snapshot-internal-sync")
            }
            At::Record | At::RecordDone => (program, procedure) == (REMOTE, SNAPSHOT_CREATE_XML),
        }
}

fn number(message: &[u8], index: usize) -> u32 {
    message[index * 4..].iter().take(4).fold(0, |number, byte| number << 8 | u32::from(*byte))
}

//! The one thread that writes.
//!
//! A job that panics fails alone: its savepoint is rolled back and its caller gets INTERNAL. Should the thread end all the same,
//! [`Store::ended`] says so, and the process ends: without its writer it could only refuse.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use rusqlite::{Connection, ErrorCode};
use snapshot_core::ids::VmId;
use tokio::sync::{broadcast, oneshot, watch};

use super::lock::Lock;
use super::{Change, Store, StoreError};

/// How many jobs may wait. A full queue makes callers wait, which is the back-pressure wanted.
const QUEUE: usize = 256;
/// How many jobs share a commit at most.
const BATCH: usize = 128;

/// What a job writes with.
pub(super) struct Job<'a> {
    pub(super) connection: &'a Connection,
    revision: Option<i64>,
    touched: Vec<VmId>,
}

impl Job<'_> {
    /// The revision to stamp on changed rows: one for all that this job changes.
    pub(super) fn revision(&mut self) -> Result<i64, StoreError> {
        if let Some(revision) = self.revision {
            return Ok(revision);
        }
        let sql = "UPDATE catalogue SET revision = revision + 1 RETURNING revision";
        let revision = self.connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
        self.revision = Some(revision);
        Ok(revision)
    }

    /// Stamps a machine, whose etag covers its snapshots and operations, and tells its watchers after the commit.
    pub(super) fn touch(&mut self, vm: VmId) -> Result<(), StoreError> {
        let revision = self.revision()?;
        let sql = "UPDATE vms SET revision = ?2 WHERE id = ?1";
        self.connection.prepare_cached(sql)?.execute((vm.to_string(), revision))?;
        self.touched.push(vm);
        Ok(())
    }
}

/// Tells the job's caller, once the commit has succeeded (`Ok`) or failed.
type Reply = Box<dyn FnOnce(Result<(), StoreError>) + Send>;
/// Does the job, unless it is told why it cannot be done.
type Act = Box<dyn FnOnce(Result<&Connection, StoreError>) -> Acted + Send>;

/// What a job came to, before the commit.
struct Acted {
    keep: bool,
    /// The failure of a job that found that the file cannot be written.
    unwritable: Option<String>,
    touched: Vec<VmId>,
    reply: Reply,
}

/// Whether a job has to survive a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    /// It has: an intent, or an outcome.
    Synced,
    /// The host tells it again when it is lost: an inventory, or how far an operation has come. Saves an `fsync` while
    /// the host's own disk is busy with the snapshot.
    Retold,
}

struct Work {
    durability: Durability,
    act: Act,
}

/// What the writer says after each batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Beat {
    /// How many jobs it has done, those that failed among them.
    pub jobs: u64,
    /// Whether the last batch of them could not be written: the disk is full, read-only or failed, or another process has the lock.
    pub failing: bool,
}

pub(super) struct Writer {
    queue: Mutex<Option<SyncSender<Work>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Closed when the writer has ended.
    beat: watch::Receiver<Beat>,
}

impl Writer {
    /// A queue, and who is to serve it.
    pub(super) fn new(connection: Connection, lock: Lock, changes: broadcast::Sender<Change>) -> (Self, Committer) {
        let (queue, jobs) = sync_channel(QUEUE);
        let (told, beat) = watch::channel(Beat::default());
        let writer = Self { queue: Mutex::new(Some(queue)), thread: Mutex::new(None), beat };
        (writer, Committer { connection, jobs, changes, beat: told, _lock: lock })
    }

    /// Has the queue served by a thread.
    pub(super) fn serve(&self, committer: Committer) -> Result<(), StoreError> {
        let builder = std::thread::Builder::new().name("catalogue-writer".to_owned());
        let thread = builder.spawn(move || committer.run()).map_err(|_| StoreError::Closed)?;
        if let Ok(mut place) = self.thread.lock() {
            *place = Some(thread);
        }
        Ok(())
    }

    /// Dropping the queue ends the thread after the last job; joining it makes the file free to be replaced.
    pub(super) fn close(&self) {
        if let Ok(mut queue) = self.queue.lock() {
            queue.take();
        }
        if let Some(thread) = self.thread.lock().ok().and_then(|mut thread| thread.take())
            && thread.join().is_err()
        {
            tracing::error!("the catalogue's writer panicked");
        }
    }

    fn sender(&self) -> Result<SyncSender<Work>, StoreError> {
        self.queue.lock().ok().and_then(|queue| queue.clone()).ok_or(StoreError::Closed)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.close();
    }
}

impl Store {
    /// Runs a job on the writer: all of it or nothing, durable when this returns.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Job<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.run(Durability::Synced, job).await
    }

    /// As [`Store::write`], for what a host tells again when a power cut took it.
    pub(super) async fn write_retold<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Job<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.run(Durability::Retold, job).await
    }

    async fn run<T: Send + 'static>(
        &self,
        durability: Durability,
        job: impl FnOnce(&mut Job<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let work = work(durability, job, move |result| {
            // A caller that went away does not need the answer.
            let _ = reply.send(result);
        });
        let sender = self.writer.sender()?;
        if let Err(full) = sender.try_send(work) {
            let work = match full {
                TrySendError::Full(work) => work,
                TrySendError::Disconnected(_) => return Err(StoreError::Closed),
            };
            let sent = tokio::task::spawn_blocking(move || sender.send(work)).await;
            if !matches!(sent, Ok(Ok(()))) {
                return Err(StoreError::Closed);
            }
        }
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Gives a job to the writer that nobody waits for and that need not survive a power cut. False when too many wait already; the
    /// job is not done then, and `done` is not called.
    pub(super) fn post(
        &self,
        job: impl FnOnce(&mut Job<'_>) -> Result<(), StoreError> + Send + 'static,
        done: impl FnOnce(Result<(), StoreError>) + Send + 'static,
    ) -> bool {
        self.writer.sender().is_ok_and(|sender| sender.try_send(work(Durability::Retold, job, done)).is_ok())
    }

    /// Has the writer write one row as it is, synced like a change. Nobody waits for it: what came of it is in [`Store::beat`].
    /// Where the queue is full the writer has enough to show whether it works.
    pub fn prove_writing(&self) {
        let job = |job: &mut Job<'_>| {
            job.connection.prepare_cached("UPDATE catalogue SET served_ms = served_ms")?.execute([])?;
            Ok(())
        };
        if let Ok(sender) = self.writer.sender() {
            let _ = sender.try_send(work(Durability::Synced, job, drop));
        }
    }

    /// What the writer said last; changes with every batch.
    pub fn beat(&self) -> watch::Receiver<Beat> {
        self.writer.beat.clone()
    }

    /// Returns when the writer has ended: the catalogue was closed, or the thread panicked.
    pub async fn ended(&self) {
        // An error means that the other end is gone, which is what is waited for.
        let _ = self.beat().wait_for(|_| false).await;
    }
}

fn work<T: Send + 'static>(
    durability: Durability,
    job: impl FnOnce(&mut Job<'_>) -> Result<T, StoreError> + Send + 'static,
    done: impl FnOnce(Result<T, StoreError>) + Send + 'static,
) -> Work {
    let act: Act = Box::new(move |connection| {
        let (result, touched) = match connection {
            Err(failure) => (Err(failure), Vec::new()),
            Ok(connection) => {
                let mut context = Job { connection, revision: None, touched: Vec::new() };
                // What the job has half done is rolled back, and what it captured is dropped.
                let result = catch_unwind(AssertUnwindSafe(|| job(&mut context))).unwrap_or_else(|panic| {
                    panicked(&*panic);
                    Err(StoreError::Panicked)
                });
                let touched = if result.is_ok() { context.touched } else { Vec::new() };
                (result, touched)
            }
        };
        let (keep, unwritable) = (result.is_ok(), result.as_ref().err().and_then(unwritable));
        let reply = move |commit: Result<(), StoreError>| {
            // The next ones are to have their answers, too.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| done(commit.and(result)))) {
                panicked(&*panic);
            }
        };
        Acted { keep, unwritable, touched, reply: Box::new(reply) }
    });
    Work { durability, act }
}

fn panicked(panic: &(dyn Any + Send)) {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text");
    metrics::counter!("snapshot_api_writer_panics_total").increment(1);
    tracing::error!(panic = text, "a job of the catalogue's writer panicked and was rolled back");
}

/// The failure of a job, if it says that nothing can be written.
fn unwritable(error: &StoreError) -> Option<String> {
    let StoreError::Sqlite(error) = error else { return None };
    let codes = [ErrorCode::DiskFull, ErrorCode::ReadOnly, ErrorCode::SystemIoFailure, ErrorCode::CannotOpen];
    error.sqlite_error_code().filter(|code| codes.contains(code)).map(|_| error.to_string())
}

/// Takes jobs from the queue and commits them, as many at once as wait.
pub struct Committer {
    connection: Connection,
    jobs: Receiver<Work>,
    changes: broadcast::Sender<Change>,
    /// Remembers whether the last batch failed, so that a disk that stays full is told of once.
    beat: watch::Sender<Beat>,
    /// Released when nothing is written any more.
    _lock: Lock,
}

impl Committer {
    /// Serves the queue until the store is closed.
    pub fn run(mut self) {
        while let Ok(first) = self.jobs.recv() {
            self.commit_with(Some(first));
        }
        // What is in the journal goes into the file, so that whoever copies the file of a stopped service has all of it.
        let checkpoint = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        if let Err(error) = checkpoint {
            tracing::warn!(%error, "the catalogue's journal stays beside it");
        }
    }

    /// Commits what waits now.
    pub fn commit_waiting(&mut self) {
        self.commit_with(None);
    }

    fn commit_with(&mut self, first: Option<Work>) {
        let batch: Vec<Work> = first.into_iter().chain(self.jobs.try_iter()).take(BATCH).collect();
        if batch.is_empty() {
            return;
        }
        let done = batch.len() as u64;
        let failure = commit(&self.connection, batch, &self.changes);
        if self.beat.borrow().failing != failure.is_some() {
            match &failure {
                Some(cause) => {
                    tracing::error!(%cause, "the catalogue cannot be written; mutations are refused until it can")
                }
                None => tracing::info!("the catalogue can be written again"),
            }
        }
        self.beat.send_modify(|beat| *beat = Beat { jobs: beat.jobs + done, failing: failure.is_some() });
    }
}

/// Does all jobs of a batch in one transaction. When that fails, every caller is told so, and nothing is left open. Returns why
/// the file could not be written, if it could not.
fn commit(connection: &Connection, batch: Vec<Work>, changes: &broadcast::Sender<Change>) -> Option<String> {
    let synced = batch.iter().any(|work| work.durability == Durability::Synced);
    let mut state = begin(connection, synced);
    let mut kept = Vec::new();
    for work in batch {
        if state.is_ok() {
            state = act(connection, work.act, &mut kept);
        } else {
            ((work.act)(state.as_ref().map(|()| connection).map_err(failed)).reply)(Ok(()));
        }
    }
    state = state.and_then(|()| connection.execute_batch("COMMIT"));
    if !connection.is_autocommit() {
        // After a failed COMMIT the transaction may still be open; the next batch needs a clean start.
        let _ = connection.execute_batch("ROLLBACK");
    }
    let result = state.as_ref().map(|_| ());
    let mut failure = state.as_ref().err().map(ToString::to_string);
    for Acted { reply, touched, unwritable, .. } in kept {
        failure = failure.or(unwritable);
        reply(result.map_err(failed));
        for vm in touched.into_iter().filter(|_| result.is_ok()) {
            let _ = changes.send(Change::Vm(vm));
        }
    }
    failure
}

fn begin(connection: &Connection, synced: bool) -> Result<(), rusqlite::Error> {
    // In WAL mode NORMAL differs from FULL only in that a commit is not synced: the file is whole in either.
    connection.pragma_update(None, "synchronous", if synced { "FULL" } else { "NORMAL" })?;
    connection.execute_batch("BEGIN IMMEDIATE")
}

/// Does one job in a savepoint of its own. An error is of the transaction as a whole: after some failures, a full disk among
/// them, SQLite takes all of it back by itself, and whatever were done then would be done outside of it.
fn act(connection: &Connection, act: Act, kept: &mut Vec<Acted>) -> Result<(), rusqlite::Error> {
    if let Err(error) = connection.execute_batch("SAVEPOINT job") {
        (act(Err(failed(&error))).reply)(Ok(()));
        return if connection.is_autocommit() { Err(error) } else { Ok(()) };
    }
    let acted = act(Ok(connection));
    let closing = if acted.keep { "RELEASE job" } else { "ROLLBACK TO job; RELEASE job" };
    let closed = if connection.is_autocommit() { Err(taken_back()) } else { connection.execute_batch(closing) };
    match closed {
        Ok(()) => {
            kept.push(acted);
            Ok(())
        }
        Err(error) => {
            (acted.reply)(Err(failed(&error)));
            Err(error)
        }
    }
}

fn taken_back() -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT);
    rusqlite::Error::SqliteFailure(code, Some("the transaction was taken back".to_owned()))
}

/// The failure of a transaction, as each of its callers gets it.
fn failed(error: &rusqlite::Error) -> StoreError {
    let code = error.sqlite_error().copied().unwrap_or(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT));
    StoreError::Sqlite(rusqlite::Error::SqliteFailure(code, Some(error.to_string())))
}

#[cfg(test)]
mod tests;

//! The one thread that writes.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use rusqlite::Connection;
use snapshot_core::ids::VmId;
use tokio::sync::{broadcast, oneshot};

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
type Act = Box<dyn FnOnce(&Connection) -> (bool, Vec<VmId>, Reply) + Send>;

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

pub(super) struct Writer {
    queue: Mutex<Option<SyncSender<Work>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    pub(super) fn start(connection: Connection, changes: broadcast::Sender<Change>) -> Result<Self, StoreError> {
        let (queue, jobs) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("catalogue-writer".to_owned())
            .spawn(move || run(&connection, &jobs, &changes))
            .map_err(|_| StoreError::Closed)?;
        Ok(Self { queue: Mutex::new(Some(queue)), thread: Mutex::new(Some(thread)) })
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
        let act: Act = Box::new(move |connection| {
            let mut context = Job { connection, revision: None, touched: Vec::new() };
            let result = job(&mut context);
            let keep = result.is_ok();
            let touched = if keep { context.touched } else { Vec::new() };
            let reply: Reply = Box::new(move |commit| {
                // A caller that went away does not need the answer.
                let _ = reply.send(commit.and(result));
            });
            (keep, touched, reply)
        });
        let work = Work { durability, act };
        let sender = self.writer.sender()?;
        if let Err(full) = sender.try_send(work) {
            let work = match full {
                std::sync::mpsc::TrySendError::Full(work) => work,
                std::sync::mpsc::TrySendError::Disconnected(_) => return Err(StoreError::Closed),
            };
            let sent = tokio::task::spawn_blocking(move || sender.send(work)).await;
            if !matches!(sent, Ok(Ok(()))) {
                return Err(StoreError::Closed);
            }
        }
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

fn run(connection: &Connection, jobs: &Receiver<Work>, changes: &broadcast::Sender<Change>) {
    while let Ok(first) = jobs.recv() {
        let batch: Vec<Work> = std::iter::once(first).chain(jobs.try_iter().take(BATCH - 1)).collect();
        commit(connection, batch, changes);
    }
}

fn commit(connection: &Connection, batch: Vec<Work>, changes: &broadcast::Sender<Change>) {
    let synced = batch.iter().any(|work| work.durability == Durability::Synced);
    // In WAL mode NORMAL differs from FULL only in that a commit is not synced: the file is whole in either.
    let begun = connection
        .pragma_update(None, "synchronous", if synced { "FULL" } else { "NORMAL" })
        .and_then(|()| connection.execute_batch("BEGIN IMMEDIATE"));
    let mut touched = Vec::new();
    let mut replies: Vec<Reply> = Vec::new();
    for work in batch {
        if begun.is_err() {
            // The job must not run outside a transaction; dropping it tells its caller that nothing was done.
            drop(work);
            continue;
        }
        let opened = connection.execute_batch("SAVEPOINT job");
        let (keep, vms, reply) = (work.act)(connection);
        let keep = keep && opened.is_ok();
        let closing = if keep { "RELEASE job" } else { "ROLLBACK TO job; RELEASE job" };
        match opened.and_then(|()| connection.execute_batch(closing)) {
            Ok(()) => {
                touched.extend(vms);
                replies.push(reply);
            }
            Err(error) => reply(Err(error.into())),
        }
    }
    let result = begun.and_then(|()| connection.execute_batch("COMMIT"));
    if let Err(error) = &result {
        tracing::error!(%error, "a commit of the catalogue failed");
        // After a failed COMMIT the transaction may still be open; the next batch needs a clean start.
        let _ = connection.execute_batch("ROLLBACK");
    }
    let failed = result.err().map(|error| error.to_string());
    for reply in replies {
        reply(match &failed {
            None => Ok(()),
            Some(message) => Err(StoreError::Sqlite(rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT),
                Some(message.clone()),
            ))),
        });
    }
    if failed.is_none() {
        for vm in touched {
            let _ = changes.send(Change::Vm(vm));
        }
    }
}

//! Connections that only read.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rusqlite::Connection;

use super::{Store, StoreError, schema};

/// A point read takes some microseconds, so a few connections serve many callers.
const CONNECTIONS: usize = 4;

pub(super) struct Readers {
    connections: Vec<Mutex<Connection>>,
    next: AtomicUsize,
}

impl Readers {
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let connections =
            (0..CONNECTIONS).map(|_| schema::open_reader(path).map(Mutex::new)).collect::<Result<_, _>>()?;
        Ok(Self { connections, next: AtomicUsize::new(0) })
    }
}

impl Store {
    /// Reads within one snapshot of the catalogue.
    ///
    /// Done on the caller's thread: a read is far shorter than handing it to another thread (measured: 150 thousand a
    /// second against 30 thousand), and a page has a bound.
    pub(super) fn read<T>(&self, job: impl FnOnce(&Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let index = self.readers.next.fetch_add(1, Ordering::Relaxed) % CONNECTIONS;
        let connection = self.readers.connections[index].lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = connection.unchecked_transaction()?;
        let result = job(&transaction);
        transaction.finish()?;
        result
    }
}

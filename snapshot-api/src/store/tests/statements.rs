//! Which statements a call makes of the catalogue, without their values, and how many rows each finds.

use std::cell::RefCell;

use rusqlite::Connection;
use rusqlite::trace::{TraceEvent, TraceEventCodes};

use super::StoreError;

thread_local! {
    /// Reads are done on the caller's thread.
    static SEEN: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// A connection whose statements are seen.
pub(in crate::store) fn listened_to(mut connection: Connection) -> Result<Connection, StoreError> {
    let note = |event: TraceEvent<'_>| {
        let seen = match event {
            TraceEvent::Stmt(statement, _) => statement.sql().into_owned(),
            TraceEvent::Row(_) => "a row".to_owned(),
            _ => return,
        };
        SEEN.with_borrow_mut(|all| all.push(seen));
    };
    connection.trace_v2(TraceEventCodes::SQLITE_TRACE_STMT | TraceEventCodes::SQLITE_TRACE_ROW, Some(note))?;
    Ok(connection)
}

/// Those that this thread has made since it was last asked.
pub(crate) fn taken() -> Vec<String> {
    SEEN.take()
}

//! Rows to the messages of the public API.

mod audit;
pub mod host;
mod operation;
mod snapshot;
mod vm;

pub use audit::audit_event;
pub use operation::operation;
pub use snapshot::snapshot;
pub use vm::{conflict, vm, with_capabilities};

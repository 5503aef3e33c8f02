//! The service that validates, authorizes, records and forwards.
//!
//! It keeps nothing but the catalogue, one SQLite file, and does nothing to a machine itself: that is for the agents.

pub mod agents;
pub mod app;
pub mod arguments;
pub mod audit;
pub mod clock;
pub mod commands;
pub mod config;
mod etag;
/// Doors for the fuzzers (`make fuzz`) to what is otherwise inside.
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use crate::page::Page;

    /// The revision in an etag, and the etag of a revision.
    pub fn etag(epoch: &str, text: &str) -> Option<(i64, String)> {
        let revision = crate::etag::decode(epoch, text)?;
        Some((revision, crate::etag::encode(epoch, revision)))
    }
}
mod health;
pub mod hosts;
pub mod limits;
mod mutation;
pub mod own_tokens;
mod page;
mod public;
mod rpc;
pub mod server;
pub mod service;
pub mod store;
mod telemetry;
pub mod upkeep;
mod view;
mod watch;

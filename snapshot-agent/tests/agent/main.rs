//! The agent on real guests, and on a host of variables where something has to go wrong.
//!
//! One binary, because the embedded libvirt driver serves one process one root.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "clippy knows test functions, not their helpers; what panics here is a failed test"
)]

mod adapter;
mod all_or_none;
mod contract;
mod daemon;
mod definition;
mod directory;
mod drift;
mod external;
mod fake;
mod guest;
mod hanging;
#[path = "../../../tests/src/hung.rs"]
mod hung;
mod images;
mod live;
mod losses;
mod names;
mod nothing_left;
mod operations;
mod ownership;
mod processes;
mod served;
mod service;
mod watching;

//! Every RPC of every service, called in every way that must be refused: refused it is, with the right code, and nothing has
//! changed.
//!
//! - [`calls`] are the rows: from the descriptors, so that a new RPC without a row fails.
//! - [`faults`] are the columns: what is wrong with the certificate or the token. Everything else about a call is right: the
//!   machine, the snapshot and the operation are there, and with a good token it does what it says, which each test ends
//!   with.
//! - [`refusals`] are the faces: the two listeners of the API, the gateway, and the agent.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic, and its helpers are part of it"
)]

mod calls;
mod faults;
mod forge;
mod refusals;
mod world;

//! The gateway over real sockets, in front of an API that answers what a test asks for.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

mod connect;
mod grpc;
mod grpc_web;
mod limits;
mod page;
mod process;
mod reasons;
mod shutdown;
mod support;

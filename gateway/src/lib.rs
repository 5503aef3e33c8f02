//! The gateway: gRPC, gRPC-Web and Connect on one port in front of the API, and the page.
//!
//! A pipe, not a peer. It knows no call by name: what may be called, and how JSON becomes protobuf, follows from the
//! descriptors of the public package. It makes no decision about who may do what, and holds no secret but the key of
//! its client certificate; the caller's token passes through and is checked by the API.
//!
//! A request passes, in this order: [`server`] (connections, TLS, time limits), `edge` (rate, size, request id, routes),
//! `request` (its head and frame), `dispatcher` (protobuf in and out, deadlines) and the channel to the API. `errors` is the one place that makes
//! errors, of the gateway's own and of the API's.

pub mod arguments;
pub mod codec;
pub mod config;
pub mod descriptors;
pub mod doctor;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod server;
pub mod telemetry;

mod dispatcher;
mod edge;
mod errors;
mod grpc_web_text;
mod headers;
mod limits;
mod page;
mod request;
mod transcode;
mod upstream;

pub use edge::Gateway;
pub use upstream::{TransportError, Upstream, from_channel};

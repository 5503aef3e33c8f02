//! TLS for services that know each other by SPIFFE id.
//!
//! Certificates are PEM files that may change at any time: new connections use the new ones, and open ones go on for as
//! long as what their peer showed still counts.
//! Who a peer is stands in its certificate's URI SAN and is held against a list of exact ids; being signed by the CA
//! alone grants nothing.
//!
//! - [`server`]: an acceptor and a stream of connections for tonic, hyper or axum; mutual TLS within, server-only TLS
//!   towards the public.
//! - [`client`]: a tonic channel to one peer.
//! - [`expiry`]: until when the certificates and revocation lists are good, as a metric and in the log.
//! - [`examine`]: what is wrong with all of them, for a doctor.
//! - [`RequirePeer`]: a tower layer that narrows who may call one service of a listener.
//! - [`forbid_core_dumps`]: for every process that has a key.
//! - [`dev_ca`]: a certificate authority for development and tests.
//!
//! This crate knows nothing of what is served.

pub mod client;
pub mod dev_ca;
pub mod server;

pub mod examine;
pub mod expiry;

mod core_dumps;
mod error;
mod files;
mod guard;
mod reload;
mod require_peer;
mod spiffe;
mod verify;

pub use core_dumps::forbid_core_dumps;
pub use error::TlsError;
pub use files::{ServerFiles, TlsFiles};
pub use reload::look_again;
pub use require_peer::{RequirePeer, RequirePeerService};
pub use spiffe::{AllowList, IdentityError, ParseSpiffeError, PeerIdentity, SpiffeId};

//! The harness of the tests that run whole systems: real guests on private libvirts, the real binaries around them,
//! and clients over every face of the public API.
//!
//! - [`guest`]: the guest in a boot sector that tells what is on its disk and in its RAM.
//! - [`libvirtd`] and [`embed`]: where guests run: a daemon of the test's own, or libvirt inside the agent.
//! - [`held`]: a way to libvirt's daemon on which a call is held, for who is to die between two of them.
//! - [`images`]: what the image files hold, whoever wrote them.
//! - [`client`]: callers over gRPC, gRPC-Web, JSON by curl and grpcurl.
//! - [`cluster`]: agents, the API and the gateway, as processes that a test can stop, kill and start again.
//! - [`recorder`]: a host that keeps all that the API sends it.
//! - [`lab`]: a cluster with a client and guests that the API knows, and what is left of snapshots anywhere.
//!
//! Everything a test starts lives in its [`scratch::Scratch`] folder and ends with it, also when the test panics; what a
//! killed test run left behind is swept by the next one. `tests/README.md` says what was measured to get here.

pub mod client;
pub mod cluster;
pub mod embed;
pub mod faults;
pub mod guest;
pub mod held;
pub mod hung;
pub mod images;
pub mod lab;
pub mod libvirtd;
pub mod ports;
pub mod processes;
pub mod reaper;
pub mod recorder;
pub mod scratch;
pub mod tools;

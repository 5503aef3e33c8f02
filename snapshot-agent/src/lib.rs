//! The agent of Ravada Snapshots: one on every hypervisor, as root, and the only code that speaks to libvirt.
//!
//! It trusts nobody's word: who calls is known by certificate, on whose behalf by a token it verifies itself, and what
//! is to be done is planned anew by the machine as it is now.

pub mod arguments;
pub mod auth;
pub mod beneath;
pub mod bounded;
pub mod clock;
pub mod config;
pub mod doctor;
pub mod events;
pub mod execute;
pub mod folders;
pub mod hypervisor;
pub mod journal;
pub mod locks;
pub mod machines;
pub mod owned;
pub mod qcow2;
mod qemu_img;
pub mod reach;
mod revert_plan;
mod rpc;
pub mod safety;
pub mod server;
pub mod service;
pub mod shared_storage;
pub mod watch;

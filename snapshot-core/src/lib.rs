//! The pure domain of Ravada Snapshots: what is decided, without acting on it.
//!
//! Nothing here knows tokio, tonic, SQL, libvirt or a clock. Everything is a function of its arguments, so that the
//! rules that protect somebody's work can be read in one place and tested with generated inputs.

pub mod audit;
pub mod authority;
pub mod definition;
pub mod definition_change;
pub mod description;
pub mod error;
pub mod hardware;
pub mod ids;
pub mod images;
pub mod layers;
pub mod operation;
pub mod orphan;
pub mod placement;
pub mod plan;
pub mod policy;
pub mod quota;
pub mod resources;
pub mod restriction;
pub mod snapshot;
pub mod text;
pub mod tree;
pub mod vm;

pub use error::{Error, Reason};

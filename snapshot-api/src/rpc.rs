//! The RPCs, one a file. Each takes what was asked and who asked, and answers with a message or an [`Error`].
//!
//! [`Error`]: snapshot_core::Error

pub mod cancel_operation;
pub mod create_snapshot;
pub mod delete_orphan;
pub mod delete_snapshot;
pub mod get_host;
pub mod get_operation;
pub mod get_snapshot;
pub mod get_vm;
pub mod list_audit_events;
pub mod list_hosts;
pub mod list_operations;
pub mod list_orphans;
pub mod list_snapshots;
pub mod list_vms;
pub mod purge_vm;
pub mod reconcile_host;
pub mod revert_to_snapshot;
pub mod update_snapshot;
pub mod watch_operation;
pub mod watch_vm;

//! What an administrator allows on a host.

use serde::{Deserialize, Serialize};

/// What a revert does about a VM's definition (its RAM, vCPUs, devices, title), which the snapshot holds as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DefinitionOnRevert {
    /// The definition of the snapshot is restored, as libvirt does by itself; plans name every change.
    #[default]
    Restore,
    /// A revert that would change it is refused, unless an administrator asks for it.
    Deny,
    /// The disks and the running state are reverted, and the definition stays as it is, unless an administrator asks for the revert. What
    /// cannot be reverted without it is refused.
    Keep,
}

/// The policy of one host. Every field has a default that suits Ravada.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HostPolicy {
    /// Whether the paths of active images must stay as they are, which rules external snapshots out.
    pub stable_paths: bool,
    /// Whether external snapshots are preferred where both kinds can be had: they hold the guest up for a moment instead
    /// of as long as it takes to save its memory, they show how far they are, and they can be stopped. Nothing without
    /// `stable_paths = false`.
    pub prefer_short_pauses: bool,
    /// Whether the disks of a machine that is on are taken alone and live, inside their images, by QEMU's own transaction.
    pub live_snapshots: bool,
    /// Whether a running machine is taken back to a snapshot with its running state within its QEMU process, where that can be
    /// (ADR 23). Without it, or where it cannot be, libvirt ends the process and starts another.
    pub in_place_reverts: bool,
    /// Whether a user's revert may change a VM's definition.
    pub definition_on_revert: DefinitionOnRevert,
    /// The most files a disk may be spread over. libvirt 11.3 cannot start a machine on more than 25 (ADR 10), and lets one
    /// that is off grow beyond that.
    pub max_layers: u32,
    /// The most snapshots one machine may have. libvirt's own cost of a create grows with their number: 27 ms at 1,
    /// 200 ms at 500.
    pub max_snapshots_per_vm: u32,
    /// The most bytes that the snapshots of one machine may take by themselves (`crate::quota`); 0 is no limit.
    pub max_snapshot_bytes_per_vm: u64,
    /// Bytes that must stay free on a file system beyond what a snapshot is expected to write. An internal snapshot
    /// on a full file system fails and leaves the guest to pause on its next write.
    pub space_margin_bytes: u64,
}

impl Default for HostPolicy {
    fn default() -> Self {
        Self {
            stable_paths: true,
            prefer_short_pauses: false,
            live_snapshots: true,
            in_place_reverts: true,
            definition_on_revert: DefinitionOnRevert::Restore,
            max_layers: 20,
            max_snapshots_per_vm: 100,
            max_snapshot_bytes_per_vm: 0,
            space_margin_bytes: 256 << 20,
        }
    }
}

//! What is known of a host in this process.

use proto::agent::HostFacts;

/// What is known of a host.
#[derive(Debug, Clone, Default)]
pub struct HostState {
    /// Whether its agent is connected and has told its whole state.
    pub reachable: bool,
    /// Why it is not.
    pub reason: String,
    /// What it told of itself last, in this process's life.
    pub facts: Option<HostFacts>,
    /// When, in milliseconds of the Unix epoch.
    pub observe_time: Option<i64>,
    /// How many times the whole state was told, and how many rows the last time corrected.
    pub synced: (u64, u32),
}

impl HostState {
    pub(super) fn unreachable(reason: &str) -> Self {
        Self { reason: reason.to_owned(), ..Self::default() }
    }
}

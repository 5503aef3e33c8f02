//! The hosts: one channel and one task each.
//!
//! The task keeps a WatchHost stream open. Everything that comes through it is written into the catalogue; when the
//! agent has told its whole state, machines that it did not name are forgotten, the host counts as reachable, and the
//! operations that the catalogue believes to run there are followed again. When nothing comes for longer than three
//! heartbeats, or the stream ends, the host counts as unreachable and the task tries again. Before the token that it was opened
//! with ends, the next stream takes its place, and the host goes on being reachable.

mod link;
mod operations;
mod orphan_answer;
mod orphans;
mod state;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mtls::client::PeerChannel;
use proto::agent::agent_service_client::AgentServiceClient;
use snapshot_core::ids::{HostId, OperationId};
use snapshot_core::policy::HostPolicy;
use snapshot_core::{Error, Reason};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::own_tokens::OwnTokens;
use crate::store::{Change, Store};
pub use operations::Claim;
pub use state::HostState;

/// An agent sends something every five seconds.
const SILENCE: Duration = Duration::from_secs(15);
/// How long an agent may take to accept or refuse an operation. It reads the live machine and one journal file.
const ANSWER: Duration = Duration::from_secs(20);

/// The largest message of an agent, in bytes: a VM with its snapshots. 20,000 of them take some 10 MiB.
const LARGEST_MESSAGE: usize = 64 << 20;

/// How long to wait before writing again what the catalogue could not take, for instance because the disk is full.
const CATALOGUE_AGAIN: Duration = Duration::from_secs(1);

/// A handle of one host; clones share it.
#[derive(Clone)]
pub struct Agent {
    host: HostId,
    channel: PeerChannel,
    client: AgentServiceClient<PeerChannel>,
    state: watch::Sender<HostState>,
    resync: watch::Sender<u64>,
    store: Store,
    clock: Clock,
    own: Arc<OwnTokens>,
    stopping: CancellationToken,
    /// The operations that this process looks after, so that none is followed twice.
    claims: Arc<Mutex<HashSet<OperationId>>>,
}

impl Agent {
    /// The agent at the end of a channel. Nothing is sent before [`Agent::follow`] or a call.
    pub fn new(
        host: HostId,
        channel: impl Into<PeerChannel>,
        store: Store,
        clock: Clock,
        own: Arc<OwnTokens>,
        stopping: CancellationToken,
    ) -> Self {
        let channel = channel.into();
        Self {
            host,
            client: AgentServiceClient::new(channel.clone()).max_decoding_message_size(LARGEST_MESSAGE),
            channel,
            state: watch::Sender::new(HostState::unreachable("not connected yet")),
            resync: watch::Sender::new(0),
            store,
            clock,
            own,
            stopping,
            claims: Arc::default(),
        }
    }

    /// The host's name.
    pub fn host(&self) -> &HostId {
        &self.host
    }

    /// What is known of the host now.
    pub fn state(&self) -> HostState {
        self.state.borrow().clone()
    }

    /// Whether its agent is connected and has told its whole state.
    pub fn is_reachable(&self) -> bool {
        self.state.borrow().reachable
    }

    /// What the host allows, as far as it is known.
    pub fn policy(&self) -> HostPolicy {
        let facts = self.state.borrow().facts.as_ref().and_then(|facts| facts.policy);
        facts.as_ref().map(HostPolicy::from).unwrap_or_default()
    }

    /// Refuses at once when the host cannot be reached: nothing is queued for it.
    pub fn check_reachable(&self) -> Result<(), Error> {
        let state = self.state.borrow();
        if state.reachable { Ok(()) } else { Err(unreachable(&self.host, &state.reason)) }
    }

    /// The host is not configured any more: nothing is said of it from now on.
    pub fn is_left(&self) {
        self.set_reachable(false, "it is not configured any more");
        // Neither up nor down.
        metrics::gauge!("snapshot_api_host_reachable", "host" => self.host.to_string()).set(f64::NAN);
    }

    fn set_reachable(&self, reachable: bool, reason: &str) {
        let changed = self.state.send_if_modified(|state| {
            let changed = state.reachable != reachable || state.reason != reason;
            state.reachable = reachable;
            reason.clone_into(&mut state.reason);
            changed
        });
        if changed {
            metrics::gauge!("snapshot_api_host_reachable", "host" => self.host.to_string())
                .set(f64::from(u8::from(reachable)));
            tracing::info!(host = %self.host, reachable, reason, "the host's reachability changed");
            self.store.notify(Change::Host(self.host.clone()));
        }
    }
}

/// The refusal for a host that cannot be reached.
fn unreachable(host: &HostId, reason: &str) -> Error {
    let name = proto::names::host(host);
    Error::new(Reason::HostUnreachable, format!("{name} cannot be reached: {reason}")).with("host", name)
}

#[cfg(test)]
mod tests;

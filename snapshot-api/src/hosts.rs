//! The configured hosts. The configuration is read again on request ([`reload`]), so they come and go while the service runs.

pub mod reload;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use snapshot_core::ids::HostId;

use crate::agents::Agent;

/// The agents by the names of their hosts.
pub type Agents = BTreeMap<HostId, Agent>;

/// The hosts as they are configured now.
#[derive(Default)]
pub struct Hosts(RwLock<Arc<Agents>>);

impl Hosts {
    /// The hosts with these agents.
    pub fn new(agents: Agents) -> Self {
        Self(RwLock::new(Arc::new(agents)))
    }

    /// All of them, as they are at this moment.
    pub fn all(&self) -> Arc<Agents> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The agent of one; `None` where no host of this name is configured.
    pub fn get(&self, host: &HostId) -> Option<Agent> {
        self.all().get(host).cloned()
    }

    /// Whether one is configured, and its agent is connected and has told its whole state.
    pub fn is_reachable(&self, host: &HostId) -> bool {
        self.all().get(host).is_some_and(Agent::is_reachable)
    }

    fn replace(&self, agents: Agents) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(agents);
    }
}

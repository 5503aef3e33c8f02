//! Hosts.

use proto::agent::HostFacts;
use proto::convert::timestamp_millis;
use proto::{names, v1};
use serde::{Deserialize, Serialize};
use snapshot_core::ids::VmId;

use crate::agents::Agent;
use crate::app::App;
use crate::store::StoreError;

/// What the catalogue keeps of a host, for when it cannot be reached.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Remembered {
    agent_version: String,
    libvirt_version: String,
    qemu_version: String,
    left_behind_vm_ids: Vec<String>,
}

impl From<&HostFacts> for Remembered {
    fn from(facts: &HostFacts) -> Self {
        Self {
            agent_version: facts.agent_version.clone(),
            libvirt_version: facts.libvirt_version.clone(),
            qemu_version: facts.qemu_version.clone(),
            left_behind_vm_ids: facts.left_behind_vm_ids.clone(),
        }
    }
}

impl Remembered {
    /// What the catalogue keeps; what a newer version wrote there counts as nothing.
    pub fn from_json(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }

    /// Whether the host has snapshots of this machine in images, and the machine no longer.
    pub fn has_left_behind(&self, vm: VmId) -> bool {
        let id = vm.to_string();
        self.left_behind_vm_ids.contains(&id)
    }

    /// For the catalogue. Plain fields cannot fail to be written.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A host.
pub fn host(app: &App, agent: &Agent) -> Result<v1::Host, StoreError> {
    let id = agent.host();
    let state = agent.state();
    let kept = app.store.host(id)?;
    let observe_time = state.observe_time.or(kept.as_ref().map(|(_, time)| *time));
    let remembered = match &state.facts {
        Some(facts) => Remembered::from(facts),
        None => kept.map(|(facts, _)| Remembered::from_json(&facts)).unwrap_or_default(),
    };
    let facts = state.facts.unwrap_or_default();
    Ok(v1::Host {
        name: names::host(id),
        reachable: state.reachable,
        observe_time: observe_time.map(timestamp_millis),
        unreachable_reason: state.reason,
        agent_version: remembered.agent_version,
        libvirt_version: remembered.libvirt_version,
        qemu_version: remembered.qemu_version,
        file_systems: facts.file_systems,
        vm_count: i32::try_from(app.store.vm_count(id)?).unwrap_or(i32::MAX),
        running_operations: facts.running_operation_ids.iter().map(|id| format!("operations/{id}")).collect(),
    })
}

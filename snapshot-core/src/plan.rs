//! The planner: (live domain facts, live tree, policy, request) to steps, or a refusal with its reason.
//!
//! Each step is idempotent where it is carried out, so that a plan can be repeated after any crash. The rules come from what
//! libvirt was measured to do; each refusal stands for a way in which it would fail late, lose data or stop a guest.

mod capability;
mod checks;
mod create;
mod definition;
mod delete;
mod in_place;
mod loss;
mod names;
mod revert;
mod step;

pub use capability::{Capability, CapabilityKind, capabilities};
pub use create::id_in_use;
pub use definition::{RevertedDefinition, revert_definition, reverts_definition};
pub use delete::check_merge;
pub use in_place::{go_in_place, may_go_in_place};
pub use loss::Loss;
pub use step::{Freeze, PowerState, Step};

use crate::error::Error;
use crate::ids::SnapshotId;
use crate::layers::Layers;
use crate::operation::{Method, Request};
use crate::policy::HostPolicy;
use crate::tree::SnapshotTree;
use crate::vm::VmFacts;

/// What will be done, and at what price.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// The bytes they are expected to write on the host; an upper bound where the guest's RAM is saved.
    pub bytes_written: u64,
    /// How long the guest is expected to stand still, in milliseconds; `None` when it does not.
    pub predicted_pause_ms: Option<u64>,
    /// What cannot be got back.
    pub losses: Vec<Loss>,
    /// How it is done.
    pub method: Option<Method>,
    /// Why it is not done live or in place, for a person to read.
    pub other_way: Option<String>,
}

impl Plan {
    /// The snapshots that will be gone.
    pub fn deleted(&self) -> impl Iterator<Item = &SnapshotId> {
        self.steps.iter().filter_map(Step::deletes)
    }

    /// Whether it can be stopped between two steps and leave what somebody asked for: deletions can, a revert after its saving
    /// step cannot, a single step has no between. Saving the running state in a file is the one that can be stopped within.
    pub fn cancellable(&self) -> bool {
        match self.steps.as_slice() {
            [Step::CreateExternal { memory, .. }] => *memory,
            steps => steps.len() > 1 && steps.iter().all(Step::may_be_left),
        }
    }
}

/// What the planner looks at.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// The machine.
    pub vm: &'a VmFacts,
    /// Its snapshots.
    pub tree: &'a SnapshotTree,
    /// The files of its external snapshots; empty where they are not known, which only makes a plan less exact.
    pub layers: &'a Layers,
    /// What its host allows.
    pub policy: &'a HostPolicy,
}

/// Plans a request, or refuses it.
pub fn plan(situation: Situation<'_>, request: &Request) -> Result<Plan, Error> {
    // A label is written about a snapshot, and changes nothing of the VM.
    if !matches!(request, Request::Update { .. }) {
        situation.check_available()?;
    }
    match request {
        Request::Create(create) => create::plan(situation, create),
        Request::Update { snapshot, .. } => update(situation, snapshot),
        Request::Revert { snapshot, run_after, save_current } => {
            revert::plan(situation, snapshot, *run_after, save_current.as_ref())
        }
        Request::Delete { snapshot, scope, force } => delete::plan(situation, snapshot, *scope, *force),
        Request::Purge { force } => delete::purge(situation, *force),
    }
}

/// Plans the purge of a machine that is gone; the situation is what is remembered of it.
pub fn purge_left_behind(situation: Situation<'_>, force: bool) -> Result<Plan, Error> {
    delete::purge_left_behind(situation, force)
}

fn update(situation: Situation<'_>, snapshot: &SnapshotId) -> Result<Plan, Error> {
    situation.snapshot(snapshot)?;
    Ok(Plan { steps: vec![Step::WriteLabel { snapshot: snapshot.clone() }], ..Plan::default() })
}

#[cfg(test)]
mod check_tests;
#[cfg(test)]
mod create_tests;
#[cfg(test)]
mod definition_tests;
#[cfg(test)]
mod delete_tests;
#[cfg(test)]
mod external_tests;
#[cfg(test)]
mod in_place_tests;
#[cfg(test)]
mod live_tests;
#[cfg(test)]
mod present_tests;
#[cfg(test)]
mod restriction_tests;
#[cfg(test)]
mod revert_tests;
#[cfg(test)]
pub(crate) mod tests;

//! What a planned revert does to the VM's definition.

use snapshot_core::Error;
use snapshot_core::authority::Permit;
use snapshot_core::definition_change::DefinitionChange;
use snapshot_core::plan::{Plan, RevertedDefinition, Situation, revert_definition, reverts_definition};

use super::Shared;

impl Shared {
    /// Adds it to the plan, or refuses the plan by the host's policy. A definition that cannot be compared counts as another one.
    pub(super) fn revert_definition(
        &self,
        situation: Situation<'_>,
        plan: &mut Plan,
        permit: &Permit,
    ) -> Result<(), Error> {
        let Some(target) = reverts_definition(situation, plan) else { return Ok(()) };
        let reverted = self.hypervisor.reverted_definition(situation.vm.id, target).unwrap_or_else(|failure| {
            tracing::warn!(snapshot = %target.id, %failure, "definition of the VM could not be compared");
            let changes = vec![DefinitionChange::unknown("libvirt's answer could not be used")];
            RevertedDefinition { changes, has_tpm: false }
        });
        revert_definition(situation, plan, &reverted, permit.is_administrator())
    }
}

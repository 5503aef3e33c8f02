//! What makes operations unavailable.

use snapshot_core::Reason;
use snapshot_core::restriction::{RestrictedOperation, Restriction};

use super::present;
use crate::agent;

impl From<&Restriction> for agent::Restriction {
    fn from(restriction: &Restriction) -> Self {
        let operations = restriction.operations.iter().map(|operation| wire(*operation).into()).collect();
        Self {
            operations,
            reason: restriction.reason.as_str().to_owned(),
            message: restriction.message.clone(),
            disk: restriction.disk.clone().unwrap_or_default(),
        }
    }
}

/// What an agent tells. A reason of a newer agent keeps its message; an operation of a newer agent is skipped, because nobody can ask
/// this process for it.
pub(super) fn restrictions(told: Vec<agent::Restriction>) -> Vec<Restriction> {
    told.into_iter()
        .map(|told| {
            let operations = told.operations().filter_map(core);
            let reason = Reason::parse(&told.reason).unwrap_or(Reason::FeatureUnsupported);
            let restriction = Restriction::new(operations, reason, told.message.clone());
            Restriction { disk: present(told.disk), ..restriction }
        })
        .collect()
}

fn wire(operation: RestrictedOperation) -> agent::RestrictedOperation {
    match operation {
        RestrictedOperation::CreateOffline => agent::RestrictedOperation::CreateOffline,
        RestrictedOperation::CreateWithMemory => agent::RestrictedOperation::CreateWithMemory,
        RestrictedOperation::CreateLive => agent::RestrictedOperation::CreateLive,
        RestrictedOperation::CreateExternal => agent::RestrictedOperation::CreateExternal,
        RestrictedOperation::Revert => agent::RestrictedOperation::Revert,
        RestrictedOperation::RevertInPlace => agent::RestrictedOperation::RevertInPlace,
        RestrictedOperation::Delete => agent::RestrictedOperation::Delete,
        RestrictedOperation::CreateExternalMemory => agent::RestrictedOperation::CreateExternalMemory,
    }
}

fn core(operation: agent::RestrictedOperation) -> Option<RestrictedOperation> {
    RestrictedOperation::ALL.into_iter().find(|known| wire(*known) == operation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restrictions_are_read_back() {
        let all = Restriction::new(RestrictedOperation::ALL, Reason::DiskEncrypted, "disk vda is encrypted");
        for restriction in [all.clone().on_disk("vda"), all] {
            assert_eq!(restrictions(vec![(&restriction).into()]), [restriction]);
        }
    }

    #[test]
    fn what_a_newer_agent_tells_is_tolerated() {
        let mut told =
            agent::Restriction::from(&Restriction::new([RestrictedOperation::Revert], Reason::ImageInUse, "why"));
        told.operations.push(999);
        told.operations.push(0);
        told.reason = "A_REASON_OF_TOMORROW".to_owned();
        let read = restrictions(vec![told]);
        assert_eq!(read, [Restriction::new([RestrictedOperation::Revert], Reason::FeatureUnsupported, "why")]);
    }
}

//! What the API asks of an agent.

use snapshot_core::Error;
use snapshot_core::ids::{OperationId, VmId};
use snapshot_core::operation::{Create, Request};
use snapshot_core::text::{Description, DisplayName};

use super::protocol;
use crate::agent::{self, operation_spec::Action};
use crate::v1;

/// An operation, with the machine it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Its id.
    pub operation: OperationId,
    /// The machine.
    pub vm: VmId,
    /// What to do.
    pub request: Request,
}

impl From<&Create> for agent::CreateAction {
    fn from(create: &Create) -> Self {
        let mut wire = Self {
            snapshot_id: create.snapshot.to_string(),
            display_name: create.display_name.to_string(),
            description: create.description.to_string(),
            protected: create.protected,
            quiesce: create.quiesce,
            allow_crash_consistent: create.allow_crash_consistent,
            ..Self::default()
        };
        wire.set_content(create.content.map_or(v1::SnapshotContent::Unspecified, Into::into));
        wire.set_storage(create.storage.map_or(v1::StorageKind::Unspecified, Into::into));
        wire
    }
}

impl TryFrom<agent::CreateAction> for Create {
    type Error = Error;

    fn try_from(wire: agent::CreateAction) -> Result<Self, Error> {
        let content = v1::SnapshotContent::try_from(wire.content).map_err(|_| protocol("content"))?;
        let storage = v1::StorageKind::try_from(wire.storage).map_err(|_| protocol("storage"))?;
        Ok(Self {
            snapshot: wire.snapshot_id.parse().map_err(|_| protocol("snapshot_id"))?,
            display_name: DisplayName::parse(&wire.display_name)?,
            description: Description::parse(&wire.description)?,
            protected: wire.protected,
            content: content.into(),
            storage: storage.into(),
            quiesce: wire.quiesce,
            allow_crash_consistent: wire.allow_crash_consistent,
        })
    }
}

impl From<&Request> for Action {
    fn from(request: &Request) -> Self {
        match request {
            Request::Create(create) => Self::Create(create.into()),
            Request::Update { snapshot, display_name, description, protected } => Self::Update(agent::UpdateAction {
                snapshot_id: snapshot.to_string(),
                display_name: display_name.to_string(),
                description: description.to_string(),
                protected: *protected,
            }),
            Request::Revert { snapshot, run_after, save_current } => Self::Revert(agent::RevertAction {
                snapshot_id: snapshot.to_string(),
                run_after: v1::RunAfter::from(*run_after).into(),
                save_current: save_current.as_ref().map(Into::into),
            }),
            Request::Delete { snapshot, scope, force } => Self::Delete(agent::DeleteAction {
                snapshot_id: snapshot.to_string(),
                scope: v1::DeleteScope::from(*scope).into(),
                force: *force,
            }),
            Request::Purge { force } => Self::Purge(agent::PurgeAction { force: *force }),
        }
    }
}

impl TryFrom<Action> for Request {
    type Error = Error;

    fn try_from(wire: Action) -> Result<Self, Error> {
        let snapshot = |id: &str| id.parse().map_err(|_| protocol("snapshot_id"));
        Ok(match wire {
            Action::Create(create) => Self::Create(create.try_into()?),
            Action::Update(update) => Self::Update {
                snapshot: snapshot(&update.snapshot_id)?,
                display_name: DisplayName::parse(&update.display_name)?,
                description: Description::parse(&update.description)?,
                protected: update.protected,
            },
            Action::Revert(revert) => Self::Revert {
                snapshot: snapshot(&revert.snapshot_id)?,
                run_after: v1::RunAfter::try_from(revert.run_after).map_err(|_| protocol("run_after"))?.into(),
                save_current: revert.save_current.map(TryInto::try_into).transpose()?,
            },
            Action::Delete(delete) => Self::Delete {
                snapshot: snapshot(&delete.snapshot_id)?,
                scope: v1::DeleteScope::try_from(delete.scope).map_err(|_| protocol("scope"))?.into(),
                force: delete.force,
            },
            Action::Purge(purge) => Self::Purge { force: purge.force },
        })
    }
}

impl From<&Spec> for agent::OperationSpec {
    fn from(spec: &Spec) -> Self {
        Self {
            operation_id: spec.operation.to_string(),
            vm_id: spec.vm.to_string(),
            action: Some((&spec.request).into()),
        }
    }
}

impl TryFrom<agent::OperationSpec> for Spec {
    type Error = Error;

    fn try_from(wire: agent::OperationSpec) -> Result<Self, Error> {
        Ok(Self {
            operation: wire.operation_id.parse().map_err(|_| protocol("operation_id"))?,
            vm: wire.vm_id.parse().map_err(|_| protocol("vm_id"))?,
            request: wire.action.ok_or_else(|| protocol("no action"))?.try_into()?,
        })
    }
}

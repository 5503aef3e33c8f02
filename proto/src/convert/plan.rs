//! Plans and capabilities, for the eyes of the caller.

use snapshot_core::ids::VmId;
use snapshot_core::plan::{Capability, Loss, Plan, Step};
use snapshot_core::snapshot::SnapshotFacts;

use super::{duration_millis, timestamp};
use crate::{names, v1};

/// A plan as the caller sees it.
pub fn plan(vm: VmId, plan: &Plan) -> v1::OperationPlan {
    let steps = plan.steps.iter().map(|step| v1::PlanStep {
        kind: step.kind().to_owned(),
        description: step.to_string(),
        snapshot: step.snapshot().map(|id| names::snapshot(vm, id)).unwrap_or_default(),
    });
    let mut wire = v1::OperationPlan {
        steps: steps.collect(),
        bytes_written: i64::try_from(plan.bytes_written).unwrap_or(i64::MAX),
        pauses: plan.predicted_pause_ms.is_some(),
        predicted_pause: plan.predicted_pause_ms.map(duration_millis),
        losses: plan.losses.iter().map(ToString::to_string).collect(),
        loss_details: plan.losses.iter().map(|lost| loss(vm, lost)).collect(),
        deleted_snapshots: plan.deleted().map(|id| names::snapshot(vm, id)).collect(),
        method_message: plan.other_way.clone().unwrap_or_default(),
        ..v1::OperationPlan::default()
    };
    if let Some(method) = plan.method {
        wire.set_method(method.into());
    }
    wire
}

fn loss(vm: VmId, loss: &Loss) -> v1::Loss {
    let (kind, snapshot, disk) = match loss {
        Loss::ChangesSince(snapshot) => (v1::LossKind::Changes, snapshot.as_deref(), ""),
        Loss::RunningState => (v1::LossKind::RunningState, None, ""),
        Loss::DiskDetached(disk) => (v1::LossKind::DiskDetached, None, disk.as_str()),
        Loss::UefiVariables => (v1::LossKind::UefiVariables, None, ""),
        Loss::TpmState => (v1::LossKind::TpmState, None, ""),
        Loss::DefinitionChange(_) => (v1::LossKind::Definition, None, ""),
        Loss::Snapshot(snapshot) => (v1::LossKind::Snapshot, Some(&**snapshot), ""),
    };
    let name = |snapshot: &SnapshotFacts| names::snapshot(vm, &snapshot.id);
    let (what, from, to) = match loss {
        Loss::DefinitionChange(change) => (change.what.clone(), change.from.clone(), change.to.clone()),
        _ => Default::default(),
    };
    v1::Loss {
        what,
        from: from.unwrap_or_default(),
        to: to.unwrap_or_default(),
        kind: kind.into(),
        snapshot: snapshot.map(name).unwrap_or_default(),
        since: snapshot.map(|snapshot| timestamp(snapshot.create_time)),
        disk: disk.to_owned(),
    }
}

impl From<&Capability> for v1::Capability {
    fn from(capability: &Capability) -> Self {
        let mut wire = Self::default();
        wire.set_kind(capability.kind.into());
        match &capability.outcome {
            Ok(plan) => {
                wire.available = true;
                if let Some(method) = plan.method {
                    wire.set_method(method.into());
                }
                wire.method_message = plan.other_way.clone().unwrap_or_default();
                wire.pauses = plan.predicted_pause_ms.is_some();
                wire.predicted_pause = plan.predicted_pause_ms.map(duration_millis);
                if let Some(storage) = plan.steps.iter().find_map(Step::stores) {
                    wire.set_storage(storage.into());
                }
            }
            Err(refusal) => {
                wire.reason = refusal.reason().as_str().to_owned();
                wire.message = refusal.message().to_owned();
            }
        }
        wire
    }
}

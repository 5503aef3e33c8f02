//! Deleting snapshots: always leaf first, one step each, so that an interruption leaves a whole, smaller tree.

use super::{Loss, Plan, Situation, Step};
use crate::error::{Error, Reason};
use crate::ids::SnapshotId;
use crate::operation::{DeleteScope, Method};

pub(super) fn plan(situation: Situation<'_>, id: &SnapshotId, scope: DeleteScope, force: bool) -> Result<Plan, Error> {
    situation.snapshot(id)?;
    let doomed = match scope {
        DeleteScope::Only => vec![id.clone()],
        DeleteScope::Descendants => situation.tree.descendants_leaf_first(id),
        DeleteScope::Subtree => {
            let mut all = situation.tree.descendants_leaf_first(id);
            all.push(id.clone());
            all
        }
    };
    delete_all(situation, &doomed, force)
}

pub(super) fn purge(situation: Situation<'_>, force: bool) -> Result<Plan, Error> {
    let all: Vec<SnapshotId> = situation.tree.iter().rev().map(|snapshot| snapshot.id.clone()).collect();
    delete_all(situation, &all, force)
}

fn delete_all(situation: Situation<'_>, doomed: &[SnapshotId], force: bool) -> Result<Plan, Error> {
    situation.check_no_block_job()?;
    let mut plan = Plan { method: Some(Method::Libvirt), ..Plan::default() };
    for id in doomed {
        let snapshot = situation.snapshot(id)?;
        situation.check_internal(snapshot)?;
        if snapshot.label.protected && !force {
            return Err(situation
                .refuse(
                    Reason::SnapshotProtected,
                    format!("snapshot \u{201c}{}\u{201d} is protected", snapshot.label.display_name),
                )
                .with("snapshot", format!("vms/{}/snapshots/{id}", situation.vm.id)));
        }
        plan.losses.push(Loss::Snapshot(Box::new(snapshot.clone())));
        plan.steps.push(Step::DeleteInternal { snapshot: id.clone() });
    }
    Ok(plan)
}

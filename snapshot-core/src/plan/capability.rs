//! What can be asked of a machine now, and why not: the planner asked with stand-in requests, so that the answer cannot
//! differ from what a real request would get.

use super::{Plan, Situation, go_in_place, may_go_in_place, plan};
use crate::error::{Error, Reason};
use crate::hardware::Comparison;
use crate::ids::SnapshotId;
use crate::operation::{Create, DeleteScope, Request, RunAfter};
use crate::snapshot::Content;
use crate::text::{Description, DisplayName};

/// What may be asked of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CapabilityKind {
    /// A snapshot of the disks alone.
    CreateDisks,
    /// A snapshot of the disks and of the running state.
    CreateDisksAndMemory,
    /// A revert to one of its snapshots.
    Revert,
    /// A deletion of one of its snapshots.
    Delete,
}

/// One thing that may be asked, with the plan it would get or the refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// What.
    pub kind: CapabilityKind,
    /// The plan, or why not.
    pub outcome: Result<Plan, Error>,
}

/// Everything that may be asked of a machine now.
pub fn capabilities(situation: Situation<'_>) -> Vec<Capability> {
    let create = |content| {
        plan(
            situation,
            &Request::Create(Create {
                snapshot: SnapshotId::from_uuid(uuid::Uuid::nil()),
                display_name: DisplayName::lossy("capability"),
                description: Description::default(),
                protected: false,
                content: Some(content),
                storage: None,
                quiesce: false,
                allow_crash_consistent: false,
            }),
        )
    };
    vec![
        Capability { kind: CapabilityKind::CreateDisks, outcome: create(Content::Disks) },
        Capability { kind: CapabilityKind::CreateDisksAndMemory, outcome: create(Content::DisksAndMemory) },
        Capability { kind: CapabilityKind::Revert, outcome: revert(situation) },
        Capability {
            kind: CapabilityKind::Delete,
            outcome: any_snapshot(situation, |snapshot| Request::Delete {
                snapshot,
                scope: DeleteScope::Only,
                force: true,
            }),
        },
    ]
}

/// The way back that is the best some snapshot has. Whether the hardware is what it was then is not looked at here: it is read when a
/// revert is planned.
fn revert(situation: Situation<'_>) -> Result<Plan, Error> {
    let request = |snapshot| Request::Revert { snapshot, run_after: RunAfter::AsRecorded, save_current: None };
    let plans = situation.tree.iter().filter_map(|snapshot| plan(situation, &request(snapshot.id.clone())).ok());
    let mut best = match plans.into_iter().find(|plan| may_go_in_place(situation, plan).is_some()) {
        Some(plan) => plan,
        None => any_snapshot(situation, request)?,
    };
    go_in_place(situation, &mut best, &Comparison::Same)?;
    Ok(best)
}

/// The first plan that some snapshot of the machine gets, or the first refusal.
fn any_snapshot(situation: Situation<'_>, request: impl Fn(SnapshotId) -> Request) -> Result<Plan, Error> {
    situation.check_available()?;
    let mut refusal = None;
    for snapshot in situation.tree.iter() {
        match plan(situation, &request(snapshot.id.clone())) {
            Ok(plan) => return Ok(plan),
            Err(error) => refusal = refusal.or(Some(error)),
        }
    }
    Err(refusal.unwrap_or_else(|| situation.refuse(Reason::SnapshotNotFound, "the machine has no snapshots")))
}

//! What can be asked of a machine now, and why not: the planner asked with stand-in requests, so that the answer cannot
//! differ from what a real request would get.

use super::{Plan, Situation, go_in_place, may_go_in_place, plan};
use crate::error::{Error, Reason};
use crate::hardware::Comparison;
use crate::ids::SnapshotId;
use crate::operation::{Create, DeleteScope, Request, RunAfter};
use crate::snapshot::{Content, SnapshotFacts};
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

/// Everything that may be asked of a machine now. Administrators may have definitions reverted that the host's policy keeps from users.
pub fn capabilities(situation: Situation<'_>, is_administrator: bool) -> Vec<Capability> {
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
        Capability { kind: CapabilityKind::Revert, outcome: revert(situation, is_administrator) },
        Capability {
            kind: CapabilityKind::Delete,
            outcome: any_snapshot(situation, |snapshot| {
                let (snapshot, scope) = (snapshot.id.clone(), DeleteScope::Only);
                plan(situation, &Request::Delete { snapshot, scope, force: true })
            }),
        },
    ]
}

/// The best revert that some snapshot allows. Whether the hardware is what it was then is not looked at here: it is read when a
/// revert is planned.
fn revert(situation: Situation<'_>, is_administrator: bool) -> Result<Plan, Error> {
    let planned = |snapshot: &SnapshotFacts| {
        let (id, run_after) = (snapshot.id.clone(), RunAfter::AsRecorded);
        let plan = plan(situation, &Request::Revert { snapshot: id, run_after, save_current: None })?;
        match &snapshot.revert_denied {
            Some(why) if !is_administrator => Err(situation.refuse(Reason::DefinitionChangeDenied, why)),
            _ => Ok(plan),
        }
    };
    let plans = situation.tree.iter().filter_map(|snapshot| planned(snapshot).ok());
    let mut best = match plans.into_iter().find(|plan| may_go_in_place(situation, plan).is_some()) {
        Some(plan) => plan,
        None => any_snapshot(situation, planned)?,
    };
    go_in_place(situation, &mut best, &Comparison::Same)?;
    Ok(best)
}

/// The first plan that some snapshot of the machine gets, or the first refusal.
fn any_snapshot(
    situation: Situation<'_>,
    planned: impl Fn(&SnapshotFacts) -> Result<Plan, Error>,
) -> Result<Plan, Error> {
    situation.check_available()?;
    let mut refusal = None;
    for snapshot in situation.tree.iter() {
        match planned(snapshot) {
            Ok(plan) => return Ok(plan),
            Err(error) => refusal = refusal.or(Some(error)),
        }
    }
    Err(refusal.unwrap_or_else(|| situation.refuse(Reason::SnapshotNotFound, "the machine has no snapshots")))
}

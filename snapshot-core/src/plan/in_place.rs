//! Going back within the QEMU process that there is, instead of in another one.
//!
//! It is libvirt's own revert in another way: the same is lost, and the same is there afterwards. So it is decided after that
//! one was planned, and only then the machine's hardware is read, which a look at a machine has no need of otherwise.

use super::{Plan, PowerState, Situation, Step};
use crate::error::Error;
use crate::hardware::Comparison;
use crate::ids::SnapshotId;
use crate::operation::Method;
use crate::restriction::RestrictedOperation;
use crate::snapshot::{Content, Origin, SnapshotFacts, Storage};
use crate::vm::VmState;

/// Bytes of a running state that QEMU loads in a second, for the prediction alone: 592 MiB were measured to take 1.1 s.
const LOADED_BYTES_PER_SECOND: u64 = 500 << 20;

/// What it takes beside that: to stop, to find the snapshot on every disk, to mark it as current and to run on.
const AROUND_MS: u64 = 50;

/// The snapshot that this plan may go back to in place, if the hardware allows it.
pub fn may_go_in_place<'a>(situation: Situation<'a>, plan: &Plan) -> Option<&'a SnapshotFacts> {
    let (_, id, then) = revert(plan)?;
    let target = situation.tree.get(id)?;
    against(situation, target, then).is_none().then_some(target)
}

/// Why a snapshot is not gone back to in place, whatever the hardware.
pub(super) fn against(situation: Situation<'_>, target: &SnapshotFacts, then: PowerState) -> Option<String> {
    let vm = situation.vm;
    let same_disks = vm.writable_disks().count() == target.disks.len()
        && vm.writable_disks().all(|disk| disk.format == "qcow2" && target.disks.contains(&disk.target));
    let checks = [
        (matches!(vm.state, VmState::Running | VmState::Paused), "the machine is not on"),
        (target.content == Content::DisksAndMemory, "the snapshot has no running state"),
        (then != PowerState::Off, "the machine is to be off"),
        (target.storage == Storage::Internal, "the snapshot is in files of its own"),
        // What was taken otherwise than by this service may hold the running state elsewhere than QEMU looks for it.
        (target.origin == Origin::Service && target.broken.is_none(), "another tool took the snapshot"),
        (same_disks, "the machine has other disks than then"),
        (vm.block_job_disk.is_none(), "a job is at work on one of the disks"),
        (situation.policy.in_place_reverts, "the host's policy or its QEMU does not allow it"),
    ];
    let failed = checks.into_iter().find_map(|(fits, why)| (!fits).then(|| why.to_owned()));
    let restriction = || situation.restriction(RestrictedOperation::RevertInPlace, Some(target));
    failed.or_else(|| restriction().map(|restriction| restriction.message.clone()))
}

/// Has the plan revert in place, where the hardware is the same, or say why not. A plan that cannot be carried out in place and not
/// by libvirt either is refused.
pub fn go_in_place(situation: Situation<'_>, plan: &mut Plan, hardware: &Comparison) -> Result<(), Error> {
    let Some((place, id, then)) = revert(plan).map(|(place, id, then)| (place, id.clone(), then)) else {
        return Ok(());
    };
    let Some(target) = situation.tree.get(&id) else { return Ok(()) };
    let why = match (against(situation, target, then), hardware) {
        (Some(why), _) => Some(format!("not in place: {why}")),
        (None, Comparison::Different(what)) => Some(format!("not in place: the machine is not what it was: {what}")),
        (None, Comparison::Same) => None,
    };
    let by_libvirt = situation.check_restrictions(RestrictedOperation::Revert, Some(target));
    if let Some(why) = why {
        // It may say already why the present is not saved as a whole.
        plan.other_way = Some(plan.other_way.take().map_or(why.clone(), |saved| format!("{saved}; {why}")));
        return by_libvirt;
    }
    plan.steps[place] = Step::RevertInPlace { snapshot: id, then, fallback: by_libvirt.is_ok() };
    plan.method = Some(Method::InPlace);
    // A guest that stands still before or after has no pause of its own.
    if situation.vm.state == VmState::Running && then == PowerState::Running {
        let loading = target.size_bytes.saturating_mul(1000).div_ceil(LOADED_BYTES_PER_SECOND);
        let before = plan.predicted_pause_ms.unwrap_or(0);
        plan.predicted_pause_ms = Some(before.saturating_add(loading).saturating_add(AROUND_MS));
    }
    Ok(())
}

/// libvirt's own revert in a plan: its place, to what, and what the machine does then.
pub(super) fn revert(plan: &Plan) -> Option<(usize, &SnapshotId, PowerState)> {
    plan.steps.iter().enumerate().find_map(|(place, step)| match step {
        Step::RevertInternal { snapshot, then } => Some((place, snapshot, *then)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::plan;
    use super::super::tests::{create, vm};
    use super::*;
    use crate::layers::Layers;
    use crate::operation::{Request, RunAfter};
    use crate::policy::HostPolicy;
    use crate::snapshot::RecordedState;
    use crate::tree::SnapshotTree;
    use crate::tree::tests::snapshot;
    use crate::vm::VmFacts;

    fn target() -> SnapshotFacts {
        SnapshotFacts {
            content: Content::DisksAndMemory,
            vm_state: RecordedState::Running,
            origin: Origin::Service,
            size_bytes: 1 << 30,
            disks: vec!["vda".to_owned(), "vdb".to_owned()],
            ..snapshot(1, None)
        }
    }

    fn planned(
        vm: &VmFacts,
        target: SnapshotFacts,
        policy: &HostPolicy,
        after: RunAfter,
        hardware: &Comparison,
    ) -> Plan {
        let (id, layers) = (target.id.clone(), Layers::default());
        let tree = SnapshotTree::new([target]).unwrap();
        let situation = Situation { vm, tree: &tree, layers: &layers, policy };
        let request = Request::Revert { snapshot: id, run_after: after, save_current: Some(create(None)) };
        let mut planned = plan(situation, &request).unwrap();
        let before = planned.clone();
        go_in_place(situation, &mut planned, hardware).unwrap();
        assert_eq!(planned.losses, before.losses);
        assert_eq!(planned.bytes_written, before.bytes_written);
        assert_eq!(planned.steps.len(), before.steps.len());
        if planned.method != Some(Method::InPlace) {
            assert!(planned.other_way.as_ref().is_some_and(|why| why.starts_with("not in place: ")), "{planned:?}");
            assert_eq!(planned.steps, before.steps);
            assert_eq!(planned.predicted_pause_ms, before.predicted_pause_ms);
        } else {
            assert_eq!(planned.other_way, None);
        }
        planned
    }

    fn goes(vm: &VmFacts, target: SnapshotFacts) -> bool {
        let plan = planned(vm, target, &HostPolicy::default(), RunAfter::AsRecorded, &Comparison::Same);
        plan.steps.iter().any(|step| matches!(step, Step::RevertInPlace { .. }))
    }

    #[test]
    fn a_machine_that_is_on_goes_back_in_place() {
        for (state, pause) in [(VmState::Running, true), (VmState::Paused, false)] {
            let (vm, policy) = (vm(state), HostPolicy::default());
            let plan = planned(&vm, target(), &policy, RunAfter::AsRecorded, &Comparison::Same);
            assert_eq!(plan.method, Some(Method::InPlace));
            assert!(matches!(plan.steps[0], Step::CreateInternal { memory: true, .. }), "{plan:?}");
            assert!(matches!(plan.steps[1], Step::RevertInPlace { then: PowerState::Running, .. }), "{plan:?}");
            // The present is saved first, which takes its own time.
            assert_eq!(plan.predicted_pause_ms.is_some(), pause);
            assert!(!pause || plan.predicted_pause_ms > Some(2000 + AROUND_MS), "{plan:?}");
            let off = planned(&vm, target(), &policy, RunAfter::Off, &Comparison::Same);
            assert!(matches!(off.steps[1..], [Step::RevertInPlace { then: PowerState::Paused, .. }, Step::PowerOff]));
        }
        let paused = SnapshotFacts { vm_state: RecordedState::Paused, ..target() };
        assert!(goes(&vm(VmState::Running), paused));
    }

    #[test]
    fn libvirt_goes_back_where_anything_is_otherwise() {
        let running = vm(VmState::Running);
        assert!(goes(&running, target()));
        assert!(!goes(&vm(VmState::Shutoff), target()));
        assert!(!goes(&running, SnapshotFacts { origin: Origin::Foreign, ..target() }));
        let disks = SnapshotFacts { content: Content::Disks, vm_state: RecordedState::Shutoff, ..target() };
        assert!(!goes(&running, disks));
        let mut more = vm(VmState::Running);
        more.disks.push(crate::vm::DiskFacts { target: "vdc".to_owned(), ..more.disks[0].clone() });
        assert!(!goes(&more, target()));
        let mut fewer = vm(VmState::Running);
        fewer.disks.truncate(1);
        assert!(!goes(&fewer, target()));
        let off = HostPolicy { in_place_reverts: false, ..HostPolicy::default() };
        let plan = planned(&running, target(), &off, RunAfter::AsRecorded, &Comparison::Same);
        assert_eq!(plan.method, Some(Method::Libvirt));
        assert_eq!(plan.other_way.as_deref(), Some("not in place: the host's policy or its QEMU does not allow it"));
        let other = Comparison::Different("memory".to_owned());
        let plan = planned(&running, target(), &HostPolicy::default(), RunAfter::AsRecorded, &other);
        assert_eq!(plan.method, Some(Method::Libvirt));
        assert_eq!(plan.other_way.as_deref(), Some("not in place: the machine is not what it was: memory"));
    }
}

//! Snapshots whose names QEMU cannot take. Ours all fit; other tools let people write what they like.
//!
//! libvirt names QEMU's jobs after snapshots inside images, and QEMU wants ASCII letters, digits, `-`, `.` and `_` there.
//! Measured with libvirt 11.3 and QEMU 10.0 (`snapshot-agent/tests/agent/names.rs` asks them again), for `before exam`,
//! `plus+`, `café` and a name of two lines:
//!
//! | | running or paused | off |
//! |---|---|---|
//! | deleted | refused by QEMU, nothing changed | done, by `qemu-img` |
//! | gone back to, without a running state in it | done | done |
//! | gone back to, with one | refused by QEMU **after the machine was killed** | refused by QEMU |
//! | another taken on top of it, or its description written | done | done |
//!
//! The rule does not ask for libvirt's version: where one takes more, a deletion waits for the machine to be off, and
//! virsh still goes back to a running state.

use super::Situation;
use crate::error::{Error, Reason};
use crate::snapshot::{Content, SnapshotFacts, Storage};
use crate::vm::VmState;

fn fits(snapshot: &SnapshotFacts) -> bool {
    snapshot.storage == Storage::External || snapshot.id.can_name_a_job()
}

impl Situation<'_> {
    pub(super) fn check_name_for_delete(&self, snapshot: &SnapshotFacts) -> Result<(), Error> {
        if fits(snapshot) || self.vm.state == VmState::Shutoff {
            return Ok(());
        }
        Err(self.name_refused(snapshot, "cannot be deleted while the machine is on: switch the machine off first"))
    }

    pub(super) fn check_name_for_revert(&self, snapshot: &SnapshotFacts) -> Result<(), Error> {
        if fits(snapshot) || snapshot.content == Content::Disks {
            return Ok(());
        }
        Err(self.name_refused(snapshot, "cannot be reverted to, because it holds a running state"))
    }

    fn name_refused(&self, snapshot: &SnapshotFacts, why: &str) -> Error {
        let message = format!("QEMU cannot take the name of snapshot {:?}, so it {why}", snapshot.id.as_str());
        self.refuse(Reason::SnapshotNameUnsupported, message)
            .with("snapshot", format!("vms/{}/snapshots/{}", self.vm.id, snapshot.id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SnapshotId;
    use crate::layers::Layers;
    use crate::operation::{DeleteScope, Request, RunAfter};
    use crate::plan::tests::{create, vm};
    use crate::plan::{CapabilityKind, Plan, capabilities, plan};
    use crate::policy::HostPolicy;
    use crate::snapshot::RecordedState;
    use crate::tree::SnapshotTree;
    use crate::tree::tests::snapshot;

    const ON: [VmState; 5] =
        [VmState::Running, VmState::Paused, VmState::Crashed, VmState::Suspended, VmState::Unknown];

    fn named(name: &str, parent: Option<&SnapshotId>, memory: bool) -> SnapshotFacts {
        let (content, vm_state) = match memory {
            true => (Content::DisksAndMemory, RecordedState::Running),
            false => (Content::Disks, RecordedState::Shutoff),
        };
        let disks = vec!["vda".to_owned(), "vdb".to_owned()];
        SnapshotFacts {
            id: SnapshotId::of_name(name),
            parent: parent.cloned(),
            content,
            vm_state,
            consistency: None,
            disks,
            ..snapshot(1, None)
        }
    }

    fn ask(state: VmState, snapshots: &[SnapshotFacts], request: &Request) -> Result<Plan, Reason> {
        let tree = SnapshotTree::new(snapshots.iter().cloned()).unwrap();
        let (vm, layers, policy) = (vm(state), Layers::default(), HostPolicy::default());
        plan(Situation { vm: &vm, tree: &tree, layers: &layers, policy: &policy }, request)
            .map_err(|error| error.reason())
    }

    fn delete(one: &SnapshotFacts, scope: DeleteScope) -> Request {
        Request::Delete { snapshot: one.id.clone(), scope, force: true }
    }

    fn revert(one: &SnapshotFacts) -> Request {
        Request::Revert { snapshot: one.id.clone(), run_after: RunAfter::AsRecorded, save_current: None }
    }

    #[test]
    fn names_that_qemu_takes() {
        for name in ["a.b_c-D9", "7", "-rf", "snap-0191f7a0000070008000000000000000"] {
            assert!(SnapshotId::of_name(name).can_name_a_job(), "{name}");
        }
        for name in ["before exam", "plus+", "\u{e9}", "two\nlines", "a:b", "<x>", &"g".repeat(230)] {
            assert!(!SnapshotId::of_name(name).can_name_a_job(), "{name}");
        }
    }

    #[test]
    fn what_is_on_is_switched_off_first() {
        let odd = named("before exam", None, false);
        let fine = named("fine", Some(&odd.id), false);
        let all = [odd.clone(), fine.clone()];
        let refused = Err(Reason::SnapshotNameUnsupported);
        for state in ON {
            let plan = |request| ask(state, &all, &request).map(drop);
            assert_eq!(plan(delete(&odd, DeleteScope::Only)), refused, "{state:?}");
            // All of it or nothing: what would fail in the middle is not begun.
            assert_eq!(plan(delete(&odd, DeleteScope::Subtree)), refused);
            assert_eq!(plan(Request::Purge { force: true }), refused);
            assert_eq!(plan(delete(&odd, DeleteScope::Descendants)), Ok(()));
            assert_eq!(plan(delete(&fine, DeleteScope::Only)), Ok(()));
        }
        for request in [delete(&odd, DeleteScope::Only), Request::Purge { force: true }] {
            assert!(ask(VmState::Shutoff, &all, &request).is_ok());
        }
        assert!(ask(VmState::Running, &all, &Request::Create(create(None))).is_ok());
        let outside = SnapshotFacts { storage: Storage::External, ..odd };
        let layers = Layers::default();
        let (vm, policy) = (vm(VmState::Running), HostPolicy { stable_paths: false, ..HostPolicy::default() });
        let tree = SnapshotTree::new([outside.clone()]).unwrap();
        let situation = Situation { vm: &vm, tree: &tree, layers: &layers, policy: &policy };
        assert!(plan(situation, &delete(&outside, DeleteScope::Only)).is_ok());
    }

    #[test]
    fn a_running_state_under_such_a_name_is_not_gone_back_to() {
        let (off, on) = (named("before exam", None, false), named("in the exam", None, true));
        for state in [VmState::Running, VmState::Paused, VmState::Shutoff] {
            assert!(ask(state, std::slice::from_ref(&off), &revert(&off)).is_ok(), "{state:?}");
            let refused = ask(state, std::slice::from_ref(&on), &revert(&on));
            assert_eq!(refused, Err(Reason::SnapshotNameUnsupported), "{state:?}");
        }
    }

    #[test]
    fn a_capability_says_so() {
        let tree = SnapshotTree::new([named("in the exam", None, true)]).unwrap();
        let (layers, policy) = (Layers::default(), HostPolicy::default());
        for (state, deletable) in [(VmState::Running, false), (VmState::Shutoff, true)] {
            let vm = vm(state);
            let told = capabilities(Situation { vm: &vm, tree: &tree, layers: &layers, policy: &policy }, true);
            let of = |kind| told.iter().find(|one| one.kind == kind).map(|one| one.outcome.as_ref().err());
            let refused = |kind| of(kind).unwrap().map(Error::reason) == Some(Reason::SnapshotNameUnsupported);
            assert_eq!((refused(CapabilityKind::Revert), refused(CapabilityKind::Delete)), (true, !deletable));
            assert!(
                of(CapabilityKind::CreateDisksAndMemory)
                    .unwrap()
                    .is_none_or(|error| { error.reason() == Reason::VmNotRunning })
            );
        }
    }
}

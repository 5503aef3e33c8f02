//! The service's own issuer over any tree, with snapshots of everybody in it.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::sample::select;

use super::super::*;
use crate::ids::SnapshotId;
use crate::layers::Layers;
use crate::operation::{DeleteScope, OperationKind, Request};
use crate::plan::{Situation, plan};
use crate::policy::HostPolicy;
use crate::snapshot::Origin;
use crate::tree::SnapshotTree;
use crate::tree::tests::any_tree;
use crate::vm::{DiskFacts, Nvram, OrphanSummary, VmFacts, VmState};

const OWN: &str = "snapshot-service";

fn vm() -> VmFacts {
    let disk = DiskFacts {
        target: "vda".to_owned(),
        path: "/images/vda.qcow2".to_owned(),
        format: "qcow2".to_owned(),
        read_only: false,
        has_backing_file: false,
        capacity_bytes: 64 << 20,
        allocation_bytes: 1 << 20,
        free_bytes: Some(64 << 30),
    };
    VmFacts {
        id: "0191f7a0-0000-7000-8000-00000000000a".parse().unwrap(),
        name: "desk".to_owned(),
        state: VmState::Shutoff,
        persistent: true,
        has_managed_save: false,
        block_job_disk: None,
        memory_bytes: 1 << 30,
        disks: vec![disk],
        nvram: Nvram::Absent,
        missing_medium: None,
        orphans: OrphanSummary::default(),
        restrictions: Vec::new(),
    }
}

/// With the widest ceiling that can be written down.
fn ceiling(service: bool) -> Ceiling {
    Ceiling { actions: Action::ALL.into_iter().collect(), any_vm: true, service, destructive_uses: 16 }
}

fn admit(issuer: &str, actions: &[Action], service: bool) -> Result<Caller, AboveCeiling> {
    let grants = vec![Grant { vm: VmSelector::Any, actions: actions.iter().copied().collect() }];
    let (iss, aud) = (issuer.to_owned(), AUDIENCE.to_owned());
    let claims =
        Claims { iss, sub: "x".to_owned(), aud, jti: "t".to_owned(), iat: 0, nbf: None, exp: 1, cnf: None, grants };
    Caller::from_verified(claims, &ceiling(service))
}

/// A tree in which each snapshot was made by one of these issuers, some are protected, and some are another tool's.
fn any_mixed_tree() -> impl Strategy<Value = SnapshotTree> {
    let makers = select(vec![OWN, "", "ravada", "snapshot-service/x"]);
    let marks = proptest::collection::vec((makers, 0u8..6), 24);
    (any_tree(), marks).prop_map(|(tree, marks)| {
        let all = tree.iter().cloned().zip(marks).map(|(mut snapshot, (maker, mark))| {
            snapshot.label.issuer = maker.to_owned();
            snapshot.label.actor = format!("{maker}/x");
            snapshot.label.protected = mark == 0;
            snapshot.origin = if mark == 1 { Origin::Foreign } else { Origin::Service };
            snapshot
        });
        SnapshotTree::new(all).unwrap()
    })
}

fn any_deletion() -> impl Strategy<Value = (prop::sample::Index, DeleteScope, bool)> {
    let scope = select(vec![DeleteScope::Only, DeleteScope::Subtree, DeleteScope::Descendants]);
    (any::<prop::sample::Index>(), scope, any::<bool>())
}

#[test]
fn it_is_granted_three_actions_at_most_whatever_its_ceiling_says() {
    for action in Action::ALL {
        let allowed = [Action::Read, Action::Create, Action::Delete].contains(&action);
        assert_eq!(admit(OWN, &[action], true).is_ok(), allowed, "{action}");
        assert!(admit(OWN, &[action], false).is_ok(), "{action}: others are bounded by their ceiling alone");
    }
    assert_eq!(admit(OWN, &[Action::Read, Action::Purge], true), Err(AboveCeiling::Action(Action::Purge)));
}

#[test]
fn it_stops_no_operation_and_others_those_that_they_may_begin() {
    let kinds = [
        OperationKind::Create,
        OperationKind::Update,
        OperationKind::Revert,
        OperationKind::Delete,
        OperationKind::Purge,
    ];
    let own = admit(OWN, &Action::OF_SERVICE, true).unwrap();
    for kind in kinds {
        let needed = Action::from(kind);
        assert_eq!(authorize_cancel(&own, vm().id, kind), Err(Denied::Forbidden { action: needed }));
        let may = |actions: &[Action]| authorize_cancel(&admit("ravada", actions, false).unwrap(), vm().id, kind);
        assert!(may(&[Action::Read, needed]).is_ok(), "{kind:?}");
        assert_eq!(may(&[needed]), Err(Denied::Invisible), "{kind:?}: what may not be seen is not there");
        assert_eq!(may(&[Action::Read]), Err(Denied::Forbidden { action: needed }), "{kind:?}");
    }
}

#[test]
fn the_inventory_is_for_who_may_read_everything() {
    assert!(authorize_inventory(&admit(OWN, &[Action::Read], true).unwrap()).is_ok());
    let refused = Err(Denied::Forbidden { action: Action::Read });
    assert_eq!(authorize_inventory(&admit(OWN, &[Action::Create, Action::Delete], true).unwrap()), refused);
    let mut user = admit("ravada", &[Action::Read], false).unwrap();
    user.grants = vec![Grant { vm: VmSelector::One(vm().id), actions: [Action::Read].into() }];
    assert_eq!(authorize_inventory(&user), refused);
}

proptest! {
    #[test]
    fn it_deletes_what_it_made_and_nothing_else(tree in any_mixed_tree(), (which, scope, force) in any_deletion()) {
        let ids: Vec<SnapshotId> = tree.iter().map(|snapshot| snapshot.id.clone()).collect();
        prop_assume!(!ids.is_empty());
        let request = Request::Delete { snapshot: ids[which.index(ids.len())].clone(), scope, force };
        let (vm, layers, policy) = (vm(), Layers::default(), HostPolicy::default());
        let planned = plan(Situation { vm: &vm, tree: &tree, layers: &layers, policy: &policy }, &request);
        let Ok(planned) = planned else { return Ok(()) };
        let gone: BTreeSet<&SnapshotId> = planned.deleted().collect();
        let all_its_own = tree.iter().filter(|snapshot| gone.contains(&snapshot.id)).all(|snapshot| {
            snapshot.label.issuer == OWN && !snapshot.label.protected && snapshot.origin == Origin::Service
        });
        let permit = |service| authorize(&admit(OWN, &[Action::Delete], service).unwrap(), vm.id, Action::Delete).unwrap();
        prop_assert_eq!(permit(true).check_plan(&tree, &planned).is_ok(), all_its_own);
        let protected = tree.iter().any(|snapshot| gone.contains(&snapshot.id) && snapshot.label.protected);
        let user = |actions: &[Action]| {
            authorize(&admit("ravada", actions, false).unwrap(), vm.id, Action::Delete).unwrap().check_plan(&tree, &planned)
        };
        prop_assert_eq!(user(&[Action::Delete]).is_ok(), !protected, "a user's goes as far as the action, less what is protected");
        prop_assert!(user(&[Action::Delete, Action::Force]).is_ok(), "and with `force` as far as the action");
    }
}

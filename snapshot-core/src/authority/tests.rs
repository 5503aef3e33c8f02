//! The rules are few, so the tests state them again in the plainest way and compare over generated callers.

use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use uuid::Uuid;

use super::*;
use crate::operation::DeleteScope;

/// Few VMs, so that grants, questions and ceilings meet often.
fn any_vm_id() -> impl Strategy<Value = VmId> {
    (0u128..4).prop_map(|n| VmId::from_uuid(Uuid::from_u128(n)))
}

fn any_action() -> impl Strategy<Value = Action> {
    select(Action::ALL.to_vec())
}

fn any_selector() -> impl Strategy<Value = VmSelector> {
    prop_oneof![1 => Just(VmSelector::Any), 5 => any_vm_id().prop_map(VmSelector::One)]
}

fn any_grants() -> impl Strategy<Value = Vec<Grant>> {
    vec((any_selector(), btree_set(any_action(), 0..3)).prop_map(|(vm, actions)| Grant { vm, actions }), 0..4)
}

fn any_ceiling() -> impl Strategy<Value = Ceiling> {
    (subsequence(Action::ALL.to_vec(), 0..=Action::ALL.len()), any::<bool>()).prop_map(|(actions, any_vm)| Ceiling {
        actions: actions.into_iter().collect(),
        any_vm,
        ..unlimited()
    })
}

fn unlimited() -> Ceiling {
    Ceiling { actions: Action::ALL.into_iter().collect(), any_vm: true, service: false, destructive_uses: 16 }
}

fn claims(grants: Vec<Grant>) -> Claims {
    Claims {
        iss: "ravada".to_owned(),
        sub: "alice".to_owned(),
        aud: AUDIENCE.to_owned(),
        jti: "t-1".to_owned(),
        iat: 1_000,
        nbf: None,
        exp: 1_300,
        cnf: None,
        grants,
    }
}

fn caller(grants: Vec<Grant>) -> Caller {
    Caller::from_verified(claims(grants), &unlimited()).unwrap()
}

fn is_granted(grants: &[Grant], vm: VmId, action: Action) -> bool {
    grants
        .iter()
        .flat_map(|grant| grant.actions.iter().map(move |granted| (grant.vm, *granted)))
        .any(|pair| pair == (VmSelector::Any, action) || pair == (VmSelector::One(vm), action))
}

#[test]
fn a_permit_carries_what_was_asked_and_who_asked() {
    let vm = VmId::from_uuid(Uuid::from_u128(7));
    let caller = caller(vec![Grant { vm: VmSelector::One(vm), actions: [Action::Revert].into() }]);
    let permit = authorize(&caller, vm, Action::Revert).unwrap();
    assert_eq!((permit.vm(), permit.action()), (vm, Action::Revert));
    assert_eq!(permit.actor().to_string(), "ravada/alice");
    assert_eq!(permit.actor().token_id, "t-1");
}

#[test]
fn admin_on_one_vm_is_no_right_over_hosts() {
    let vm = VmId::from_uuid(Uuid::from_u128(7));
    let local = caller(vec![Grant { vm: VmSelector::One(vm), actions: [Action::Admin].into() }]);
    assert_eq!(authorize_admin(&local), Err(Denied::Forbidden { action: Action::Admin }));
    let global = caller(vec![Grant { vm: VmSelector::Any, actions: [Action::Admin].into() }]);
    assert!(authorize_admin(&global).is_ok());
    assert_eq!(authorize(&global, vm, Action::Delete), Err(Denied::Invisible));
    assert_eq!(visible_vms(&global), Visible::Only(BTreeSet::new()));
}

/// Whatever else a token has: `force` is asked for by its name.
#[test]
fn what_is_forced_takes_a_right_of_its_own() {
    let vm = VmId::from_uuid(Uuid::from_u128(7));
    let delete = |force| Request::Delete { snapshot: "snap".parse().unwrap(), scope: DeleteScope::Subtree, force };
    for (request, force) in [
        (delete(false), false),
        (delete(true), true),
        (Request::Purge { force: false }, false),
        (Request::Purge { force: true }, true),
    ] {
        let without = Action::ALL.into_iter().filter(|action| *action != Action::Force);
        let old = caller(vec![Grant { vm: VmSelector::Any, actions: without.collect() }]);
        let refused = authorize_request(&old, vm, &request).err();
        assert_eq!(refused, force.then_some(Denied::Forbidden { action: Action::Force }), "{request:?}");
        let all = caller(vec![Grant { vm: VmSelector::One(vm), actions: Action::ALL.into_iter().collect() }]);
        assert_eq!(authorize_request(&all, vm, &request).unwrap().action(), Action::from(request.kind()));
        let alone = caller(vec![Grant { vm: VmSelector::One(vm), actions: [Action::Read, Action::Force].into() }]);
        let refused = Denied::Forbidden { action: Action::from(request.kind()) };
        assert_eq!(authorize_request(&alone, vm, &request), Err(refused), "alone it opens nothing: {request:?}");
    }
    let told = Denied::Forbidden { action: Action::Force }.about(vm);
    assert_eq!((told.reason(), told.message()), (Reason::ActionNotGranted, "the token does not grant force"));
}

#[test]
fn selectors_have_one_spelling() {
    assert_eq!("*".parse::<VmSelector>(), Ok(VmSelector::Any));
    for other in ["", "**", " *", "all", "0191F7A0-0000-7000-8000-00000000000A"] {
        assert!(other.parse::<VmSelector>().is_err(), "{other}");
    }
}

proptest! {
    #[test]
    fn nobody_is_authorized_beyond_the_grants(grants in any_grants(), vm in any_vm_id(), action in any_action()) {
        let answer = authorize(&caller(grants.clone()), vm, action);
        prop_assert_eq!(answer.is_ok(), is_granted(&grants, vm, action));
    }

    #[test]
    fn a_refusal_tells_only_those_who_may_read(grants in any_grants(), vm in any_vm_id(), action in any_action()) {
        let caller = caller(grants.clone());
        if let Err(denied) = authorize(&caller, vm, action) {
            let expected = match is_granted(&grants, vm, Action::Read) {
                true => Denied::Forbidden { action },
                false => Denied::Invisible,
            };
            prop_assert_eq!(denied, expected);
        }
    }

    #[test]
    fn what_is_listed_is_what_may_be_read(grants in any_grants(), vm in any_vm_id()) {
        let caller = caller(grants);
        prop_assert_eq!(visible_vms(&caller).contains(vm), authorize(&caller, vm, Action::Read).is_ok());
    }

    #[test]
    fn no_caller_stands_above_the_ceiling(
        grants in any_grants(), ceiling in any_ceiling(), vm in any_vm_id(), action in any_action()
    ) {
        let fits = grants.iter().all(|grant| {
            (ceiling.any_vm || grant.vm != VmSelector::Any) && grant.actions.is_subset(&ceiling.actions)
        });
        let admitted = Caller::from_verified(claims(grants), &ceiling);
        prop_assert_eq!(admitted.is_ok(), fits);
        if let Ok(caller) = admitted {
            prop_assert!(ceiling.actions.contains(&action) || authorize(&caller, vm, action).is_err());
            prop_assert!(ceiling.any_vm || visible_vms(&caller) != Visible::All);
        }
    }

    #[test]
    fn a_selector_reads_back_as_written(selector in any_selector()) {
        prop_assert_eq!(selector.to_string().parse::<VmSelector>(), Ok(selector));
    }
}

//! Uses of tokens, over processes and boots. That an executor asks is held in `tests/agent`.

use snapshot_core::ids::VmId;
use snapshot_core::operation::{Create, DeleteScope, RunAfter};
use snapshot_core::text::{Description, DisplayName};
use snapshot_core::vm::VmState;
use uuid::Uuid;

use super::*;
use crate::journal::Before;

fn entry(operation: u128, issuer: &str, token: &str, request: Request) -> Entry {
    Entry {
        operation: OperationId::from_uuid(Uuid::from_u128(operation)),
        vm: VmId::from_uuid(Uuid::from_u128(1)),
        request,
        actor: String::new(),
        issuer: issuer.to_owned(),
        token_id: token.to_owned(),
        request_id: String::new(),
        steps: Vec::new(),
        method: None,
        cancellable: false,
        predicted_pause_ms: None,
        before: Before { state: VmState::Shutoff, instance: None },
        active: Default::default(),
        accepted: Moment::now(),
    }
}

fn purge() -> Request {
    Request::Purge { force: false }
}

fn snapshot() -> snapshot_core::ids::SnapshotId {
    "snap-x".parse().unwrap()
}

#[test]
fn a_token_has_so_many_uses_and_each_token_has_its_own() {
    let spent = Spent::default();
    let take = |n, issuer: &str, token: &str| spent.take(&entry(n, issuer, token, purge()), 2);
    assert!(take(1, "a", "t").is_ok() && take(2, "a", "t").is_ok());
    let refused = take(3, "a", "t").unwrap_err();
    assert_eq!((refused.reason(), refused.metadata()["destructive_uses"].as_str()), (Reason::TokenSpent, "2"));
    assert!(take(2, "a", "t").is_ok(), "the same operation is the same use");
    assert!(take(4, "b", "t").is_ok() && take(5, "a", "u").is_ok(), "of another issuer, or another token");
    spent.give_back(OperationId::from_uuid(Uuid::from_u128(2)));
    assert!(take(6, "a", "t").is_ok(), "what was not taken on is not counted");
    assert!(take(7, "a", "t").is_err());
}

#[test]
fn a_deletion_of_an_orphan_is_a_use() {
    let spent = Spent::default();
    let actor = Actor { issuer: "a".to_owned(), subject: "root".to_owned(), token_id: "t".to_owned() };
    let operation = |n| OperationId::from_uuid(Uuid::from_u128(n));
    assert!(spent.take_for(&actor, operation(1), 2).is_ok());
    assert!(spent.take(&entry(2, "a", "t", purge()), 2).is_ok());
    assert_eq!(spent.take_for(&actor, operation(3), 2).unwrap_err().reason(), Reason::TokenSpent);
    spent.give_back(operation(1));
    assert!(spent.take_for(&actor, operation(3), 2).is_ok());
}

#[test]
fn what_takes_nothing_from_anybody_is_not_counted() {
    let spent = Spent::default();
    let create = Create {
        snapshot: snapshot(),
        display_name: DisplayName::parse("x").unwrap(),
        description: Description::default(),
        protected: false,
        content: None,
        storage: None,
        quiesce: false,
        allow_crash_consistent: false,
    };
    let (display_name, description) = (create.display_name.clone(), create.description.clone());
    let update = Request::Update { snapshot: snapshot(), display_name, description, protected: false };
    for n in 0..3 {
        assert!(spent.take(&entry(n, "a", "t", Request::Create(create.clone())), 1).is_ok());
        assert!(spent.take(&entry(10 + n, "a", "t", update.clone()), 1).is_ok());
    }
    let revert = Request::Revert { snapshot: snapshot(), run_after: RunAfter::Off, save_current: None };
    let delete = Request::Delete { snapshot: snapshot(), scope: DeleteScope::Only, force: false };
    assert!(spent.take(&entry(20, "a", "t", revert), 1).is_ok());
    assert_eq!(spent.take(&entry(21, "a", "t", delete), 1).unwrap_err().reason(), Reason::TokenSpent);
}

#[test]
fn the_next_process_counts_on_and_so_does_one_after_a_reboot() {
    let moment = |boot: Option<&str>, millis: Option<u64>| {
        let mut json = serde_json::to_value(Moment::now()).unwrap();
        if let Some(boot) = boot {
            json["boot"] = boot.into();
        }
        if let Some(millis) = millis {
            json["millis"] = millis.into();
        }
        serde_json::from_value::<Moment>(json).unwrap()
    };
    let recalled = |accepted: Moment| {
        let spent = Spent::default();
        let before = Entry { accepted, ..entry(1, "a", "t", purge()) };
        spent.recall(&before);
        let counted = spent.take(&entry(2, "a", "t", purge()), 1).is_err();
        assert_eq!(spent.needs(before.operation), counted, "it is kept as long as it counts");
        counted
    };
    assert!(recalled(Moment::now()));
    assert!(recalled(moment(None, Some(since_boot().saturating_sub(TOKEN_LIVES_MS - 5000)))));
    // A host that is not up for so long cannot have had it in this boot.
    let too_old = since_boot().checked_sub(TOKEN_LIVES_MS + 5000);
    assert!(too_old.is_none_or(|millis| !recalled(moment(None, Some(millis)))), "its token has ended");
    // Of another boot: for all that is known it was a moment before this one.
    assert_eq!(recalled(moment(Some("another"), Some(1))), since_boot() <= TOKEN_LIVES_MS);
}

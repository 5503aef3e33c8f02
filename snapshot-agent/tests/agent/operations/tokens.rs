//! What a token opens beyond its grants: how often it may destroy something, and what the service's own may not delete.

use snapshot_agent::clock::Moment;
use snapshot_agent::journal::{Before, Entry};

use super::*;

/// Of the user's issuer, with this many uses.
fn with_uses(token: &str, action: Action, uses: u32) -> Permit {
    permit_by(vm_facts().id, action, token, &Ceiling { destructive_uses: uses, ..users() })
}

/// Of an issuer that is the service's own; it is called as the user's, so that the name alone makes no difference.
fn of_service(action: Action) -> Permit {
    permit_by(vm_facts().id, action, "own", &Ceiling { service: true, ..users() })
}

async fn ends(agent: &Agent, permit: &Permit, spec: Spec) -> Result<Ended, Error> {
    let operation = agent.executor.start(permit, spec, String::new()).await?;
    Ok(agent.ended(&operation).await)
}

#[tokio::test]
async fn a_token_destroys_so_often_and_no_more_also_after_a_restart() {
    let dir = Directory::new();
    let world = with_chain(VmState::Shutoff, &dir).await;
    let agent = Agent::start(&world, &dir, None);
    agent.executor.settle().await.unwrap();
    let permit = with_uses("a", Action::Delete, 2);
    // What is refused for another reason, or only planned, is no use of it.
    let refused = agent.executor.start(&permit, spec(delete(7, DeleteScope::Only)), String::new()).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::SnapshotNotFound);
    for _ in 0..3 {
        agent.executor.plan(&permit, spec(delete(3, DeleteScope::Only))).await.unwrap();
    }
    let first = spec(delete(3, DeleteScope::Only));
    for _ in 0..3 {
        // The first, and repeats of it.
        assert_eq!(ends(&agent, &permit, first.clone()).await.unwrap().outcome, Outcome::Succeeded);
    }
    assert_eq!(ends(&agent, &permit, spec(revert(1, RunAfter::Off, None))).await.unwrap().outcome, Outcome::Succeeded);

    let (before, third) = (machine(&world), spec(delete(2, DeleteScope::Only)));
    let next = Agent::start(&world, &dir, None);
    next.executor.settle().await.unwrap();
    for agent in [&agent, &next] {
        let spent = ends(agent, &permit, third.clone()).await.unwrap_err();
        assert_eq!((spent.reason(), spent.metadata()["destructive_uses"].as_str()), (Reason::TokenSpent, "2"));
        assert_eq!(machine(&world), before);
        assert_eq!(agent.executor.get(third.operation).unwrap_err().reason(), Reason::OperationNotFound);
    }
    assert_eq!(ends(&next, &permit, first).await.unwrap().outcome, Outcome::Succeeded, "a repeat, after the restart");
    let creates = with_uses("a", Action::Create, 2);
    assert!(ends(&next, &creates, spec(Request::Create(create(9)))).await.is_ok(), "it takes nothing from anybody");
    let fresh = with_uses("b", Action::Delete, 2);
    assert_eq!(
        ends(&next, &fresh, third).await.unwrap().outcome,
        Outcome::Succeeded,
        "by a new token, the same request"
    );
}

/// The one that is over by the time the journal is full is the one whose token would be free again.
#[tokio::test]
async fn the_journal_keeps_what_counts_against_a_token() {
    const MORE_THAN_ARE_KEPT: u128 = 1010;
    let dir = Directory::new();
    let world = with_chain(VmState::Shutoff, &dir).await;
    let journal = Journal::open(dir.path()).unwrap();
    journal.load().unwrap();
    let entry = |n: u128, request: Request| Entry {
        operation: OperationId::from_uuid(Uuid::from_u128(n)),
        vm: vm_facts().id,
        request,
        actor: "ravada/alice".to_owned(),
        issuer: "ravada".to_owned(),
        token_id: "a".to_owned(),
        request_id: String::new(),
        steps: Vec::new(),
        method: None,
        cancellable: false,
        predicted_pause_ms: None,
        before: Before { state: VmState::Shutoff, instance: None },
        active: Default::default(),
        accepted: Moment::now(),
    };
    let ended = Ended {
        outcome: Outcome::Succeeded,
        error: None,
        method: None,
        pause_ms: None,
        predicted_pause_ms: None,
        notes: vec![],
    };
    let deletion = entry(1, delete(3, DeleteScope::Only));
    journal.accept(&deletion).unwrap().ended(&ended).unwrap();
    for n in 2..MORE_THAN_ARE_KEPT {
        journal.accept(&entry(n, Request::Create(create(n)))).unwrap().ended(&ended).unwrap();
    }
    let agent = Agent::start(&world, &dir, None);
    agent.executor.settle().await.unwrap();
    assert!(agent.executor.get(OperationId::from_uuid(Uuid::from_u128(2))).is_err(), "the oldest are forgotten");
    let refused = ends(&agent, &with_uses("a", Action::Delete, 1), spec(delete(3, DeleteScope::Only))).await;
    assert_eq!(refused.unwrap_err().reason(), Reason::TokenSpent);
    assert!(agent.executor.get(deletion.operation).is_ok());
}

#[tokio::test]
async fn the_services_own_deletes_what_was_made_by_it() {
    let dir = Directory::new();
    let world = with_chain(VmState::Shutoff, &dir).await;
    let agent = Agent::start(&world, &dir, None);
    let issuer = |n: u128| {
        let all = machine(&world).snapshots;
        all.into_iter().find(|snapshot| snapshot.id == id(n)).map(|snapshot| snapshot.label.issuer)
    };
    assert_eq!(issuer(3).as_deref(), Some("ravada"), "from the token that was verified here");
    // One of before there was this record, one of somebody else's, one of the service's own, which is protected.
    let labels = [("", false), ("other", false), ("ravada", true)];
    for (snapshot, (issuer, protected)) in
        lock(&world).machines.get_mut(&vm_facts().id).unwrap().snapshots.iter_mut().zip(labels)
    {
        snapshot.label.issuer = issuer.to_owned();
        snapshot.label.protected = protected;
    }
    assert!(ends(&agent, &of_service(Action::Create), spec(Request::Create(create(4)))).await.is_ok());
    assert!(ends(&agent, &of_service(Action::Create), spec(Request::Create(create(5)))).await.is_ok());
    let before = machine(&world);
    let permit = of_service(Action::Delete);
    for n in 1..=3 {
        for (scope, force) in [(DeleteScope::Only, false), (DeleteScope::Only, true), (DeleteScope::Subtree, true)] {
            let request = spec(Request::Delete { snapshot: id(n), scope, force });
            let planned = agent.executor.plan(&permit, request.clone()).await.unwrap_err();
            let started = ends(&agent, &permit, request).await.unwrap_err();
            let expected = if n == 3 && !force { Reason::SnapshotProtected } else { Reason::ActionNotGranted };
            assert_eq!((planned.reason(), started.reason()), (expected, expected), "{n} {scope:?} {force}");
            assert_eq!(machine(&world), before);
        }
    }
    let request = Request::Update {
        snapshot: id(5),
        display_name: DisplayName::parse("renamed").unwrap(),
        description: Description::default(),
        protected: false,
    };
    assert_eq!(
        ends(&agent, &with_uses("u", Action::Update, 1), spec(request)).await.unwrap().outcome,
        Outcome::Succeeded
    );
    assert_eq!(issuer(5).as_deref(), Some("ravada"), "who made it stays when it is renamed");
    let own = spec(Request::Delete { snapshot: id(4), scope: DeleteScope::Subtree, force: false });
    assert_eq!(ends(&agent, &permit, own).await.unwrap().outcome, Outcome::Succeeded);
    assert_eq!((issuer(4), issuer(5), machine(&world).snapshots.len()), (None, None, 3));
}

/// Remains of a snapshot are removed before it is taken again; under the id of somebody else's that would delete what is left of
/// theirs, by a right to take snapshots alone.
#[tokio::test]
async fn a_new_snapshot_under_the_id_of_another_takes_nothing_of_that_away() {
    let dir = Directory::new();
    let world = with_chain(VmState::Shutoff, &dir).await;
    let agent = Agent::start(&world, &dir, None);
    {
        let mut world = lock(&world);
        let machine = world.machines.get_mut(&vm_facts().id).unwrap();
        // One disk has lost its part of the second, which comes back with it; and libvirt has forgotten the third.
        machine.images[1].remove(&id(2)).unwrap();
        machine.snapshots.retain(|snapshot| snapshot.id != id(3));
        machine.snapshots.last_mut().unwrap().is_current = true;
    }
    let before = machine(&world);
    for n in 1..=3 {
        let save = revert(1, RunAfter::Off, Some(create(n)));
        for (request, action) in [(Request::Create(create(n)), Action::Create), (save, Action::Revert)] {
            let refused = ends(&agent, &with_uses("a", action, 9), spec(request)).await.unwrap_err();
            assert_eq!(refused.reason(), Reason::InvalidField, "{n}: {refused}");
            assert_eq!(machine(&world), before, "{n}");
        }
    }
    assert!(ends(&agent, &with_uses("a", Action::Create, 9), spec(Request::Create(create(9)))).await.is_ok());
}

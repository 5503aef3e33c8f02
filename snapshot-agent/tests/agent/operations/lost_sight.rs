//! Whoever has lost sight of an operation asks for it again.

use std::sync::mpsc::channel;

use proto::agent::operation_event::Event;
use snapshot_agent::events;
use snapshot_agent::hypervisor::Reread;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;

use super::*;

/// The request to begin it may be in a connection that its sender has given up, and be read after the question.
#[tokio::test]
async fn what_was_said_not_to_be_known_is_not_taken_on_later() {
    let dir = Directory::new();
    let world = World::with_machine(VmState::Shutoff);
    let agent = Agent::start(&world, &dir, None);
    let late = spec(Request::Create(create(1)));
    for _ in 0..2 {
        let unknown = agent.executor.find_again(late.operation).unwrap_err();
        assert_eq!(unknown.reason(), Reason::OperationNotFound);
    }
    let refused = agent.executor.start(&permit(), late.clone(), String::new()).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::AuthorizationExpired);
    assert!(machine(&world).snapshots.is_empty());
    assert_eq!(agent.executor.find_again(late.operation).unwrap_err().reason(), Reason::OperationNotFound);
    // Others are taken on, found again, and not begun a second time.
    let begun = agent.executor.start(&permit(), spec(Request::Create(create(2))), String::new()).await.unwrap();
    assert_eq!(agent.ended(&agent.executor.find_again(begun.id()).unwrap()).await.outcome, Outcome::Succeeded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_that_is_refused_while_it_is_followed_ends_the_stream() {
    let dir = Directory::new();
    let world = World::with_machine(VmState::Shutoff);
    let agent = Agent::start(&world, &dir, None);
    let (locked, is_locked) = channel();
    let (decide, decided) = channel::<()>();
    let host = Arc::clone(&world);
    // The host does not answer for a while, and then in a way that rules the operation out.
    let host = std::thread::spawn(move || {
        let mut world = lock(&host);
        world.machines.get_mut(&vm_facts().id).unwrap().vm.has_managed_save = true;
        locked.send(()).unwrap();
        decided.recv().unwrap();
    });
    is_locked.recv().unwrap();
    let spec = spec(Request::Create(create(1)));
    let (executor, id) = (agent.executor.clone(), spec.operation);
    let starting = tokio::spawn(async move { executor.start(&permit(), spec, String::new()).await });
    let operation = loop {
        match agent.executor.get(id) {
            Ok(operation) => break operation,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let mut stream =
        events::follow(operation, Arc::clone(&agent.machines), CancellationToken::new(), None, |event| event);
    decide.send(()).unwrap();
    host.join().unwrap();
    assert_eq!(starting.await.unwrap().unwrap_err().reason(), Reason::VmHibernated);
    let told = tokio::time::timeout(Duration::from_secs(30), stream.next()).await.expect("the stream goes on for ever");
    let status = told.unwrap().unwrap_err();
    assert_eq!(proto::status::reason(&status), Some(Reason::VmHibernated));
    assert!(stream.next().await.is_none());
}

/// An end without the machine would read as if the snapshot that was taken were not there.
#[tokio::test]
async fn an_end_that_an_earlier_process_brought_about_waits_for_the_machine_to_be_seen() {
    let dir = Directory::new();
    let world = World::with_machine(VmState::Shutoff);
    let before = Agent::start(&world, &dir, None);
    let begun = before.executor.start(&permit(), spec(Request::Create(create(1))), String::new()).await.unwrap();
    before.ended(&begun).await;
    let taken = before.fake.observe(vm_facts().id, Reread::New).unwrap();

    let after = Agent::start(&world, &dir, None);
    after.executor.settle().await.unwrap();
    let found = after.executor.find_again(begun.id()).unwrap();
    let stream = events::follow(found, Arc::clone(&after.machines), CancellationToken::new(), None, |event| event);
    let machines = Arc::clone(&after.machines);
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        machines.saw(&taken);
        machines.set_synced(true);
    });
    let told: Vec<_> = stream.map(|event| event.unwrap().event.unwrap()).collect().await;
    let Some(Event::Ended(ended)) = told.last() else { panic!("{told:?}") };
    assert_eq!(ended.inventory.as_ref().unwrap().snapshots.len(), 1);
}

/// A damaged journal is no promise that nothing was done: the operation was accepted, and may be half done.
#[tokio::test]
async fn an_operation_whose_journal_entry_is_torn_is_known_and_has_failed() {
    let dir = Directory::new();
    let world = World::with_machine(VmState::Shutoff);
    let agent = Agent::start(&world, &dir, None);
    let begun = agent.executor.start(&permit(), spec(Request::Create(create(1))), String::new()).await.unwrap();
    agent.ended(&begun).await;
    let path = dir.path().join(format!("{}.jsonl", begun.id()));
    let entry = std::fs::read(&path).unwrap();
    std::fs::write(&path, &entry[..entry.len() / 3]).unwrap();
    for _ in 0..2 {
        let next = Agent::start(&world, &dir, None);
        next.executor.settle().await.unwrap();
        let ended = next.ended(&next.executor.find_again(begun.id()).unwrap()).await;
        assert_eq!(ended.outcome, Outcome::Failed);
        assert_eq!(ended.error.unwrap().reason(), Reason::Internal);
        // Sent again, it is not carried out a second time.
        let again = Spec { operation: begun.id(), ..spec(Request::Create(create(1))) };
        next.executor.start(&permit(), again, String::new()).await.unwrap_err();
    }
}

//! Watches: they begin with the state, tell every change, and go on after a break without losing one.

use proto::v1;
use proto::v1::watch_vm_response::Event;
use tests::client::{Client, Grpc, Mirror, Refusal, VmWatch};
use tests::cluster::Cluster;
use tests::guest::Guest;
use tests::lab::{Lab, key};
use tonic::Code;

fn is_synced(event: &Event) -> bool {
    matches!(event, Event::Synced(_))
}

fn ends(operation: &v1::Operation) -> impl Fn(&Event) -> bool {
    let name = operation.name.clone();
    move |event| matches!(event, Event::Operation(told) if told.name == name && told.end_time.is_some())
}

async fn open(cluster: &Cluster, guest: &Guest, resume_token: &str) -> VmWatch {
    let face = Grpc::plain(cluster.ports().gateway).unwrap();
    VmWatch::open(&face, &cluster.identity().admin_token().unwrap(), &guest.vm(), resume_token).await.unwrap()
}

/// The mirror shows what a fresh look shows.
async fn is_true(mirror: &Mirror, client: &Client, guest: &Guest) {
    let list = client.snapshots(&guest.vm()).await.unwrap();
    assert_eq!(mirror.snapshots.values().cloned().collect::<Vec<_>>(), list, "snapshots, which sort by their age");
    let vm = client.vm(&guest.vm()).await.unwrap();
    let seen = mirror.vm.as_ref().unwrap();
    let shown = |vm: &v1::Vm| {
        (vm.state, vm.current_snapshot.clone(), vm.snapshot_count, vm.active_operation.clone(), vm.capabilities.clone())
    };
    assert_eq!(shown(seen), shown(&vm));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_is_told_from_its_state_to_its_end() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    let begun = lab.client.create(&guest.vm(), "watched", "").await.unwrap();
    let (one, two) = tokio::join!(lab.client.watch(&begun.name), lab.client.watch(&begun.name));
    for seen in [one.unwrap(), two.unwrap()] {
        assert!(seen.iter().all(|told| told.name == begun.name), "{seen:?}");
        assert!(seen.is_sorted_by_key(|told| told.state), "{seen:?}");
        assert!(seen.windows(2).all(|pair| pair[0] != pair[1]), "nothing is told twice: {seen:?}");
        let last = seen.last().unwrap();
        assert_eq!(last.state(), v1::OperationState::Succeeded, "{seen:?}");
        assert_eq!(*last, lab.client.operation(&begun.name).await.unwrap());
    }
    let late = lab.client.watch(&begun.name).await.unwrap();
    assert_eq!(late, [lab.client.operation(&begun.name).await.unwrap()], "of one that has ended, its end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_is_told_whole_and_then_by_its_changes() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    guest.write('A').unwrap();
    let kept = lab.take(&guest, "kept").await.unwrap();
    let mut watch = open(&lab.cluster, &guest, "").await;
    let state = watch.until("the whole state", is_synced).await.unwrap();
    let [Event::Reset(_), Event::Vm(vm), Event::Snapshot(snapshot), Event::Synced(_)] = state.as_slice() else {
        panic!("{state:#?}")
    };
    assert_eq!((&vm.name, snapshot), (&guest.vm(), &kept));
    assert_eq!(vm.capabilities.len(), 4);
    let mut mirror = Mirror::default();
    mirror.apply(&state).unwrap();
    is_true(&mirror, &lab.client, &guest).await;

    let label = v1::Snapshot { display_name: "renamed".to_owned(), ..kept.clone() };
    let update = v1::UpdateSnapshotRequest { snapshot: Some(label), ..Default::default() };
    let mut told = Vec::new();
    let mut operations = Vec::new();
    for step in 0..4 {
        let asked = match step {
            0 => lab.client.create(&guest.vm(), "second", "").await,
            1 => lab.client.update(update.clone()).await,
            2 => lab.client.revert(&kept.name).await,
            _ => lab.client.delete(&kept.name, v1::DeleteScope::Only).await,
        };
        let operation = asked.unwrap();
        let events = watch.until("the end of an operation", ends(&operation)).await.unwrap();
        mirror.apply(&events).unwrap();
        is_true(&mirror, &lab.client, &guest).await;
        told.extend(events);
        operations.push(operation);
    }
    // In order: no operation is told before the one before it has ended.
    let mut order: Vec<&str> = told
        .iter()
        .filter_map(|event| if let Event::Operation(operation) = event { Some(operation.name.as_str()) } else { None })
        .collect();
    order.dedup();
    assert_eq!(order, operations.iter().map(|one| one.name.as_str()).collect::<Vec<_>>());
    assert!(told.contains(&Event::RemovedSnapshot(kept.name.clone())));

    lab.daemon().unwrap().power_off(&guest).unwrap();
    let off = |event: &Event| matches!(event, Event::Vm(vm) if vm.state() == v1::VmState::Shutoff);
    watch.until("the machine to be off", off).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_break_it_goes_on_without_a_loss() {
    let mut lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    guest.write('A').unwrap();
    let first = lab.take(&guest, "first").await.unwrap();
    let mut watch = open(&lab.cluster, &guest, "").await;
    let mut mirror = Mirror::default();
    mirror.apply(&watch.until("the whole state", is_synced).await.unwrap()).unwrap();

    for restart in [false, true] {
        let resume = watch.resume_token().to_owned();
        drop(watch);
        // Behind its back: one comes, one comes and goes, one that was known goes, and one is renamed.
        let second = lab.take(&guest, "second").await.unwrap();
        let fleeting = lab.take(&guest, "fleeting").await.unwrap();
        lab.remove(&fleeting, v1::DeleteScope::Only).await.unwrap();
        let known = mirror.snapshots.values().next().unwrap().clone();
        let gone = lab.client.delete(&known.name, v1::DeleteScope::Only).await;
        let gone = lab.client.done(gone).await.unwrap();
        let label = v1::Snapshot { description: "renamed".to_owned(), ..second.clone() };
        let update = v1::UpdateSnapshotRequest { snapshot: Some(label), request_id: key(), ..Default::default() };
        lab.client.done(lab.client.update(update).await).await.unwrap();
        if restart {
            lab.cluster.api().kill().unwrap();
            lab.cluster.start_api_again().unwrap();
            lab.client.vm_in_state(&guest.vm(), v1::VmState::Running).await.unwrap();
        }

        watch = open(&lab.cluster, &guest, &resume).await;
        let missed = watch.until("what was missed", is_synced).await.unwrap();
        assert!(!missed.iter().any(|event| matches!(event, Event::Reset(_))), "only what changed: {missed:#?}");
        assert!(missed.contains(&Event::RemovedSnapshot(known.name.clone())), "{missed:#?}");
        assert!(missed.contains(&Event::Operation(gone)), "{missed:#?}");
        mirror.apply(&missed).unwrap();
        is_true(&mirror, &lab.client, &guest).await;
        assert!(mirror.snapshots[&second.name].description == "renamed" && !mirror.snapshots.contains_key(&first.name));
    }

    let mut fresh = open(&lab.cluster, &guest, "of-another-catalogue-7").await;
    let state = fresh.until("the whole state", is_synced).await.unwrap();
    assert!(matches!(state[0], Event::Reset(_)), "a token that means nothing here begins anew: {state:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_ends_with_the_service_and_says_so() {
    let mut lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    let (ports, token) = (lab.cluster.ports(), lab.cluster.identity().admin_token().unwrap());
    let direct = Grpc::tls(ports.public, &lab.cluster.identity().ca()).unwrap();
    let mut watches = vec![open(&lab.cluster, &guest, "").await];
    watches.push(VmWatch::open(&direct, &token, &guest.vm(), "").await.unwrap());
    for watch in &mut watches {
        watch.until("the whole state", is_synced).await.unwrap();
    }
    assert!(lab.cluster.api().stop().unwrap().success());
    for watch in &mut watches {
        let end = watch.until("the end", |_| false).await.unwrap_err();
        let refusal = end.downcast_ref::<Refusal>().unwrap_or_else(|| panic!("{end:?}"));
        assert_eq!((refusal.code, refusal.reason.as_str()), (Code::Unavailable, "SHUTTING_DOWN"), "{refusal}");
    }
}

//! Waits until everything must have come to an end, and holds what was told against what was done.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use proto::v1::operation_service_client::OperationServiceClient;
use proto::v1::snapshot_service_client::SnapshotServiceClient;
use proto::{names, v1};
use snapshot_core::ids::VmId;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;

use crate::client::is_ended;
use crate::net;
use crate::world::{API, World};

/// How long after the last fault, and the last request, an operation may still run: the longest that an agent takes to look, to
/// act and to come back to it, and the longest that the API waits for it.
const BOUND: Duration = Duration::from_secs(180);
/// For how long a message may be on its way.
const FLIGHT: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_secs(1);

type Violation = Box<dyn std::error::Error>;

macro_rules! ensure {
    ($condition:expr, $($words:tt)*) => {
        if !$condition {
            return Err(format!($($words)*).into());
        }
    };
}

struct Judge {
    world: Arc<World>,
    snapshots: SnapshotServiceClient<Channel>,
    operations: OperationServiceClient<Channel>,
}

pub async fn run(world: Arc<World>) -> Result<(), Violation> {
    let channel = net::channel(API);
    let (snapshots, operations) = (SnapshotServiceClient::new(channel.clone()), OperationServiceClient::new(channel));
    let mut judge = Judge { world: world.clone(), snapshots, operations };
    while world.healed.lock().unwrap().is_none() || world.clients_left.load(Ordering::Relaxed) > 0 {
        sleep(AGAIN).await;
    }
    judge.all_ended().await?;
    judge.aftermath().await?;
    let operations = judge.all_ended().await?;
    let succeeded = operations.values().filter(|one| one.state() == v1::OperationState::Succeeded).count();
    *world.counted.lock().unwrap() = (operations.len(), succeeded);
    judge.told_and_done(&operations)?;
    judge.hosts_and_catalogue().await?;
    world.over.store(true, Ordering::Relaxed);
    Ok(())
}

impl Judge {
    /// All operations, once none runs.
    async fn all_ended(&mut self) -> Result<BTreeMap<String, v1::Operation>, Violation> {
        let begun = tokio::time::Instant::now();
        loop {
            let listed = self.list_operations().await;
            let stuck: Vec<_> = listed.iter().flatten().filter(|operation| !is_ended(operation)).collect();
            if let (Some(all), []) = (&listed, stuck.as_slice()) {
                return Ok(all.iter().map(|operation| (operation.name.clone(), operation.clone())).collect());
            }
            ensure!(begun.elapsed() < BOUND, "stuck: {stuck:?} (the API answers: {})", listed.is_some());
            sleep(AGAIN).await;
        }
    }

    /// What was given up may still be on its way to an agent, or in its hands.
    async fn aftermath(&self) -> Result<(), Violation> {
        let begun = tokio::time::Instant::now();
        sleep(FLIGHT).await;
        while self.world.in_hand.load(Ordering::Relaxed) > 0 {
            ensure!(begun.elapsed() < BOUND, "an agent is still at work");
            sleep(AGAIN).await;
        }
        sleep(FLIGHT).await;
        Ok(())
    }

    async fn list_operations(&mut self) -> Option<Vec<v1::Operation>> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let request =
                v1::ListOperationsRequest { page_size: 7, page_token, ..v1::ListOperationsRequest::default() };
            let call = self.operations.list_operations(self.world.request(request));
            let answer = timeout(Duration::from_secs(5), call).await.ok()?.ok()?.into_inner();
            all.extend(answer.operations);
            if answer.next_page_token.is_empty() {
                return Some(all);
            }
            page_token = answer.next_page_token;
        }
    }

    fn told_and_done(&self, operations: &BTreeMap<String, v1::Operation>) -> Result<(), Violation> {
        let mut effects = BTreeMap::new();
        for disk in &self.world.disks {
            effects.extend(disk.lock().unwrap().effects().into_iter().map(|(id, times)| (names::operation(id), times)));
        }
        for name in effects.keys() {
            ensure!(operations.contains_key(name), "{name} reached a host and has no intent");
        }
        let mut done_by_request: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, operation) in operations {
            let times = effects.get(name).copied().unwrap_or(0);
            let said = operation.state() == v1::OperationState::Succeeded;
            ensure!(times == u32::from(said), "done {times} times, and said to have ended so: {operation:?}");
            if said {
                done_by_request.entry(&operation.request_id).or_default().push(name);
            }
        }
        for (request, done) in done_by_request {
            ensure!(done.len() == 1, "request {request} was done by {done:?}");
        }
        for asked in self.world.asked.lock().unwrap().iter() {
            for name in &asked.acknowledged {
                let operation = operations.get(name);
                ensure!(operation.is_some(), "{name} was acknowledged and is lost");
                ensure!(
                    operation.is_some_and(|operation| operation.request_id == asked.request_id),
                    "{name} is not what was asked for by {asked:?}"
                );
            }
            for pair in asked.acknowledged.windows(2) {
                let first = operations[&pair[0]].state();
                let anew = pair[0] != pair[1];
                ensure!(!anew || first == v1::OperationState::Failed, "a replay of {} began {}", pair[0], pair[1]);
            }
            for seen in &asked.ended {
                ensure!(
                    operations[&seen.name] == *seen,
                    "ended as {seen:?}, and later as {:?}",
                    operations[&seen.name]
                );
            }
        }
        Ok(())
    }

    /// The catalogue, the hosts and the watcher agree, soon.
    async fn hosts_and_catalogue(&mut self) -> Result<(), Violation> {
        let begun = tokio::time::Instant::now();
        loop {
            let mut difference = None;
            for vm in World::machines() {
                difference = difference.or(self.difference(vm).await);
            }
            match difference {
                None => return Ok(()),
                Some(difference) => ensure!(begun.elapsed() < BOUND, "{difference}"),
            }
            sleep(AGAIN).await;
        }
    }

    async fn difference(&mut self, vm: VmId) -> Option<String> {
        let parent = names::vm(vm);
        let request = v1::ListSnapshotsRequest { parent: parent.clone(), ..v1::ListSnapshotsRequest::default() };
        let call = self.snapshots.list_snapshots(self.world.request(request));
        let listed = match timeout(Duration::from_secs(5), call).await {
            Ok(Ok(answer)) => answer.into_inner().snapshots,
            other => return Some(format!("no list of {parent}: {other:?}")),
        };
        let call = self.snapshots.get_vm(self.world.request(v1::GetVmRequest { name: parent.clone() }));
        let machine = match timeout(Duration::from_secs(5), call).await {
            Ok(Ok(answer)) => answer.into_inner(),
            other => return Some(format!("no answer for {parent}: {other:?}")),
        };
        if !machine.host_reachable || !machine.active_operation.is_empty() {
            return Some(format!("{machine:?}"));
        }
        let told = |one: &v1::Snapshot| {
            let parent = one.parent_snapshot.clone();
            (one.name.clone(), (parent, one.is_current, one.display_name.clone(), one.state()))
        };
        let catalogue: BTreeMap<_, _> = listed.iter().map(told).collect();
        let really = self.really(vm);
        if catalogue != really {
            return Some(format!("{parent}: the catalogue says {catalogue:?}, the host has {really:?}"));
        }
        if vm == World::machines()[0] {
            let mirror = self.world.mirror.lock().unwrap();
            let whole: BTreeMap<String, v1::Snapshot> =
                listed.into_iter().map(|snapshot| (snapshot.name.clone(), snapshot)).collect();
            if mirror.snapshots != whole {
                return Some(format!("the watcher knows {:?}, the list has {whole:?}", mirror.snapshots));
            }
            if mirror.vm.as_ref().map(|vm| &vm.etag) != Some(&machine.etag) {
                return Some(format!("the watcher knows {:?}, there is {machine:?}", mirror.vm));
            }
        }
        None
    }

    fn really(&self, vm: VmId) -> BTreeMap<String, (String, bool, String, v1::SnapshotState)> {
        let of_host =
            |disk: &Arc<std::sync::Mutex<crate::agent::Disk>>| disk.lock().unwrap().machines.get(&vm).cloned();
        let snapshots = self.world.disks.iter().find_map(of_host).unwrap_or_default();
        let one = |facts: &snapshot_core::snapshot::SnapshotFacts| {
            let parent = facts.parent.as_ref().map(|parent| names::snapshot(vm, parent)).unwrap_or_default();
            let told = (parent, facts.is_current, facts.label.display_name.to_string(), v1::SnapshotState::Ready);
            (names::snapshot(vm, &facts.id), told)
        };
        snapshots.iter().map(one).collect()
    }
}

//! Operations: repeated, only asked about, stopped, listed.

use std::time::{Duration, Instant};

use proto::v1;
use rustix::process::{Pid, Signal, kill_process};
use tests::client::{OPERATIONS, Refusal};
use tests::images;
use tests::lab::{HOST, Lab, Power, key};
use tonic::Code;

use super::{create, operations, operations_of, snapshot_page};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_answers_with_the_first_operation() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    guest.write('A').unwrap();
    let request = create(&guest, "once", &key());
    let ten = (0..10).map(|_| lab.client.create_as(request.clone()));
    let ten: Vec<v1::Operation> = futures_util::future::try_join_all(ten).await.unwrap();
    assert!(ten.iter().all(|operation| operation.name == ten[0].name), "{ten:#?}");
    let first = lab.client.done(Ok(ten[0].clone())).await.unwrap();
    assert_eq!(lab.client.create_as(request).await.unwrap(), first, "and when it has ended");
    assert_eq!(lab.agreed(&guest).await.unwrap().len(), 1);

    guest.write('B').unwrap();
    let revert = v1::RevertToSnapshotRequest { name: first.snapshot.clone(), request_id: key(), ..Default::default() };
    let back = lab.client.done(lab.client.revert_as(revert.clone()).await).await.unwrap();
    guest.write('C').unwrap();
    assert_eq!(lab.client.revert_as(revert).await.unwrap(), back);
    assert_eq!(guest.report().unwrap().disk, 'C', "a repeat reverts nothing twice");

    let label = v1::Snapshot { name: first.snapshot.clone(), display_name: "renamed".to_owned(), ..Default::default() };
    let update = v1::UpdateSnapshotRequest { snapshot: Some(label), request_id: key(), ..Default::default() };
    let renamed = lab.client.done(lab.client.update(update.clone()).await).await.unwrap();

    let delete = v1::DeleteSnapshotRequest { name: first.snapshot.clone(), request_id: key(), ..Default::default() };
    let gone = lab.client.done(lab.client.delete_as(delete.clone()).await).await.unwrap();
    assert_eq!(lab.client.delete_as(delete).await.unwrap(), gone, "although the snapshot does not exist any more");
    assert_eq!(lab.client.update(update).await.unwrap(), renamed, "and so for what was done to it");
    assert_eq!(operations_of(&lab.client, &guest).await, [gone, renamed, back, first], "newest first, and no more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_only_asks_gets_the_plan_and_changes_nothing() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    guest.write('A').unwrap();
    let parent = lab.take(&guest, "parent").await.unwrap();
    let child = lab.take(&guest, "child").await.unwrap();
    let (before, operations) = (lab.traces(&guest).await.unwrap(), operations_of(&lab.client, &guest).await);
    let steps = |plan: &v1::OperationPlan| plan.steps.iter().map(|step| step.kind.clone()).collect::<Vec<_>>();

    let request = v1::CreateSnapshotRequest { validate_only: true, ..create(&guest, "third", "") };
    let asked = lab.client.create_as(request).await.unwrap();
    let plan = asked.plan.as_ref().unwrap();
    assert_eq!((asked.name.as_str(), asked.kind()), ("", v1::OperationKind::Create));
    assert_eq!((steps(plan), plan.pauses, plan.losses.len()), (vec!["CREATE_INTERNAL".to_owned()], true, 0));
    assert!(plan.predicted_pause.is_some() && plan.bytes_written > 0, "{plan:?}");

    let revert = v1::RevertToSnapshotRequest { name: parent.name.clone(), validate_only: true, ..Default::default() };
    let plan = lab.client.revert_as(revert.clone()).await.unwrap().plan.unwrap();
    assert_eq!((steps(&plan), plan.losses.len()), (vec!["REVERT_IN_PLACE".to_owned()], 2), "disk and memory: {plan:?}");
    let [changes, running] = plan.loss_details.as_slice() else { panic!("one detail for each loss: {plan:?}") };
    assert_eq!((changes.kind(), &changes.snapshot), (v1::LossKind::Changes, &child.name), "since the present's own");
    assert_eq!(changes.since, child.create_time);
    assert_eq!((running.kind(), running.since), (v1::LossKind::RunningState, None));
    let saving = v1::RevertToSnapshotRequest { save_current: true, run_after: v1::RunAfter::Off.into(), ..revert };
    let plan = lab.client.revert_as(saving).await.unwrap().plan.unwrap();
    assert_eq!(steps(&plan), ["CREATE_INTERNAL", "REVERT_IN_PLACE", "POWER_OFF"]);
    assert!(plan.losses.is_empty(), "{plan:?}");

    let scope = v1::DeleteScope::Subtree.into();
    let delete =
        v1::DeleteSnapshotRequest { name: parent.name.clone(), scope, validate_only: true, ..Default::default() };
    let plan = lab.client.delete_as(delete).await.unwrap().plan.unwrap();
    assert_eq!(plan.deleted_snapshots, [&child.name, &parent.name].map(Clone::clone), "leaf first");
    assert_eq!(plan.losses.len(), 2);
    let lost = plan.loss_details.iter().map(|loss| (loss.kind(), &loss.snapshot)).collect::<Vec<_>>();
    assert_eq!(lost, [(v1::LossKind::Snapshot, &child.name), (v1::LossKind::Snapshot, &parent.name)]);
    assert_eq!(lab.client.vm(&guest.vm()).await.unwrap().snapshot_limit, 100, "as the host's policy has it");
    let purge = v1::PurgeVmRequest { name: guest.vm(), validate_only: true, ..Default::default() };
    assert_eq!(lab.client.purge(purge).await.unwrap().plan.unwrap().deleted_snapshots.len(), 2);

    assert_eq!(lab.traces(&guest).await.unwrap(), before);
    assert_eq!(operations_of(&lab.client, &guest).await, operations);
    assert_eq!(lab.client.vm(&guest.vm()).await.unwrap().active_operation, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_takes_everything_and_can_be_stopped_halfway() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    guest.write('A').unwrap();
    for n in 0..5 {
        lab.take(&guest, &format!("n{n}")).await.unwrap();
    }
    // QEMU stands still, so the purge is at its first step when it is told to stop.
    let qemu = Pid::from_raw(lab.daemon().unwrap().qemu_pid(&guest).unwrap()).unwrap();
    kill_process(qemu, Signal::STOP).unwrap();
    let purge = v1::PurgeVmRequest { name: guest.vm(), request_id: key(), ..Default::default() };
    let begun = lab.client.purge(purge.clone()).await.unwrap();
    assert!(begun.cancellable && begun.state() == v1::OperationState::Running, "{begun:?}");
    let marked = lab.client.snapshots(&guest.vm()).await.unwrap();
    assert!(marked.iter().all(|one| one.state() == v1::SnapshotState::Deleting), "{marked:?}");
    let active = v1::ListOperationsRequest { active_only: true, ..Default::default() };
    let active = operations(&lab.client, active).await.unwrap().operations;
    assert_eq!(active.iter().map(|one| &one.name).collect::<Vec<_>>(), [&begun.name]);
    let cancel = v1::CancelOperationRequest { name: begun.name.clone() };
    let told: Result<v1::Operation, Refusal> = lab.client.call((OPERATIONS, "CancelOperation"), &cancel).await;
    assert_eq!(told.unwrap().name, begun.name);
    kill_process(qemu, Signal::CONT).unwrap();

    let ended = lab.client.ended(begun.clone()).await.unwrap();
    assert_eq!(ended.state(), v1::OperationState::Cancelled, "{ended:?}");
    let left = lab.agreed(&guest).await.unwrap();
    assert!((3..5).contains(&left.len()), "it stops between two steps: {left:?}");
    assert!(left.iter().all(|one| one.state() == v1::SnapshotState::Ready), "{left:?}");
    lab.return_to(left.last().unwrap()).await.unwrap();
    assert_eq!(guest.report().unwrap().disk, 'A', "what is left is whole");
    let again: Result<v1::Operation, Refusal> = lab.client.call((OPERATIONS, "CancelOperation"), &cancel).await;
    assert_eq!(again.unwrap(), ended, "what has ended stays as it is");

    let rest = v1::PurgeVmRequest { request_id: key(), ..purge };
    let done = lab.client.done(lab.client.purge(rest).await).await.unwrap();
    assert_eq!((done.kind(), done.snapshot.as_str()), (v1::OperationKind::Purge, ""));
    lab.nothing_left(&guest, &left[0]).await.unwrap();
    assert_eq!(guest.report().unwrap().disk, 'A', "a purge leaves the present alone");
    lab.set(&guest, Power::Off).await.unwrap();
    images::check(guest.disks()[0].path()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_stopped_says_so() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    let qemu = Pid::from_raw(lab.daemon().unwrap().qemu_pid(&guest).unwrap()).unwrap();
    kill_process(qemu, Signal::STOP).unwrap();
    let begun = lab.client.create(&guest.vm(), "slow", "").await.unwrap();
    assert!(!begun.cancellable, "{begun:?}");
    let cancel = v1::CancelOperationRequest { name: begun.name.clone() };
    let told: Result<v1::Operation, Refusal> = lab.client.call((OPERATIONS, "CancelOperation"), &cancel).await;
    let refusal = told.unwrap_err();
    assert_eq!((refusal.code, refusal.reason.as_str()), (Code::FailedPrecondition, "NOT_CANCELLABLE"), "{refusal}");
    // The host tells of it with its next heartbeat.
    let seen = async {
        loop {
            let host = lab.client.hosts().await.unwrap().remove(0);
            assert_eq!(host.name, format!("hosts/{HOST}"));
            if host.running_operations == [begun.name.clone()] {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), seen).await.unwrap();
    kill_process(qemu, Signal::CONT).unwrap();
    lab.client.done(Ok(begun)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_go_on_where_they_ended_whatever_comes_and_goes() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    lab.set(&guest, Power::Off).await.unwrap();
    let mut all = Vec::new();
    for n in 0..5 {
        all.push(lab.take(&guest, &format!("n{n}")).await.unwrap());
    }
    let names = |list: &[v1::Snapshot]| list.iter().map(|one| one.display_name.clone()).collect::<Vec<_>>();
    let first = snapshot_page(&lab.client, &guest, 2, "").await;
    assert_eq!(names(&first.snapshots), ["n0", "n1"]);
    // The very one that the token names goes, one that is yet to come goes, and one is added at the end.
    lab.remove(&all[1], v1::DeleteScope::Only).await.unwrap();
    lab.remove(&all[3], v1::DeleteScope::Only).await.unwrap();
    lab.take(&guest, "n5").await.unwrap();
    let second = snapshot_page(&lab.client, &guest, 2, &first.next_page_token).await;
    assert_eq!(names(&second.snapshots), ["n2", "n4"]);
    let third = snapshot_page(&lab.client, &guest, 2, &second.next_page_token).await;
    assert_eq!((names(&third.snapshots), third.next_page_token.as_str()), (vec!["n5".to_owned()], ""));

    let page = |page_token: String| {
        let request = v1::ListOperationsRequest { page_size: 3, page_token, vm: guest.vm(), active_only: false };
        operations(&lab.client, request)
    };
    let newest = page(String::new()).await.unwrap();
    lab.take(&guest, "n6").await.unwrap();
    let older = page(newest.next_page_token.clone()).await.unwrap();
    let told: Vec<&str> = newest.operations.iter().chain(&older.operations).map(|one| one.name.as_str()).collect();
    let whole = operations_of(&lab.client, &guest).await;
    assert_eq!(told, whole.iter().skip(1).take(6).map(|one| one.name.as_str()).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_goes_away_leaves_no_operation_that_nobody_follows() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("student").await.unwrap();
    lab.set(&guest, Power::Off).await.unwrap();
    // From before the request is read to after it is answered.
    for step in 0..60 {
        let request = create(&guest, "given up", &key());
        let given_up = tokio::time::timeout(Duration::from_micros(200 * step), lab.client.create_as(request)).await;
        let begun = Instant::now();
        loop {
            let all = operations_of(&lab.client, &guest).await;
            let open = |operation: &&v1::Operation| operation.end_time.is_none();
            let Some(open) = all.iter().find(open) else { break };
            assert!(begun.elapsed() < Duration::from_secs(60), "given up after step {step}, {given_up:?}: {open:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

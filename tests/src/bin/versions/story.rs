//! What users do, told to a cluster of two versions, with a guest that says what is on its disk and in its RAM.

use anyhow::{Context as _, Result, bail, ensure};
use proto::v1;
use proto::v1::watch_vm_response::Event;
use tests::client::{Grpc, HOSTS, VmWatch};
use tests::guest::Guest;
use tests::lab::{HOST, Lab, Power, key};
use tonic::Code;

use crate::{AGENT, API};

/// What an agent that knows live snapshots answers to the wish for one.
const LIVE_REFUSED: (Code, &str) = (Code::FailedPrecondition, "LIVE_DISKS_UNSUPPORTED");

/// Everything, on a guest of its own.
pub(crate) async fn tell(lab: &Lab, earlier: &[&str]) -> Result<()> {
    let guest = lab.guest("desk").await?;
    watched(lab, &guest, earlier).await.context("taken, gone back to and renamed under a watch")?;
    live(lab, &guest, earlier).await.context("live")?;
    whole(lab, &guest).await.context("of a machine that is off")?;
    behind(lab, &guest).await.context("behind the service's back")?;
    purged(lab, &guest).await.context("a purge")
}

/// CreateSnapshot of a machine with these contents.
pub(crate) fn wish(guest: &Guest, name: &str, content: v1::SnapshotContent) -> v1::CreateSnapshotRequest {
    v1::CreateSnapshotRequest {
        parent: guest.vm(),
        snapshot: Some(v1::Snapshot { display_name: name.to_owned(), ..Default::default() }),
        content: content.into(),
        request_id: key(),
        ..Default::default()
    }
}

async fn take(lab: &Lab, request: v1::CreateSnapshotRequest) -> Result<v1::Snapshot> {
    let operation = lab.client.done(lab.client.create_as(request).await).await?;
    Ok(lab.client.snapshot(&operation.snapshot).await?)
}

/// Goes back, and asks the guest.
async fn back_to(lab: &Lab, guest: &Guest, snapshot: &v1::Snapshot, letter: char) -> Result<v1::Operation> {
    let operation = lab.return_to(snapshot).await?;
    lab.client.vm_in_state(&guest.vm(), v1::VmState::Running).await?;
    let report = guest.report()?;
    ensure!(report.disk == letter, "back at {} the guest reads {report:?}", snapshot.display_name);
    Ok(operation)
}

async fn watched(lab: &Lab, guest: &Guest, earlier: &[&str]) -> Result<()> {
    let token = lab.cluster.identity().admin_token()?;
    let mut watch = VmWatch::open(&Grpc::plain(lab.cluster.ports().gateway)?, &token, &guest.vm(), "").await?;
    watch.until("the whole state", |event| matches!(event, Event::Synced(_))).await?;

    guest.write('A')?;
    let kept = take(lab, wish(guest, "kept", v1::SnapshotContent::DisksAndMemory)).await?;
    let ready = |event: &Event| matches!(event, Event::Snapshot(one) if one.name == kept.name && one.state() == v1::SnapshotState::Ready);
    watch.until("the snapshot", ready).await?;
    ensure!(kept.consistency() == v1::SnapshotConsistency::Complete, "{kept:?}");
    guest.write('B')?;
    let back = back_to(lab, guest, &kept, 'A').await?;
    ensure!(guest.report()?.ram == 'A', "and its RAM: {:?}", guest.report()?);
    let in_place = !earlier.contains(&AGENT);
    ensure!((back.method() == v1::OperationMethod::InPlace) == in_place, "{back:?}");
    let ended = |event: &Event| matches!(event, Event::Operation(one) if one.name == back.name && one.state() == v1::OperationState::Succeeded);
    watch.until("the revert", ended).await?;

    let renamed = v1::Snapshot { display_name: "renamed".to_owned(), ..kept.clone() };
    let mask = prost_types::FieldMask { paths: vec!["display_name".to_owned()] };
    let update = v1::UpdateSnapshotRequest {
        snapshot: Some(renamed),
        update_mask: Some(mask),
        request_id: key(),
        ..Default::default()
    };
    lab.client.done(lab.client.update(update).await).await?;
    ensure!(lab.client.snapshot(&kept.name).await?.display_name == "renamed");
    lab.agreed(guest).await?;
    lab.remove(&kept, v1::DeleteScope::Only).await?;
    lab.nothing_left(guest, &kept).await
}

/// An agent that cannot take disks live says so and has changed nothing; one that can does, whoever asks.
async fn live(lab: &Lab, guest: &Guest, earlier: &[&str]) -> Result<()> {
    guest.write('C')?;
    let mut frozen = wish(guest, "frozen if possible", v1::SnapshotContent::Disks);
    (frozen.quiesce, frozen.allow_crash_consistent) = (true, true);
    let before = lab.traces(guest).await?;
    // What an earlier agent does not read is refused, and so is what an earlier API does not pass on: nothing is assumed.
    if earlier.contains(&AGENT) || earlier.contains(&API) {
        if let Ok(begun) = lab.client.create_as(frozen).await {
            let ended = lab.client.ended(begun).await?;
            ensure!(ended.state() == v1::OperationState::Failed, "taken without its freeze: {ended:?}");
        }
        ensure!(lab.traces(guest).await? == before, "what was refused has left something");
    } else {
        let taken = take(lab, frozen).await?;
        ensure!(taken.consistency() == v1::SnapshotConsistency::CrashNoAgent, "{taken:?}");
        lab.remove(&taken, v1::DeleteScope::Only).await?;
    }
    let asked = lab.client.create_as(wish(guest, "live", v1::SnapshotContent::Disks)).await;
    if earlier.contains(&AGENT) {
        let refused = asked.err().context("an earlier agent took disks live")?;
        ensure!((refused.code, refused.reason.as_str()) == LIVE_REFUSED, "{refused}");
        ensure!(lab.traces(guest).await? == before, "what was refused has left something");
        // What nobody asked for in particular is taken in the way that the agent has.
        let usual = take(lab, wish(guest, "usual", v1::SnapshotContent::Unspecified)).await?;
        ensure!(usual.content() == v1::SnapshotContent::DisksAndMemory, "{usual:?}");
        lab.remove(&usual, v1::DeleteScope::Only).await?;
        return Ok(());
    }
    let done = lab.client.done(asked).await?;
    ensure!(done.method() == v1::OperationMethod::Live, "{done:?}");
    let taken = lab.client.snapshot(&done.snapshot).await?;
    ensure!(taken.vm_state() == v1::SnapshotVmState::DiskOnly, "{taken:?}");
    ensure!(taken.consistency() == v1::SnapshotConsistency::Crash, "{taken:?}");
    lab.agreed(guest).await?;
    guest.write('D')?;
    back_to(lab, guest, &taken, 'C').await?;
    lab.remove(&taken, v1::DeleteScope::Only).await?;
    Ok(())
}

/// A chain of two of a machine that is off, deleted from its root.
async fn whole(lab: &Lab, guest: &Guest) -> Result<()> {
    guest.write('E')?;
    lab.set(guest, Power::Off).await?;
    let first = lab.take(guest, "first").await?;
    lab.set(guest, Power::Running).await?;
    guest.write('F')?;
    lab.set(guest, Power::Off).await?;
    let second = lab.take(guest, "second").await?;
    ensure!(second.parent_snapshot == first.name, "{second:?}");
    lab.return_to(&first).await?;
    lab.set(guest, Power::Running).await?;
    ensure!(guest.report()?.disk == 'E', "{:?}", guest.report()?);
    lab.remove(&first, v1::DeleteScope::Subtree).await?;
    lab.nothing_left(guest, &first).await
}

/// virsh takes one and removes it; then the host is read again.
async fn behind(lab: &Lab, guest: &Guest) -> Result<()> {
    lab.daemon()?.virsh(&["snapshot-create-as", guest.name(), "by-hand"])?;
    let seen = lab.agreed_soon(guest).await?;
    let [foreign] = seen.as_slice() else { bail!("not one snapshot: {seen:?}") };
    ensure!(foreign.origin() == v1::SnapshotOrigin::Foreign, "{foreign:?}");
    let request = v1::ReconcileHostRequest { name: format!("hosts/{HOST}") };
    let answer: v1::ReconcileHostResponse = lab.client.call((HOSTS, "ReconcileHost"), &request).await?;
    ensure!(answer.corrected_count == 0, "{answer:?}");
    let host = answer.host.context("no host")?;
    ensure!(host.reachable && host.vm_count == 1, "{host:?}");
    lab.daemon()?.virsh(&["snapshot-delete", guest.name(), "by-hand"])?;
    ensure!(lab.agreed_soon(guest).await?.is_empty());
    Ok(())
}

async fn purged(lab: &Lab, guest: &Guest) -> Result<()> {
    guest.write('G')?;
    let taken = take(lab, wish(guest, "one", v1::SnapshotContent::DisksAndMemory)).await?;
    lab.take(guest, "two").await?;
    let purge = v1::PurgeVmRequest { name: guest.vm(), request_id: key(), ..Default::default() };
    lab.client.done(lab.client.purge(purge).await).await?;
    ensure!(guest.report()?.disk == 'G', "{:?}", guest.report()?);
    lab.nothing_left(guest, &taken).await
}

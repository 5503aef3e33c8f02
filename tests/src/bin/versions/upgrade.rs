//! One installation that is upgraded in the order that docs/operations/upgrading.md gives, with an operation in flight at each step,
//! and taken back in the other order, when none is. The API goes back with the backup from before: a newer schema is refused.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use proto::v1;
use rustix::process::{Pid, Signal, kill_process};
use tests::guest::Guest;
use tests::lab::{HOST, Lab};
use tests::tools;

use crate::story::wish;
use crate::{AGENT, API, GATEWAY, administrator, earlier};

/// How long an agent may take to be found again.
const REACHABLE: Duration = Duration::from_secs(60);

pub(crate) async fn tell(mut lab: Lab, folder: &Path) -> Result<()> {
    let (desk, other) = (lab.guest("desk").await?, lab.guest("other").await?);
    desk.write('A')?;
    let kept = take(&lab, &desk, "kept", v1::SnapshotContent::DisksAndMemory).await?;
    desk.write('B')?;
    let begun = lab.client.audit().await?.len();

    // QEMU stands still, so libvirt is in the middle of it when the API is killed.
    let backup = backup(&lab, folder)?;
    let held = hold(&lab, &other).await?;
    lab.cluster.api().kill()?;
    lab.cluster.api().replace_program(tools::binary(API)?);
    lab.cluster.start_api_again()?;
    lab.client = administrator(&lab.cluster, false)?;
    reachable(&lab).await?;
    let still = lab.client.operation(&held.name).await?;
    ensure!(still.state() == v1::OperationState::Running, "{still:?}");
    let_go(&lab, &other)?;
    lab.client.done(Ok(held)).await.context("in flight over the API's upgrade")?;
    ensure!(settled(&lab, &other).await?.len() == 1);
    replace_gateway(&mut lab, &tools::binary(GATEWAY)?)?;

    let held = hold(&lab, &other).await?;
    lab.cluster.host_mut(HOST)?.agent().kill()?;
    lab.cluster.host_mut(HOST)?.agent().replace_program(tools::binary(AGENT)?);
    lab.cluster.host_mut(HOST)?.start_agent_again()?;
    let_go(&lab, &other)?;
    let ended = lab.client.ended(held).await.context("in flight over the agent's upgrade")?;
    let left = settled(&lab, &other).await?;
    let succeeded = ended.state() == v1::OperationState::Succeeded;
    ensure!(left.len() == 1 + usize::from(succeeded), "{ended:?} and {left:?}");

    let list = settled(&lab, &desk).await?;
    ensure!(list.len() == 1 && list[0].name == kept.name, "{list:?}");
    ensure!(lab.client.audit().await?.len() > begun, "the audit trail has gone on");
    let live = take(&lab, &desk, "live", v1::SnapshotContent::Disks).await?;
    reads(&lab, &desk, &kept, 'A').await.context("after the upgrade")?;
    reads(&lab, &desk, &live, 'B').await.context("after the upgrade")?;

    lab.cluster.host_mut(HOST)?.agent().stop()?;
    lab.cluster.host_mut(HOST)?.agent().replace_program(earlier(folder, AGENT)?);
    lab.cluster.host_mut(HOST)?.start_agent_again()?;
    reads(&lab, &desk, &kept, 'A').await.context("with the agent taken back")?;
    reads(&lab, &desk, &live, 'B').await.context("with the agent taken back")?;
    replace_gateway(&mut lab, &earlier(folder, GATEWAY)?)?;
    lab.cluster.api().stop()?;
    put_back(&lab, &backup)?;
    lab.cluster.api().replace_program(earlier(folder, API)?);
    lab.cluster.start_api_again()?;
    lab.client = administrator(&lab.cluster, true)?;
    reachable(&lab).await?;
    let told: Vec<String> = settled(&lab, &desk).await?.into_iter().map(|one| one.display_name).collect();
    ensure!(told == ["kept", "live"], "what came after the backup is told by the host: {told:?}");
    ensure!(settled(&lab, &other).await?.len() == left.len());
    reads(&lab, &desk, &kept, 'A').await.context("with the API taken back")?;
    reads(&lab, &desk, &live, 'B').await.context("with the API taken back")?;
    complaints_of_earlier_agent(&mut lab)
}

/// The release before sets aside what it finds in the journal of operations that ended and that it does not know, and says so for
/// each; anything else that it complains of is a fault.
fn complaints_of_earlier_agent(lab: &mut Lab) -> Result<()> {
    let log = lab.cluster.host_mut(HOST)?.agent().log().to_owned();
    let text = std::fs::read_to_string(&log)?;
    let mut complaints = text.lines().filter(|line| line.contains("ERROR"));
    if let Some(line) = complaints.find(|line| !line.contains("an entry of the journal makes no sense; set aside")) {
        bail!("the agent that was taken back logged: {line}");
    }
    // A Lab takes no error in a log.
    Ok(std::fs::write(log, "")?)
}

async fn take(lab: &Lab, guest: &Guest, name: &str, content: v1::SnapshotContent) -> Result<v1::Snapshot> {
    let operation = lab.client.done(lab.client.create_as(wish(guest, name, content)).await).await?;
    Ok(lab.client.snapshot(&operation.snapshot).await?)
}

/// A copy of the catalogue, by the program that is about to be replaced.
fn backup(lab: &Lab, folder: &Path) -> Result<PathBuf> {
    let to = lab.cluster.catalogue().with_extension("before");
    let config = lab.cluster.api_config();
    tools::run(Command::new(earlier(folder, API)?).arg("backup").arg("--config").arg(config).arg("--to").arg(&to))?;
    Ok(to)
}

/// As docs/operations/catalogue.md restores.
fn put_back(lab: &Lab, backup: &Path) -> Result<()> {
    let catalogue = lab.cluster.catalogue();
    let with = |end: &str| PathBuf::from(format!("{}{end}", catalogue.display()));
    for end in ["-wal", "-shm"].map(with).iter().filter(|path| path.exists()) {
        std::fs::remove_file(end)?;
    }
    std::fs::rename(&catalogue, with(".newer"))?;
    Ok(std::fs::copy(backup, catalogue).map(|_| ())?)
}

/// Begins a snapshot that does not come to its end.
async fn hold(lab: &Lab, guest: &Guest) -> Result<v1::Operation> {
    reachable(lab).await?;
    kill_process(qemu(lab, guest)?, Signal::STOP)?;
    Ok(lab.client.create_as(wish(guest, "in flight", v1::SnapshotContent::DisksAndMemory)).await?)
}

fn let_go(lab: &Lab, guest: &Guest) -> Result<()> {
    Ok(kill_process(qemu(lab, guest)?, Signal::CONT)?)
}

fn qemu(lab: &Lab, guest: &Guest) -> Result<Pid> {
    Pid::from_raw(lab.daemon()?.qemu_pid(guest)?).context("a QEMU's process")
}

/// Catalogue, libvirt and image say the same, and the guest answers.
async fn settled(lab: &Lab, guest: &Guest) -> Result<Vec<v1::Snapshot>> {
    lab.client.vm_in_state(&guest.vm(), v1::VmState::Running).await?;
    guest.report()?;
    lab.agreed_soon(guest).await
}

/// Waits until the API has its host.
async fn reachable(lab: &Lab) -> Result<()> {
    let begun = Instant::now();
    while !lab.client.hosts().await?.iter().all(|host| host.reachable) {
        ensure!(begun.elapsed() < REACHABLE, "the host is not reachable after {REACHABLE:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

fn replace_gateway(lab: &mut Lab, program: &Path) -> Result<()> {
    lab.cluster.gateway().stop()?;
    lab.cluster.gateway().replace_program(program.to_owned());
    lab.cluster.start_gateway_again()
}

/// The guest reads this after a revert that lets it run.
async fn reads(lab: &Lab, guest: &Guest, snapshot: &v1::Snapshot, letter: char) -> Result<()> {
    reachable(lab).await?;
    let request = v1::RevertToSnapshotRequest {
        name: snapshot.name.clone(),
        run_after: v1::RunAfter::Running.into(),
        request_id: tests::lab::key(),
        ..Default::default()
    };
    lab.client.done(lab.client.revert_as(request).await).await?;
    lab.client.vm_in_state(&guest.vm(), v1::VmState::Running).await?;
    let report = guest.report()?;
    ensure!(report.disk == letter, "at {} the guest reads {report:?}", snapshot.display_name);
    Ok(())
}

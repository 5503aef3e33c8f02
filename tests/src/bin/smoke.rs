//! `make smoke`: the story of the README on a real guest, over every face of the public API. Exits 0 or 1.
//!
//! The guest writes A; a snapshot is taken; the guest writes B; it is taken back; the guest reads A. virsh on the same
//! libvirt shows the snapshot while it is there, and neither libvirt nor the image has anything of it afterwards.

#![expect(clippy::print_stdout, reason = "what happened is what the command is for")]

use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use proto::v1;
use tests::client::{Client, faces};
use tests::cluster::Cluster;
use tests::guest::Guest;
use tests::images;

#[tokio::main]
async fn main() -> ExitCode {
    match tell().await {
        Ok(()) => {
            println!("smoke: everything as it should be");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("smoke: FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn tell() -> Result<()> {
    let cluster = Cluster::with_daemons(&["alpha"])?;
    let daemon = cluster.host("alpha")?.libvirtd()?;
    let guest = Guest::new(&daemon.images()?, "desk")?;
    daemon.define_and_start(&guest)?;
    guest.report()?;
    for face in faces(&cluster)? {
        let client = Client::new(face, cluster.identity().admin_token()?);
        client.vm_in_state(&guest.vm(), v1::VmState::Running).await?;
        story(&cluster, &client, &guest).await.with_context(|| client.face())?;
        println!("smoke: {}: written A, snapshot, written B, reverted, read A, deleted", client.face());
    }
    Ok(())
}

async fn story(cluster: &Cluster, client: &Client, guest: &Guest) -> Result<()> {
    let daemon = cluster.host("alpha")?.libvirtd()?;
    guest.write('A')?;
    let operation = client.done(client.create(&guest.vm(), "before exam", "all packages installed").await).await?;
    let snapshot = client.snapshot(&operation.snapshot).await?;
    ensure!(snapshot.display_name == "before exam" && snapshot.is_current, "it is listed as {snapshot:?}");
    let id = snapshot.name.rsplit('/').next().unwrap_or_default().to_owned();
    ensure!(daemon.snapshots(guest)? == [id], "virsh shows {:?}", daemon.snapshots(guest)?);
    guest.write('B')?;
    client.done(client.revert(&snapshot.name).await).await?;
    let report = guest.report()?;
    ensure!(report.disk == 'A' && report.ram == 'A', "the guest reads {report:?}");
    client.done(client.delete(&snapshot.name, v1::DeleteScope::Only).await).await?;
    ensure!(client.snapshots(&guest.vm()).await?.is_empty(), "the catalogue still has it");
    ensure!(daemon.snapshots(guest)?.is_empty(), "libvirt still has it");
    for disk in guest.disks() {
        ensure!(images::internal_snapshots(disk.path())?.is_empty(), "the image still has it");
    }
    Ok(())
}

//! `make demo`: two small guests and all services on 127.0.0.1, until Ctrl-C.
//!
//! The guests run under libvirt's embedded driver inside the agent, so no libvirt daemon is needed and none of the
//! machine's own is touched. Ctrl-C ends the services and the guests and removes their folder.

#![expect(clippy::print_stdout, reason = "what the demo prints is what it is for")]

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use proto::v1;
use tests::client::Client;
use tests::cluster::{ALL_ACTIONS, Backend, Cluster, HostPlan};
use tests::embed::EmbedRoot;
use tests::guest::Guest;
use tests::tools;
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> Result<()> {
    // Before anything is started, so that a signal during the start cleans up as well.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut demo = tokio::task::spawn_blocking(start);
    let demo = tokio::select! {
        demo = &mut demo => demo??,
        _ = interrupt.recv() => { drop(demo.await??); return Ok(()) }
        _ = terminate.recv() => { drop(demo.await??); return Ok(()) }
    };
    tokio::select! {
        known = demo.known() => known?,
        _ = interrupt.recv() => return Ok(()),
        _ = terminate.recv() => return Ok(()),
    }
    print(&demo)?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    // Whoever read it may be gone, and the demo is to clean up all the same.
    let _ = writeln!(std::io::stdout(), "\nstopping");
    tokio::task::spawn_blocking(move || drop(demo)).await?;
    Ok(())
}

struct Demo {
    cluster: Cluster,
    /// The guests' serial ports. The guests themselves are let go: a port takes one caller at a time, and that is to be
    /// the person at the demo.
    serials: Vec<PathBuf>,
    vms: Vec<String>,
}

impl Demo {
    /// Waits until the API has heard of the guests: what is printed then works at once.
    async fn known(&self) -> Result<()> {
        let client = Client::admin(&self.cluster)?;
        for vm in &self.vms {
            client.vm_in_state(vm, v1::VmState::Running).await?;
        }
        Ok(())
    }
}

fn start() -> Result<Demo> {
    let root = EmbedRoot::new()?;
    let images = root.images()?;
    let guests = vec![Guest::new(&images, "desk-1")?, Guest::new(&images, "desk-2")?];
    for guest in &guests {
        root.define(guest, true)?;
    }
    // As an agent does by itself; the tests' hosts save the memory unless they are told otherwise.
    let host = HostPlan::on("alpha", Backend::Embedded(root)).policy("live_snapshots = true\n");
    let cluster = Cluster::start(vec![host])?;
    for guest in &guests {
        guest.report()?;
    }
    let serials = guests.iter().map(|guest| guest.serial().to_owned()).collect();
    let vms = guests.iter().map(Guest::vm).collect();
    Ok(Demo { cluster, serials, vms })
}

fn print(demo: &Demo) -> Result<()> {
    let Demo { cluster, serials, .. } = demo;
    let identity = cluster.identity();
    let token = identity.token_for("demo", "*", &ALL_ACTIONS, "900")?;
    let ports = cluster.ports();
    let (ca, key) = (identity.ca(), identity.issuer_key());
    let (api, say, grpcurl) = (tools::binary("snapshot-api")?, tools::binary("say")?, tools::tool("grpcurl")?);
    println!(
        "\nThe page (the token in it is good for 15 minutes):\n  http://127.0.0.1:{}/#token={token}",
        ports.gateway
    );
    println!("\nA token, and how to get the next one:\n  TOKEN={token}");
    println!(
        "  TOKEN=$({} token mint --key {} --issuer {} --kid {} --subject demo --vm '*' --actions {} --lifetime 900)",
        api.display(),
        key.display(),
        identity.issuer(),
        identity.kid(),
        ALL_ACTIONS.join(",")
    );
    println!("\nJSON, through the gateway:");
    println!(
        "  curl -s -H \"Authorization: Bearer $TOKEN\" -H 'Content-Type: application/json' -d '{{}}' \
         http://127.0.0.1:{}/ravada.snapshot.v1.SnapshotService/ListVms",
        ports.gateway
    );
    println!("\ngRPC, straight to the API:");
    println!(
        "  {} -cacert {} -H \"Authorization: Bearer $TOKEN\" 127.0.0.1:{} \
         ravada.snapshot.v1.SnapshotService/ListVms",
        grpcurl.display(),
        ca.display(),
        ports.public
    );
    println!("\nThe guests hold one letter on their disk (D) and one in their RAM (M). Ask (r) or write (wA):");
    for serial in serials {
        println!("  {} {} wA", say.display(), serial.display());
    }
    println!("\nCtrl-C ends it all and leaves nothing.");
    std::io::stdout().flush()?;
    Ok(())
}

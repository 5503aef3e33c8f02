//! `stage GUEST...`: running guests and all services for a test in another language.
//!
//! One host with a private libvirt daemon, and a mini guest of each name on it. When the API knows them, one line of JSON is
//! printed with all that a test needs to reach them; when stdin is closed, everything ends and nothing is left. Whoever
//! starts it need not clean up: their end closes the pipe.

#![expect(clippy::print_stdout, reason = "what it prints is what it is for")]

use std::io::{Read as _, Write as _};

use anyhow::Result;
use serde_json::{Value, json};
use tests::guest::Guest;
use tests::lab::{HOST, Lab};
use tests::tools;

#[tokio::main]
async fn main() -> Result<()> {
    let names: Vec<String> = std::env::args().skip(1).collect();
    let lab = Lab::start()?;
    let mut guests = Vec::new();
    for name in &names {
        guests.push(lab.guest(name).await?);
    }
    for guest in &guests {
        guest.report()?;
    }
    let told = describe(&lab, &guests)?;
    // A serial port takes one caller at a time, and that is to be the test.
    drop(guests);
    println!("{told}");
    std::io::stdout().flush()?;
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    tokio::task::spawn_blocking(move || drop(lab)).await?;
    Ok(())
}

fn describe(lab: &Lab, guests: &[Guest]) -> Result<Value> {
    let (identity, daemon) = (lab.cluster.identity(), lab.daemon()?);
    let guests: Vec<Value> = guests
        .iter()
        .map(|guest| {
            let disks: Vec<_> = guest.disks().iter().map(|disk| disk.path()).collect();
            json!({ "name": guest.name(), "uuid": guest.uuid(), "serial": guest.serial(), "disks": disks })
        })
        .collect();
    Ok(json!({
        "host": HOST,
        "gateway": format!("http://127.0.0.1:{}", lab.cluster.ports().gateway),
        "libvirt": daemon.uri(),
        "snapshot_folder": daemon.snapshot_folder(),
        "database": lab.cluster.catalogue(),
        "issuer": identity.issuer(),
        "kid": identity.kid(),
        "key": identity.issuer_key(),
        "jwks": identity.jwks(),
        "say": tools::binary("say")?,
        "guests": guests,
    }))
}

//! `make compose-test`: docker-compose.yml as somebody has it who tries it. It comes up by one command; the story of `make
//! smoke` is told to both hosts over every face; one host is cut off, and the other goes on; the first is connected again, and has not
//! lost what it was at; one command takes everything down.
//!
//! The images are there already, and `DOCKER_HOST` names a daemon of the test's own (packaging/compose/test.sh).

#![expect(clippy::print_stdout, reason = "what happened is what the command is for")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use proto::v1;
use tests::client::{Client, HOSTS, faces_at};
use tests::guest::Guest;
use tests::images;
use tests::scratch::Scratch;
use tests::tools::{run, tool};
use tonic::Code;
use uuid::Uuid;

/// Where an agent has its machines, in its container.
const MACHINES: &str = "/machines";
const GATEWAY: u16 = 7480;
const PUBLIC: u16 = 7444;
/// How long a host may take to be noticed as gone, or as back.
const NOTICED: Duration = Duration::from_secs(120);

#[tokio::main]
async fn main() -> ExitCode {
    let result = tell().await;
    match result {
        Ok(()) => {
            println!("compose: everything as it should be");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("compose: FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// docker-compose.yml, with a folder for the machines of each host. Dropping it takes it down.
struct Installation {
    scratch: Scratch,
}

impl Installation {
    fn compose(&self, arguments: &[&str]) -> Result<String> {
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker-compose.yml");
        let mut command = Command::new(tool("docker-compose")?);
        command.arg("--progress=quiet").arg("--file").arg(project).args(arguments);
        for host in ["alpha", "beta"] {
            command.env(format!("{}_MACHINES", host.to_uppercase()), self.machines(host)?);
        }
        run(&mut command)
    }

    fn machines(&self, host: &str) -> Result<PathBuf> {
        self.scratch.folder(host)
    }

    /// Puts a guest there; it is started with the host's agent.
    fn guest(&self, host: &str) -> Result<Guest> {
        let folder = self.machines(host)?;
        let images = self.scratch.folder(&format!("{host}/images"))?;
        let definitions = self.scratch.folder(&format!("{host}/etc/qemu"))?;
        let autostart = self.scratch.folder(&format!("{host}/etc/qemu/autostart"))?;
        let guest = Guest::new(&images, &format!("desk-{host}"))?;
        let file = format!("{}.xml", guest.name());
        let xml = guest.xml()?.replace(&folder.display().to_string(), MACHINES);
        fs::write(definitions.join(&file), xml)?;
        symlink(Path::new("..").join(&file), autostart.join(&file))?;
        Ok(guest)
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        let _ = self.compose(&["down", "--volumes", "--timeout", "10"]);
    }
}

fn docker(arguments: &[&str]) -> Result<String> {
    run(Command::new("docker").args(arguments))
}

async fn tell() -> Result<()> {
    let installation = Installation { scratch: Scratch::new()? };
    let (alpha, beta) = (installation.guest("alpha")?, installation.guest("beta")?);
    let begun = Instant::now();
    if let Err(error) = installation.compose(&["up", "--detach", "--wait", "--wait-timeout", "300", "--no-build"]) {
        println!("{}", installation.compose(&["logs", "--tail", "20"]).unwrap_or_default());
        return Err(error);
    }
    println!("compose: up after {} s", begun.elapsed().as_secs());
    let token = installation.compose(&["run", "--rm", "--no-TTY", "keys", "keys", "token"])?.trim().to_owned();
    let ca = installation.scratch.path().join("ca.pem");
    fs::write(&ca, installation.compose(&["exec", "--no-TTY", "api", "cat", "/keys/ca.pem"])?)?;

    for face in faces_at(GATEWAY, PUBLIC, &ca)? {
        let client = Client::new(face, token.clone());
        for guest in [&alpha, &beta] {
            client.vm_in_state(&guest.vm(), v1::VmState::Running).await?;
            story(&client, guest).await.with_context(|| client.face())?;
        }
        println!("compose: {}: the story of both hosts", client.face());
    }

    let face = faces_at(GATEWAY, PUBLIC, &ca)?.into_iter().next().context("no face")?;
    cut_off(&installation, &Client::new(face, token), (&alpha, &beta)).await?;

    installation.compose(&["down", "--volumes", "--timeout", "10"])?;
    for kind in [&["ps", "--all"][..], &["volume", "ls"][..], &["network", "ls"][..]] {
        let left =
            docker(&[kind, &["--quiet", "--filter", "label=com.docker.compose.project=ravada-snapshots"]].concat())?;
        ensure!(left.trim().is_empty(), "docker {kind:?} shows what was left: {left}");
    }
    println!("compose: down, and nothing is left");
    Ok(())
}

/// Beta is cut off while it takes a snapshot.
async fn cut_off(installation: &Installation, client: &Client, (alpha, beta): (&Guest, &Guest)) -> Result<()> {
    let container = installation.compose(&["ps", "--quiet", "beta"])?.trim().to_owned();
    let network = "ravada-snapshots_api-beta";
    beta.write('C')?;
    let begun = client.create(&beta.vm(), "while the line was cut", "").await?;
    docker(&["network", "disconnect", network, &container])?;
    reachable(client, "beta", false).await?;
    let refused = client.create(&beta.vm(), "to nobody", "").await.err().context("a host that is away took a call")?;
    ensure!(refused.code == Code::Unavailable, "{refused}");
    story(client, alpha).await.context("the other host")?;
    println!("compose: beta is cut off, alpha goes on");

    docker(&["network", "connect", "--alias", "beta", network, &container])?;
    reachable(client, "beta", true).await?;
    let ended = client.done(Ok(begun)).await.context("what was under way when the line was cut")?;
    beta.write('D')?;
    client.done(client.revert(&ended.snapshot).await).await?;
    let report = beta.report()?;
    ensure!(report.disk == 'C', "the guest reads {report:?}");
    client.done(client.delete(&ended.snapshot, v1::DeleteScope::Only).await).await?;
    story(client, beta).await.context("the host that came back")?;
    println!("compose: beta is back, and what it was at has ended");
    Ok(())
}

async fn reachable(client: &Client, host: &str, wanted: bool) -> Result<()> {
    let since = Instant::now();
    loop {
        let request = v1::GetHostRequest { name: format!("hosts/{host}") };
        let seen: v1::Host = client.call((HOSTS, "GetHost"), &request).await?;
        if seen.reachable == wanted {
            return Ok(());
        }
        ensure!(since.elapsed() < NOTICED, "after {NOTICED:?} host {host} is still as it was: {seen:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Written A, snapshot, written B, taken back, read A, deleted; and nothing is left in the image.
async fn story(client: &Client, guest: &Guest) -> Result<()> {
    guest.write('A')?;
    let request = v1::CreateSnapshotRequest {
        parent: guest.vm(),
        snapshot: Some(v1::Snapshot { display_name: "before exam".to_owned(), ..Default::default() }),
        content: v1::SnapshotContent::DisksAndMemory.into(),
        request_id: Uuid::new_v4().to_string(),
        ..Default::default()
    };
    let snapshot = client.done(client.create_as(request).await).await?.snapshot;
    guest.write('B')?;
    client.done(client.revert(&snapshot).await).await?;
    let report = guest.report()?;
    ensure!(report.disk == 'A' && report.ram == 'A', "the guest reads {report:?}");
    client.done(client.delete(&snapshot, v1::DeleteScope::Only).await).await?;
    ensure!(client.snapshots(&guest.vm()).await?.is_empty(), "the catalogue still has it");
    for disk in guest.disks() {
        ensure!(images::internal_snapshots(disk.path())?.is_empty(), "the image still has it");
    }
    Ok(())
}

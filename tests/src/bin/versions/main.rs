//! `make versions-test`: services of the last release beside those of this build, on real guests. Exits 0 or 1.
//!
//!     versions FOLDER        the folder with the earlier programs, which scripts/earlier.sh builds
//!
//! First each mixture that an installation has while it is upgraded or taken back: an earlier agent, an earlier gateway. An earlier
//! API beside an agent of this build is none: its own tokens are bound to no secret, and the agent refuses them. Then one installation that is upgraded with operations in flight, and taken back.

#![expect(clippy::print_stdout, reason = "what happened is what the command is for")]

mod story;
mod upgrade;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};
use tests::client::Client;
use tests::cluster::{ALL_ACTIONS, Cluster, HostPlan, Surroundings, forwarded};
use tests::lab::{HOST, Lab};
use tests::tools;

pub(crate) const AGENT: &str = "snapshot-agent";
pub(crate) const API: &str = "snapshot-api";
pub(crate) const GATEWAY: &str = "snapshot-gateway";

#[tokio::main]
async fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        println!("versions: FOLDER is missing, the folder of the earlier programs: make versions-test");
        return ExitCode::FAILURE;
    };
    match all(&folder).await {
        Ok(()) => {
            println!("versions: everything as it should be");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("versions: FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn all(folder: &Path) -> Result<()> {
    for earlier in [&[AGENT][..], &[GATEWAY], &[AGENT, GATEWAY]] {
        let (begun, what) = (Instant::now(), earlier.join(" and "));
        let lab = Mixed { folder, earlier }.lab()?;
        story::tell(&lab, earlier).await.with_context(|| format!("with an earlier {what}"))?;
        println!("versions: with an earlier {what}: the whole story ({} s)", begun.elapsed().as_secs());
    }
    let begun = Instant::now();
    let lab = Mixed { folder, earlier: &[AGENT, API, GATEWAY] }.lab()?;
    upgrade::tell(lab, folder).await.context("an upgrade and the way back")?;
    println!("versions: upgraded with operations in flight, and taken back ({} s)", begun.elapsed().as_secs());
    Ok(())
}

/// A cluster of which some programs are earlier ones.
struct Mixed<'a> {
    folder: &'a Path,
    earlier: &'a [&'a str],
}

impl Mixed<'_> {
    fn lab(mut self) -> Result<Lab> {
        let cluster = Cluster::start_in(vec![HostPlan::daemon(HOST)?.with_defaults()], &mut self)?;
        Ok(Lab { client: administrator(&cluster, self.earlier.contains(&API))?, cluster })
    }
}

/// An administrator at the gateway. An earlier API takes a token alone, and this build's with its secret.
pub(crate) fn administrator(cluster: &Cluster, api_is_earlier: bool) -> Result<Client> {
    let credential = cluster.identity().admin_token()?;
    Client::grpc(cluster, if api_is_earlier { forwarded(&credential) } else { &credential })
}

impl Surroundings for Mixed<'_> {
    fn actions(&self) -> &'static [&'static str] {
        &ALL_ACTIONS[..7]
    }

    fn program(&self, name: &str) -> Result<PathBuf> {
        if self.earlier.contains(&name) { earlier(self.folder, name) } else { tools::binary(name) }
    }
}

/// An earlier program.
pub(crate) fn earlier(folder: &Path, name: &str) -> Result<PathBuf> {
    let program = folder.join(name);
    program.canonicalize().with_context(|| format!("{}: make versions-test builds it", program.display()))
}

//! How the agent is started; its page of the manual is made from it, too.

use std::path::PathBuf;

use clap::Parser;

/// Takes, reverts to and deletes snapshots of this host's virtual machines, for the snapshot API.
#[derive(Debug, Parser)]
#[command(name = "snapshot-agent", version)]
pub struct Arguments {
    /// The configuration file.
    #[arg(long)]
    pub config: PathBuf,
}

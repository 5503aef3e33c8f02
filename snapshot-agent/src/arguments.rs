//! How the agent is started; its page of the manual is made from it, too.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// Takes, reverts to and deletes snapshots of this host's virtual machines, for the snapshot API.
#[derive(Debug, Parser)]
#[command(name = "snapshot-agent", version, subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    /// The configuration file.
    #[arg(long, required = true)]
    pub config: Option<PathBuf>,
    /// What to do besides serving.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What the program does besides serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say what is wrong with the agent on this machine, and what to do about it.
    Doctor {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
        /// Print JSON, for programs.
        #[arg(long)]
        json: bool,
    },
}

//! How the gateway is started; its page of the manual is made from it, too.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// gRPC, gRPC-Web and Connect in front of the snapshot API, and the page.
#[derive(Debug, Parser)]
#[command(name = "snapshot-gateway", version, subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    /// The configuration file.
    #[arg(long, value_name = "FILE", env = "SNAPSHOT_GATEWAY_CONFIG", required = true)]
    pub config: Option<PathBuf>,
    /// What to do besides serving.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What the program does besides serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say what is wrong with the gateway on this machine, and what to do about it.
    Doctor {
        /// The configuration file.
        #[arg(long, value_name = "FILE", env = "SNAPSHOT_GATEWAY_CONFIG")]
        config: PathBuf,
        /// Print JSON, for programs.
        #[arg(long)]
        json: bool,
    },
}

//! How the API and its commands are started; their pages of the manual are made from it, too.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::commands;

/// Snapshots of virtual machines: the service that validates, authorizes, records and forwards.
#[derive(Debug, Parser)]
#[command(name = "snapshot-api", version)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve until told to stop.
    Serve {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
    },
    /// Look at the audit trail.
    #[command(subcommand)]
    Audit(commands::audit::Command),
    /// Copy the catalogue into a file, while the service runs or not.
    Backup(commands::backup::Backup),
    /// Say what is wrong with the service on this machine, and what to do about it.
    Doctor(commands::doctor::Doctor),
    /// Make a certificate authority and certificates.
    #[command(subcommand)]
    Pki(commands::pki::Command),
    /// Make issuer keys and tokens.
    #[command(subcommand)]
    Token(commands::token::Command),
}

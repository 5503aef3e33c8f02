//! snapshot-api: the service that validates, authorizes, records and forwards.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use snapshot_api::{commands, config, server};

/// Snapshots of virtual machines: the service that validates, authorizes, records and forwards.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
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

fn run(command: Command) -> Result<ExitCode, Box<dyn std::error::Error + Send + Sync>> {
    match command {
        Command::Serve { config } => {
            mtls::forbid_core_dumps()?;
            let config = config::Config::load(&config)?;
            tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(server::serve(config))?;
        }
        Command::Audit(command) => return Ok(commands::audit::run(command)),
        Command::Backup(command) => commands::backup::run(command)?,
        Command::Doctor(command) => return Ok(commands::doctor::run(&command)?),
        Command::Pki(command) => commands::pki::run(command)?,
        Command::Token(command) => commands::token::run(command)?,
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stderr, reason = "a command that fails says so to who started it")]
fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("snapshot-api: {error}");
            ExitCode::FAILURE
        }
    }
}

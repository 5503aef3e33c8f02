//! `audit verify`: whether the audit trail of a catalogue, or of a copy of one, is as it was written.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use snapshot_core::audit::Head;

use crate::config::Config;
use crate::store::{Unverified, verify};

/// What to do about the audit trail.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Verify the chain of its events, while the service runs or not. Exit status: 0 when it is whole, 1 when it was tampered with,
    /// 2 when that cannot be said.
    Verify {
        /// The service's configuration file, which says where the catalogue is.
        #[arg(long, required_unless_present = "database", conflicts_with = "database")]
        config: Option<PathBuf>,
        /// The catalogue itself, or a copy that `backup` made.
        #[arg(long)]
        database: Option<PathBuf>,
        /// The head of the trail as it was noted elsewhere, `SEQUENCE:HASH`, as the service logs it every ten minutes. Without it a
        /// trail whose end was cut off, or that was written anew as a whole, cannot be told from a whole one.
        #[arg(long, value_name = "SEQUENCE:HASH")]
        after: Option<Head>,
    },
}

/// Carries the command out.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "what is found is told to who asked")]
pub fn run(command: Command) -> ExitCode {
    let Command::Verify { config, database, after } = command;
    let database = match (database, config.map(|config| Config::load(&config))) {
        (Some(database), _) => database,
        (None, Some(Ok(config))) => config.database.path,
        (None, Some(Err(error))) => {
            eprintln!("snapshot-api: {error}");
            return ExitCode::from(2);
        }
        // The arguments were not read without one of the two.
        (None, None) => return ExitCode::from(2),
    };
    match verify(&database, after.as_ref()) {
        Ok(verified) => {
            println!("whole: events {} to {}", verified.first, verified.head.sequence);
            if verified.first > 1 {
                println!(
                    "older ones were removed by an event `pruned`; nothing does that unless keep_audit_days is set"
                );
            }
            println!("head: {}", verified.head);
            ExitCode::SUCCESS
        }
        Err(error @ Unverified::Broken(_)) => {
            eprintln!("snapshot-api: the audit trail was tampered with: {error}");
            ExitCode::from(1)
        }
        Err(error) => {
            eprintln!("snapshot-api: {error}");
            ExitCode::from(2)
        }
    }
}

//! `audit verify`: whether the audit trail of a catalogue, or of a copy of one, is as it was written.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use snapshot_core::audit::Head;

use crate::store::{Unverified, verify};

/// What to do about the audit trail.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Verify the chain of its events, while the service runs or not. Exit status: 0 when it is whole, 1 when it was tampered with,
    /// 2 when that cannot be said.
    Verify {
        /// The catalogue, or a copy that `backup` made.
        #[arg(long)]
        database: PathBuf,
        /// The head of the trail as it was noted elsewhere, `SEQUENCE:HASH`, as the service logs it every ten minutes. Without it a
        /// trail whose end was cut off, or that was written anew as a whole, cannot be told from a whole one.
        #[arg(long, value_name = "SEQUENCE:HASH")]
        after: Option<Head>,
    },
}

/// Carries the command out.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "what is found is told to who asked")]
pub fn run(command: Command) -> ExitCode {
    let Command::Verify { database, after } = command;
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

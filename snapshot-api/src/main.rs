//! snapshot-api: the service that validates, authorizes, records and forwards.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use snapshot_api::arguments::{Arguments, Command};
use snapshot_api::{commands, config, server};

/// How long threads may take to end after the service has.
const THREADS_END: Duration = Duration::from_secs(2);

fn run(command: Command) -> Result<ExitCode, Box<dyn std::error::Error + Send + Sync>> {
    match command {
        Command::Serve { config } => {
            mtls::forbid_core_dumps()?;
            let (path, config) = (config.clone(), config::Config::load(&config)?);
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            let end = runtime.block_on(server::serve(path, config));
            // A thread that waits for a catalogue that hangs does not keep the process.
            runtime.shutdown_timeout(THREADS_END);
            end?;
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

//! `backup`: a copy of the catalogue.

use std::path::PathBuf;

use clap::Args;

use crate::config::Config;
use crate::store::backup;

/// What to copy where.
#[derive(Debug, Args)]
pub struct Backup {
    /// The service's configuration file, which says where the catalogue is.
    #[arg(long)]
    config: PathBuf,
    /// The file to write. Its folder must exist.
    #[arg(long)]
    to: PathBuf,
    /// Overwrite a file that is there.
    #[arg(long)]
    force: bool,
}

/// Carries the command out.
pub fn run(command: Backup) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let config = Config::load(&command.config)?;
    Ok(backup(&config.database.path, &command.to, command.force)?)
}

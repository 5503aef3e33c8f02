//! How the gateway is started; its page of the manual is made from it, too.

use std::path::PathBuf;

use clap::Parser;

/// gRPC, gRPC-Web and Connect in front of the snapshot API, and the page.
#[derive(Debug, Parser)]
#[command(name = "snapshot-gateway", version)]
pub struct Arguments {
    /// The configuration file.
    #[arg(long, value_name = "FILE", env = "SNAPSHOT_GATEWAY_CONFIG")]
    pub config: PathBuf,
}

//! `snapctl`: see `snapctl --help`.

use std::process::ExitCode;

use clap::Parser as _;
use snapctl::arguments::Arguments;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    snapctl::run(Arguments::parse()).await
}

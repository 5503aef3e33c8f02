//! snapctl: snapshots of virtual machines from a terminal or a script.
//!
//! A caller like any other: the public API by gRPC, with a token, and nothing that an unprivileged user has not. What needs
//! files of the service (keys, certificates, the catalogue) is `snapshot-api`'s (`docs/adr/0025`).
//!
//! - [`arguments`]: the command line, for the program and for what is made of it (completions, manual pages).
//! - [`settings`]: where the service is and who asks, from flags, the environment and a file.
//! - `connection`, `lookup`: the service, and what a person calls a machine or a snapshot.
//! - `commands`: what each command does; `show`: how it looks to a person; `json`: to a program.
//! - [`failure`]: why it did not work, what to do about it, and the exit code.

pub mod arguments;
pub mod failure;
pub mod settings;

mod advice;
mod commands;
mod confirm;
mod connection;
mod follow;
mod json;
mod lookup;
mod out;
mod show;

use std::process::ExitCode;

use arguments::Arguments;
use out::Out;

/// Carries a command out and says how it went.
pub async fn run(arguments: Arguments) -> ExitCode {
    let out = Out::new(arguments.common.json);
    match commands::run(arguments, &out).await {
        Ok(code) => code,
        Err(failure) => {
            out.failed(&failure);
            ExitCode::from(failure.exit_code())
        }
    }
}

//! The process that cleans up after this one, also when this one is killed: `tests/reaper.sh`. It waits for the end of file on its
//! stdin, whose other end only this process has.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/reaper.sh");

static REAPER: Mutex<Option<ChildStdin>> = Mutex::new(None);

/// Has the processes of ours that name this directory killed, and the directory removed, when this process has ended.
///
/// # Errors
/// When the reaper cannot be started or has ended.
pub fn clean_up_at_exit(directory: &Path) -> Result<()> {
    let mut reaper = REAPER.lock().unwrap_or_else(PoisonError::into_inner);
    let input = match reaper.as_mut() {
        Some(input) => input,
        None => reaper.insert(start()?),
    };
    writeln!(input, "{}", directory.display()).context("the reaper has ended")
}

fn start() -> Result<ChildStdin> {
    let mut command = Command::new(SCRIPT);
    // A group of its own: Ctrl-C and the signals of a terminal are for this process. It has no pipe to whoever reads our output.
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().with_context(|| format!("cannot start {SCRIPT}"))?;
    child.stdin.context("the reaper's stdin")
}

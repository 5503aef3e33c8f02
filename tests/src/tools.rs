//! Small things that the rest of the harness shares: running a command, waiting with a deadline, finding files.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Between two looks at something that is waited for. Short against the 30 ms a `virsh` costs, long against a spin.
const POLL: Duration = Duration::from_millis(10);

/// Runs a command to its end and returns what it printed; an error carries what it said on stderr.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} ended with {}: {}", output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Looks again and again until `look` finds something, for at most `limit`. An error of `look` ends the wait.
pub fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if start.elapsed() >= limit {
            bail!("waited {limit:?} for {what}");
        }
        std::thread::sleep(POLL);
    }
}

/// The folder cargo put this build's binaries in, such as `target/debug`: tests run from `deps/` below it.
pub fn build_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("this process's own path")?;
    let named = |name: &std::ffi::OsStr| name == "debug" || name == "release" || name == "dist";
    exe.ancestors()
        .find(|folder| folder.file_name().is_some_and(named))
        .map(PathBuf::from)
        .with_context(|| format!("{} is in no target folder of cargo", exe.display()))
}

/// One of the workspace's binaries. Cargo does not build other packages' binaries for a test, so it may be missing.
pub fn binary(name: &str) -> Result<PathBuf> {
    let path = build_dir()?.join(name);
    if !path.is_file() {
        bail!("{} is missing: run `cargo build --workspace` before the tests", path.display());
    }
    Ok(path)
}

/// A tool that `scripts/setup.sh test` puts into `target/tools/bin`.
pub fn tool(name: &str) -> Result<PathBuf> {
    let build = build_dir()?;
    let path = build.parent().unwrap_or(&build).join("tools/bin").join(name);
    if !path.is_file() {
        bail!("{} is missing: run `scripts/setup.sh test` first", path.display());
    }
    Ok(path)
}

/// A folder under `target/` that test runs share and keep.
pub fn shared_cache(name: &str) -> Result<PathBuf> {
    let build = build_dir()?;
    let path = build.parent().unwrap_or(&build).join("test-cache").join(name);
    std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

//! The image directories when the agent starts: one on storage that does not respond must not keep the host from being served.
//!
//! The sandbox takes a handle of each directory, which would hang, and cannot be given another one later. So a directory that does
//! not respond is left out, its VMs are unavailable, and when it responds the agent ends with a failure, for the service manager
//! to start it again.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// Seconds until a directory counts as one that does not respond.
const ANSWER: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(5);

/// Those of these directories that do not respond. Each is asked by a process of its own: a thread that hangs could not be ended, and
/// a process that gives up root must not have a second one.
pub fn unresponsive(directories: &[PathBuf]) -> Vec<PathBuf> {
    let begun = Instant::now();
    let mut asking: Vec<(&PathBuf, Child)> = directories.iter().filter_map(|path| Some((path, ask(path)?))).collect();
    while !asking.is_empty() && begun.elapsed() < ANSWER {
        asking.retain_mut(|(_, child)| matches!(child.try_wait(), Ok(None)));
        std::thread::sleep(POLL);
    }
    for (_, child) in &mut asking {
        // It is reaped when this process ends, if it can be killed at all.
        let _ = child.kill();
    }
    asking.into_iter().map(|(path, _)| path.clone()).collect()
}

/// Where it cannot be asked for, it is taken to respond.
fn ask(directory: &Path) -> Option<Child> {
    let mut command = Command::new("stat");
    command.arg("--file-system").arg("--").arg(directory);
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().inspect_err(|error| tracing::debug!(%error, "stat cannot be run")).ok()
}

/// Tells when one of these directories responds.
pub fn responds(directories: Vec<PathBuf>) -> oneshot::Receiver<PathBuf> {
    let (tell, told) = oneshot::channel();
    let tell = std::sync::Arc::new(std::sync::Mutex::new(Some(tell)));
    for directory in directories {
        let tell = std::sync::Arc::clone(&tell);
        let wait = move || {
            // Whatever the answer is, it is one.
            let _ = rustix::fs::statvfs(&directory);
            let tell = tell.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
            tell.map(|tell| tell.send(directory))
        };
        let spawned = std::thread::Builder::new().name("directory".to_owned()).spawn(wait);
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread could be started to wait for a directory");
        }
    }
    told
}

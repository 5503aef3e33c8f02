//! Running `qemu-img`, which opens images by the names that are in them.
//!
//! What a name leads to may be changed between our look and its opening. So it runs confined to the files it is started for,
//! whichever names they have by then: Landlock's rules are tied to the files that were found. Landlock holds for a thread and
//! what that starts; so a thread is made for it. Where the kernel has none, it runs as the agent does.

pub(crate) mod snapshots;

use std::collections::BTreeSet;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use std::{io, thread};

use landlock::CompatLevel;

use crate::beneath::Beneath;
use crate::hypervisor::GUARDED;
use crate::reach::{self, May, Rules, confine_thread};

/// How often it is asked whether it has ended.
const POLL: Duration = Duration::from_millis(5);
/// The most bytes of its error message that are read.
const MOST_WORDS: u64 = 1000;

/// Where it is.
pub(crate) fn program() -> &'static Path {
    static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        let found = std::env::split_paths(&path).map(|folder| folder.join("qemu-img")).find(|file| file.is_file());
        let found = found.unwrap_or_else(|| PathBuf::from("/usr/bin/qemu-img"));
        found.canonicalize().unwrap_or(found)
    });
    &PROGRAM
}

/// A command to run it; what it says is in English.
pub(crate) fn command() -> Command {
    let mut command = Command::new(program());
    command.env("LC_ALL", "C");
    command
}

/// Starts it. It may write these images, which have to be beneath the folders of images and have no other name, and read
/// those others.
pub(crate) fn spawn(folders: &Beneath, mut command: Command, write: &[&str], read: &[&str]) -> io::Result<Child> {
    let mut files: Vec<(OwnedFd, May)> = Vec::new();
    for path in write {
        let second = format!("{path}{GUARDED}");
        files.push((folders.image(Path::new(path), Path::new(&second))?, May::Images));
    }
    for path in read {
        files.push((reach::handle(Path::new(path))?, May::Read));
    }
    thread::scope(|scope| {
        let starting = thread::Builder::new().name("qemu-img".to_owned()).spawn_scoped(scope, || {
            let rules = Rules {
                places: reach::system(),
                files: files.iter().map(|(file, may)| (file, *may)).collect(),
                ports: BTreeSet::new(),
                connects: BTreeSet::new(),
            };
            confine_thread(&rules, CompatLevel::BestEffort).map_err(io::Error::other)?;
            command.spawn().map_err(|error| io::Error::new(error.kind(), format!("qemu-img: {error}")))
        })?;
        starting.join().unwrap_or_else(|_| Err(io::Error::other("qemu-img could not be started")))
    })
}

/// Runs it to its end, and ends it when it takes longer than that; what it prints is not of interest unless it fails.
pub(crate) fn run(
    folders: &Beneath,
    mut command: Command,
    write: &[&str],
    read: &[&str],
    within: Duration,
) -> io::Result<()> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = spawn(folders, command, write, read)?;
    let success = match wait(&mut child, within) {
        Ok(success) => success,
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
    };
    let mut words = String::new();
    if let Some(stderr) = child.stderr.take() {
        let _ = stderr.take(MOST_WORDS).read_to_string(&mut words);
    }
    if success { Ok(()) } else { Err(io::Error::other(format!("qemu-img: {}", words.trim()))) }
}

fn wait(child: &mut Child, within: Duration) -> io::Result<bool> {
    let start = Instant::now();
    loop {
        match child.try_wait()? {
            Some(status) => return Ok(status.success()),
            None if start.elapsed() > within => return Err(io::Error::other("qemu-img does not come to an end")),
            None => thread::sleep(POLL),
        }
    }
}

#[cfg(test)]
mod tests;

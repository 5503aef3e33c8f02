//! A test's folder, and the promise that nothing outlives it.
//!
//! The folder is `/tmp/rs-XXXXXX`: short, because the paths of unix sockets end at 107 bytes. When it is dropped, every
//! process of ours whose command line names it is killed, by its id, and it is removed. A test process that is itself
//! killed drops nothing: its reaper does the same then. The first folder of every process sweeps those whose owner is gone all the
//! same, for a reaper may be killed, too.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::reaper::clean_up_at_exit;
use crate::tools::wait_for;

const PARENT: &str = "/tmp";
const PREFIX: &str = "rs-";
/// Holds the id and the start time of the process that made the folder, and in its second line the program.
const OWNER: &str = "owner";
/// How long a killed process may take to be gone.
const GONE: Duration = Duration::from_secs(10);
/// What a test leaves running; an editor or a pager on a file in the folder is none of our business.
const OURS: [&str; 7] = ["qemu-", "libvirtd", "virtlogd", "swtpm", "snapshot-agent", "snapshot-api", "snapshot-gatewa"];

static SWEEP: Once = Once::new();

/// A folder of a test's own.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes a folder, after a sweep of what former runs left.
    pub fn new() -> Result<Self> {
        SWEEP.call_once(sweep);
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(PARENT)?;
        let program = std::env::current_exe().unwrap_or_default();
        let owner = identity(std::process::id()).unwrap_or_default();
        fs::write(folder.path().join(OWNER), format!("{owner}\n{}\n", program.display()))?;
        clean_up_at_exit(folder.path())?;
        Ok(Self { path: folder.keep() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a folder in it.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// The ids of the processes of ours that still name it.
    pub fn processes(&self) -> Vec<i32> {
        processes_of(&self.path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        discard(&self.path);
    }
}

/// Kills the whole QEMU (or whatever else) that a pid file names, when it is the one that belongs to `folder`.
pub fn kill_by_pid_file(pid_file: &Path, folder: &Path) {
    let Ok(text) = fs::read_to_string(pid_file) else { return };
    let Ok(pid) = text.trim().parse::<i32>() else { return };
    if names(pid, folder) {
        kill_and_wait(pid);
    }
}

/// Kills what libvirt's pid files in `run` say is running. `folder` is the test's.
pub fn kill_guests(run: &Path, folder: &Path) {
    for entry in fs::read_dir(run).into_iter().flatten().flatten() {
        let path = entry.path();
        let ours = path.extension().is_some_and(|extension| extension == "pid");
        // The driver's own pid file names the process that opened it: for the embedded driver, perhaps this very one.
        if ours && path.file_stem().is_some_and(|stem| stem != "driver") {
            kill_by_pid_file(&path, folder);
        }
    }
}

/// Whether a process runs; one that is dead and not yet reaped does not.
pub fn is_alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(") ").map(|(_, rest)| !rest.starts_with(['Z', 'X'])))
        .unwrap_or(false)
}

/// Whether the mounts of any process show the folder.
pub fn is_mounted(folder: &Path) -> bool {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut tables = entries.filter_map(|entry| fs::read_to_string(entry.path().join("mountinfo")).ok());
    tables.any(|table| table.contains(&*name))
}

/// A name in /dev/shm for what is below a test's folder. Nobody else removes it: the folder's end does.
pub fn shared_memory(below: &Path, name: &str) -> String {
    let owner = below.iter().map(|part| part.to_string_lossy()).find(|part| part.starts_with(PREFIX));
    format!("{}-{name}", owner.unwrap_or(PREFIX.into()))
}

fn remove_shared_memory(folder: &Path) {
    let prefix = shared_memory(folder, "");
    for entry in fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn kill_and_wait(pid: i32) {
    let Some(id) = Pid::from_raw(pid) else { return };
    // It may have ended by itself meanwhile, and what does not die in time cannot be helped here.
    let _ = kill_process(id, Signal::KILL);
    let _ = wait_for("a killed process to be gone", GONE, || Ok((!is_alive(pid)).then_some(())));
}

fn discard(folder: &Path) {
    // More than once, because a libvirtd may start a QEMU while it is being killed.
    for _ in 0..3 {
        let left = processes_of(folder);
        if left.is_empty() {
            break;
        }
        left.into_iter().for_each(kill_and_wait);
    }
    remove_shared_memory(folder);
    // A thread of this process may still make files in it.
    let removed = || Ok((fs::remove_dir_all(folder).is_ok() || !folder.exists()).then_some(()));
    let _ = wait_for("a folder to be removed", GONE, removed);
}

fn processes_of(folder: &Path) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| names(*pid, folder)).collect()
}

/// Whether a live process is one of ours and its command line names the folder.
fn names(pid: i32, folder: &Path) -> bool {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    // libvirt asks every QEMU there is what it can do, not only the one that runs the guests.
    if !OURS.iter().any(|ours| comm.starts_with(ours)) || !is_alive(pid) {
        return false;
    }
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let needle = format!("{}/", folder.display());
    String::from_utf8_lossy(&command).contains(&needle)
}

/// The id of a process with its start time, so that a later process with the same id is not taken for it.
fn identity(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Field 22 of proc(5); the name before it may hold spaces, and ends at the last parenthesis.
    let start = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?;
    Some(format!("{pid} {start}"))
}

/// Removes the folders whose owner is gone, and what still runs in them. The first folder of every process does it.
pub fn sweep() {
    for entry in fs::read_dir(PARENT).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        // Without the file it may be another process's folder in the making.
        let Ok(owner) = fs::read_to_string(entry.path().join(OWNER)) else { continue };
        let pid = owner.split_whitespace().next().and_then(|pid| pid.parse::<u32>().ok());
        if pid.and_then(identity).is_none_or(|now| Some(now.as_str()) != owner.lines().next()) {
            discard(&entry.path());
        }
    }
}

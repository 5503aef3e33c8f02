//! That nothing which these tests start outlives them: guests survive the libvirt that started them, and the process of the tests.

use std::fs;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long a process that was killed may take to be gone.
const GONE: Duration = Duration::from_secs(10);

/// Kills every process of libvirt and QEMU that names the directory in its command line, and waits until they are gone.
pub(crate) fn kill_all_of(directory: &Path) {
    // More than once, because a libvirtd may start a QEMU while it is being killed.
    for _ in 0..3 {
        let left = processes_of(directory);
        if left.is_empty() {
            return;
        }
        for pid in &left {
            // It may have ended by itself meanwhile.
            let _ = kill_process(*pid, Signal::KILL);
        }
        let begun = Instant::now();
        while left.iter().any(|pid| is_alive(*pid)) && begun.elapsed() < GONE {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The processes of libvirt and QEMU that name the directory in their command line.
pub(crate) fn processes_of(directory: &Path) -> Vec<Pid> {
    let needle = format!("{}/", directory.display());
    let names = |pid: &Pid| {
        let read = |file: &str| fs::read(format!("/proc/{}/{file}", pid.as_raw_nonzero())).unwrap_or_default();
        let is_ours =
            ["qemu-", "libvirtd", "virtlogd", "swtpm"].iter().any(|name| read("comm").starts_with(name.as_bytes()));
        is_ours && is_alive(*pid) && String::from_utf8_lossy(&read("cmdline")).contains(&needle)
    };
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)).filter(names).collect()
}

/// Whether it runs; one that is dead and was not waited for does not.
fn is_alive(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Has a process of its own (tests/reaper.sh) do the same and remove the directory when this one has ended, also by SIGKILL.
pub(crate) fn clean_up_at_exit(directory: &Path) {
    static REAPER: Mutex<Vec<ChildStdin>> = Mutex::new(Vec::new());
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/reaper.sh"));
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut input = command.spawn().unwrap().stdin.unwrap();
    writeln!(input, "{}", directory.display()).unwrap();
    // It waits for the end of this pipe.
    REAPER.lock().unwrap().push(input);
}

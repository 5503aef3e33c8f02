//! That guests end with their test: when it panics, when their libvirt was killed before, and when the whole process is killed.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::daemon::Daemon;
use crate::guest::{Guest, HOST};
use crate::processes::processes_of;

const SOON: Duration = Duration::from_secs(20);

/// A daemon with a guest that runs.
fn running(name: &str) -> (Daemon, Guest) {
    let daemon = Daemon::start(name);
    let guest = Guest::on(&daemon.host, 1, "");
    guest.start();
    assert_eq!(processes_of(&guest.dir).len(), 1);
    (daemon, guest)
}

/// The connection may not know yet that the daemon is dead, and then libvirt's calls fail.
#[test]
fn a_guest_ends_although_its_daemon_was_killed_just_before() {
    let mut daemon = Daemon::start("just-before");
    for _ in 0..10 {
        let guest = Guest::on(&daemon.host, 1, "");
        guest.start();
        let dir = guest.dir.clone();
        daemon.kill();
        drop(guest);
        assert_eq!(processes_of(&dir), [], "QEMU outlived its test");
        daemon.start_again();
    }
}

#[test]
fn a_guest_that_hangs_ends_too() {
    let (daemon, guest) = running("hangs");
    guest.signal(Signal::STOP);
    let dir = daemon.host.dir.clone();
    // In the order of a test that has both in one value.
    drop(daemon);
    drop(guest);
    assert_eq!(processes_of(&dir), []);
}

#[test]
fn guests_of_a_test_that_panics_end() {
    let dirs = [true, false].map(|daemon_first| {
        let (told, tell) = std::sync::mpsc::channel();
        let panicked = std::thread::spawn(move || {
            let (daemon, guest) = running(if daemon_first { "panics-1" } else { "panics-2" });
            told.send(daemon.host.dir.clone()).unwrap();
            // What was declared last is dropped first.
            let _held = if daemon_first { (Some(daemon), guest, None) } else { (None, guest, Some(daemon)) };
            panic!("as a test that fails");
        });
        assert!(panicked.join().is_err());
        tell.recv().unwrap()
    });
    for dir in dirs {
        assert_eq!(processes_of(&dir), [], "{}", dir.display());
    }
}

/// What the next test starts in a process of its own: guests of both kinds of libvirt, until it is killed.
#[test]
fn holds_guests_until_it_is_killed() {
    if std::env::var_os("HOLD_GUESTS").is_none() {
        return;
    }
    let (daemon, _guest) = running("held");
    let embedded = Guest::on(&HOST.host, 1, "");
    embedded.start();
    let dir = daemon.host.dir.parent().unwrap();
    assert!(processes_of(dir).len() >= 3);
    // The line begins with the name of the test.
    writeln!(std::io::stderr(), "\nholds {}", dir.display()).unwrap();
    std::thread::sleep(Duration::from_secs(300));
}

#[test]
fn guests_of_a_process_that_is_killed_end_and_its_directory_is_removed() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "nothing_left::holds_guests_until_it_is_killed", "--nocapture"]).env("HOLD_GUESTS", "1");
    let mut holder = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(holder.stderr.take().unwrap()).lines().map_while(Result::ok);
    let told = lines.into_iter().find_map(|line| line.strip_prefix("holds ").map(PathBuf::from));
    holder.kill().unwrap();
    holder.wait().unwrap();
    let dir = told.expect("it held guests");
    assert!(dir.starts_with(env!("CARGO_TARGET_TMPDIR")), "{}", dir.display());
    let begun = Instant::now();
    while !processes_of(&dir).is_empty() || dir.exists() {
        assert!(begun.elapsed() < SOON, "{:?}, {:?}", processes_of(&dir), list(&dir));
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn list(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

//! The campaign of faults, short: `make faults` is the long one. It is a program of its own, because it needs a mount
//! namespace of its own.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tests::guest::Guest;
use tests::libvirtd::Libvirtd;
use tests::scratch::is_alive;
use tests::tools::wait_for;

/// How long a campaign that was told to end may take to clean up on a busy machine.
const CLEANED: Duration = Duration::from_secs(90);

fn faults(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_faults"));
    command.args(arguments);
    command
}

fn said(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn thirty_kills_find_nothing() {
    for (seed, storage) in [("1", "internal"), ("20", "external")] {
        let arguments = ["--kills", "15", "--kills-a-round", "15", "--seed", seed, "--storage", storage];
        let output = faults(&arguments).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
    }
}

/// Another seed each time: what the failure prints has it, with how to do it again.
#[test]
fn what_administrators_do_beside_the_service_loses_nothing() {
    for storage in ["internal", "external"] {
        let arguments =
            ["--kills", "3", "--foreign", "60", "--machines", "1", "--seed", "random", "--storage", storage];
        let output = faults(&arguments).output().unwrap();
        let said = said(&output);
        assert!(output.status.success(), "{said}");
        assert!(said.contains("Create succeeded") && said.contains("while an operation was under way"), "{said}");
    }
}

#[test]
fn wrongs_done_behind_its_back_are_found() {
    let keep = tempfile::tempdir().unwrap();
    let keep = keep.path().to_str().unwrap();
    let arguments = ["--kills", "1", "--foreign", "30", "--seed", "5", "--sabotage", "true", "--keep", keep];
    let output = faults(&arguments).output().unwrap();
    let said = said(&output);
    assert!(!output.status.success(), "{said}");
    for found in ["LOST on one", "MIXED on two", "WRONG_DATA on clone", "ORPHANED on shared", "LEFT_PAUSED on shared"]
        .into_iter()
        // A byte that was changed, an image that was removed, a snapshot that was deleted.
        .chain(["WRONG_DATA on room0: an image", "LOST on room0: an image", "LOST on room0: \"sabotaged\""])
    {
        assert!(said.contains(found), "{found} was not found: {said}");
    }
    // What is needed to understand it is kept.
    let round = PathBuf::from(keep).join("seed-5-round-0");
    let history = fs::read_to_string(round.join("history.log")).unwrap();
    assert!(history.contains("CHECKER"), "{history}");
    for log in ["agent-alpha.log", "snapshot-api.log", "snapshot-gateway.log", "host-libvirtd.log"] {
        assert!(round.join(log).is_file(), "{log} was not kept");
    }
}

/// A daemon killed in the middle of a start, with the file that says so, and what its next one makes of it.
#[test]
fn a_start_that_libvirt_did_not_finish_is_put_right_before_the_daemon_starts() {
    let mut daemon = Libvirtd::start().unwrap();
    let guest = Guest::new(&daemon.images().unwrap(), "mini").unwrap();
    daemon.define(&guest).unwrap();
    let status = daemon.folder().join("run/qemu/mini.xml");
    let unfinished =
        || fs::read_to_string(&status).is_ok_and(|text| text.contains("<domstatus ") && text.contains("pid='0'"));
    let caught = (0..20).any(|_| {
        let uri = daemon.uri();
        let mut start =
            Command::new("virsh").args(["-q", "-c", &uri, "start", "mini"]).stderr(Stdio::null()).spawn().unwrap();
        while start.try_wait().unwrap().is_none() && !unfinished() {}
        daemon.kill().unwrap();
        start.wait().unwrap();
        let caught = unfinished();
        if !caught {
            daemon.start_again().unwrap();
            let _ = daemon.power_off(&guest);
        }
        caught
    });
    assert!(caught, "the daemon always died at another moment");
    daemon.start_again().unwrap();
    // libvirt's fault, which this is about. Where it is mended one day, there is nothing left to put right.
    assert_eq!(daemon.state(&guest).unwrap(), "paused");
    daemon.kill().unwrap();
    assert!(daemon.forget_unfinished_starts().unwrap().contains("mini"));
    daemon.start_again().unwrap();
    assert_eq!(daemon.state(&guest).unwrap(), "shut off");
    daemon.power_on(&guest).unwrap();
    assert_eq!(guest.write('A').unwrap().disk, 'A');
    daemon.kill().unwrap();
    assert_eq!(daemon.forget_unfinished_starts().unwrap(), "", "a guest that runs is left alone");
    daemon.start_again().unwrap();
    assert_eq!(guest.report().unwrap().disk, 'A');
}

/// The folders of a campaign: those that name one of its processes as their owner.
fn folders(owner: u32) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir("/tmp").unwrap().flatten().map(|entry| entry.path());
    let owned = |folder: &PathBuf| {
        let text = fs::read_to_string(folder.join("owner")).unwrap_or_default();
        text.split_whitespace().next() == Some(&owner.to_string())
    };
    entries.filter(owned).collect()
}

/// The processes whose command line names one of these folders.
fn processes(folders: &BTreeSet<PathBuf>) -> Vec<i32> {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let names = |pid: &i32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).into_owned();
        folders.iter().any(|folder| command.contains(&format!("{}/", folder.display()))) && is_alive(*pid)
    };
    pids.filter(names).collect()
}

/// A campaign, told to end when the test fails before that.
struct Campaign(Child);

impl Campaign {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap(), signal).unwrap();
    }
}

impl Drop for Campaign {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            self.signal(Signal::TERM);
            let _ = self.0.wait();
        }
    }
}

#[test]
fn a_campaign_that_is_ended_in_the_middle_leaves_nothing() {
    for signal in [Signal::TERM, Signal::KILL] {
        let mut command = faults(&["--kills", "50", "--seed", "9"]);
        let mut campaign = Campaign(command.stdout(Stdio::null()).spawn().unwrap());
        let id = campaign.0.id();
        // unshare becomes the campaign itself, so the id stays.
        let begun = wait_for("the guests to run", CLEANED, || {
            let folders = folders(id);
            let guests = folders.iter().flat_map(|folder| fs::read_dir(folder.join("images")).into_iter().flatten());
            let guests = guests.flatten().filter(|entry| entry.path().extension().is_some_and(|word| word == "sock"));
            Ok((guests.count() >= 4 || processes(&folders).len() >= 8).then_some(folders))
        });
        let begun = begun.unwrap();
        campaign.signal(signal);
        campaign.0.wait().unwrap();
        // After SIGKILL its reaper does it. A virsh that it had started ends by itself, now that its daemon is gone.
        let is_clean = || processes(&begun).is_empty() && begun.iter().all(|folder| !folder.exists());
        let ended = wait_for("the end of what it had started", CLEANED, || Ok(is_clean().then_some(())));
        assert!(ended.is_ok(), "{signal:?} left {begun:?} and {:?}", processes(&begun));
    }
}

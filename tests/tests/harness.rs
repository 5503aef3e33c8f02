//! The harness itself: guests boot and tell the truth, and nothing outlives a test.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use tests::guest::{Disk, Format, Guest};
use tests::images;
use tests::libvirtd::Libvirtd;
use tests::scratch::{Scratch, is_alive, is_mounted, sweep};
use tests::tools::wait_for;

#[test]
fn a_guest_boots_writes_and_comes_back_by_virsh() {
    let daemon = Libvirtd::start().unwrap();
    let guest = Guest::new(&daemon.images().unwrap(), "mini").unwrap();
    daemon.define_and_start(&guest).unwrap();

    let fresh = guest.report().unwrap();
    assert_eq!((fresh.disk, fresh.ram, fresh.boots, fresh.second_disk), ('_', '_', 1, None));
    let written = guest.write('A').unwrap();
    assert_eq!((written.disk, written.ram), ('A', 'A'));

    daemon.virsh(&["snapshot-create-as", guest.name(), "before"]).unwrap();
    assert_eq!(daemon.snapshots(&guest).unwrap(), ["before"]);
    assert_eq!(images::internal_snapshots(guest.disks()[0].path()).unwrap(), ["before"]);

    guest.write('B').unwrap();
    daemon.virsh(&["snapshot-revert", guest.name(), "before"]).unwrap();
    let back = guest.report().unwrap();
    assert_eq!((back.disk, back.ram, back.boots), ('A', 'A', 1), "disk and RAM are back, without a boot");

    daemon.virsh(&["snapshot-delete", guest.name(), "before"]).unwrap();
    daemon.power_off(&guest).unwrap();
    assert_eq!(daemon.state(&guest).unwrap(), "shut off");
    assert!(images::internal_snapshots(guest.disks()[0].path()).unwrap().is_empty());
    images::check(guest.disks()[0].path()).unwrap();
}

#[test]
fn a_guest_with_two_disks_writes_both() {
    let daemon = Libvirtd::start().unwrap();
    let guest = Guest::with_two_disks(&daemon.images().unwrap(), "two").unwrap();
    daemon.define_and_start(&guest).unwrap();
    assert_eq!(guest.report().unwrap().second_disk, Some('_'));
    let written = guest.write('A').unwrap();
    assert_eq!((written.disk, written.second_disk), ('A', Some('A')));
}

#[test]
fn a_clone_leaves_its_base_alone() {
    let daemon = Libvirtd::start().unwrap();
    let folder = daemon.images().unwrap();
    let base = Disk::boot(&folder.join("base.qcow2"), Format::Qcow2).unwrap();
    let before = images::sha256(base.path()).unwrap();
    let guest = Guest::clone_of(&folder, "clone", &base).unwrap();
    daemon.define_and_start(&guest).unwrap();
    assert_eq!(guest.write('A').unwrap().disk, 'A');
    daemon.power_off(&guest).unwrap();
    assert_eq!(images::sha256(base.path()).unwrap(), before);
    assert_eq!(images::backing_file(guest.disks()[0].path()).unwrap().as_deref(), base.path().to_str());
}

#[test]
fn a_guest_runs_on_while_its_daemon_is_dead() {
    let mut daemon = Libvirtd::start().unwrap();
    let guest = Guest::new(&daemon.images().unwrap(), "mini").unwrap();
    daemon.define_and_start(&guest).unwrap();
    guest.write('A').unwrap();
    let pid = daemon.qemu_pid(&guest).unwrap();

    daemon.kill().unwrap();
    assert_eq!(guest.report().unwrap().disk, 'A');
    daemon.start_again().unwrap();
    assert_eq!(daemon.state(&guest).unwrap(), "running");
    assert_eq!(daemon.qemu_pid(&guest).unwrap(), pid);
    daemon.pause(&guest).unwrap();
    assert_eq!(daemon.state(&guest).unwrap(), "paused");
    daemon.resume(&guest).unwrap();
    assert_eq!(guest.report().unwrap().disk, 'A');
}

#[test]
fn two_daemons_have_nothing_in_common() {
    let (one, other) = (Libvirtd::start().unwrap(), Libvirtd::start().unwrap());
    let here = Guest::new(&one.images().unwrap(), "same").unwrap();
    let there = Guest::new(&other.images().unwrap(), "same").unwrap();
    one.define_and_start(&here).unwrap();
    other.define_and_start(&there).unwrap();
    here.write('A').unwrap();
    there.write('B').unwrap();
    assert_eq!((here.report().unwrap().disk, there.report().unwrap().disk), ('A', 'B'));
}

#[test]
fn nothing_outlives_a_test_that_panics() {
    let (folder, processes) = std::thread::spawn(|| {
        let daemon = Libvirtd::start().unwrap();
        let guest = Guest::new(&daemon.images().unwrap(), "mini").unwrap();
        daemon.define_and_start(&guest).unwrap();
        guest.report().unwrap();
        let mut processes = vec![daemon.qemu_pid(&guest).unwrap()];
        let libvirtd = fs::read_to_string(daemon.folder().join("libvirtd.pid")).unwrap();
        processes.push(libvirtd.trim().parse().unwrap());
        let seen: (PathBuf, Vec<i32>) = (daemon.folder().to_owned(), processes);
        // As a failing assertion would, with the daemon and the guest still there.
        std::panic::resume_unwind(Box::new(seen))
    })
    .join()
    .map_or_else(
        |panic| *panic.downcast::<(PathBuf, Vec<i32>)>().unwrap(),
        |never: std::convert::Infallible| match never {},
    );

    assert!(processes.iter().all(|pid| !is_alive(*pid)), "{processes:?}");
    assert!(!folder.exists());
    assert!(!is_mounted(&folder));
}

#[test]
fn a_linux_guest_has_a_shell_disks_and_a_guest_agent() {
    let daemon = Libvirtd::start().unwrap();
    let guest = Guest::linux(&daemon.images().unwrap(), "linux", 2).unwrap();
    daemon.define_and_start(&guest).unwrap();
    let mounts = guest.shell("cut -d' ' -f1-3 /proc/mounts | grep vd").unwrap().ok().unwrap();
    assert_eq!(mounts, "/dev/vda /data ext4\n/dev/vdb /data2 ext4\n");
    guest.shell("echo kept >/data/file && echo too >/data2/file && sync").unwrap().ok().unwrap();
    assert_eq!(guest.shell("cat /data/file /data2/file").unwrap().ok().unwrap(), "kept\ntoo\n");
    assert_eq!(guest.shell("cat /nothing").unwrap().status, 1);
    // The guest agent answers, and freezes and thaws the file systems.
    let ask = "{\"execute\":\"guest-fsfreeze-status\"}";
    let status = || daemon.virsh(&["qemu-agent-command", guest.name(), ask]).unwrap().trim().to_owned();
    daemon.virsh(&["domfsfreeze", guest.name()]).unwrap();
    assert_eq!(status(), "{\"return\":\"frozen\"}");
    daemon.virsh(&["domfsthaw", guest.name()]).unwrap();
    assert_eq!(status(), "{\"return\":\"thawed\"}");
    daemon.power_off(&guest).unwrap();
    guest.disks().iter().for_each(|disk| images::check(disk.path()).unwrap());
}

#[test]
fn a_dead_test_run_is_swept() {
    // Another process makes a folder and dies without a drop; the next process's first folder sweeps it.
    let folder = tempfile::Builder::new().prefix("rs-").tempdir_in("/tmp").unwrap().keep();
    let mut dead = Command::new("true").spawn().unwrap();
    dead.wait().unwrap();
    fs::write(folder.join("owner"), format!("{} 1", dead.id())).unwrap();
    sweep();
    assert!(!folder.exists());
}

/// What the next test starts in a process of its own.
#[test]
fn holds_a_guest_until_it_is_killed() {
    if std::env::var_os("HOLD_A_GUEST").is_none() {
        return;
    }
    let daemon = Libvirtd::start().unwrap();
    let guest = Guest::new(&daemon.images().unwrap(), "mini").unwrap();
    daemon.define_and_start(&guest).unwrap();
    writeln!(std::io::stdout(), "\nholds {}", daemon.folder().display()).unwrap();
    std::thread::sleep(Duration::from_secs(300));
}

#[test]
fn a_test_process_that_is_killed_leaves_nothing() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "holds_a_guest_until_it_is_killed", "--nocapture"]).env("HOLD_A_GUEST", "1");
    let mut holder = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(holder.stdout.take().unwrap()).lines().map_while(Result::ok);
    let told = lines.into_iter().find_map(|line| line.strip_prefix("holds ").map(PathBuf::from));
    holder.kill().unwrap();
    holder.wait().unwrap();
    let folder = told.unwrap();
    // Nobody sweeps: it is the reaper of that process.
    wait_for("the reaper", Duration::from_secs(30), || Ok((!folder.exists()).then_some(()))).unwrap();
    let needle = format!("{}/", folder.display());
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let left = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let left = left.map(|line| String::from_utf8_lossy(&line).into_owned()).filter(|line| line.contains(&needle));
    assert_eq!(left.collect::<Vec<_>>(), [""; 0]);
    assert!(!is_mounted(&folder));
}

#[test]
fn a_qemu_of_another_kind_is_ended_too() {
    let scratch = Scratch::new().unwrap();
    let probe = scratch.path().join("qemu-system-i386");
    fs::copy("/bin/sleep", &probe).unwrap();
    let mut process = Command::new(&probe).arg("600").spawn().unwrap();
    let id = i32::try_from(process.id()).unwrap();
    // It carries this test's name until its own program is loaded, which the spawn does not wait for everywhere.
    let seen = wait_for("the process to be seen", Duration::from_secs(10), || {
        Ok(Some(scratch.processes()).filter(|seen| !seen.is_empty()))
    });
    assert_eq!(seen.unwrap(), [id]);
    drop(scratch);
    assert!(!process.wait().unwrap().success());
}

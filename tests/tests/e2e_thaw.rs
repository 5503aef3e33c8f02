//! A guest is never left frozen. Its file systems are those of a Linux guest, and what is asked is whether it can write.
//!
//! The moments that matter are made to last: QEMU's guest agent runs a hook of the test's before it freezes anything, and
//! libvirt takes no snapshot while it dumps the machine's memory into a pipe that nobody reads.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use proto::v1;
use tests::guest::Guest;
use tests::lab::{HOST, Lab, quiesced};
use tests::tools::{run, wait_for};

/// How long anything may take here that is not held up on purpose.
const SOON: Duration = Duration::from_secs(120);

/// Says when it is asked to freeze, and lets that go on when the test says so.
const HOOK: &str = "printf '%s\\n' '#!/bin/sh' '[ $1 = freeze ] || exit 0' ': >/run/asked' \
                    'until [ -e /run/go ]; do sleep 0.1; done' >/run/hook; chmod 755 /run/hook";
const AGENT: &str = "kill $(cat /run/qemu-ga.pid); for i in 1 2 3 4 5 6 7 8 9 10; do [ -e /run/qemu-ga.pid ] || break; \
                     sleep 0.1; done; for p in /sys/class/virtio-ports/*; do qemu-ga -m virtio-serial -p /dev/${p##*/} -d \
                     -f /run/qemu-ga.pid -F/run/hook; done";

/// A desktop of which a snapshot is being taken with its file systems frozen.
struct Desk {
    lab: Lab,
    guest: Guest,
    operation: v1::Operation,
}

impl Desk {
    /// The guest agent was asked to freeze and has not begun.
    async fn asked() -> Self {
        let lab = Lab::with_policy("stable_paths = false\n").unwrap();
        let guest = Guest::linux(&lab.images().unwrap(), "linux", 1).unwrap();
        lab.run(&guest).await.unwrap();
        guest.shell("echo before >/data/file && sync").unwrap().ok().unwrap();
        guest.shell(HOOK).unwrap().ok().unwrap();
        guest.shell(AGENT).unwrap().ok().unwrap();
        wait_for("the guest agent", SOON, || Ok(status(&lab, &guest).ok())).unwrap();
        let operation = lab.client.create_as(quiesced(&guest)).await.unwrap();
        let desk = Self { lab, guest, operation };
        desk.wait_in_guest("test -e /run/asked");
        desk
    }

    fn wait_in_guest(&self, condition: &str) {
        let look = || Ok((self.guest.shell(condition)?.status == 0).then_some(()));
        wait_for(&format!("{condition} in the guest"), SOON, look).unwrap();
    }

    /// It is frozen, and libvirt waits for something else before it takes the snapshot.
    async fn frozen() -> (Self, Held) {
        let desk = Self::asked().await;
        let held = Held::hold(&desk.lab, &desk.guest);
        desk.let_freeze();
        let frozen = || Ok(status(&desk.lab, &desk.guest).is_ok_and(|told| told == "frozen").then_some(()));
        wait_for("the file systems to be frozen", SOON, frozen).unwrap();
        desk.begin_to_write();
        (desk, held)
    }

    fn let_freeze(&self) {
        self.guest.shell(": >/run/go").unwrap().ok().unwrap();
    }

    /// The guest writes as soon as it can; [`Desk::wrote`] waits for that.
    fn begin_to_write(&self) {
        let write = "(echo after >/data/file && sync && : >/run/wrote) >/dev/null 2>&1 &";
        self.guest.shell(write).unwrap().ok().unwrap();
    }

    /// What the agent on the host has logged.
    fn log(&self) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.lab.cluster.folder().join("agent-alpha.log"))?)
    }

    fn wrote(&self) {
        self.wait_in_guest("test -e /run/wrote");
        assert_eq!(self.guest.shell("cat /data/file").unwrap().ok().unwrap(), "after\n");
        assert_eq!(status(&self.lab, &self.guest).unwrap(), "thawed");
    }
}

/// What the guest's agent says of its file systems: `thawed` or `frozen`.
fn status(lab: &Lab, guest: &Guest) -> anyhow::Result<String> {
    let ask = r#"{"execute":"guest-fsfreeze-status"}"#;
    let told = lab.daemon()?.virsh(&["qemu-agent-command", "--timeout", "5", guest.name(), ask])?;
    Ok(told.trim().trim_start_matches("{\"return\":\"").trim_end_matches("\"}").to_owned())
}

/// As long as this is there, libvirt changes nothing about the machine.
struct Held {
    pipe: File,
    dump: Child,
}

impl Held {
    fn hold(lab: &Lab, guest: &Guest) -> Self {
        let daemon = lab.daemon().unwrap();
        let path = daemon.folder().join("pipe");
        run(Command::new("mkfifo").arg(&path)).unwrap();
        // libvirt's end can be opened once there is another one.
        let pipe = File::options().read(true).custom_flags(libc_nonblock()).open(&path).unwrap();
        let mut dump = Command::new("virsh");
        dump.args(["-q", "-c", &daemon.uri(), "dump", "--live", guest.name()]).arg(&path);
        let dump = dump.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let busy = || Ok(daemon.virsh(&["domjobinfo", guest.name()])?.contains("Dump").then_some(()));
        wait_for("the dump", SOON, busy).unwrap();
        Self { pipe, dump }
    }

    /// Reads the dump to its end.
    fn release(mut self) {
        wait_for("the end of the dump", SOON, || {
            match io::copy(&mut self.pipe, &mut io::sink()) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            Ok(self.dump.try_wait()?)
        })
        .unwrap();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.dump.kill();
        let _ = self.dump.wait();
    }
}

fn libc_nonblock() -> i32 {
    i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap()
}

/// What was asked for ended for this reason, and nothing of it is left.
async fn ended_without_a_trace(desk: &Desk, reason: &str) {
    let ended = desk.lab.client.ended(desk.operation.clone()).await.unwrap();
    assert_eq!(ended.state(), v1::OperationState::Failed, "{ended:?}");
    assert_eq!(ended.error.unwrap().reason, reason);
    let (daemon, disk) = (desk.lab.daemon().unwrap(), desk.guest.disks()[0].path());
    assert_eq!(daemon.snapshots(&desk.guest).unwrap(), Vec::<String>::new());
    assert_eq!(desk.lab.client.snapshots(&desk.guest.vm()).await.unwrap(), []);
    let disks = daemon.virsh(&["domblklist", desk.guest.name()]).unwrap();
    assert!(disks.split_whitespace().eq(["vda", &disk.display().to_string()]), "{disks}");
    let stem = disk.file_stem().unwrap().to_str().unwrap().to_owned();
    let images = std::fs::read_dir(disk.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    let left: Vec<_> = images.filter(|path| path.file_stem().is_some_and(|it| it == stem.as_str())).collect();
    assert_eq!(left, [disk]);
    desk.guest.shell("echo more >/data/more && sync").unwrap().ok().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_is_thawed_while_its_snapshot_takes_too_long_and_that_snapshot_is_not_kept() {
    let (desk, held) = Desk::frozen().await;
    desk.wrote();
    let now = desk.lab.client.operation(&desk.operation.name).await.unwrap();
    assert_eq!(now.state(), v1::OperationState::Running, "{now:?}");
    held.release();
    ended_without_a_trace(&desk, "GUEST_THAWED").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_is_thawed_in_time_when_the_api_was_killed_and_never_comes_back() {
    let (mut desk, held) = Desk::frozen().await;
    desk.lab.cluster.api().kill().unwrap();
    desk.wrote();
    held.release();
    let daemon = desk.lab.daemon().unwrap();
    let left = || Ok(daemon.snapshots(&desk.guest)?.is_empty().then_some(()));
    wait_for("the agent to take the snapshot back", SOON, left).unwrap();
    assert!(!desk.lab.cluster.api().is_running());
    // What was asked for was settled without it, and it is told when it asks.
    desk.lab.cluster.start_api_again().unwrap();
    ended_without_a_trace(&desk, "GUEST_THAWED").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_is_thawed_when_its_agent_on_the_host_was_killed_and_the_snapshot_is_whole() {
    let (mut desk, held) = Desk::frozen().await;
    desk.lab.cluster.host_mut(HOST).unwrap().agent().kill().unwrap();
    held.release();
    let taken = || Ok((desk.lab.daemon()?.snapshots(&desk.guest)?.len() == 1).then_some(()));
    wait_for("libvirt to go on with what it was asked to do", SOON, taken).unwrap();
    assert_eq!(status(&desk.lab, &desk.guest).unwrap(), "frozen", "there is nobody who could thaw it");
    desk.lab.cluster.host_mut(HOST).unwrap().start_agent_again().unwrap();
    desk.wrote();
    desk.lab.client.done(Ok(desk.operation.clone())).await.unwrap();
    assert_eq!(desk.lab.client.snapshots(&desk.guest.vm()).await.unwrap().len(), 1);
    let raw = desk.lab.images().unwrap().join("raw");
    run(Command::new("qemu-img").args(["convert", "-U", "-O", "raw"]).arg(desk.guest.disks()[0].path()).arg(&raw))
        .unwrap();
    assert_eq!(run(Command::new("debugfs").args(["-R", "cat /file"]).arg(&raw)).unwrap(), "before\n");
}

/// libvirt goes on with what the killed agent asked for, after the next one has thawed the guest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_is_thawed_when_its_agent_on_the_host_was_killed_and_a_snapshot_that_comes_after_that_is_not_kept() {
    let (mut desk, held) = Desk::frozen().await;
    desk.lab.cluster.host_mut(HOST).unwrap().agent().kill().unwrap();
    desk.lab.cluster.host_mut(HOST).unwrap().start_agent_again().unwrap();
    desk.wrote();
    held.release();
    ended_without_a_trace(&desk, "INTERRUPTED").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_is_thawed_when_libvirt_was_killed_and_started_again() {
    let (mut desk, held) = Desk::frozen().await;
    let daemon = desk.lab.cluster.host_mut(HOST).unwrap().libvirtd_mut().unwrap();
    daemon.kill().unwrap();
    daemon.start_again().unwrap();
    held.release();
    desk.wrote();
    ended_without_a_trace(&desk, "HYPERVISOR_UNAVAILABLE").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_agent_that_freezes_too_late_has_to_thaw_at_once() {
    let desk = Desk::asked().await;
    // It is waited for, and then no more; meanwhile nothing is frozen, and the guest goes on.
    let given_up = || Ok(desk.log()?.contains("asking it again to thaw").then_some(()));
    wait_for("the agent to give up", SOON, given_up).unwrap();
    desk.guest.shell("echo meanwhile >/data/file && sync").unwrap().ok().unwrap();
    desk.let_freeze();
    ended_without_a_trace(&desk, "GUEST_AGENT_SILENT").await;
    desk.begin_to_write();
    desk.wrote();
}

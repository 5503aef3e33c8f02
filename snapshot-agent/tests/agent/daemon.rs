//! A libvirt daemon that is killed, and what becomes of the agent and of the guests.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::v1::OperationState;
use rustix::process::Signal;
use snapshot_agent::hypervisor::libvirt::Libvirt;
use snapshot_agent::hypervisor::{Failure, Hypervisor, Reread};
use snapshot_agent::journal::Ended;
use snapshot_core::operation::{Create, DeleteScope, Outcome, Request, RunAfter};
use snapshot_core::snapshot::{Content, Storage};
use snapshot_core::vm::VmState;
use tonic::Code;

use crate::external::Bench;
use crate::guest::{FOLDER, Guest, Host, QEMU_CONF};
use crate::processes::kill_all_of;
use crate::served::{Agent, create, end, id, inventory, spec};

const DEADLINE: Duration = Duration::from_secs(60);

/// A daemon of this test's own: libvirtd has its folders compiled in, so it gets a mount namespace in which the test's
/// folders lie over them. Each start makes the same folders appear at the same places, so it finds its guests again.
pub(crate) struct Daemon {
    pub(crate) host: Host,
    process: Child,
}

impl Daemon {
    pub(crate) fn start(name: &str) -> Self {
        let dir = FOLDER.join(name);
        for folder in ["run", "lib", "etc/qemu", "log"] {
            fs::create_dir_all(dir.join(folder)).unwrap();
        }
        // What QEMU can do takes libvirt four seconds to find out.
        fs::create_dir_all(dir.join("../cache")).unwrap();
        fs::write(dir.join("etc/qemu.conf"), QEMU_CONF).unwrap();
        let conf = format!("unix_sock_dir = \"{}\"\nauth_unix_ro = \"none\"\nauth_unix_rw = \"none\"\n", dir.display());
        fs::write(dir.join("libvirtd.conf"), conf).unwrap();
        let uri = format!("qemu+unix:///system?socket={}", dir.join("libvirt-sock").display());
        let process = Self::launch(&dir);
        let daemon = Self { host: Host { uri, dir }, process };
        daemon.ready();
        daemon
    }

    fn launch(dir: &PathBuf) -> Child {
        let mut script = "mount --make-rprivate /\n".to_owned();
        for (folder, over) in [
            ("run", "/run/libvirt"),
            ("lib", "/var/lib/libvirt"),
            ("etc", "/etc/libvirt"),
            ("log", "/var/log/libvirt"),
            ("../cache", "/var/cache/libvirt"),
        ] {
            script += &format!("mkdir -p {over} && mount --bind {folder} {over}\n");
        }
        script += &format!("exec libvirtd -f {0}/libvirtd.conf -p {0}/pid\n", dir.display());
        let mut command = Command::new("unshare");
        command.args(["-m", "bash", "-ec", &script]).current_dir(dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(dir.join("stderr")).unwrap());
        command.spawn().unwrap()
    }

    fn ready(&self) {
        let start = Instant::now();
        while virt::connect::Connect::open(Some(&self.host.uri)).is_err() {
            assert!(start.elapsed() < DEADLINE, "{}", fs::read_to_string(self.host.dir.join("stderr")).unwrap());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Has virsh do something.
    pub(crate) fn virsh(&self, args: &[&str]) -> String {
        self.try_virsh(args).unwrap_or_else(|words| panic!("virsh {args:?}: {words}"))
    }

    /// The same where it may fail; then with what virsh said.
    pub(crate) fn try_virsh(&self, args: &[&str]) -> Result<String, String> {
        let mut command = Command::new("virsh");
        let output = command.args(["-q", "-c", &self.host.uri]).args(args).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub(crate) fn start_again(&mut self) {
        self.process = Self::launch(&self.host.dir);
        self.ready();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // The QEMUs that it started, of which the test may have no guest: they outlive it.
        kill_all_of(&self.host.dir);
    }
}

pub(crate) async fn connected(libvirt: &Libvirt, expected: bool) {
    let mut connected = libvirt.inbox().connected();
    let wait = connected.wait_for(|connected| *connected == expected);
    tokio::time::timeout(DEADLINE, wait).await.expect("in time").unwrap();
}

/// Kills the daemon in the middle of what QEMU is asked to do: QEMU is stopped first, so that it is the middle.
pub(crate) fn kill_in_the_middle(daemon: &mut Daemon, guest: &Guest, after: Duration) {
    std::thread::sleep(after);
    guest.signal(Signal::STOP);
    daemon.kill();
    guest.signal(Signal::CONT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn operations_outlive_the_daemon() {
    let mut daemon = Daemon::start("daemon");
    let libvirt = Arc::new(Libvirt::new(&daemon.host.uri).unwrap());
    connected(&libvirt, true).await;
    let agent = Agent::start_on(Arc::clone(&libvirt) as Arc<dyn Hypervisor>).await;
    let guest = Guest::on(&daemon.host, 2, "");
    let vm = guest.vm;
    guest.start();
    guest.write('A');
    let first = id();
    let ended = agent.run(vm, Request::Create(create(&first))).await.unwrap();
    assert_eq!(ended.state(), OperationState::Succeeded, "{:?}", ended.error);
    guest.write('B');

    // Gone and back, with nothing under way.
    daemon.kill();
    connected(&libvirt, false).await;
    assert!(matches!(libvirt.observe(vm, Reread::New), Err(Failure::Unreachable(_))));
    daemon.start_again();
    connected(&libvirt, true).await;
    assert!(libvirt.observe(vm, Reread::New).unwrap().has_whole(&first));

    // Killed while a snapshot is taken: it is whole or nothing is left of it, and the guest runs on.
    for millis in [3, 9, 15, 21, 30, 40, 60, 90] {
        let (second, agent) = (id(), &agent);
        let (ended, ()) = tokio::join!(agent.run(vm, Request::Create(create(&second))), async {
            tokio::task::block_in_place(|| {
                kill_in_the_middle(&mut daemon, &guest, Duration::from_millis(millis));
                daemon.start_again();
            });
        });
        connected(&libvirt, true).await;
        let seen = libvirt.observe(vm, Reread::All).unwrap();
        let ended = match ended {
            Ok(ended) => ended,
            Err(refusal) => {
                // The daemon was gone before the operation was taken on.
                assert_eq!(refusal.code(), Code::Unavailable, "{refusal:?}");
                assert!(seen.vm.state == VmState::Running && seen.snapshot(&second).is_none());
                continue;
            }
        };
        assert_eq!(seen.vm.state, VmState::Running, "{millis} ms: {ended:?}");
        assert!(seen.strays.is_empty(), "{millis} ms: {:?}", seen.strays);
        let is_there = ended.state() == OperationState::Succeeded;
        assert_eq!(seen.has_whole(&second), is_there, "{millis} ms: {ended:?}");
        assert_eq!(seen.snapshots.len(), inventory(ended.inventory).snapshots.len());
        assert_eq!(guest.report().disk, 'B');
    }

    // Killed in the middle of a revert: it is finished.
    for millis in [30, 150, 600] {
        guest.write('B');
        let request = Request::Revert { snapshot: first.clone(), run_after: RunAfter::AsRecorded, save_current: None };
        // Until it is taken on, a daemon that is gone is a reason to refuse it.
        let taken_on = agent.begin(&spec(vm, request), &agent.all()).await.unwrap();
        let (ended, ()) = tokio::join!(end(taken_on), async {
            tokio::time::sleep(Duration::from_millis(millis)).await;
            tokio::task::block_in_place(|| {
                daemon.kill();
                daemon.start_again();
            });
        });
        assert_eq!(ended.state(), OperationState::Succeeded, "{millis} ms: {:?}", ended.error);
        let report = guest.report();
        assert_eq!((report.disk, report.ram, report.second), ('A', 'A', Some('A')), "{millis} ms");
    }
    libvirt.power_off(vm).unwrap();
    agent.stop().await;
}

/// What an operation ends as is what the host has, and the guest has lost nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn external_snapshots_outlive_the_daemon() {
    let mut daemon = Daemon::start("overlays");
    let libvirt = Arc::new(Libvirt::new(&daemon.host.uri).unwrap());
    connected(&libvirt, true).await;
    let mut bench = Bench::on(&libvirt, Guest::on(&daemon.host, 2, ""));
    bench.guest.start();
    bench.write('A');
    bench.take(Some(Content::Disks)).await;
    bench.write('B');
    for (round, millis) in [2, 10, 25, 40, 70, 110].into_iter().enumerate() {
        let fresh = id();
        let content = Some(if round % 2 == 0 { Content::DisksAndMemory } else { Content::Disks });
        let request = Request::Create(Create { storage: Some(Storage::External), content, ..create(&fresh) });
        let ended = interrupted(&mut daemon, &bench, request, Duration::from_millis(millis)).await;
        connected(&libvirt, true).await;
        if ended.is_some_and(|ended| ended.outcome == Outcome::Succeeded) {
            bench.expected.insert(fresh, 'B');
        }
        assert_eq!(bench.look().vm.state, VmState::Running, "{millis} ms");
        bench.check();
        // What it writes now is in files that libvirt knows of.
        bench.write(if round % 2 == 0 { 'C' } else { 'B' });
        libvirt.power_off(bench.guest.vm).unwrap();
        daemon.virsh(&["start", &bench.guest.vm.to_string()]);
        bench.check();
        bench.write('B');
    }
    for millis in [2, 15, 30, 60, 120] {
        while bench.expected.len() < 4 {
            bench.take(Some(Content::Disks)).await;
        }
        let seen = bench.look();
        let (root, leaf) = (seen.snapshots.iter().min_by_key(|it| it.create_time), &seen.snapshots);
        let middle = leaf.iter().find(|it| it.parent.is_some() && !it.is_current).or(root).unwrap().id.clone();
        let request = Request::Delete { snapshot: middle.clone(), scope: DeleteScope::Only, force: false };
        let ended = interrupted(&mut daemon, &bench, request, Duration::from_millis(millis)).await;
        connected(&libvirt, true).await;
        if let Some(ended) = ended {
            assert_eq!(ended.outcome, Outcome::Succeeded, "{millis} ms: {ended:?}");
            bench.expected.remove(&middle);
        }
        bench.check();
    }
    bench.check_all().await;
    bench.purge().await;
    libvirt.power_off(bench.guest.vm).unwrap();
}

/// Has something done, and the daemon killed in the middle and started again; `None` when it was not taken on.
async fn interrupted(daemon: &mut Daemon, bench: &Bench, request: Request, after: Duration) -> Option<Ended> {
    let run = async {
        let operation = bench.start(request).await.ok()?;
        Some(Bench::end(&operation).await)
    };
    let (ended, ()) = tokio::join!(run, async {
        tokio::task::block_in_place(|| {
            kill_in_the_middle(daemon, &bench.guest, after);
            daemon.start_again();
        });
    });
    ended
}

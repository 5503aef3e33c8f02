//! What services say to the service manager that starts them, which the test is here, and what they hear from it.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use proto::v1;
use rustix::process::Signal;
use tests::client::Client;
use tests::cluster::{ALL_ACTIONS, Cluster};
use tests::guest::Guest;
use tests::processes::Process;
use tests::scratch::Scratch;

/// Longer than anything takes on a machine that has much to do.
const LIMIT: Duration = Duration::from_secs(60);
/// What a service is told: it has to say that it is alive this often.
const WATCHDOG: Duration = Duration::from_secs(3);

/// The end of the protocol that a service manager has.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn of(scratch: &Scratch, service: &str) -> Self {
        let path = scratch.path().join(format!("{service}.notify"));
        let socket = UnixDatagram::bind(&path).unwrap();
        Self { socket, path }
    }

    /// Has the service started by this manager from now on; it is not running.
    fn takes(&self, process: &mut Process) {
        let (socket, watchdog) = (self.path.display(), WATCHDOG.as_micros());
        process.start_through("env", &[&format!("NOTIFY_SOCKET={socket}"), &format!("WATCHDOG_USEC={watchdog}")]);
    }

    /// Waits until the service says this, as one line of one message; returns the lines before it.
    fn hears(&self, word: &str) -> Vec<String> {
        let (end, mut before) = (Instant::now() + LIMIT, Vec::new());
        let mut bytes = [0; 4096];
        loop {
            let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.socket.set_read_timeout(Some(left)).unwrap();
            let received = self.socket.recv(&mut bytes);
            assert!(received.is_ok(), "no {word}, but {before:?}");
            let lines: Vec<_> =
                String::from_utf8_lossy(&bytes[..received.unwrap()]).lines().map(str::to_owned).collect();
            let is_it = lines.iter().any(|line| line == word);
            before.extend(lines);
            if is_it {
                return before;
            }
        }
    }
}

/// That it is ready is said when it can be called, that it is alive without being asked, and that it stops before it is gone.
#[test]
fn services_say_that_they_are_ready_alive_and_stopping() {
    let mut cluster = Cluster::with_daemons(&["alpha"]).unwrap();
    let scratch = Scratch::new().unwrap();
    let agent_port = cluster.host("alpha").unwrap().port();
    let ports = cluster.ports();
    for (service, port) in [("agent", agent_port), ("api", ports.internal), ("gateway", ports.gateway)] {
        let manager = Manager::of(&scratch, service);
        let process = match service {
            "agent" => cluster.host_mut("alpha").unwrap().agent(),
            "api" => cluster.api(),
            _ => cluster.gateway(),
        };
        process.stop().unwrap();
        manager.takes(process);
        process.start_again().unwrap();
        manager.hears("READY=1");
        // No wait: whoever is told that a service is ready may call it.
        std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        manager.hears("WATCHDOG=1");
        process.signal(Signal::HUP).unwrap();
        let before = manager.hears("RELOADING=1");
        assert!(before.iter().any(|line| line.starts_with("MONOTONIC_USEC=")), "{before:?}");
        manager.hears("READY=1");
        assert!(process.is_running());
        // Not only once.
        manager.hears("WATCHDOG=1");
        process.stop().unwrap();
        manager.hears("STOPPING=1");
        process.start_again().unwrap();
        manager.hears("READY=1");
        assert!(fs::read_to_string(process.log()).unwrap().contains("issuers' keys"));
    }
}

/// What hangs says nothing, so that it is found.
#[test]
fn a_service_that_hangs_is_not_called_alive() {
    let mut cluster = Cluster::with_daemons(&["alpha"]).unwrap();
    let (scratch, catalogue) = (Scratch::new().unwrap(), cluster.catalogue());
    let manager = Manager::of(&scratch, "api");
    cluster.api().stop().unwrap();
    manager.takes(cluster.api());
    cluster.api().start_again().unwrap();
    manager.hears("READY=1");
    manager.hears("WATCHDOG=1");
    // The catalogue is gone from under it: it cannot be read any more.
    let damaged = vec![0x5a; usize::try_from(fs::metadata(&catalogue).unwrap().len()).unwrap()];
    fs::write(&catalogue, damaged).unwrap();
    let log = cluster.api().log().to_owned();
    tests::tools::wait_for("the API to find itself not alive", LIMIT, || {
        Ok(fs::read_to_string(&log)?.contains("is not told that this service is alive").then_some(()))
    })
    .unwrap();
}

/// Operations that are under way when reloads are asked for come to their end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_ends_no_call() {
    let cluster = Cluster::with_daemons(&["alpha"]).unwrap();
    let daemon = cluster.host("alpha").unwrap().libvirtd().unwrap();
    let guest = Guest::new(&daemon.images().unwrap(), "student").unwrap();
    daemon.define(&guest).unwrap();
    let token = cluster.identity().token("root", "*", &ALL_ACTIONS).unwrap();
    let client = Client::grpc(&cluster, token).unwrap();
    client.vm_in_state(&guest.vm(), v1::VmState::Shutoff).await.unwrap();
    for round in 0..5 {
        let begun = client.create(&guest.vm(), &format!("round {round}"), "").await;
        cluster.processes().for_each(|process| process.signal(Signal::HUP).unwrap());
        client.done(begun).await.unwrap();
    }
    assert_eq!(daemon.snapshots(&guest).unwrap().len(), 5);
}

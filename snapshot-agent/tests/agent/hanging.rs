//! A guest whose QEMU hangs: it holds up itself and nobody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use snapshot_agent::hypervisor::libvirt::Libvirt;
use snapshot_agent::hypervisor::{Hypervisor, Reread};
use snapshot_core::Reason;
use snapshot_core::description::Label;
use snapshot_core::operation::{DeleteScope, Outcome, Request};
use snapshot_core::text::{Description, DisplayName};

use crate::daemon::{Daemon, connected};
use crate::external::Bench;
use crate::guest::Guest;
use crate::served::{create, id};

/// As many calls as are let onto one connection.
const CALLS: usize = 4;

fn label(name: &str) -> Label {
    let display_name = DisplayName::lossy(name);
    Label {
        display_name,
        description: Description::default(),
        protected: false,
        actor: String::new(),
        issuer: String::new(),
        disks: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn calls_that_hang_hold_up_nobody_else() {
    let daemon = Daemon::start("hanging");
    let libvirt = Arc::new(Libvirt::new(&daemon.host.uri).unwrap());
    connected(&libvirt, true).await;
    let (hanging, other) = (Guest::on(&daemon.host, 1, ""), Guest::on(&daemon.host, 1, ""));
    hanging.start();
    hanging.write('A');
    let before = libvirt.observe(hanging.vm, Reread::New).unwrap().vm;
    hanging.signal(Signal::STOP);

    let returned = Arc::new(AtomicUsize::new(0));
    let calls: Vec<_> = (0..CALLS)
        .map(|_| {
            let (libvirt, returned, vm) = (Arc::clone(&libvirt), Arc::clone(&returned), before.clone());
            thread::spawn(move || {
                // The first waits for QEMU, the others for the first, which libvirt lets them do for 30 s.
                let _ = libvirt.create_internal(&vm, &id(), &label("hangs"), true);
                returned.fetch_add(1, Ordering::SeqCst);
            })
        })
        .collect();
    let (worker, snapshot) = (Arc::clone(&libvirt), id());
    let taken = thread::spawn({
        let snapshot = snapshot.clone();
        move || {
            let seen = worker.observe(other.vm, Reread::New).unwrap();
            worker.create_internal(&seen.vm, &snapshot, &label("meanwhile"), false).unwrap();
            worker.observe(other.vm, Reread::New).unwrap()
        }
    });
    let seen = tokio::task::block_in_place(|| taken.join().unwrap());
    assert!(seen.has_whole(&snapshot));
    assert_eq!(returned.load(Ordering::SeqCst), 0, "the calls hung all that time");

    hanging.signal(Signal::CONT);
    tokio::task::block_in_place(|| calls.into_iter().for_each(|call| call.join().unwrap()));
    assert_eq!(hanging.report().disk, 'A');
    libvirt.power_off(hanging.vm).unwrap();
}

/// How long an operation may make no progress here, and within what everything else happens.
const SILENCE: Duration = Duration::from_secs(2);
const SOON: Duration = Duration::from_secs(60);

async fn ended(bench: &Bench, request: Request) -> snapshot_agent::journal::Ended {
    let operation = bench.start(request).await.unwrap();
    tokio::time::timeout(SOON, Bench::end(&operation)).await.expect("an end within the bound")
}

/// Nobody waits for ever, nobody else gets at the machine before it is known what has become of it, and nothing is left.
async fn free_again(bench: &Bench) {
    let request = || Request::Delete { snapshot: id(), scope: DeleteScope::Only, force: false };
    let since = std::time::Instant::now();
    loop {
        // What is not there is refused as soon as the machine is free.
        let refusal = bench.start(request()).await.unwrap_err();
        match refusal.reason() {
            Reason::SnapshotNotFound => return,
            Reason::VmBusy | Reason::HypervisorUnavailable if since.elapsed() < SOON => {}
            other => panic!("{other:?}: {refusal}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_operation_without_progress_is_given_up_and_comes_to_its_end_later() {
    let mut daemon = Daemon::start("silent");
    let libvirt = Arc::new(Libvirt::new(&daemon.host.uri).unwrap());
    connected(&libvirt, true).await;
    let mut bench = Bench::patient_for(&libvirt, Guest::on(&daemon.host, 1, ""), SILENCE);
    bench.guest.start();
    bench.write('A');

    // A call that hangs, because QEMU does.
    let first = id();
    bench.guest.signal(Signal::STOP);
    let given_up = ended(&bench, Request::Create(create(&first))).await;
    let reason = given_up.error.map(|error| error.reason());
    assert_eq!((given_up.outcome, reason), (Outcome::Failed, Some(Reason::HypervisorUnavailable)));
    let refusal = bench.start(Request::Create(create(&id()))).await.unwrap_err();
    assert_eq!(refusal.reason(), Reason::VmBusy);
    bench.guest.signal(Signal::CONT);
    free_again(&bench).await;
    // What hung was done in the end, and is whole.
    assert!(bench.look().has_whole(&first));

    // libvirt that goes away in the middle and stays away.
    let second = id();
    bench.guest.signal(Signal::STOP);
    let operation = bench.start(Request::Create(create(&second))).await.unwrap();
    tokio::task::block_in_place(|| daemon.kill());
    bench.guest.signal(Signal::CONT);
    let given_up = tokio::time::timeout(SOON, Bench::end(&operation)).await.expect("an end within the bound");
    let reason = given_up.error.map(|error| error.reason());
    assert_eq!((given_up.outcome, reason), (Outcome::Failed, Some(Reason::HypervisorUnavailable)));
    tokio::task::block_in_place(|| daemon.start_again());
    free_again(&bench).await;
    let seen = bench.look();
    assert!(seen.has_whole(&second) || (seen.snapshot(&second).is_none() && seen.strays.is_empty()));
    assert_eq!(bench.guest.report().disk, 'A');
    libvirt.power_off(bench.guest.vm).unwrap();
}

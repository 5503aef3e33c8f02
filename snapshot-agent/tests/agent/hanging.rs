//! A guest whose QEMU hangs: it holds up itself and nobody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::process::Signal;
use snapshot_agent::hypervisor::libvirt::Libvirt;
use snapshot_agent::hypervisor::{Hypervisor, Reread};
use snapshot_core::description::Label;
use snapshot_core::text::{Description, DisplayName};

use crate::daemon::{Daemon, connected};
use crate::guest::Guest;
use crate::served::id;

/// As many calls as are let onto one connection.
const CALLS: usize = 4;

fn label(name: &str) -> Label {
    let display_name = DisplayName::lossy(name);
    Label { display_name, description: Description::default(), protected: false, actor: String::new() }
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

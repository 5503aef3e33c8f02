//! A daemon of libvirt's that dies between QEMU's going on with the overlays of a snapshot and its writing that down. The
//! moment is too short to be hit at will, so QEMU is told by hand what libvirt would have told it.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use snapshot_core::layers::overlay_paths;

use super::*;
use crate::daemon::{Daemon, connected};

fn ask(daemon: &Daemon, guest: &Guest, command: &str, arguments: Value) -> Value {
    let asked = json!({ "execute": command, "arguments": arguments }).to_string();
    let answer = daemon.virsh(&["qemu-monitor-command", &guest.vm.to_string(), &asked]);
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert!(answer.get("error").is_none(), "{asked}: {answer}");
    answer["return"].clone()
}

/// Has QEMU go on with the overlays of a snapshot, all disks at once, as libvirt does.
fn move_on(daemon: &Daemon, bench: &Bench, id: &SnapshotId) -> Vec<String> {
    let seen = bench.look();
    let disks = seen.vm.writable_disks().map(|disk| (disk.target.as_str(), disk.path.as_str()));
    let overlays = overlay_paths(disks, id);
    let blocks = ask(daemon, &bench.guest, "query-block", json!({}));
    let mut actions = Vec::new();
    for (number, (target, overlay)) in overlays.iter().enumerate() {
        let live = &seen.layers.live[target];
        let args = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", live, overlay];
        assert!(Command::new("qemu-img").args(args).status().unwrap().success());
        let is_top = |block: &&Value| block["inserted"]["file"] == json!(live);
        let top = &blocks.as_array().unwrap().iter().find(is_top).unwrap()["inserted"]["node-name"];
        let (storage, format) = (format!("libvirt-9{number}-storage"), format!("libvirt-9{number}-format"));
        let arguments = json!({ "driver": "file", "filename": overlay, "node-name": storage });
        ask(daemon, &bench.guest, "blockdev-add", arguments);
        // libvirt has QEMU make the image, and dies before it hears that this is done.
        let options = json!({ "driver": "qcow2", "file": storage, "size": 64 << 20, "backing-file": live, "backing-fmt": "qcow2" });
        ask(
            daemon,
            &bench.guest,
            "blockdev-create",
            json!({ "job-id": format!("create-{format}"), "options": options }),
        );
        while !ask(daemon, &bench.guest, "query-jobs", json!({})).to_string().contains("concluded") {}
        let arguments = json!({ "driver": "qcow2", "node-name": format, "file": storage, "backing": null });
        ask(daemon, &bench.guest, "blockdev-add", arguments);
        actions.push(json!({ "type": "blockdev-snapshot", "data": { "node": top, "overlay": format } }));
    }
    ask(daemon, &bench.guest, "transaction", json!({ "actions": actions }));
    overlays.into_values().collect()
}

/// What is on the disks when nothing of this run is left.
fn after_a_power_cycle(bench: &Bench) -> (char, Option<char>) {
    if bench.is_on() {
        bench.libvirt.power_off(bench.guest.vm).unwrap();
    }
    bench.guest.start();
    let report = bench.guest.report();
    (report.disk, report.second)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_guest_writes_on_overlays_that_libvirt_does_not_know_is_kept() {
    let daemon = Daemon::start("ahead");
    let libvirt = Arc::new(Libvirt::new(&daemon.host.uri).unwrap());
    connected(&libvirt, true).await;
    for (below, is_switched_off) in [(0, false), (1, false), (0, true), (1, true)] {
        let mut bench = Bench::on(&libvirt, Guest::on(&daemon.host, 2, ""));
        bench.guest.start();
        bench.write('A');
        for _ in 0..below {
            bench.take(Some(Content::Disks)).await;
        }
        let lost = id();
        let overlays = move_on(&daemon, &bench, &lost);
        bench.write('C');
        assert!(!bench.look().layers.live.values().any(|path| overlays.contains(path)), "libvirt knows nothing of it");
        if is_switched_off {
            libvirt.power_off(bench.guest.vm).unwrap();
        }

        let take_back = || {
            let seen = bench.look();
            libvirt.take_back(&seen.vm, &seen.layers, &lost, false)
        };
        take_back().unwrap();
        // Once more changes nothing.
        take_back().unwrap();
        libvirt.unlink(&overlays).unwrap();
        assert_eq!(after_a_power_cycle(&bench), ('C', Some('C')), "{below} below, off: {is_switched_off}");
        // libvirt and QEMU are of one mind: a snapshot can be taken and gone back to.
        bench.take(Some(Content::Disks)).await;
        bench.write('D');
        bench.check_all().await;
        bench.purge().await;
        libvirt.power_off(bench.guest.vm).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_image_that_was_written_to_since_is_not_written_over() {
    let daemon = Daemon::start("ahead-since");
    let libvirt = Arc::new(Libvirt::new(&daemon.host.uri).unwrap());
    connected(&libvirt, true).await;
    let mut bench = Bench::on(&libvirt, Guest::on(&daemon.host, 1, ""));
    bench.guest.start();
    bench.write('A');
    let lost = id();
    let overlays = move_on(&daemon, &bench, &lost);
    bench.write('C');
    // Somebody starts the machine again before it was looked after; libvirt has it on what it knows.
    libvirt.power_off(bench.guest.vm).unwrap();
    bench.guest.start();
    bench.write('E');
    libvirt.power_off(bench.guest.vm).unwrap();

    for is_on in [false, true] {
        let seen = bench.look();
        assert_eq!(seen.vm.is_active(), is_on);
        let failure = libvirt.take_back(&seen.vm, &seen.layers, &lost, true).unwrap_err();
        assert!(failure.to_string().contains("holds what a guest wrote"), "{failure}");
        assert!(overlays.iter().all(|overlay| fs::metadata(overlay).is_ok()), "what the guest wrote is still there");
        assert_eq!(after_a_power_cycle(&bench), ('E', None));
    }
    libvirt.power_off(bench.guest.vm).unwrap();

    // An overlay that nobody has written into is in nobody's way.
    let seen = bench.look();
    let unused = id();
    let overlay = bench.guest.dir.join(format!("vda.{unused}"));
    let overlay = overlay.to_str().unwrap();
    let args = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &seen.layers.live["vda"], overlay];
    assert!(Command::new("qemu-img").args(args).status().unwrap().success());
    libvirt.take_back(&seen.vm, &seen.layers, &unused, true).unwrap();
    fs::remove_file(overlay).unwrap();
    libvirt.unlink(&overlays).unwrap();
}

//! Reverts within the QEMU process that there is, on real guests: the process lives on, who looks at the guest or speaks with it
//! stays connected, and the guest itself says that its disks and its memory are the snapshot's.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic, and its helpers are part of it")]

mod desktop;
mod other_way;
mod screen;
mod trouble;
mod viewer;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use proto::v1;
use tests::guest::Guest;
use tests::lab::{Lab, Power, id, key};

use self::screen::Screen;

/// How long a guest may take to answer.
const ANSWER: Duration = Duration::from_secs(60);

/// The definition of a guest with this in its devices.
fn define_with(lab: &Lab, guest: &Guest, device: &str) {
    let xml = guest.xml().unwrap().replace("</devices>", &format!("{device}</devices>"));
    define(lab, guest, &xml);
}

fn define(lab: &Lab, guest: &Guest, xml: &str) {
    std::fs::write(guest.xml_file(), xml).unwrap();
    lab.daemon().unwrap().virsh(&["define", &guest.xml_file().display().to_string()]).unwrap();
}

/// A line to a guest that is never opened anew.
struct Line(UnixStream);

impl Line {
    fn open(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        Self(stream)
    }

    /// Asks until the guest's answer has all of this.
    fn ask(&mut self, question: &str, expected: &[&str]) -> String {
        let (begun, mut heard) = (Instant::now(), String::new());
        while begun.elapsed() < ANSWER {
            self.0.write_all(question.as_bytes()).unwrap();
            let mut buffer = [0; 512];
            let asked = Instant::now();
            while asked.elapsed() < Duration::from_secs(5) {
                match self.0.read(&mut buffer) {
                    Ok(0) => panic!("the line was cut; heard {heard:?}"),
                    Ok(count) => heard.push_str(&String::from_utf8_lossy(&buffer[..count])),
                    Err(_) => {
                        let last = heard.lines().rev().find(|line| line.contains("B="));
                        if let Some(line) = last.filter(|line| expected.iter().all(|part| line.contains(part))) {
                            return line.to_owned();
                        }
                    }
                }
            }
        }
        panic!("the guest did not answer {expected:?}; heard {heard:?}");
    }
}

/// What GetVm says of a revert.
async fn revert_capability(lab: &Lab, guest: &Guest) -> v1::Capability {
    let vm = lab.client.vm(&guest.vm()).await.unwrap();
    vm.capabilities.into_iter().find(|one| one.kind() == v1::CapabilityKind::Revert).unwrap()
}

/// What would be done to go back.
async fn planned(lab: &Lab, snapshot: &v1::Snapshot) -> v1::OperationPlan {
    let name = snapshot.name.clone();
    let request = v1::RevertToSnapshotRequest { name, request_id: key(), validate_only: true, ..Default::default() };
    lab.client.revert_as(request).await.unwrap().plan.unwrap()
}

/// Goes back, and has gone back in this way.
async fn back(lab: &Lab, snapshot: &v1::Snapshot, method: v1::OperationMethod) -> v1::Operation {
    let done = lab.return_to(snapshot).await.unwrap();
    assert_eq!(done.method(), method, "{done:?}");
    done
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_place_the_process_and_its_connections_live_on() {
    let lab = Lab::start().unwrap();
    let daemon = lab.daemon().unwrap();
    let guest = Guest::with_two_disks(&lab.images().unwrap(), "student").unwrap();
    let screen = lab.images().unwrap().join("screen");
    define_with(&lab, &guest, &format!("<graphics type='vnc' socket='{}'/>", screen.display()));
    daemon.power_on(&guest).unwrap();
    lab.client.vm_in_state(&guest.vm(), v1::VmState::Running).await.unwrap();
    let pid = daemon.qemu_pid(&guest).unwrap();
    let mut line = Line::open(guest.serial());
    let mut viewer = Screen::open(&screen);
    line.ask("r", &["B=1"]);
    line.ask("wA", &["D=A", "M=A", "X=A"]);
    let first = lab.take(&guest, "first").await.unwrap();
    line.ask("wB", &["D=B", "M=B", "X=B"]);
    let second = lab.take(&guest, "second").await.unwrap();
    line.ask("wC", &["D=C", "M=C", "X=C"]);
    viewer.update();
    let back_to = revert_capability(&lab, &guest).await;
    assert!(back_to.available && back_to.pauses && back_to.predicted_pause.is_some(), "{back_to:?}");
    assert_eq!((back_to.method(), back_to.method_message.as_str()), (v1::OperationMethod::InPlace, ""));

    for (snapshot, told) in [(&first, ["D=A", "M=A", "X=A"]), (&second, ["D=B", "M=B", "X=B"])] {
        // Twice in a row, the second time to the one that is current.
        for _ in 0..2 {
            let plan = planned(&lab, snapshot).await;
            assert_eq!((plan.method(), plan.method_message.as_str()), (v1::OperationMethod::InPlace, ""));
            let done = back(&lab, snapshot, v1::OperationMethod::InPlace).await;
            // Which it did, as was predicted, and for about as long: a busy machine takes its time.
            let predicted = Duration::try_from(plan.predicted_pause.unwrap()).unwrap();
            assert_eq!(done.predicted_pause, plan.predicted_pause, "kept beside what came of it");
            let stood = Duration::try_from(done.pause.expect("how long the guest stood still")).unwrap();
            assert!(stood > predicted / 50 && stood < predicted + Duration::from_secs(20), "{predicted:?}, {stood:?}");
            assert_eq!(daemon.state(&guest).unwrap(), "running");
            line.ask("r", &told);
            assert_eq!(daemon.current_snapshot(&guest).unwrap().as_deref(), Some(id(&snapshot.name)));
            assert_eq!(lab.agreed(&guest).await.unwrap().len(), 2);
            line.ask("wD", &["D=D", "M=D", "X=D"]);
        }
        viewer.update();
    }
    assert_eq!(daemon.qemu_pid(&guest).unwrap(), pid, "another process");
    let jobs = daemon.virsh(&["qemu-monitor-command", guest.name(), r#"{"execute":"query-jobs"}"#]).unwrap();
    assert!(jobs.contains(r#""return":[]"#), "QEMU remembers {jobs}");

    // libvirt's own calls work on what is there now.
    drop(line);
    daemon.virsh(&["snapshot-revert", guest.name(), id(&first.name)]).unwrap();
    let report = guest.report().unwrap();
    assert_eq!((report.disk, report.ram, report.second_disk), ('A', 'A', Some('A')));
    assert_ne!(daemon.qemu_pid(&guest).unwrap(), pid);
    daemon.virsh(&["snapshot-delete", guest.name(), id(&first.name)]).unwrap();
    let left = lab.agreed_soon(&guest).await.unwrap();
    assert_eq!(left.len(), 1);
    back(&lab, &second, v1::OperationMethod::InPlace).await;
    assert_eq!(guest.report().unwrap().ram, 'B');
    lab.set(&guest, Power::Off).await.unwrap();
    guest.disks().iter().for_each(|disk| tests::images::check(disk.path()).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_place_a_paused_snapshot_and_the_present_saved_first() {
    let lab = Lab::start().unwrap();
    let daemon = lab.daemon().unwrap();
    let guest = lab.guest("student").await.unwrap();
    guest.write('A').unwrap();
    lab.set(&guest, Power::Paused).await.unwrap();
    let paused = lab.take(&guest, "paused").await.unwrap();
    lab.set(&guest, Power::Running).await.unwrap();
    guest.write('B').unwrap();
    let pid = daemon.qemu_pid(&guest).unwrap();

    let request = |validate_only| v1::RevertToSnapshotRequest {
        name: paused.name.clone(),
        save_current: true,
        save_current_display_name: "the present".to_owned(),
        request_id: key(),
        validate_only,
        ..Default::default()
    };
    let plan = lab.client.revert_as(request(true)).await.unwrap();
    assert_eq!(plan.plan.unwrap().method(), v1::OperationMethod::InPlace);
    let saved = lab.client.done(lab.client.revert_as(request(false)).await).await.unwrap();
    assert_eq!(saved.method(), v1::OperationMethod::InPlace, "{saved:?}");
    assert_eq!((daemon.state(&guest).unwrap().as_str(), daemon.qemu_pid(&guest).unwrap()), ("paused", pid));
    let all = lab.agreed(&guest).await.unwrap();
    lab.set(&guest, Power::Running).await.unwrap();
    let report = guest.report().unwrap();
    assert_eq!((report.disk, report.ram), ('A', 'A'));

    // And back to what it was, from a guest that stands still, and off afterwards.
    let present = all.iter().find(|snapshot| snapshot.display_name == "the present").unwrap();
    lab.set(&guest, Power::Paused).await.unwrap();
    back(&lab, present, v1::OperationMethod::InPlace).await;
    assert_eq!((daemon.state(&guest).unwrap().as_str(), daemon.qemu_pid(&guest).unwrap()), ("running", pid));
    let report = guest.report().unwrap();
    assert_eq!((report.disk, report.ram), ('B', 'B'));
    let off = v1::RevertToSnapshotRequest {
        name: paused.name.clone(),
        run_after: v1::RunAfter::Off.into(),
        request_id: key(),
        ..Default::default()
    };
    lab.client.done(lab.client.revert_as(off).await).await.unwrap();
    assert_eq!(daemon.state(&guest).unwrap(), "shut off");
    lab.set(&guest, Power::Running).await.unwrap();
    assert_eq!(guest.report().unwrap().disk, 'A');
}

//! Reverts of several disks that fail: every disk keeps its state, or gets it back, and so does the definition.

mod mixed;
mod resources;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use snapshot_agent::hypervisor::Hypervisor as _;
use snapshot_agent::qcow2;
use snapshot_agent::safety::is_tag;
use snapshot_core::ids::SnapshotId;
use snapshot_core::operation::{Create, Method, Outcome, Request, RunAfter};
use snapshot_core::snapshot::{Content, Storage};
use snapshot_core::vm::VmState;

use crate::external::Bench;
use crate::guest::{Guest, HOST, run};
use crate::served::{create, id};

fn image(guest: &Guest, disk: &str) -> PathBuf {
    guest.dir.join(format!("{disk}.qcow2"))
}

fn definition(guest: &Guest) -> String {
    // INACTIVE and SECURE.
    guest.domain().xml_desc(2 | 1).unwrap()
}

fn revert(id: &SnapshotId, run_after: RunAfter) -> Request {
    Request::Revert { snapshot: id.clone(), run_after, save_current: None }
}

async fn take(bench: &Bench, content: Content) -> SnapshotId {
    let id = id();
    let create = Create { storage: Some(Storage::Internal), content: Some(content), ..create(&id) };
    bench.done(Request::Create(create)).await;
    id
}

/// The bytes of both images, as `qemu-img compare` would see them: what a guest would read, and which snapshots there are.
fn seen(guest: &Guest) -> BTreeMap<PathBuf, (Vec<String>, String)> {
    ["vda", "vdb"].map(|disk| (image(guest, disk), contents(&image(guest, disk)))).into()
}

fn contents(image: &Path) -> (Vec<String>, String) {
    let tags = qcow2::read(image).unwrap().tags.into_iter().map(|tag| tag.name).collect();
    let output = Command::new("qemu-io").args(["-U", "-r", "-c", "read -v 0 1M"]).arg(image).output().unwrap();
    let dump = String::from_utf8_lossy(&output.stdout).into_owned();
    // Without the line that tells how long it took.
    let lines =
        dump.lines().filter(|line| line.starts_with(|first: char| first.is_ascii_hexdigit()) && line.contains(':'));
    (tags, lines.collect::<Vec<_>>().join("\n"))
}

fn has_no_tags(guest: &Guest) {
    for disk in ["vda", "vdb"] {
        let (tags, _) = contents(&image(guest, disk));
        assert!(!tags.iter().any(|tag| is_tag(tag)), "{disk}: {tags:?}");
    }
}

/// Moves the first L1 table of a snapshot to where none can be: QEMU opens the image and cannot go back to the snapshot.
fn spoil_snapshot(image: &Path, name: &str) {
    let file = fs::File::options().read(true).write(true).open(image).unwrap();
    let mut header = [0; 72];
    file.read_exact_at(&mut header, 0).unwrap();
    let mut place = u64::from_be_bytes(header[64..72].try_into().unwrap());
    for _ in 0..u32::from_be_bytes(header[60..64].try_into().unwrap()) {
        let mut entry = [0; 40];
        file.read_exact_at(&mut entry, place).unwrap();
        let short = |at: usize| u64::from(u16::from_be_bytes(entry[at..at + 2].try_into().unwrap()));
        let extra = u64::from(u32::from_be_bytes(entry[36..40].try_into().unwrap()));
        let mut text = vec![0; usize::try_from(short(14)).unwrap()];
        file.read_exact_at(&mut text, place + 40 + extra + short(12)).unwrap();
        if text == name.as_bytes() {
            return file.write_all_at(&(1_u64 << 40 | 1).to_be_bytes(), place).unwrap();
        }
        place = (place + 40 + extra + short(12) + short(14)).next_multiple_of(8);
    }
    panic!("{} has no snapshot {name}", image.display());
}

/// What can stand in the way of the second disk, and how it is taken away again.
type Obstacle = (&'static str, fn(&Guest, &SnapshotId), fn(&Guest));

fn flip_corrupt(guest: &Guest, corrupt: bool) {
    let file = fs::File::options().read(true).write(true).open(image(guest, "vdb")).unwrap();
    let mut features = [0; 8];
    file.read_exact_at(&mut features, 72).unwrap();
    features[7] = if corrupt { features[7] | 2 } else { features[7] & !2 };
    file.write_all_at(&features, 72).unwrap();
}

const OBSTACLES: [Obstacle; 6] = [
    (
        "its backing file is not there",
        |guest, _| fs::rename(guest.dir.join("base.qcow2"), guest.dir.join("away.qcow2")).unwrap(),
        |guest| fs::rename(guest.dir.join("away.qcow2"), guest.dir.join("base.qcow2")).unwrap(),
    ),
    ("it is marked as corrupt", |guest, _| flip_corrupt(guest, true), |guest| flip_corrupt(guest, false)),
    (
        "it is locked by a reader",
        |guest, _| {
            let options = ["-r", "-t", "--fork", "--pid-file=nbd.pid", "-k"];
            let socket = guest.dir.join("nbd");
            let socket = socket.to_str().unwrap();
            run(&guest.dir, "qemu-nbd", &[&options[..], &[socket, "-f", "qcow2", "vdb.qcow2"]].concat());
        },
        |guest| {
            let pid = fs::read_to_string(guest.dir.join("nbd.pid")).unwrap();
            run(&guest.dir, "kill", &[pid.trim()]);
            while Path::new("/proc").join(pid.trim()).exists() {
                std::thread::yield_now();
            }
        },
    ),
    (
        "it is immutable",
        |guest, _| run(&guest.dir, "chattr", &["+i", "vdb.qcow2"]),
        |guest| run(&guest.dir, "chattr", &["-i", "vdb.qcow2"]),
    ),
    (
        "it has a dirty bitmap",
        |guest, _| run(&guest.dir, "qemu-img", &["bitmap", "--add", "vdb.qcow2", "backup"]),
        |guest| run(&guest.dir, "qemu-img", &["bitmap", "--remove", "vdb.qcow2", "backup"]),
    ),
    ("its part of the snapshot is damaged", |guest, id| spoil_snapshot(&image(guest, "vdb"), id.as_str()), |_| {}),
];

/// With two disks, of which the second is a clone.
fn clone_guest() -> Guest {
    let guest = Guest::new(2);
    fs::rename(image(&guest, "vdb"), guest.dir.join("base.qcow2")).unwrap();
    let base = guest.dir.join("base.qcow2");
    let args = ["create", "-q", "-f", "qcow2", "-b", base.to_str().unwrap(), "-F", "qcow2", "vdb.qcow2"];
    run(&guest.dir, "qemu-img", &args);
    guest
}

/// Case 2: before, the first disk held the snapshot afterwards and the second the current state.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_revert_of_a_vm_that_is_off_does_not_happen() {
    for (what, put, take_away) in OBSTACLES {
        let mut bench = Bench::new(clone_guest());
        bench.write('A');
        let snapshot = take(&bench, Content::Disks).await;
        bench.write('B');
        // The definition is another one than then.
        let other = definition(&bench.guest).replace("<currentMemory", "<title>of now</title><currentMemory");
        bench.guest.define(&other);
        let (before, defined) = (seen(&bench.guest), definition(&bench.guest));
        assert!(defined.contains("of now"));
        put(&bench.guest, &snapshot);
        let ended = bench.start(revert(&snapshot, RunAfter::Off)).await;
        let error = match ended {
            Ok(operation) => {
                let ended = Bench::end(&operation).await;
                assert_eq!(ended.outcome, Outcome::Failed, "{what}");
                ended.error.unwrap()
            }
            Err(refusal) => refusal,
        };
        take_away(&bench.guest);
        assert!(
            error.to_string().contains("nothing was changed") || !error.metadata().contains_key("vm_state"),
            "{what}: {error:?}"
        );
        assert_eq!(definition(&bench.guest), defined, "{what}: {error:?}");
        assert_eq!(seen(&bench.guest), before, "{what}: {error:?}");
        has_no_tags(&bench.guest);
        assert_eq!(bench.look().vm.state, VmState::Shutoff, "{what}");
        bench.guest.start();
        let report = bench.guest.report();
        assert_eq!((report.disk, report.second), ('B', Some('B')), "{what}: {error:?}");
        bench.guest.domain().destroy().unwrap();
        for disk in ["vda.qcow2", "vdb.qcow2"] {
            // A damaged snapshot is an error in the image, which we made ourselves.
            if !what.contains("damaged") {
                run(&bench.guest.dir, "qemu-img", &["check", "-q", disk]);
                bench.done(revert(&snapshot, RunAfter::Off)).await;
                bench.guest.start();
                assert_eq!((bench.guest.report().disk, bench.guest.report().second), ('A', Some('A')), "{what}");
                bench.guest.domain().destroy().unwrap();
                has_no_tags(&bench.guest);
            }
        }
    }
}

/// libvirt's revert ends QEMU, reverts the first disk and fails at the second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_revert_of_a_vm_that_runs_is_undone() {
    let mut bench = Bench::new(Guest::new(2));
    bench.guest.start();
    bench.write('A');
    let snapshot = take(&bench, Content::Disks).await;
    bench.write('B');
    let defined = definition(&bench.guest);
    bench.guest.domain().destroy().unwrap();
    spoil_snapshot(&image(&bench.guest, "vdb"), snapshot.as_str());
    bench.guest.start();
    bench.write('C');
    let ended = bench.run(revert(&snapshot, RunAfter::Running)).await;
    assert_eq!((ended.outcome, ended.method), (Outcome::Failed, Some(Method::Libvirt)), "{ended:?}");
    let error = ended.error.unwrap();
    assert_eq!(error.metadata().get("disk.vda").map(String::as_str), Some("current state"), "{error:?}");
    assert_eq!(error.metadata().get("disk.vdb").map(String::as_str), Some("current state"), "{error:?}");
    assert!(error.to_string().contains("was left off; its disks hold their current state"), "{error:?}");
    assert_eq!(definition(&bench.guest), defined);
    has_no_tags(&bench.guest);
    bench.guest.start();
    let report = bench.guest.report();
    assert_eq!((report.disk, report.second), ('C', Some('C')));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revert_that_succeeds_leaves_no_safety_tag() {
    for content in [Content::Disks, Content::DisksAndMemory] {
        let mut bench = Bench::new(Guest::new(2));
        bench.guest.start();
        bench.write('A');
        let snapshot = take(&bench, content).await;
        for run_after in [RunAfter::Running, RunAfter::AsRecorded, RunAfter::Off] {
            bench.write('B');
            bench.done(revert(&snapshot, run_after)).await;
            has_no_tags(&bench.guest);
            if bench.look().vm.state == VmState::Shutoff {
                bench.guest.start();
            }
            let report = bench.guest.report();
            assert_eq!((report.disk, report.second), ('A', Some('A')), "{content:?} {run_after:?}");
        }
        HOST.libvirt.power_off(bench.guest.vm).unwrap();
        for disk in ["vda.qcow2", "vdb.qcow2"] {
            run(&bench.guest.dir, "qemu-img", &["check", "-q", disk]);
        }
    }
}

/// A process that dies at some moment of a revert of a VM that is off: the next one finishes the revert where a disk was reverted,
/// and leaves no tag in any case.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_revert_is_finished_by_the_next_process() {
    let mut bench = Bench::new(Guest::new(2));
    bench.write('A');
    let snapshot = take(&bench, Content::Disks).await;
    bench.done(revert(&snapshot, RunAfter::Off)).await;
    let journal = fs::read_to_string(bench.last()).unwrap();
    let marks: Vec<String> = journal.lines().skip(1).map(str::to_owned).collect();
    let place = |what: &str| marks.iter().position(|mark| mark.starts_with(what)).unwrap();
    let (protecting, protected) = (place("{\"protecting\""), place("\"protected\""));
    let tag = bench.last().file_stem().unwrap().to_str().map(|id| format!("safety-{id}")).unwrap();
    let dir = bench.guest.dir.clone();
    let on = |what: &str, name: &str, disk: &str| run(&dir, "qemu-img", &["snapshot", what, name, disk]);
    // Which tags there are, whether that is marked, and which disks are reverted.
    let moments = [(0, false, 0), (1, false, 0), (2, false, 0), (2, true, 0), (2, true, 1), (2, true, 2)];
    for (tags, is_marked, reverted) in moments {
        bench.write('B');
        let disks = ["vda.qcow2", "vdb.qcow2"];
        disks.iter().take(tags).for_each(|disk| on("-c", &tag, disk));
        disks.iter().take(reverted).for_each(|disk| on("-a", snapshot.as_str(), disk));
        let ended = bench.again_after(&marks[..=if is_marked { protected } else { protecting }]).await;
        let context = format!("{tags} tags, marked {is_marked}, {reverted} reverted: {ended:?}");
        assert_eq!(ended.outcome, Outcome::Succeeded, "{context}");
        has_no_tags(&bench.guest);
        bench.guest.start();
        let report = bench.guest.report();
        assert_eq!((report.disk, report.second), ('A', Some('A')), "{context}");
        bench.guest.domain().destroy().unwrap();
    }
}

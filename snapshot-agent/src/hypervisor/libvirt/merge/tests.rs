//! Merges of real images that no QEMU has open, by `qemu-img`.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use snapshot_core::layers::Layer;
use snapshot_core::vm::VmState;

use super::*;
use crate::hypervisor::overlays::text as name_of;
use crate::hypervisor::tests::vm;

/// What the merges of a test tell, and whether they are to end.
#[derive(Default)]
struct Told {
    progress: Mutex<Vec<(u64, u64)>>,
    is_cancelled: bool,
}

impl Watch for Told {
    fn progress(&self, done: u64, of: u64) {
        self.progress.lock().unwrap().push((done, of));
    }

    fn is_cancelled(&self) -> bool {
        self.is_cancelled
    }
}

/// A base, an overlay on it and one on that, each with a byte of its own in the guest's first sectors.
struct Scene {
    dir: tempfile::TempDir,
    layers: Layers,
    merge: Merge,
}

fn command(name: &str, arguments: &[&str]) -> String {
    let output = Command::new(name).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut layers = Layers::default();
        let names = ["base", "middle", "top"].map(|name| name_of(&dir.path().canonicalize().unwrap().join(name)));
        for (index, path) in names.iter().enumerate() {
            let below = index.checked_sub(1).map(|below| names[below].clone());
            let mut arguments = vec!["create", "-q", "-f", "qcow2"];
            match &below {
                Some(below) => arguments.extend(["-F", "qcow2", "-b", below, path]),
                None => arguments.extend([path, "1M"]),
            }
            command("qemu-img", &arguments);
            let write = format!("write -P {} {} 64k", index + 1, index * 65536);
            command("qemu-io", &["-f", "qcow2", "-c", &write, path]);
            let layer = Layer { spelled: path.clone(), format: "qcow2".into(), backing: below, ..Layer::default() };
            layers.files.insert(path.clone(), layer);
        }
        let [base, middle, top] = names;
        layers.live.insert("vda".to_owned(), top.clone());
        let above = vec![top.clone(), middle];
        Self { dir, layers, merge: Merge { disk: "vda".to_owned(), top, base, above, bytes: 1 << 20 } }
    }

    /// The byte in each of the first sectors of an image, with what it depends on.
    fn holds(&self, path: &str) -> Vec<u8> {
        let raw: PathBuf = self.dir.path().join("raw");
        command("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", path, raw.to_str().unwrap()]);
        let bytes = std::fs::read(raw).unwrap();
        (0..3).map(|index| bytes[index * 65536]).collect()
    }
}

#[test]
fn the_base_has_all_that_was_seen_through_the_top() {
    let scene = Scene::new();
    let told = Told::default();
    assert_eq!(scene.holds(&scene.merge.base), [1, 0, 0]);
    // Of a VM that is off nobody asks libvirt.
    let nobody = Link::new("test:///none", Arc::default());
    commit((&nobody, &nobody), Beneath::anywhere(), &vm(&["vda"]), &scene.layers, &scene.merge, &told).unwrap();
    assert_eq!(scene.holds(&scene.merge.base), [1, 2, 3]);
    assert_eq!(told.progress.lock().unwrap().last(), Some(&(1_048_500, 1 << 20)));
    // The same again, as after a crash.
    commit_files(Beneath::anywhere(), &scene.layers, &scene.merge, &told).unwrap();
    assert_eq!((scene.holds(&scene.merge.base), scene.holds(&scene.merge.top)), (vec![1, 2, 3], vec![1, 2, 3]));
}

#[test]
fn a_merge_of_an_image_that_has_another_name_or_is_out_of_reach_writes_nothing() {
    let scene = Scene::new();
    let told = Told::default();
    commit_files(&Beneath::open(&[], &[]), &scene.layers, &scene.merge, &told).unwrap_err();
    std::fs::hard_link(&scene.merge.base, scene.dir.path().join("theirs")).unwrap();
    commit_files(Beneath::anywhere(), &scene.layers, &scene.merge, &told).unwrap_err();
    assert_eq!(scene.holds(&scene.merge.base), [1, 0, 0]);
}

#[test]
fn a_merge_that_fails_or_is_cancelled_says_so() {
    let scene = Scene::new();
    let merge = Merge { base: name_of(&scene.dir.path().join("none")), ..scene.merge.clone() };
    commit_files(Beneath::anywhere(), &scene.layers, &merge, &Told::default()).unwrap_err();
    std::fs::write(&scene.merge.top, "no image").unwrap();
    let failure = commit_files(Beneath::anywhere(), &scene.layers, &scene.merge, &Told::default()).unwrap_err();
    assert!(failure.to_string().contains("qemu-img"), "{failure}");
    // A command that would take longer than the test.
    let mut command = qemu_img::command();
    command.args(["bench", "-q", "-c", "2000000000", "-f", "qcow2", &scene.merge.base]);
    let told = Told { is_cancelled: true, ..Told::default() };
    let ended = run(Beneath::anywhere(), command, (&[], &[&scene.merge.base]), 0, &told);
    let Err(Failure::Precondition(error)) = ended else { panic!("it was cancelled: {ended:?}") };
    assert_eq!(error.reason(), Reason::Cancelled);
}

#[test]
fn what_qemu_img_prints_is_told_as_bytes() {
    let told = Told::default();
    tell_progress(&b"    (12.50/100%)\r    (100.00/100%)\r"[..], 1000, &told);
    tell_progress(&b"    (101.00/100%)"[..], 1000, &told);
    assert_eq!(*told.progress.lock().unwrap(), [(1000, 1000)]);
    tell_progress(&b"    (12.50/100%)"[..], 1000, &told);
    assert_eq!(told.progress.lock().unwrap().last(), Some(&(120, 1000)));
}

#[test]
fn qemu_merges_what_it_runs_on_and_nothing_else() {
    let scene = Scene::new();
    let mut desk = vm(&["vda"]);
    assert!(!runs_on(&desk, &scene.layers, &scene.merge), "it is off");
    desk.state = VmState::Running;
    assert!(runs_on(&desk, &scene.layers, &scene.merge));
    let middle = Merge { top: scene.merge.above[1].clone(), ..scene.merge.clone() };
    assert!(runs_on(&desk, &scene.layers, &middle));
    let other = Merge { top: "/images/branch".to_owned(), ..scene.merge.clone() };
    assert!(!runs_on(&desk, &scene.layers, &other));
    assert!(!runs_on(&desk, &scene.layers, &Merge { disk: "vdb".to_owned(), ..scene.merge.clone() }));
}

#[test]
fn pauses_grow_and_are_bounded() {
    let mut pauses = Pauses::default();
    let mut last = Vec::new();
    for _ in 0..8 {
        pauses.pause();
        last.push(pauses.last);
    }
    assert_eq!(last[..3], [ASK_AFTER, ASK_AFTER * 2, ASK_AFTER * 4]);
    assert_eq!(last[7], ASK_EVERY);
}

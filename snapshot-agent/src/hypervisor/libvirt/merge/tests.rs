//! Merges of real images that no QEMU has open, by `qemu-img`.

use std::sync::{Arc, Mutex};

use snapshot_core::layers::Layer;
use snapshot_core::vm::VmState;

use super::super::files::tests::{disk, domain, host, snapshot};
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

/// One that failed and is taken for done loses what was to be copied.
#[test]
fn a_call_of_libvirt_failed_where_it_returns_less_than_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let link = host(dir.path(), &domain(1, "desk", ""));
    let failed = link.look("test", |connection| {
        // libvirt keeps the last error of each thread.
        drop(connection.connect().lookup_domain_by_name("none"));
        Ok([answered(-1), told(-1, (1, 2)).map(drop), answered(0), answered(1)])
    });
    assert_eq!(failed.unwrap(), [Err(Failure::VmGone), Err(Failure::VmGone), Ok(()), Ok(())]);
    assert_eq!(told(0, (1, 2)).unwrap(), None, "there is no job");
    assert_eq!(told(1, (1, 2)).unwrap(), Some((1, 2)));
}

#[test]
fn a_machine_goes_on_with_the_base_once_everything_was_copied() {
    assert!(is_copied((2, 2)));
    for begun in [(0, 0), (0, 2), (1, 2)] {
        assert!(!is_copied(begun), "{begun:?}");
    }
}

#[test]
fn libvirt_is_asked_again_to_go_on_with_the_base_while_that_is_not_complete() {
    let refused = |code| Err(Failure::Refused { code, message: "so".to_owned() });
    let copying = refused(sys::VIR_ERR_BLOCK_COPY_ACTIVE);
    assert!(may_pivot_later(&copying, Duration::ZERO));
    assert!(may_pivot_later(&copying, PIVOT_WITHIN - Duration::from_nanos(1)));
    assert!(!may_pivot_later(&copying, PIVOT_WITHIN) && !may_pivot_later(&copying, PIVOT_WITHIN * 2));
    assert!(!may_pivot_later(&refused(sys::VIR_ERR_OPERATION_INVALID), Duration::ZERO));
    assert!(!may_pivot_later(&Ok(()), Duration::ZERO) && !may_pivot_later(&Err(Failure::VmGone), Duration::ZERO));
}

#[test]
fn what_lies_on_the_top_and_what_starts_on_it_is_sent_to_the_base() {
    let mut scene = Scene::new();
    let Merge { top, above, base, .. } = scene.merge.clone();
    let names =
        |file: &str| lying_on(&scene.layers, file).into_iter().map(|(path, _)| path.clone()).collect::<Vec<_>>();
    assert_eq!((names(&base), names(&above[1])), (vec![above[1].clone()], vec![top.clone()]));
    assert!(names(&top).is_empty());
    let mut desk = vm(&["vda"]);
    assert!(starts_on_top(&desk, &scene.layers, &scene.merge));
    desk.state = VmState::Running;
    assert!(!starts_on_top(&desk, &scene.layers, &scene.merge), "QEMU has gone on with the base");
    desk.state = VmState::Shutoff;
    scene.layers.live.insert("vda".to_owned(), base);
    assert!(!starts_on_top(&desk, &scene.layers, &scene.merge));
    assert!(!starts_on_top(&desk, &scene.layers, &Merge { disk: "vdb".to_owned(), ..scene.merge.clone() }));
}

/// A snapshot that names a file which is gone is broken; of the current one libvirt loses which disks its next revert takes away.
#[test]
fn snapshots_are_rewritten_where_they_use_the_top_or_may_be_reverted_to() {
    let parts = |frozen: &str, overlay: &str| Parts {
        frozen: [("vda".to_owned(), frozen.to_owned())].into(),
        overlays: [("vda".to_owned(), overlay.to_owned())].into(),
        ..Parts::default()
    };
    let layers = Layers { live: [("vda".to_owned(), "/live".to_owned())].into(), ..Layers::default() };
    let is_rewritten = |parts: &Parts, is_current: bool, deleted: bool| {
        is_rewritten(&layers, &Parts { is_current, deleted, ..parts.clone() }, "/top")
    };
    let all = |parts: &Parts| {
        [(false, false), (false, true), (true, false), (true, true)]
            .map(|(is, deleted)| is_rewritten(parts, is, deleted))
    };
    assert_eq!(all(&parts("/top", "/live")), [true; 4], "it is on the top");
    assert_eq!(all(&parts("/top", "/branch")), [true; 4]);
    // In this order: one that stays, a deleted one, the current one, and a deleted one that is current.
    assert_eq!(all(&parts("/other", "/live")), [true, false, true, false]);
    assert_eq!(all(&parts("/other", "/branch")), [true, false, false, false]);
    assert_eq!(
        all(&parts("/other", "/top")),
        [true, true, false, false],
        "the top is its overlay, and the disk is elsewhere"
    );
    let on_top = Layers { live: [("vda".to_owned(), "/top".to_owned())].into(), ..Layers::default() };
    let current = Parts { is_current: true, deleted: true, ..parts("/other", "/top") };
    assert!(super::is_rewritten(&on_top, &current, "/top"));
}

#[test]
fn what_does_not_change_is_not_written() {
    let chain = "<backingStore type='file'><format type='qcow2'/><source file='/b'/><backingStore/></backingStore>";
    let of = |source: &str, chain: &str| {
        let disk = format!(
            "<disk type='file'><driver type='qcow2'/><source file='{source}'/>{chain}<target dev='vda'/></disk>"
        );
        domain(1, "desk", &disk)
    };
    let without = next_start(&of("/a", chain), true).unwrap().unwrap();
    assert!(!without.contains("/b") && without.contains("/a"), "{without}");
    assert_eq!(next_start(&without, true).unwrap(), None);
    assert_eq!(next_start(&of("/a", chain), false).unwrap(), None, "there is no next start");
    let before = snapshot("one", "/top.1", &of("/top", ""));
    let after = rewritten(&before, "/top", ("/base", "raw")).unwrap().unwrap();
    assert!(after.contains("/base") && after.contains("raw") && !after.contains("'/top'"), "{after}");
    assert_eq!(rewritten(&after, "/top", ("/base", "raw")).unwrap(), None);
}

/// In the two definitions of a snapshot a file may be spelled otherwise, and both are rewritten.
#[test]
fn a_snapshot_is_rewritten_however_it_spells_a_file() {
    let scene = Scene::new();
    let top = &scene.merge.top;
    let link = scene.dir.path().join("link");
    std::os::unix::fs::symlink(top, &link).unwrap();
    let link = link.display().to_string();
    let spelled = |name: &str| {
        let source = format!("file='{name}'");
        spellings(&snapshot("one", "/none/overlay", &domain(1, "desk", &disk("vda", &source, "qcow2"))), top).unwrap()
    };
    assert_eq!(spelled(top), std::slice::from_ref(top));
    assert_eq!(spelled(&link), [link, top.clone()]);
    assert_eq!(spelled("/none/other"), std::slice::from_ref(top));
}

/// What libvirt has of a VM, with the passwords in it.
fn definitions(link: &Link, name: &str) -> (String, String) {
    link.look("test", |connection| {
        let vm = connection.connect().lookup_domain_by_name("desk")?;
        let snapshot = Domain::lookup_snapshot_by_name(&vm, name, 0)?;
        Ok((vm.xml_desc(NEXT_START)?, full_xml(&snapshot)?))
    })
    .unwrap()
}

/// After a merge nobody uses its top: neither images, nor the next start, nor a snapshot. All else stays as it is.
#[test]
fn whoever_uses_the_top_of_a_merge_is_sent_to_its_base() {
    let mut scene = Scene::new();
    let Merge { top, base, .. } = scene.merge.clone();
    let child = name_of(&scene.dir.path().canonicalize().unwrap().join("child"));
    command("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &top, &child]);
    let layer = |below: &str| Layer { format: "qcow2".into(), backing: Some(below.to_owned()), ..Layer::default() };
    scene.layers.files.insert(child.clone(), layer(&top));
    let vnc = "<graphics type='vnc' port='-1' passwd='secret'/>";
    let of = |source: &str| {
        domain(0xa, "desk", &[disk("vda", &format!("file='{source}'"), "qcow2"), vnc.to_owned()].concat())
    };
    let id: snapshot_core::ids::SnapshotId = "0191f7a0-0000-7000-8000-00000000000b".parse().unwrap();
    let link = host(scene.dir.path(), &of(&top));
    link.act("test", |connection| {
        let vm = connection.connect().lookup_domain_by_name("desk")?;
        vm.destroy()?;
        vm.create_snapshot_xml(&snapshot(id.as_str(), &child, &of(&top)), sys::VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)?;
        Ok(())
    })
    .unwrap();
    let mut desk = vm(&["vda"]);
    desk.id = "00000000-0000-0000-0000-00000000000a".parse().unwrap();
    let parts = Parts { frozen: [("vda".to_owned(), top.clone())].into(), ..Parts::default() };
    scene.layers.snapshots.insert(id.clone(), parts);
    let redirect = |scene: &Scene| {
        link.act("test", |connection| redirect(connection, Beneath::anywhere(), &desk, &scene.layers, &scene.merge))
    };
    redirect(&scene).unwrap();
    let backing = command("qemu-img", &["info", &child]);
    assert!(backing.contains(&format!("backing file: {base}")), "{backing}");
    let (next, recorded) = definitions(&link, id.as_str());
    for xml in [&next, &recorded] {
        assert!(xml.contains(&format!("'{base}'")) && !xml.contains(&format!("'{top}'")), "{xml}");
        assert!(xml.contains("secret"), "a password is lost: {xml}");
    }
    // Again, as after a crash.
    scene.layers.files.insert(child, layer(&base));
    scene.layers.live.insert("vda".to_owned(), base);
    redirect(&scene).unwrap();
    assert_eq!(definitions(&link, id.as_str()), (next, recorded));
}

/// One that was started on the base must not be sent back to the top, which is removed.
#[test]
fn only_a_machine_that_runs_on_the_top_gets_its_definition_back() {
    let files =
        |path: &str| [(PathBuf::from("/none/other"), "raw".to_owned()), (PathBuf::from(path), "qcow2".to_owned())];
    assert!(is_started_on(true, &files("/none/top"), "/none/top"));
    assert!(!is_started_on(false, &files("/none/top"), "/none/top"));
    assert!(!is_started_on(true, &files("/none/base"), "/none/top"));
}

/// It writes to the top, which nothing may take from it.
#[test]
fn a_machine_that_was_started_meanwhile_keeps_its_disk() {
    let scene = Scene::new();
    let source = format!("file='{}'", scene.merge.top);
    // A VM of the host's file runs from the beginning.
    let link = host(scene.dir.path(), &domain(0xa, "desk", &disk("vda", &source, "qcow2")));
    let mut desk = vm(&["vda"]);
    desk.id = "00000000-0000-0000-0000-00000000000a".parse().unwrap();
    let redirected =
        link.act("test", |connection| redirect(connection, Beneath::anywhere(), &desk, &scene.layers, &scene.merge));
    assert!(redirected.unwrap_err().to_string().contains("was started"));
    let next =
        link.look("test", |connection| Ok(connection.connect().lookup_domain_by_name("desk")?.xml_desc(NEXT_START)?));
    assert!(next.unwrap().contains(&scene.merge.top));
}

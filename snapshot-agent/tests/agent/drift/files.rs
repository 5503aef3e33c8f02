//! Machines that are undefined while there are external snapshots of ours: which files a purge removes then.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::status::from_status;
use proto::v1::OperationState;
use snapshot_agent::hypervisor::{Hypervisor, Reread};
use snapshot_agent::machines::Machines;
use snapshot_core::Reason;
use snapshot_core::ids::SnapshotId;
use snapshot_core::operation::{Create, DeleteScope, Request, RunAfter};
use snapshot_core::snapshot::{Content, Storage};

use super::Scene;
use crate::guest::{Guest, run};
use crate::served::{create, id};

const FREE: &str = "[policy]\nstable_paths = false";

/// A machine whose disks move, and what was in its folder before the first snapshot.
struct Desk {
    scene: Scene,
    guest: Guest,
    before: BTreeSet<PathBuf>,
}

fn folder(guest: &Guest) -> BTreeSet<PathBuf> {
    let there = fs::read_dir(&guest.dir).unwrap().map(|entry| entry.unwrap().path());
    there.filter(|path| !path.ends_with("serial")).collect()
}

impl Desk {
    async fn new(name: &str) -> Self {
        let mut scene = Scene::start_with(name, FREE).await;
        let guest = scene.guest(2).await;
        Self { before: folder(&guest), scene, guest }
    }

    async fn done(&self, request: Request) {
        let ended = self.scene.agent.run(self.guest.vm, request).await.unwrap();
        assert_eq!(ended.state(), OperationState::Succeeded, "{:?}", ended.error);
    }

    async fn take(&self, content: Option<Content>, protected: bool) -> SnapshotId {
        let id = id();
        let storage = Some(Storage::External);
        self.done(Request::Create(Create { storage, content, protected, ..create(&id) })).await;
        id
    }

    /// Two snapshots, one with the running state, and the machine on overlays of a revert and of a third.
    async fn with_a_story(name: &str) -> (Self, [SnapshotId; 3]) {
        let desk = Self::new(name).await;
        desk.guest.start();
        desk.guest.write('A');
        let first = desk.take(None, false).await;
        desk.guest.write('B');
        let second = desk.take(Some(Content::Disks), false).await;
        desk.guest.write('C');
        let revert = Request::Revert { snapshot: first.clone(), run_after: RunAfter::Running, save_current: None };
        desk.done(revert).await;
        assert_eq!(desk.guest.report().disk, 'A');
        desk.guest.write('D');
        let third = desk.take(Some(Content::Disks), false).await;
        desk.guest.write('E');
        (desk, [first, second, third])
    }

    /// The machine is switched off and undefined by somebody else.
    async fn undefine(&mut self) {
        let vm = self.guest.vm;
        if self.guest.domain().is_active().unwrap() {
            self.scene.virsh(&["destroy", &vm.to_string()]);
        }
        self.scene.virsh(&["undefine", &vm.to_string(), "--snapshots-metadata"]);
        self.scene.told.until("that it is gone", |told| !told.vms.contains_key(&vm)).await;
        assert_eq!(self.scene.told.left_behind, [vm.to_string()]);
    }

    async fn purge(&self, force: bool) -> Result<(), Reason> {
        match self.scene.agent.run(self.guest.vm, Request::Purge { force }).await {
            Ok(ended) => {
                assert_eq!(ended.state(), OperationState::Succeeded, "{:?}", ended.error);
                Ok(())
            }
            Err(refusal) => Err(from_status(&refusal, Reason::HostProtocol).reason()),
        }
    }

    fn made(&self) -> BTreeSet<PathBuf> {
        folder(&self.guest).difference(&self.before).cloned().collect()
    }

    /// The bases are sound, and not a machine of the host has lost anything.
    async fn nothing_is_left(mut self) {
        assert_eq!(folder(&self.guest), self.before);
        self.scene.told.until("that nothing is left", |told| told.left_behind.is_empty()).await;
        for image in ["vda.qcow2", "vdb.qcow2"] {
            run(&self.guest.dir, "qemu-img", &["check", "-q", image]);
        }
        assert_eq!(self.purge(true).await, Err(Reason::VmNotFound));
        self.scene.agent.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_files_of_a_machine_that_is_gone_are_purged_and_no_others() {
    let (mut desk, ids) = Desk::with_a_story("files").await;
    // Two disks: the overlays of the first, of the revert, which gave up those of the second, and of the third; a memory.
    assert_eq!(desk.made().len(), 2 * 3 + 1, "{:?}", desk.made());
    // Somebody else's files with names of our form, one with the id of a snapshot of ours.
    let strange = [format!("vda.{}", id()), format!("vda.{}.mem", ids[1]), "vda.1700000000".to_owned()];
    for name in &strange {
        let path = desk.guest.dir.join(name);
        fs::write(&path, "somebody's").unwrap();
        desk.before.insert(path);
    }
    desk.undefine().await;
    let made = desk.made().len();
    desk.purge(false).await.unwrap();
    assert_eq!((made, desk.made().len()), (7, 0), "{:?}", desk.made());
    desk.nothing_is_left().await;
}

/// As an agent leaves them that dies after a revert: whatever the machine is on by then, the second names go, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_names_that_an_interrupted_revert_left_go() {
    let (desk, _) = Desk::with_a_story("second-names").await;
    let made = desk.made();
    for path in made.iter().filter(|path| path.extension().is_none_or(|last| last != "mem")) {
        fs::hard_link(path, format!("{}.kept", path.display())).unwrap();
    }
    assert!(desk.made().len() > made.len());
    // The next process looks at every machine; so does anybody who hears of a change.
    for change in ["suspend", "resume"] {
        desk.scene.virsh(&[change, &desk.guest.vm.to_string()]);
    }
    let begun = std::time::Instant::now();
    while desk.made() != made {
        assert!(begun.elapsed() < Duration::from_secs(90), "{:?}", desk.made());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(desk.guest.report().disk, 'E');
    desk.scene.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn protected_ones_and_those_of_an_agent_that_was_away_are_purged_when_forced() {
    let desk = Desk::new("files-away").await;
    let (guest, before) = (&desk.guest, desk.before.clone());
    guest.start();
    desk.take(None, true).await;
    desk.take(Some(Content::DisksAndMemory), false).await;
    let Desk { scene, guest, .. } = desk;
    let (daemon, dir) = scene.leave().await;
    daemon.virsh(&["destroy", &guest.vm.to_string()]);
    daemon.virsh(&["undefine", &guest.vm.to_string(), "--snapshots-metadata"]);
    // Meanwhile the policy is another: what was made has to go all the same.
    let scene = Scene::come_back(daemon, dir).await;
    assert_eq!(scene.told.left_behind, [guest.vm.to_string()]);
    let desk = Desk { scene, guest, before };
    assert_eq!(desk.purge(false).await, Err(Reason::SnapshotProtected));
    assert_eq!(desk.made().len(), 2 * 2 + 2);
    desk.purge(true).await.unwrap();
    desk.nothing_is_left().await;
}

/// A process that dies with one file gone and nothing of it written down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_that_was_interrupted_is_finished_by_the_next_process() {
    let (mut desk, _) = Desk::with_a_story("files-died").await;
    desk.undefine().await;
    // The same files under other names, to have them again afterwards.
    let made: Vec<PathBuf> = desk.made().into_iter().collect();
    let aside = desk.scene.daemon.host.dir.join("aside");
    fs::create_dir(&aside).unwrap();
    let kept = |path: &PathBuf| aside.join(path.file_name().unwrap());
    made.iter().for_each(|path| fs::hard_link(path, kept(path)).unwrap());
    let state = desk.scene.agent.state();
    let record = state.join("owned").join(format!("{}.json", desk.guest.vm));
    let remembered = fs::read(&record).unwrap();
    desk.purge(false).await.unwrap();
    assert_eq!(desk.made(), BTreeSet::new());
    let Desk { scene, guest, before } = desk;
    let (daemon, dir) = scene.leave().await;
    let topmost = made.iter().rfind(|path| path.to_string_lossy().contains("vdb.snap")).unwrap();
    made.iter().filter(|path| *path != topmost).for_each(|path| fs::rename(kept(path), path).unwrap());
    fs::write(&record, remembered).unwrap();
    let journal = fs::read_dir(state.join("operations")).unwrap().map(|entry| entry.unwrap().path());
    let last = journal.filter(|path| path.extension().is_some_and(|it| it == "jsonl")).max().unwrap();
    let text = fs::read_to_string(&last).unwrap();
    fs::write(&last, format!("{}\n{{\"begun\":0}}\n", text.lines().next().unwrap())).unwrap();
    let scene = Scene::come_back(daemon, dir).await;
    let mut desk = Desk { scene, guest, before };
    desk.scene.told.until("that nothing is left", |told| told.left_behind.is_empty()).await;
    desk.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_machine_lies_on_is_left_to_it() {
    let (mut desk, ids) = Desk::with_a_story("files-used").await;
    let frozen = {
        let seen = desk.scene.libvirt.observe(desk.guest.vm, Reread::All).unwrap();
        seen.layers.snapshots[&ids[1]].frozen["vda"].clone()
    };
    let other = desk.scene.guest(1).await;
    let image = other.dir.join("vda.qcow2");
    let create = ["create", "-q", "-f", "qcow2", "-b", &frozen, "-F", "qcow2", image.to_str().unwrap()];
    run(&other.dir, "qemu-img", &create);
    desk.undefine().await;
    desk.purge(false).await.unwrap();
    // What was frozen is the first snapshot's overlay, and lies on the base.
    assert_eq!(desk.made(), BTreeSet::from([PathBuf::from(&frozen)]));
    other.start();
    assert_eq!(other.report().disk, 'B');
    other.domain().destroy().unwrap();
    // It is remembered, and goes once nobody needs it.
    desk.scene.virsh(&["undefine", &other.vm.to_string()]);
    assert!(Path::new(&frozen).exists());
    fs::remove_file(image).unwrap();
    desk.purge(false).await.unwrap();
    desk.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_is_defined_again_keeps_its_files() {
    let (mut desk, _) = Desk::with_a_story("files-again").await;
    let (vm, made) = (desk.guest.vm, desk.made());
    let xml = desk.guest.dir.join("again.xml");
    fs::write(&xml, desk.scene.virsh(&["dumpxml", "--inactive", &vm.to_string()])).unwrap();
    desk.before.insert(xml.clone());
    desk.undefine().await;
    desk.scene.virsh(&["define", xml.to_str().unwrap()]);
    desk.scene.told.until("its return", |told| told.vms.contains_key(&vm)).await;
    desk.purge(true).await.unwrap();
    assert_eq!(desk.made(), made);
    desk.guest.start();
    assert_eq!(desk.guest.report().disk, 'E');
    desk.undefine().await;
    desk.purge(true).await.unwrap();
    desk.nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_other_tools_laid_on_ours_is_left_with_what_it_lies_on() {
    let mut desk = Desk::new("files-virsh").await;
    let first = desk.take(None, false).await;
    let domain = super::name(&desk.guest);
    desk.scene.virsh(&["snapshot-create-as", &domain, "by-hand", "--disk-only"]);
    let there = |all: &[snapshot_core::snapshot::SnapshotFacts]| all.len() == 2;
    desk.scene.told.snapshots("virsh's snapshot", &desk.guest, there).await;
    desk.undefine().await;
    let made = desk.made();
    assert_eq!(made.len(), 4);
    desk.purge(false).await.unwrap();
    assert_eq!(desk.made(), made, "what {first} made is below what we did not make");
    for path in made.iter().filter(|path| path.extension().is_some_and(|last| last == "by-hand")) {
        fs::remove_file(path).unwrap();
    }
    desk.purge(false).await.unwrap();
    desk.nothing_is_left().await;
}

/// What is remembered of it is what libvirt lists, so that a comparison of names does not take it for news.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_that_is_put_off_is_remembered_as_libvirt_lists_it() {
    let (desk, [first, second, third]) = Desk::with_a_story("deferred").await;
    let delete = Request::Delete { snapshot: third.clone(), scope: DeleteScope::Only, force: false };
    desk.done(delete).await;
    let seen = desk.scene.libvirt.observe(desk.guest.vm, Reread::All).unwrap();
    assert_eq!(seen.layers.deleted(), BTreeSet::from([third.clone()]), "the other branch would be lost");
    let machines = Machines::default();
    machines.saw(&seen);
    let (listed, outline) =
        (machines.listed(desk.guest.vm).unwrap(), desk.scene.libvirt.outline(desk.guest.vm).unwrap());
    let names: BTreeSet<String> = listed.snapshots.iter().map(ToString::to_string).collect();
    assert_eq!((names, listed.current.map(|id| id.to_string())), (outline.snapshots, outline.current));
    assert_eq!(listed.snapshots, BTreeSet::from([first, second, third]));
    desk.scene.agent.stop().await;
}

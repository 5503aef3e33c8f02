//! Orphans: listed with what they hold, deleted on request alone, and refused to be deleted wherever something needs them.

use std::time::Instant;

use proto::agent::{DeleteOrphanRequest, ListOrphansRequest};
use proto::v1;
use tonic::Status;

use super::*;
use crate::served::{Agent, with_token};

/// How long a look at a VM may take to find an orphan.
const FOUND: Duration = Duration::from_secs(20);

async fn list(agent: &Agent) -> Vec<v1::Orphan> {
    let request = with_token(ListOrphansRequest::default(), &agent.admin());
    agent.client.clone().list_orphans(request).await.unwrap().into_inner().orphans
}

/// The orphans, once there are so many.
pub(super) async fn listed(agent: &Agent, count: usize) -> Vec<v1::Orphan> {
    let begun = Instant::now();
    loop {
        let all = list(agent).await;
        if all.len() == count {
            return all;
        }
        assert!(begun.elapsed() < FOUND, "not {count} orphans: {all:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn ask(agent: &Agent, orphan: &v1::Orphan, validate_only: bool, token: &str) -> Result<v1::Orphan, Status> {
    let orphan_id = orphan.name.rsplit('/').next().unwrap().to_owned();
    let request = DeleteOrphanRequest { orphan_id, etag: orphan.etag.clone(), validate_only };
    let answer = agent.client.clone().delete_orphan(with_token(request, token)).await?;
    Ok(answer.into_inner().orphan.unwrap())
}

async fn delete(agent: &Agent, orphan: &v1::Orphan) -> v1::Orphan {
    ask(agent, orphan, false, &agent.admin()).await.unwrap()
}

/// Why it is refused, with the message. The file must be as it was.
async fn refused(agent: &Agent, orphan: &v1::Orphan) -> (Reason, String) {
    let is_there = Path::new(&orphan.path).exists();
    let refusal = ask(agent, orphan, false, &agent.admin()).await.unwrap_err();
    assert_eq!(Path::new(&orphan.path).exists(), is_there, "{refusal}");
    let error = from_status(&refusal, Reason::HostProtocol);
    (error.reason(), error.message().to_owned())
}

impl Desk {
    /// A VM whose second disk was detached after a snapshot, with that snapshot.
    async fn with_orphan(name: &str) -> (Self, SnapshotId, v1::Orphan) {
        let desk = Self::new(name, 2).await;
        desk.write('A');
        let first = desk.take().await;
        desk.write('B');
        assert!(list(&desk.scene.agent).await.is_empty());
        desk.detach("vdb");
        let orphan = listed(&desk.scene.agent, 1).await.remove(0);
        (desk, first, orphan)
    }

    /// Another VM, which is off, with this image as its disk.
    fn define_neighbour(&self, image: &Path) {
        let vm = self.guest.vm.to_string();
        let (active, image) = (self.active("vda").display().to_string(), image.display().to_string());
        let other = self.xml().replace(&vm, "11111111-2222-4333-8444-555555555557").replace(&active, &image);
        assert!(other.contains(&image));
        self.guest.define(&other.replace(&format!("<name>{}", &vm[..8]), "<name>neighbour"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orphan_is_listed_with_what_it_holds_and_deleted_on_request() {
    let (mut desk, first, orphan) = Desk::with_orphan("orphan-story").await;
    let vm = desk.guest.vm;
    let path = desk.path(&format!("vdb.{first}"));
    assert_eq!((orphan.vm.as_str(), orphan.vm_exists), (format!("vms/{vm}").as_str(), true));
    assert_eq!(orphan.vm_display_name, vm.to_string()[..8]);
    assert_eq!(orphan.snapshot, format!("vms/{vm}/snapshots/{first}"));
    assert_eq!(orphan.snapshot_display_name, "before <exam> & \"after\"");
    assert_eq!((Path::new(&orphan.path), Path::new(&orphan.backing_path)), (&*path, &*desk.path("vdb.qcow2")));
    assert_eq!((orphan.kind(), orphan.state()), (v1::OrphanKind::Overlay, v1::OrphanState::Ready));
    assert_eq!((orphan.deletable, orphan.reason.as_str(), orphan.capacity_bytes), (true, "", 64 << 20));
    let (created, written) = (orphan.create_time.as_ref().unwrap(), orphan.write_time.as_ref().unwrap());
    assert!(orphan.allocation_bytes > 0 && written.seconds >= created.seconds, "{orphan:?}");
    let told = |count| move |told: &crate::drift::Told| told.vms[&vm].vm.orphans.count == count;
    desk.scene.told.until("an orphan", told(1)).await;
    let agent = &desk.scene.agent;

    // Not by anybody, not as another file, and not by asking what would be done.
    for token in [agent.all(), agent.token(vec![], 0)] {
        let refusal = from_status(&ask(agent, &orphan, false, &token).await.unwrap_err(), Reason::HostProtocol);
        assert_eq!(refusal.reason(), Reason::ActionNotGranted);
        let request = with_token(ListOrphansRequest::default(), &token);
        let refusal = agent.client.clone().list_orphans(request).await.unwrap_err();
        assert_eq!(from_status(&refusal, Reason::HostProtocol).reason(), Reason::ActionNotGranted);
    }
    let another = v1::Orphan { etag: "0123".to_owned(), ..orphan.clone() };
    assert_eq!(refused(agent, &another).await.0, Reason::EtagMismatch);
    let unknown = v1::Orphan { name: format!("hosts/alpha/orphans/{}", uuid::Uuid::nil()), ..orphan.clone() };
    assert_eq!(refused(agent, &unknown).await.0, Reason::OrphanNotFound);
    assert_eq!(refused(agent, &v1::Orphan { etag: String::new(), ..orphan.clone() }).await.0, Reason::InvalidField);
    assert_eq!(ask(agent, &orphan, true, &agent.admin()).await.unwrap(), orphan);
    desk.keeps(&path, 'B').await;

    assert_eq!(delete(&desk.scene.agent, &orphan).await, orphan);
    assert!(!path.exists());
    assert!(list(&desk.scene.agent).await.is_empty());
    assert_eq!(refused(&desk.scene.agent, &orphan).await.0, Reason::OrphanNotFound);
    desk.scene.told.until("no orphan", told(0)).await;
    let record = fs::read_to_string(desk.scene.agent.state().join(format!("owned/{vm}.json"))).unwrap();
    assert!(!record.contains(&*path.to_string_lossy()), "{record}");

    // The snapshot holds what it held, with the disk.
    assert!(desk.scene.told.vms[&vm].snapshots[0].broken.is_none());
    assert_eq!(desk.reads(), 'B');
    desk.revert(&first).await;
    assert_eq!((desk.reads(), marker(&desk.path("vdb.qcow2"))), ('A', 'A'));
    desk.delete(&first).await;
    assert_eq!((desk.reads(), desk.listed()), ('A', 0));
    desk.scene.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orphan_that_something_needs_is_kept_and_says_what_needs_it() {
    let (desk, _, orphan) = Desk::with_orphan("orphan-needed").await;
    let (agent, path) = (&desk.scene.agent, PathBuf::from(&orphan.path));
    // An image of no VM.
    desk.qemu_img(&["create", "-q", "-f", "qcow2", "-b", &orphan.path, "-F", "qcow2", "clone.qcow2"]);
    let (reason, message) = refused(agent, &orphan).await;
    assert!(reason == Reason::ImageInUse && message.contains("clone.qcow2 depends on the file"), "{message}");
    let told = listed(agent, 1).await.remove(0);
    assert_eq!((told.deletable, told.reason.as_str(), &told.message), (false, "IMAGE_IN_USE", &message));
    fs::remove_file(desk.path("clone.qcow2")).unwrap();
    // A process that only reads it.
    let reader = fs::File::open(&path).unwrap();
    let (reason, message) = refused(agent, &orphan).await;
    assert!(reason == Reason::ImageInUse && message.contains("a process has the file open"), "{message}");
    assert!(!listed(agent, 1).await[0].deletable);
    drop(reader);
    // Another VM that is off.
    desk.define_neighbour(&path);
    let (reason, message) = refused(agent, &orphan).await;
    assert!(reason == Reason::ImageInUse && message.contains("VM neighbour uses the file"), "{message}");
    desk.scene.virsh(&["undefine", "neighbour"]);
    // The VM itself, again; then it is no orphan.
    desk.attach(&path, "vdb");
    assert_eq!(refused(agent, &orphan).await.0, Reason::OrphanNotFound);
    listed(agent, 0).await;
    desk.detach("vdb");
    let again = listed(agent, 1).await.remove(0);
    assert_eq!((&again.name, &again.etag), (&orphan.name, &orphan.etag), "nobody wrote to it");
    // Somebody has written to it since.
    desk.qemu_img(&["snapshot", "-c", "mine", &orphan.path]);
    assert_eq!(refused(agent, &orphan).await.0, Reason::EtagMismatch);
    let changed = listed(agent, 1).await.remove(0);
    // Another file in its place. A look at the VM strikes it out, and a warning says so.
    let copy = desk.path("copy");
    fs::copy(&path, &copy).unwrap();
    fs::rename(&copy, &path).unwrap();
    assert_eq!(refused(agent, &changed).await.0, Reason::OrphanNotFound);
    desk.keeps(&path, 'B').await;
    listed(agent, 0).await;
    desk.scene.agent.stop().await;
}

/// The definition that the next start uses counts, too, while the VM runs without the disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_of_the_next_start_is_no_orphan() {
    let (desk, _, orphan) = Desk::with_orphan("orphan-next").await;
    desk.guest.start();
    desk.attach(Path::new(&orphan.path), "vdb");
    assert_eq!(refused(&desk.scene.agent, &orphan).await.0, Reason::OrphanNotFound);
    desk.guest.domain().destroy().unwrap();
    desk.keeps(Path::new(&orphan.path), 'B').await;
    desk.scene.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orphan_survives_its_vm_and_what_was_half_deleted_is_forgotten() {
    let (desk, first, orphan) = Desk::with_orphan("orphan-purge").await;
    desk.done(Request::Purge { force: true }).await;
    let path = PathBuf::from(&orphan.path);
    desk.keeps(&path, 'B').await;
    assert_eq!(listed(&desk.scene.agent, 1).await[0].name, orphan.name);
    let vm = desk.guest.vm;
    desk.scene.virsh(&["undefine", &vm.to_string()]);
    let begun = Instant::now();
    let gone = loop {
        let told = listed(&desk.scene.agent, 1).await.remove(0);
        if !told.vm_exists {
            break told;
        }
        assert!(begun.elapsed() < FOUND, "{told:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!((&gone.etag, gone.deletable, &gone.snapshot), (&orphan.etag, true, &orphan.snapshot));
    // A purge of what is left of it does not take it either.
    let purged = desk.scene.agent.run(vm, Request::Purge { force: true }).await.unwrap();
    assert_eq!(purged.state(), OperationState::Succeeded, "{:?}", purged.error);
    desk.keeps(&path, 'B').await;
    assert!(path.ends_with(format!("vdb.{first}")));

    // The process was killed after it had removed the file, and before it had written that down.
    let bytes = fs::read(&path).unwrap();
    let (daemon, dir) = desk.scene.leave().await;
    let record = dir.path().join(format!("owned/{vm}.json"));
    let before = fs::read(&record).unwrap();
    fs::remove_file(&path).unwrap();
    let scene = crate::drift::Scene::come_back(daemon, dir).await;
    listed(&scene.agent, 0).await;
    let begun = Instant::now();
    while record.exists() {
        assert!(begun.elapsed() < FOUND, "the record of a VM that has left nothing stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // It was killed before: another process deletes it. What has its name and is another file, though, is nobody's to delete.
    let (daemon, dir) = scene.leave().await;
    fs::write(&path, bytes).unwrap();
    fs::write(&record, before).unwrap();
    let scene = crate::drift::Scene::come_back(daemon, dir).await;
    let replaced = listed(&scene.agent, 1).await.remove(0);
    assert_eq!((replaced.state(), replaced.deletable), (v1::OrphanState::Replaced, false));
    assert_eq!(refused(&scene.agent, &replaced).await.0, Reason::OrphanNotFound);
    scene.agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orphan_of_a_vm_that_does_not_exist_any_more_is_deleted() {
    let (desk, _, orphan) = Desk::with_orphan("orphan-gone").await;
    let vm = desk.guest.vm;
    desk.done(Request::Purge { force: true }).await;
    desk.scene.virsh(&["undefine", &vm.to_string()]);
    delete(&desk.scene.agent, &orphan).await;
    assert!(!Path::new(&orphan.path).exists());
    listed(&desk.scene.agent, 0).await;
    desk.scene.agent.stop().await;
}

/// Attached without a format, which libvirt takes for raw, and detached again before a guest wrote to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orphan_that_was_attached_in_another_format_is_one_again() {
    let (desk, first, orphan) = Desk::with_orphan("orphan-raw").await;
    let path = desk.path(&format!("vdb.{first}"));
    let vm = desk.guest.vm.to_string();
    desk.scene.virsh(&["attach-disk", &vm, path.to_str().unwrap(), "vdb", "--config"]);
    assert!(desk.xml().contains("type='raw'"));
    listed(&desk.scene.agent, 0).await;
    desk.detach("vdb");
    let again = listed(&desk.scene.agent, 1).await.remove(0);
    assert_eq!(
        (again.state(), again.deletable, &again.path),
        (v1::OrphanState::Ready, true, &orphan.path),
        "{again:?}"
    );
    desk.keeps(&path, 'B').await;
    delete(&desk.scene.agent, &again).await;
    assert!(!path.exists());
    desk.scene.agent.stop().await;
}

/// What a snapshot holds whose metadata libvirt has lost, on a branch that the VM is not on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_branch_whose_snapshots_libvirt_has_lost_is_an_orphan() {
    let desk = Desk::new("orphan-lost", 1).await;
    desk.write('A');
    let first = desk.take().await;
    desk.write('B');
    let second = desk.take().await;
    desk.write('C');
    desk.revert(&first).await;
    let branch = desk.path(&format!("vda.{first}"));
    desk.keeps(&branch, 'B').await;
    let vm = desk.guest.vm.to_string();
    desk.scene.virsh(&["snapshot-delete", &vm, first.as_str(), "--metadata"]);
    assert!(list(&desk.scene.agent).await.is_empty(), "the second needs it");
    desk.scene.virsh(&["snapshot-delete", &vm, second.as_str(), "--metadata"]);
    let orphan = listed(&desk.scene.agent, 1).await.remove(0);
    assert_eq!((Path::new(&orphan.path), orphan.deletable), (&*branch, true), "{orphan:?}");
    desk.keeps(&branch, 'B').await;
    delete(&desk.scene.agent, &orphan).await;
    assert!(!branch.exists() && list(&desk.scene.agent).await.is_empty());
    assert_eq!(desk.reads(), 'A');
    desk.scene.agent.stop().await;
}

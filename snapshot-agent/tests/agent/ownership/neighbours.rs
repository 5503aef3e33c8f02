//! Images and VMs beside the one that snapshots are deleted of.

use std::io::Write as _;

use snapshot_core::snapshot::SnapshotFacts;

use super::*;

fn deletion(id: &SnapshotId) -> Request {
    Request::Delete { snapshot: id.clone(), scope: DeleteScope::Only, force: false }
}

/// Case 4: images that depend on ours and that no VM of this host names, with their reference written in every form.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_no_vm_names_keeps_what_it_depends_on() {
    let desk = Desk::new("own-strangers", 1).await;
    for (name, format, is_json) in
        [("clone.qcow2", "qcow2", false), ("json.qcow2", "qcow2", true), ("clone.qed", "qed", false)]
    {
        desk.write('A');
        let first = desk.take().await;
        desk.write('B');
        let second = desk.take().await;
        desk.write('C');
        let frozen = desk.path(&format!("vda.{first}")).display().to_string();
        let json = format!("json:{{\"driver\":\"qcow2\",\"file\":{{\"driver\":\"file\",\"filename\":\"{frozen}\"}}}}");
        let backing = if is_json { &json } else { &frozen };
        desk.qemu_img(&["create", "-q", "-f", format, "-b", backing, "-F", "qcow2", name]);
        desk.delete(&second).await;
        assert_eq!(desk.reads_in(name, format), "42", "{name}: what the guest wrote before the second snapshot");
        desk.done(Request::Purge { force: false }).await;
        assert_eq!(desk.reads_in(name, format), "42", "{name}");
        assert_eq!((desk.reads(), desk.listed()), ('C', 0), "{name}");
        // Without it the next deletion finishes what was put off.
        std::fs::remove_file(desk.path(name)).unwrap();
        let last = desk.take().await;
        desk.delete(&last).await;
        assert_eq!(desk.active("vda"), desk.path("vda.qcow2"), "{name}");
        assert_eq!(desk.reads(), 'C', "{name}");
    }
    desk.scene.agent.stop().await;
}

/// The same for reverts inside the image: the data of a clone that nobody has defined yet would be that of the snapshot. Everybody is
/// told so as soon as the clone is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_no_vm_names_keeps_the_data_of_an_active_image() {
    let mut desk = Desk::new("own-inside-clone", 1).await;
    desk.write('A');
    let first = id();
    desk.done(Request::Create(Create { storage: Some(Storage::Internal), ..create(&first) })).await;
    desk.write('B');
    let revert = || Request::Revert { snapshot: first.clone(), run_after: RunAfter::Off, save_current: None };
    let is_free = |snapshots: &[SnapshotFacts]| snapshots.iter().all(|one| one.restrictions.is_empty());
    desk.scene.told.snapshots("a snapshot", &desk.guest, |all| all.len() == 1 && is_free(all)).await;
    let below = desk.path("vda.qcow2").display().to_string();
    let json = format!("json:{{\"driver\":\"qcow2\",\"file\":{{\"driver\":\"file\",\"filename\":\"{below}\"}}}}");
    for (name, format, backing) in
        [("clone.qcow2", "qcow2", below.as_str()), ("json.qcow2", "qcow2", &json), ("clone.qed", "qed", "vda.qcow2")]
    {
        desk.qemu_img(&["create", "-q", "-f", format, "-b", backing, "-F", "qcow2", name]);
        let is_told = |snapshots: &[SnapshotFacts]| {
            snapshots[0].restrictions.iter().any(|one| one.reason == Reason::ImageInUse && one.message.contains(name))
        };
        desk.scene.told.snapshots("the clone", &desk.guest, is_told).await;
        let (reason, message) = desk.refused(revert()).await;
        assert!(reason == Reason::ImageInUse && message.contains(name), "{reason:?}: {message}");
        assert_eq!(desk.reads_in(name, format), "42", "{name}");
        std::fs::remove_file(desk.path(name)).unwrap();
        desk.scene.told.snapshots("no clone", &desk.guest, is_free).await;
    }
    // A plan looks for itself, before anybody is told.
    desk.qemu_img(&["create", "-q", "-f", "qcow2", "-b", &below, "-F", "qcow2", "late.qcow2"]);
    let (reason, message) = desk.refused(revert()).await;
    assert!(reason == Reason::ImageInUse && message.contains("late.qcow2"), "{reason:?}: {message}");
    assert_eq!(desk.reads_in("late.qcow2", "qcow2"), "42");
    std::fs::remove_file(desk.path("late.qcow2")).unwrap();
    desk.done(revert()).await;
    assert_eq!(desk.reads(), 'A');
    desk.scene.agent.stop().await;
}

impl Desk {
    /// The byte where the guest writes, in hexadecimal.
    fn reads_in(&self, image: &str, format: &str) -> String {
        let mut command = std::process::Command::new("qemu-io");
        let read =
            command.args(["-r", "-U", "-f", format, "-c", "read -v 512 1"]).arg(self.path(image)).output().unwrap();
        let text = String::from_utf8_lossy(&read.stdout).into_owned();
        text.split_whitespace().nth(1).unwrap_or_else(|| panic!("{image}: {read:?}")).to_owned()
    }
}

/// Case 6: a neighbour in a pool that is not active. One of a directory is looked at all the same; of another kind it is refused
/// before anything is changed, with the neighbour's name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_neighbour_in_a_pool_that_is_not_active_is_named_or_in_nobodys_way() {
    let desk = Desk::new("own-pools", 1).await;
    desk.write('A');
    let first = desk.take().await;
    let pool = desk.path("pool");
    std::fs::create_dir(&pool).unwrap();
    desk.qemu_img(&["create", "-q", "-f", "qcow2", "pool/disk.qcow2", "1M"]);
    let define = |kind: &str, source: &str| {
        let xml = format!(
            "<pool type='{kind}'><name>{kind}</name>{source}<target><path>{}</path></target></pool>",
            pool.display()
        );
        let file = desk.path("pool.xml");
        std::fs::File::create(&file).unwrap().write_all(xml.as_bytes()).unwrap();
        desk.scene.virsh(&["pool-define", &file.display().to_string()]);
    };
    define("dir", "");
    define("fs", "<source><device path='/dev/nothing'/></source>");
    let vm = desk.guest.vm.to_string();
    let neighbour = |pool: &str, volume: &str| {
        let image = desk.active("vda").display().to_string();
        let xml = desk
            .xml()
            .replace(&vm, "11111111-2222-4333-8444-555555555556")
            .replace(&format!("<name>{}", &vm[..8]), "<name>neighbour");
        let file = format!("type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{image}'/>");
        let xml = xml.replace("      ", "").replace('\n', "");
        let volume = format!(
            "type='volume' device='disk'><driver name='qemu' type='qcow2'/><source pool='{pool}' volume='{volume}'/>"
        );
        assert!(xml.contains(&file), "{xml}");
        desk.guest.define(&xml.replace(&file, &volume));
    };
    neighbour("fs", "away.qcow2");
    let (reason, message) = desk.refused(deletion(&first)).await;
    assert!(message.contains("VM neighbour") && message.contains("pool fs"), "{message}");
    assert_eq!((reason, desk.listed()), (Reason::ResourceMissing, 1));
    assert!(!desk.scene.virsh(&["snapshot-dumpxml", &vm, first.as_str()]).contains("deleted"));
    neighbour("dir", "disk.qcow2");
    desk.delete(&first).await;
    assert_eq!((desk.reads(), desk.listed()), ('A', 0));
    desk.scene.agent.stop().await;
}

/// Case 7: the guest has panicked, and its QEMU is kept with the images open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_that_has_crashed_and_is_kept_is_refused_beforehand() {
    let desk = Desk::new("own-crashed", 1).await;
    // It tells the panic device that it has panicked: mov dx, 0x505; mov al, 1; out dx, al; hlt.
    let mut boot = vec![0xba, 0x05, 0x05, 0xb0, 0x01, 0xee, 0xf4, 0xeb, 0xfd];
    boot.resize(510, 0);
    boot.extend([0x55, 0xaa]);
    std::fs::write(desk.path("boot"), boot).unwrap();
    let first = desk.take().await;
    let overlay = desk.active("vda").display().to_string();
    run(&desk.guest.dir, "qemu-io", &["-f", "qcow2", "-c", "write -s boot 0 512", &overlay]);
    let crash = "<on_crash>preserve</on_crash>";
    let xml = desk
        .xml()
        .replace("<on_crash>destroy</on_crash>", crash)
        .replace("</devices>", "<panic model='isa'/></devices>");
    assert!(xml.contains(crash));
    desk.guest.define(&xml);
    desk.guest.domain().create().unwrap();
    let crashed = || desk.scene.virsh(&["domstate", &desk.guest.vm.to_string()]).trim() == "crashed";
    for _ in 0..200 {
        if crashed() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(crashed());
    let (reason, message) = desk.refused(deletion(&first)).await;
    assert!(message.contains("crashed"), "{message}");
    assert_eq!((reason, desk.listed()), (Reason::VmStateUnsupported, 1));
    assert_eq!(desk.refused(Request::Purge { force: true }).await.0, Reason::VmStateUnsupported);
    desk.guest.domain().destroy().unwrap();
    desk.delete(&first).await;
    assert_eq!(desk.listed(), 0);
    desk.scene.agent.stop().await;
}

/// Case 6: a purge removes what is left in the image of a detached disk, unless it is not known who else uses that. Then it is refused before
/// anything is changed. A raw disk is on nothing, readable or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_neighbour_whose_disk_cannot_be_read_is_named_before_a_purge_of_a_detached_disk() {
    let desk = Desk::new("own-unreadable", 2).await;
    desk.write('A');
    let first = id();
    desk.done(Request::Create(Create { storage: Some(Storage::Internal), ..create(&first) })).await;
    let (left, vm) = (desk.path("vdb.qcow2"), desk.guest.vm.to_string());
    desk.detach("vdb");
    desk.keeps(&left, 'A').await;
    // What reads it gets an error, as the agent does where it may not open a device.
    let unreadable = desk.path("unreadable");
    std::fs::create_dir(&unreadable).unwrap();
    let neighbour = |format: &str| {
        let xml = desk.xml().replace(&vm, "11111111-2222-4333-8444-555555555558");
        let xml = xml.replace(&format!("<name>{}", &vm[..8]), "<name>neighbour");
        let xml = xml.replace(&desk.active("vda").display().to_string(), &unreadable.display().to_string());
        assert!(xml.contains("type='qcow2'") && xml.contains(unreadable.to_str().unwrap()), "{xml}");
        desk.guest.define(&xml.replace("type='qcow2'", &format!("type='{format}'")));
    };
    let tags = || {
        let listed = std::process::Command::new("qemu-img").args(["snapshot", "-l"]).arg(&left).output().unwrap();
        String::from_utf8_lossy(&listed.stdout).into_owned()
    };
    neighbour("qcow2");
    let (reason, message) = desk.refused(Request::Purge { force: false }).await;
    assert!(message.contains("neighbour"), "{reason:?} {message}");
    assert_eq!(desk.listed(), 1, "nothing was changed");
    assert!(tags().contains(first.as_str()));
    neighbour("raw");
    desk.done(Request::Purge { force: false }).await;
    assert_eq!(desk.listed(), 0);
    assert!(!tags().contains(first.as_str()));
    desk.keeps(&left, 'A').await;
    desk.scene.agent.stop().await;
}

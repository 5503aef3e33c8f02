//! Disks that administrators attach, detach, move and swap.

use super::*;

/// Case 1: the image of a disk that was attached after the snapshot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revert_leaves_the_image_of_a_disk_that_was_attached_since() {
    let desk = Desk::new("own-attach", 1).await;
    desk.write('A');
    let first = desk.take().await;
    desk.write('B');
    desk.qemu_img(&["convert", "-O", "qcow2", "vda.qcow2", "data.qcow2"]);
    desk.attach(&desk.path("data.qcow2"), "vdb");
    desk.revert(&first).await;
    desk.keeps(&desk.path("data.qcow2"), 'A').await;
    assert_eq!(desk.reads(), 'A');
    // And one that is given up with the snapshot's own disk goes.
    assert!(!desk.path(&format!("vda.{first}")).exists(), "the active image of before is given up by the revert");
    desk.scene.agent.stop().await;
}

/// The same disk, once another snapshot has given it an overlay of ours: the revert detaches it, and libvirt would remove that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revert_keeps_the_overlay_of_a_disk_that_the_snapshot_does_not_hold() {
    let desk = Desk::new("own-later", 1).await;
    desk.write('A');
    let first = desk.take().await;
    desk.qemu_img(&["convert", "-O", "qcow2", "vda.qcow2", "data.qcow2"]);
    desk.attach(&desk.path("data.qcow2"), "vdb");
    let second = desk.take().await;
    let overlay = desk.active("vdb");
    assert!(overlay.ends_with(format!("data.{second}")), "{overlay:?}");
    // A guest without a second disk does not write to it.
    let image = overlay.display().to_string();
    run(&desk.guest.dir, "qemu-io", &["-f", "qcow2", "-c", "write -P 0x42 512 512", &image]);
    desk.revert(&first).await;
    desk.keeps(&overlay, 'B').await;
    assert_eq!(desk.reads(), 'A');
    // The other snapshot holds the disk, which it reverts to a state of its own.
    desk.revert(&second).await;
    desk.keeps(&overlay, 'B').await;
    assert_eq!(desk.reads(), 'A');
    desk.delete(&second).await;
    desk.keeps(&overlay, 'B').await;
    desk.scene.agent.stop().await;
}

/// A snapshot of another tool inside the active image is none of those that a revert gives up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revert_keeps_what_another_tool_has_in_the_active_image() {
    let desk = Desk::new("own-inside", 1).await;
    desk.write('A');
    let first = desk.take().await;
    desk.write('B');
    let overlay = desk.active("vda");
    let image = overlay.display().to_string();
    desk.qemu_img(&["snapshot", "-c", "0", &image]);
    desk.revert(&first).await;
    desk.keeps(&overlay, 'B').await;
    desk.qemu_img(&["convert", "-l", "snapshot.name=0", "-O", "qcow2", &image, "inside.qcow2"]);
    assert_eq!(marker(&desk.path("inside.qcow2")), 'B');
    assert_eq!(desk.reads(), 'A');
    desk.scene.agent.stop().await;
}

/// Nor is it any of those that are deleted with the image that it is in; the image is an orphan then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_keeps_what_another_tool_has_in_the_images_of_snapshots() {
    for (name, is_purge) in [("own-inside-deleted", false), ("own-inside-purged", true)] {
        let desk = Desk::new(name, 1).await;
        desk.write('A');
        let first = desk.take().await;
        desk.write('B');
        // The second snapshot has this image, and a revert leaves it to that.
        let overlay = desk.active("vda");
        let image = overlay.display().to_string();
        let second = desk.take().await;
        desk.qemu_img(&["snapshot", "-c", "mine", &image]);
        desk.revert(&first).await;
        match is_purge {
            true => {
                desk.guest.domain().undefine_flags(virt::sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA).unwrap();
                tokio::time::sleep(CLEANED_UP).await;
                desk.done(Request::Purge { force: true }).await;
            }
            false => desk.delete(&second).await,
        }
        desk.keeps(&overlay, 'B').await;
        desk.qemu_img(&["convert", "-l", "snapshot.name=mine", "-O", "qcow2", &image, "inside.qcow2"]);
        assert_eq!(marker(&desk.path("inside.qcow2")), 'B', "{name}");
        let orphans = super::orphans::listed(&desk.scene.agent, 1).await;
        assert!(orphans[0].path.ends_with(&format!("vda.{first}")), "{name}: {orphans:#?}");
        desk.scene.agent.stop().await;
    }
}

/// An image that somebody has put in the place of an overlay of ours is theirs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revert_keeps_an_image_that_was_put_in_the_place_of_the_active_one() {
    let desk = Desk::new("own-replaced", 1).await;
    desk.write('A');
    let first = desk.take().await;
    desk.write('B');
    let overlay = desk.active("vda");
    desk.qemu_img(&["convert", "-O", "qcow2", &overlay.display().to_string(), "other.qcow2"]);
    fs::rename(desk.path("other.qcow2"), &overlay).unwrap();
    desk.revert(&first).await;
    desk.keeps(&overlay, 'B').await;
    assert!(!desk.path(&format!("vda.{first}.kept")).exists());
    assert_eq!(desk.reads(), 'A');
    desk.scene.agent.stop().await;
}

/// Nor does a revert take the active image from below a clone that no VM names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revert_keeps_an_active_image_that_a_clone_depends_on() {
    let desk = Desk::new("own-cloned", 1).await;
    desk.write('A');
    let first = desk.take().await;
    desk.write('B');
    let (overlay, clone) = (desk.active("vda"), desk.path("clone.qcow2"));
    let below = overlay.display().to_string();
    desk.qemu_img(&["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &below, "clone.qcow2"]);
    desk.revert(&first).await;
    desk.keeps(&clone, 'B').await;
    assert_eq!(desk.reads(), 'A');
    desk.scene.agent.stop().await;
}

/// Case 1: the disk got another image after the snapshot: a copy, and a clone of what the snapshot froze.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revert_leaves_an_image_that_the_disk_got_since() {
    for (name, is_clone) in [("own-copy", false), ("own-clone", true)] {
        let desk = Desk::new(name, 1).await;
        desk.write('A');
        let first = desk.take().await;
        desk.write('B');
        let (overlay, other) = (desk.active("vda"), desk.path("other.qcow2"));
        match is_clone {
            true => desk.qemu_img(&["create", "-f", "qcow2", "-b", "vda.qcow2", "-F", "qcow2", "other.qcow2"]),
            false => desk.qemu_img(&["convert", "-O", "qcow2", "vda.qcow2", "other.qcow2"]),
        }
        desk.swap("vda", &other);
        desk.write('C');
        desk.revert(&first).await;
        desk.keeps(&other, 'C').await;
        // Nor did anybody ask for what the disk was before it got that.
        desk.keeps(&overlay, 'B').await;
        assert_eq!(desk.reads(), 'A');
        desk.delete(&first).await;
        desk.keeps(&other, 'C').await;
        desk.keeps(&overlay, 'B').await;
        assert_eq!(desk.reads(), 'A');
        desk.scene.agent.stop().await;
    }
}

/// Case 2: the active image of a disk that is detached, or moved to another VM, is an overlay of ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_detached_disk_keeps_its_data() {
    let desk = Desk::new("own-detach", 2).await;
    desk.write('A');
    let first = desk.take().await;
    desk.write('B');
    let second = desk.take().await;
    desk.write('C');
    let detached = desk.active("vdb");
    assert!(detached.ends_with(format!("vdb.{second}")), "{detached:?}");
    desk.detach("vdb");
    desk.keeps(&detached, 'C').await;
    // What is deleted is merged where nobody lies on it, and nowhere else.
    desk.delete(&second).await;
    desk.keeps(&detached, 'C').await;
    desk.delete(&first).await;
    desk.keeps(&detached, 'C').await;
    desk.qemu_img(&["check", "-q", detached.to_str().unwrap()]);
    assert_eq!(desk.reads(), 'C');
    // Somebody takes it for another VM.
    let vm = desk.guest.vm.to_string();
    let other = desk.xml().replace(&vm, "11111111-2222-4333-8444-555555555555");
    let other = other.replace(&format!("<name>{}", &vm[..8]), "<name>taker");
    let other = other.replace(&desk.active("vda").display().to_string(), &detached.display().to_string());
    assert!(other.contains("<name>taker") && other.contains(detached.to_str().unwrap()), "{other}");
    desk.guest.define(&other);
    desk.keeps(&detached, 'C').await;
    desk.done(Request::Purge { force: true }).await;
    desk.keeps(&detached, 'C').await;
    desk.scene.virsh(&["undefine", "taker"]);
    desk.keeps(&detached, 'C').await;
    // It comes back to the first, and is a disk like any other.
    desk.attach(&detached, "vdb");
    let third = desk.take().await;
    desk.write('D');
    desk.revert(&third).await;
    assert_eq!(desk.reads(), 'C');
    desk.scene.agent.stop().await;
}

/// Case 2, with snapshots inside the images: a revert would overwrite what the image of a detached disk holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revert_overwrites_no_image_of_a_disk_that_was_detached() {
    let desk = Desk::new("own-inside-detached", 2).await;
    desk.write('A');
    let first = id();
    desk.done(Request::Create(Create { storage: Some(Storage::Internal), ..create(&first) })).await;
    let image = desk.path("vdb.qcow2");
    let revert = || Request::Revert { snapshot: first.clone(), run_after: RunAfter::Off, save_current: None };
    // Nothing was written to it since: nothing is lost.
    desk.detach("vdb");
    desk.done(revert()).await;
    desk.keeps(&image, 'A').await;
    desk.write('B');
    desk.detach("vdb");
    let (reason, message) = desk.refused(revert()).await;
    assert!(reason == Reason::ImageInUse && message.contains("vdb.qcow2"), "{reason:?}: {message}");
    desk.keeps(&image, 'B').await;
    // Attached again it is given up by the revert.
    desk.attach(&image, "vdb");
    desk.done(revert()).await;
    desk.keeps(&image, 'A').await;
    desk.scene.agent.stop().await;
}

/// Case 2, on: the disk is unplugged from a VM that runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unplugged_disk_keeps_its_data() {
    let desk = Desk::new("own-unplug", 2).await;
    desk.guest.start();
    desk.guest.write('A');
    let first = desk.take().await;
    desk.guest.write('B');
    let unplugged = desk.active("vdb");
    let vm = desk.guest.vm.to_string();
    desk.scene.virsh(&["detach-disk", &vm, "vdb", "--config"]);
    desk.guest.domain().destroy().unwrap();
    desk.keeps(&unplugged, 'B').await;
    desk.delete(&first).await;
    desk.keeps(&unplugged, 'B').await;
    desk.scene.agent.stop().await;
}

/// Case 3: names that only snapshots should give, given by a user: a golden image, a clone of it that a VM is on, and another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_makes_no_file_ours() {
    let desk = Desk::new("own-names", 1).await;
    desk.write('G');
    let (golden, clone, other) =
        (desk.path("vda.1600000000"), desk.path("vda.1700000000"), desk.path("vda.1700000001"));
    fs::rename(desk.path("vda.qcow2"), &golden).unwrap();
    for name in ["vda.1700000000", "vda.1700000001"] {
        desk.qemu_img(&["create", "-q", "-f", "qcow2", "-b", "vda.1600000000", "-F", "qcow2", name]);
    }
    desk.guest.define(&desk.xml().replace("vda.qcow2", "vda.1700000000"));
    let bytes = fs::read(&golden).unwrap();
    desk.write('A');
    let first = desk.take().await;
    desk.write('B');
    desk.revert(&first).await;
    desk.write('C');
    desk.delete(&first).await;
    assert_eq!(desk.active("vda"), clone, "what snapshots created is merged");
    for image in [&golden, &other] {
        desk.keeps(image, 'G').await;
    }
    desk.keeps(&clone, 'C').await;
    assert!(fs::read(&golden).unwrap() == bytes, "the golden image was written to");
    desk.done(Request::Purge { force: true }).await;
    desk.keeps(&other, 'G').await;
    assert_eq!(desk.reads(), 'C');
    desk.scene.agent.stop().await;
}

//! Records of libvirt's that are changed, and keep what is not meant to change.

use snapshot_core::text::{Description, DisplayName};

use super::*;

/// Case 5: what libvirt has on the current snapshot beside its XML says which overlay its next revert removes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_name_of_the_current_snapshot_costs_no_branch() {
    let desk = Desk::new("own-rename", 1).await;
    desk.write('A');
    let first = desk.take().await;
    desk.write('B');
    let second = desk.take().await;
    desk.write('C');
    desk.revert(&first).await;
    desk.write('D');
    let update = Request::Update {
        snapshot: first.clone(),
        display_name: DisplayName::parse("another name").unwrap(),
        description: Description::parse("").unwrap(),
        protected: false,
    };
    desk.done(update).await;
    desk.scene.virsh(&["snapshot-revert", &desk.guest.vm.to_string(), second.as_str()]);
    assert_eq!(desk.reads(), 'B', "the branch of the second snapshot");
    desk.revert(&first).await;
    assert_eq!(desk.reads(), 'A');
    desk.revert(&second).await;
    assert_eq!(desk.reads(), 'B');
    desk.scene.agent.stop().await;
}

/// libvirt has lost the metadata of snapshots: nobody has deleted them, so nothing is merged into what they hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_that_libvirt_has_lost_keep_what_they_hold() {
    let desk = Desk::new("own-lost", 1).await;
    desk.write('A');
    let first = desk.take().await;
    desk.write('B');
    let second = desk.take().await;
    desk.write('C');
    let vm = desk.guest.vm.to_string();
    for id in [&second, &first] {
        desk.scene.virsh(&["snapshot-delete", &vm, id.as_str(), "--metadata"]);
    }
    let later = desk.take().await;
    desk.write('D');
    desk.delete(&later).await;
    let (base, overlay) = (desk.path("vda.qcow2"), desk.path(&format!("vda.{first}")));
    desk.keeps(&base, 'A').await;
    desk.keeps(&overlay, 'B').await;
    assert_eq!(desk.reads(), 'D');
    // A purge is of all of them.
    desk.done(Request::Purge { force: false }).await;
    assert_eq!(desk.reads(), 'D');
    desk.scene.agent.stop().await;
}

/// The same, when the VM was reverted to it before: of its overlays only that of the revert is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_snapshot_that_the_vm_was_reverted_to_keeps_what_it_holds() {
    let desk = Desk::new("own-lost-revert", 1).await;
    desk.write('A');
    let first = desk.take().await;
    desk.write('B');
    let second = desk.take().await;
    desk.write('C');
    desk.revert(&second).await;
    desk.write('D');
    desk.scene.virsh(&["snapshot-delete", &desk.guest.vm.to_string(), second.as_str(), "--metadata"]);
    desk.delete(&first).await;
    desk.keeps(&desk.path(&format!("vda.{first}")), 'B').await;
    assert_eq!(desk.reads(), 'D');
    desk.scene.agent.stop().await;
}

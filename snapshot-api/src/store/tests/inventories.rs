//! What hosts tell.

use std::collections::BTreeSet;

use snapshot_core::authority::Visible;
use snapshot_core::restriction::{RestrictedOperation, Restriction};
use snapshot_core::vm::VmFacts;

use super::*;

#[tokio::test]
async fn an_inventory_that_tells_nothing_new_changes_nothing() {
    let (store, _folder) = open();
    assert!(put(&store, 1, &[("a", None)]).await > 0);
    let before = store.vm(vm_id(1)).unwrap().revision;
    assert_eq!(put(&store, 1, &[("a", None)]).await, 0);
    assert_eq!(store.vm(vm_id(1)).unwrap().revision, before);
}

/// The storage of a VM hangs, and its host was started anew: it knows less than the catalogue does.
#[tokio::test]
async fn what_is_known_of_a_vm_that_cannot_be_observed_stays() {
    let (store, _folder) = open();
    put(&store, 1, &[("a", None), ("b", Some("a"))]).await;
    let before = store.vm(vm_id(1)).unwrap();
    let reason = Reason::StorageUnresponsive;
    let restriction = Restriction::new(RestrictedOperation::ALL, reason, "the storage of /srv/x does not respond");
    let mut unobserved = Inventory { unobserved: true, ..inventory(1, &[]) };
    unobserved.vm.name = vm_id(1).to_string();
    unobserved.vm.state = VmState::Unknown;
    unobserved.vm.disks.clear();
    unobserved.vm.restrictions = vec![restriction.clone()];
    assert_eq!(store.put_inventory(host(), unobserved.clone(), 0).await.unwrap(), 1);
    let row = store.vm(vm_id(1)).unwrap();
    assert_eq!(row.facts, VmFacts { restrictions: vec![restriction], ..before.facts.clone() });
    assert!(row.revision > before.revision, "watches are told");
    assert_eq!(listed(&store, 1), ["a", "b"]);
    assert_eq!(store.put_inventory(host(), unobserved.clone(), 0).await.unwrap(), 0, "told again it is no news");
    // Its state is told where it is known.
    unobserved.vm.state = VmState::Running;
    store.put_inventory(host(), unobserved.clone(), 0).await.unwrap();
    assert_eq!(store.vm(vm_id(1)).unwrap().facts.state, VmState::Running);
    // The storage is back.
    put(&store, 1, &[("a", None), ("b", Some("a"))]).await;
    assert_eq!(store.vm(vm_id(1)).unwrap().facts, before.facts);
    // One that nobody knows is there by its id.
    let unknown = Inventory { vm: VmFacts { id: vm_id(2), ..unobserved.vm.clone() }, ..unobserved };
    store.put_inventory(host(), unknown, 0).await.unwrap();
    assert_eq!(store.vm(vm_id(2)).unwrap().facts.restrictions.len(), 1);
}

#[tokio::test]
async fn parents_come_before_children_whatever_the_order_told() {
    let (store, _folder) = open();
    put(&store, 1, &[("c", Some("b")), ("a", None), ("b", Some("a"))]).await;
    assert_eq!(listed(&store, 1), ["a", "b", "c"]);
    let rows = store.snapshots(vm_id(1), 0, 10).unwrap();
    assert_eq!(rows.iter().map(|row| (row.depth, row.child_count)).collect::<Vec<_>>(), [(0, 1), (1, 1), (2, 0)]);
}

#[tokio::test]
async fn machines_that_a_host_does_not_name_are_forgotten_and_only_its_own() {
    let (store, _folder) = open();
    put(&store, 1, &[("a", None)]).await;
    put(&store, 2, &[]).await;
    store.put_inventory("beta".parse().unwrap(), inventory(3, &[]), 0).await.unwrap();
    store.retain_vms(host(), BTreeSet::from([vm_id(2)]), 1000).await.unwrap();
    let filter = VmFilter { visible: Visible::All, host: None, after: None };
    let left: Vec<_> = store.vms(&filter, 10).unwrap().iter().map(|row| row.id).collect();
    assert_eq!(left, [vm_id(2), vm_id(3)]);
    assert_eq!(reason(store.vm(vm_id(1)).unwrap_err()), Reason::VmNotFound);
    assert_eq!(listed(&store, 1), Vec::<String>::new());
}

#[tokio::test]
async fn of_a_machine_on_two_hosts_the_active_one_counts() {
    let (store, _folder) = open();
    let beta: HostId = "beta".parse().unwrap();
    let mut running = inventory(1, &[("a", None)]);
    running.vm.state = VmState::Running;
    store.put_inventory(host(), running, 0).await.unwrap();
    store.put_inventory(beta.clone(), inventory(1, &[]), 0).await.unwrap();
    assert_eq!(store.vm(vm_id(1)).unwrap().host, host());
    assert_eq!(listed(&store, 1), ["a"]);
    // The copy that is off vanishing there says nothing of the one that runs here.
    store.remove_vm(beta, vm_id(1), 1000).await.unwrap();
    assert_eq!(listed(&store, 1), ["a"]);
}

#[tokio::test]
async fn lists_show_what_the_caller_may_see() {
    let (store, _folder) = open();
    for number in 1..=3 {
        put(&store, number, &[]).await;
    }
    let visible = Visible::Only(BTreeSet::from([vm_id(2), vm_id(9)]));
    let filter = VmFilter { visible, host: None, after: None };
    let seen: Vec<_> = store.vms(&filter, 10).unwrap().iter().map(|row| row.id).collect();
    assert_eq!(seen, [vm_id(2)]);
}

#[tokio::test]
async fn a_page_goes_on_after_rows_were_inserted_and_removed() {
    let (store, _folder) = open();
    put(&store, 1, &[("a", None), ("b", Some("a")), ("c", Some("b"))]).await;
    let first = store.snapshots(vm_id(1), 0, 2).unwrap();
    put(&store, 1, &[("b", None), ("c", Some("b")), ("d", Some("c"))]).await;
    let rest = store.snapshots(vm_id(1), first[1].seq, 10).unwrap();
    assert_eq!(rest.iter().map(|row| row.facts.id.to_string()).collect::<Vec<_>>(), ["c", "d"]);
}

#[tokio::test]
async fn space_that_comes_and_goes_is_kept_and_is_no_change() {
    let (store, _folder) = open();
    let with_free = |free: u64| {
        let mut inventory = inventory(1, &[]);
        inventory.vm.disks = vec![snapshot_core::vm::DiskFacts {
            target: "vda".to_owned(),
            path: "/images/vda.qcow2".to_owned(),
            format: "qcow2".to_owned(),
            read_only: false,
            has_backing_file: false,
            capacity_bytes: 1,
            allocation_bytes: free,
            free_bytes: Some(free),
        }];
        inventory
    };
    store.put_inventory(host(), with_free(10), 0).await.unwrap();
    let before = store.vm(vm_id(1)).unwrap().revision;
    assert_eq!(store.put_inventory(host(), with_free(20), 1).await.unwrap(), 0);
    let row = store.vm(vm_id(1)).unwrap();
    assert_eq!((row.revision, row.facts.disks[0].free_bytes), (before, Some(20)));
}

#[tokio::test]
async fn a_telling_that_comes_late_changes_nothing_until_the_host_begins_anew() {
    let (store, _folder) = open();
    let told = |sequence: u64, snapshots: &[(&str, Option<&str>)]| Inventory { sequence, ..inventory(1, snapshots) };
    store.put_inventory(host(), told(6, &[]), 0).await.unwrap();
    store.put_inventory(host(), told(8, &[("a", None)]), 0).await.unwrap();
    assert_eq!(store.put_inventory(host(), told(7, &[]), 0).await.unwrap(), 0);
    assert_eq!(listed(&store, 1), ["a"]);
    store.begin_telling(host()).await.unwrap();
    store.put_inventory(host(), told(1, &[]), 0).await.unwrap();
    assert_eq!(listed(&store, 1), Vec::<String>::new());
}

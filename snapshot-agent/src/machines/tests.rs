//! Who is told of what.

use super::*;
use snapshot_core::Reason;
use snapshot_core::vm::{Nvram, OrphanSummary, VmFacts, VmState};
use uuid::Uuid;

pub(crate) fn vm(n: u128, name: &str) -> VmFacts {
    VmFacts {
        id: VmId::from_uuid(Uuid::from_u128(n)),
        name: name.to_owned(),
        state: VmState::Shutoff,
        persistent: true,
        has_managed_save: false,
        block_job_disk: None,
        memory_bytes: 0,
        disks: vec![],
        nvram: Nvram::Absent,
        missing_medium: None,
        orphans: OrphanSummary::default(),
        restrictions: Vec::new(),
    }
}

fn inventory(n: u128, name: &str) -> Inventory {
    Inventory { vm: vm(n, name), snapshots: vec![], sequence: 0, unobserved: false }
}

#[tokio::test]
async fn a_subscriber_gets_all_and_then_the_latest_of_what_changed() {
    let machines = Arc::new(Machines::default());
    machines.publish(inventory(1, "a"), &Uses::default(), None);
    machines.publish(inventory(2, "b"), &Uses::default(), None);
    let subscription = machines.subscribe();
    let told = |change: Change| match change {
        Change::Is(inventory) => (inventory.vm.name.clone(), inventory.sequence),
        other => panic!("{other:?}"),
    };
    let (first, second) = (told(subscription.next().await), told(subscription.next().await));
    assert_eq!((first.0.as_str(), second.0.as_str()), ("a", "b"));
    assert!(first.1 < second.1, "{first:?} {second:?}");
    assert_eq!(subscription.try_next(), None);
    for name in ["x", "y", "z"] {
        machines.publish(inventory(1, name), &Uses::default(), None);
    }
    machines.publish(inventory(2, "b"), &Uses::default(), None);
    let latest = told(subscription.next().await);
    assert!(latest.0 == "z" && latest.1 >= second.1 + 3, "{latest:?}");
    assert_eq!(subscription.try_next(), None);
    let gone = inventory(2, "b").vm.id;
    machines.remove(gone);
    machines.remove(gone);
    assert_eq!(subscription.next().await, Change::Gone(gone));
    assert_eq!(subscription.try_next(), None);
}

#[test]
fn a_process_that_follows_another_tells_by_higher_numbers() {
    let told = || {
        let machines = Machines::default();
        machines.publish(inventory(1, "a"), &Uses::default(), None);
        machines.get(vm(1, "a").id).unwrap().sequence
    };
    let before = told();
    std::thread::sleep(std::time::Duration::from_millis(5));
    assert!(told() > before);
}

#[test]
fn who_no_longer_listens_is_forgotten() {
    let machines = Arc::new(Machines::default());
    drop(machines.subscribe());
    machines.publish(inventory(1, "a"), &Uses::default(), None);
    assert!(machines.lock().subscribers.is_empty());
}

/// A clone makes the revert of its base unavailable, whichever of the two is seen first, and its end makes it available again.
#[test]
fn what_a_machine_uses_is_told_of_the_others() {
    let file = |name: &str, target: &str| (name.to_owned(), target.to_owned());
    let base = Uses { reached: ["/base".to_owned()].into(), changed: [file("/base", "vda")].into(), ..Uses::default() };
    let clone = Uses {
        reached: ["/base".to_owned(), "/clone".to_owned()].into(),
        changed: [file("/clone", "vda")].into(),
        ..Uses::default()
    };
    for clone_first in [false, true] {
        let machines = Arc::new(Machines::default());
        let subscription = machines.subscribe();
        let restricted = |n| machines.get(vm(n, "").id).unwrap().vm.restrictions.iter().map(|it| it.reason).collect();
        if clone_first {
            machines.publish(inventory(2, "clone"), &clone, None);
            machines.publish(inventory(1, "base"), &base, None);
        } else {
            machines.publish(inventory(1, "base"), &base, None);
            let alone: Vec<Reason> = restricted(1);
            assert!(alone.is_empty());
            machines.publish(inventory(2, "clone"), &clone, None);
        }
        let (of_base, of_clone): (Vec<Reason>, Vec<Reason>) = (restricted(1), restricted(2));
        assert_eq!((of_base, of_clone), (vec![Reason::ImageInUse], vec![]));
        while subscription.try_next().is_some() {}
        // Looked at again, it is no news.
        machines.publish(inventory(1, "base"), &base, None);
        assert_eq!(subscription.try_next(), None);
        machines.remove(vm(2, "clone").id);
        let after: Vec<Reason> = restricted(1);
        assert!(after.is_empty());
        let told: Vec<Change> = std::iter::from_fn(|| subscription.try_next()).collect();
        assert_eq!(told.len(), 2, "{told:?}");
    }
}

#[test]
fn machines_that_were_never_seen_are_new_until_they_were_waited_for() {
    let machines = Machines::default();
    let both = [vm(1, "").id, vm(2, "").id];
    machines.publish(inventory(1, "a"), &Uses::default(), None);
    assert!(machines.has_new(&both) && !machines.has_new(&both[..1]));
    machines.no_longer_new(&both);
    assert!(!machines.has_new(&both));
}

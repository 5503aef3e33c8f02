//! VMs that several hosts have, or say they have.

use snapshot_core::audit::Outcome as Told;

use super::*;

fn beta() -> HostId {
    "beta".parse().unwrap()
}

/// A VM in this state, with so many snapshots of ours.
fn with(state: VmState, snapshots: u128) -> Inventory {
    let ids: Vec<String> = (1..=snapshots).map(|n| SnapshotId::from_uuid(Uuid::from_u128(n)).to_string()).collect();
    let all: Vec<(&str, Option<&str>)> = ids.iter().map(|id| (id.as_str(), None)).collect();
    let mut told = inventory(1, &all);
    told.vm.state = state;
    told
}

struct Site {
    store: Store,
    folder: TempDir,
}

impl Site {
    /// Two hosts that are connected.
    async fn new() -> Self {
        let (store, folder) = open();
        store.begin_telling(host()).await.unwrap();
        store.begin_telling(beta()).await.unwrap();
        Self { store, folder }
    }

    async fn tells(&self, host: HostId, state: VmState, snapshots: u128) {
        self.store.put_inventory(host, with(state, snapshots), 1000).await.unwrap();
    }

    /// The host, the other hosts, the number of snapshots, and the host in conflict.
    fn is(&self) -> (String, Vec<String>, i64, Option<String>) {
        let row = self.store.vm(vm_id(1)).unwrap();
        let elsewhere = row.elsewhere.iter().map(HostId::to_string).collect();
        (row.host.to_string(), elsewhere, row.snapshot_count, row.conflict.map(|host| host.to_string()))
    }

    fn trail(&self) -> Vec<Told> {
        let page = self.store.audit_events(&AuditFilter { oldest_first: true, ..AuditFilter::default() }, 100).unwrap();
        page.rows.into_iter().map(|row| row.event.outcome).filter(|outcome| *outcome != Told::Begun).collect()
    }
}

fn on(
    host: &str,
    other: &[&str],
    snapshots: i64,
    conflict: Option<&str>,
) -> (String, Vec<String>, i64, Option<String>) {
    let other = other.iter().map(|host| (*host).to_owned()).collect();
    (host.to_owned(), other, snapshots, conflict.map(str::to_owned))
}

#[tokio::test]
async fn what_another_host_says_of_a_vm_that_runs_takes_nothing_over() {
    let site = Site::new().await;
    site.tells(beta(), VmState::Running, 2).await;
    site.tells(host(), VmState::Running, 0).await;
    assert_eq!(site.is(), on("beta", &["alpha"], 2, Some("alpha")));
    assert_eq!(site.store.conflicts().unwrap(), 1);
    // Saying that it is gone takes back what it said, and nothing else.
    site.store.remove_vm(host(), vm_id(1), 1000).await.unwrap();
    assert_eq!(site.is(), on("beta", &[], 2, None));
    assert_eq!(site.store.conflicts().unwrap(), 0);
    assert_eq!(site.trail(), [Told::Conflict, Told::Settled]);
    // The same by not telling of it any more.
    site.tells(host(), VmState::Running, 0).await;
    site.store.retain_vms(host(), [].into(), 1000).await.unwrap();
    assert_eq!(site.is(), on("beta", &[], 2, None));
    // And by stopping it there, whoever was wrong.
    site.tells(host(), VmState::Running, 0).await;
    site.tells(beta(), VmState::Shutoff, 2).await;
    assert_eq!(site.is(), on("alpha", &["beta"], 0, None));
    site.tells(host(), VmState::Shutoff, 0).await;
    assert_eq!(site.is(), on("beta", &["alpha"], 2, None), "off, it is where its snapshots are");
}

#[tokio::test]
async fn a_vm_that_is_off_on_two_hosts_stays_where_its_snapshots_are() {
    let site = Site::new().await;
    site.tells(host(), VmState::Shutoff, 2).await;
    for _ in 0..3 {
        site.tells(beta(), VmState::Shutoff, 0).await;
        assert_eq!(site.is(), on("alpha", &["beta"], 2, None));
        site.tells(host(), VmState::Shutoff, 2).await;
        assert_eq!(site.is(), on("alpha", &["beta"], 2, None));
    }
    assert_eq!(site.trail(), []);
    // Undefined where it is not, and where it is.
    site.store.remove_vm(beta(), vm_id(1), 1000).await.unwrap();
    assert_eq!(site.is(), on("alpha", &[], 2, None));
    site.tells(beta(), VmState::Shutoff, 1).await;
    site.store.remove_vm(host(), vm_id(1), 1000).await.unwrap();
    assert_eq!(site.is(), on("beta", &[], 1, None));
    site.store.remove_vm(beta(), vm_id(1), 1000).await.unwrap();
    assert!(site.store.vm(vm_id(1)).is_err());
    assert_eq!(site.trail(), [Told::Moved]);
}

#[tokio::test]
async fn an_operation_of_a_lost_host_ends_when_another_runs_the_vm() {
    let site = Site::new().await;
    site.tells(host(), VmState::Running, 1).await;
    let operation = intent(1, create("snap-2"));
    let id = operation.id;
    site.store.begin(operation).await.unwrap();
    site.store.accept(id, true, 1000).await.unwrap();
    // As long as the host is there it is not taken over.
    site.tells(beta(), VmState::Running, 0).await;
    assert_eq!(site.is().3.as_deref(), Some("beta"));
    site.tells(beta(), VmState::Shutoff, 0).await;
    site.store.lost(host(), 2000).await.unwrap();
    assert_eq!((site.is().0.as_str(), site.store.operation(id).unwrap().end_time), ("alpha", None));
    site.tells(beta(), VmState::Running, 0).await;
    assert_eq!(site.is(), on("beta", &["alpha"], 0, None));
    let ended = site.store.operation(id).unwrap();
    let error = ended.error.unwrap();
    assert_eq!((error.reason(), ended.state), (Reason::HostLost, snapshot_core::operation::OperationState::Failed));
    assert!(error.message().contains("hosts/beta"), "{error}");
    // The VM can be used at once.
    let next = NewOperation { host: beta(), ..intent(1, create("snap-3")) };
    assert!(matches!(site.store.begin(next).await.unwrap(), Begun::New));
    // The first comes back, and still runs it.
    site.store.begin_telling(host()).await.unwrap();
    site.tells(host(), VmState::Running, 1).await;
    assert_eq!(site.is().3.as_deref(), Some("alpha"));
    assert_eq!(
        site.trail(),
        [Told::Accepted, Told::Conflict, Told::Settled, Told::Failed, Told::Moved, Told::Accepted, Told::Conflict]
    );
}

#[tokio::test]
async fn a_conflict_ends_when_a_host_is_lost() {
    let site = Site::new().await;
    site.tells(host(), VmState::Running, 1).await;
    site.tells(beta(), VmState::Running, 3).await;
    assert_eq!(site.is(), on("alpha", &["beta"], 1, Some("beta")));
    site.store.lost(host(), 2000).await.unwrap();
    assert_eq!(site.is(), on("beta", &["alpha"], 3, None));
}

/// A host that is not back yet after a restart of the service loses its VMs to nobody.
#[tokio::test]
async fn whoever_speaks_first_after_a_restart_takes_nothing_over() {
    let mut site = Site::new().await;
    site.tells(beta(), VmState::Running, 2).await;
    site.store.close();
    site.store = Store::open(&site.folder.path().join("catalogue.db")).unwrap();
    site.store.begin_telling(host()).await.unwrap();
    site.tells(host(), VmState::Running, 0).await;
    assert_eq!(site.is(), on("beta", &["alpha"], 2, Some("alpha")));
    // It never returns.
    site.store.lost(beta(), 2000).await.unwrap();
    assert_eq!(site.is(), on("alpha", &["beta"], 0, None));
}

/// An intent is for the host that was found before it was written.
#[tokio::test]
async fn an_intent_for_a_host_that_the_vm_has_left_is_refused() {
    let site = Site::new().await;
    site.tells(host(), VmState::Shutoff, 1).await;
    let begin = |host: HostId| site.store.begin(NewOperation { host, ..intent(1, create("snap-2")) });
    site.tells(beta(), VmState::Suspended, 0).await;
    assert_eq!(reason(begin(host()).await.unwrap_err()), Reason::VmBusy);
    site.tells(host(), VmState::Crashed, 1).await;
    assert_eq!(site.is().3.as_deref(), Some("alpha"), "a process has the images open, whatever its guest does");
    for host in [host(), beta()] {
        assert_eq!(reason(begin(host).await.unwrap_err()), Reason::HostConflict);
    }
}

/// What keeps a VM where it is may end without the host's telling of it.
#[tokio::test]
async fn the_end_of_an_operation_decides_anew() {
    let site = Site::new().await;
    site.tells(host(), VmState::Shutoff, 1).await;
    let operation = intent(1, create("snap-2"));
    let id = operation.id;
    site.store.begin(operation).await.unwrap();
    site.tells(beta(), VmState::Running, 0).await;
    assert_eq!(site.is(), on("alpha", &["beta"], 2, Some("beta")));
    let refused = Ending::failed(Error::new(Reason::SpaceLow, "too little"));
    site.store.end(id, refused, 2000).await.unwrap();
    assert_eq!(site.is(), on("beta", &["alpha"], 0, None));
}

/// The host had told that the VM is gone before it was lost.
#[tokio::test]
async fn an_operation_of_a_lost_host_that_the_vm_had_left_ends() {
    let site = Site::new().await;
    site.tells(host(), VmState::Running, 1).await;
    let operation = intent(1, create("snap-2"));
    let id = operation.id;
    site.store.begin(operation).await.unwrap();
    site.tells(beta(), VmState::Shutoff, 0).await;
    site.store.remove_vm(host(), vm_id(1), 1500).await.unwrap();
    site.tells(beta(), VmState::Running, 0).await;
    assert_eq!(site.store.operation(id).unwrap().end_time, None);
    site.store.lost(host(), 2000).await.unwrap();
    assert_eq!(site.store.operation(id).unwrap().error.unwrap().reason(), Reason::HostLost);
}

/// What a host said that is not configured any more stands in nobody's way.
#[tokio::test]
async fn a_host_that_was_removed_keeps_no_vm_from_others() {
    let site = Site::new().await;
    site.tells(host(), VmState::Running, 2).await;
    site.tells(beta(), VmState::Running, 1).await;
    site.store.lose_others(&[&beta()], 2000).await.unwrap();
    assert_eq!(site.is(), on("beta", &[], 1, None));
    // Nor a VM that it alone had.
    let site = Site::new().await;
    site.tells(host(), VmState::Running, 2).await;
    site.store.lose_others(&[&beta()], 2000).await.unwrap();
    site.tells(beta(), VmState::Running, 0).await;
    assert_eq!(site.is().0, "beta");
    site.store.lose_others(&[&beta()], 3000).await.unwrap();
    assert_eq!(site.is(), on("beta", &[], 0, None));
}

#[tokio::test]
async fn what_comes_late_from_another_host_changes_nothing() {
    let site = Site::new().await;
    site.tells(host(), VmState::Running, 1).await;
    let mut told = with(VmState::Running, 0);
    told.sequence = 7;
    site.store.put_inventory(beta(), told.clone(), 1000).await.unwrap();
    told.vm.state = VmState::Shutoff;
    told.sequence = 6;
    site.store.put_inventory(beta(), told, 1000).await.unwrap();
    assert_eq!(site.is().3.as_deref(), Some("beta"));
}

#[tokio::test]
async fn extreme_sizes_do_not_add_up_to_a_failure() {
    let site = Site::new().await;
    let mut told = with(VmState::Running, 3);
    told.snapshots.iter_mut().for_each(|snapshot| snapshot.size_bytes = u64::MAX);
    site.store.put_inventory(host(), told, 1000).await.unwrap();
    assert!(site.store.usage_of_vm(vm_id(1)).unwrap().bytes > 0);
}

//! Two hosts with an agent each. One that is gone, by a stop or by a crash, takes nothing with it but itself; the API,
//! restarted, knows what it knew.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use std::time::{Duration, Instant};

use proto::v1;
use rustix::process::Signal;
use tests::client::{Client, Refusal};
use tests::guest::Guest;
use tests::lab::{HOST, Lab, Power, key};
use tonic::Code;

const OTHER: &str = "beta";
/// How long it may take until an agent that is gone is marked as such. What ends by a stop or a crash ends its
/// connections; only a host that hangs takes the three missed heartbeats.
const NOTICED: Duration = Duration::from_secs(5);
/// Three heartbeats of five seconds, and the way to the page.
const SILENT: Duration = Duration::from_secs(20);
/// How long it may take until an agent that is back is reachable again, without anybody's help.
const BACK: Duration = Duration::from_secs(30);
/// What is refused for a host that is gone is refused without waiting for it: six calls in less than any one time-out
/// on the way, on a machine that has much else to do.
const AT_ONCE: Duration = Duration::from_secs(3);

struct TwoHosts {
    lab: Lab,
    here: Guest,
    there: Guest,
}

impl TwoHosts {
    async fn start() -> Self {
        let lab = Lab::with_hosts(&[HOST, OTHER]).unwrap();
        let here = lab.guest("here").await.unwrap();
        let daemon = lab.cluster.host(OTHER).unwrap().libvirtd().unwrap();
        let there = Guest::new(&daemon.images().unwrap(), "there").unwrap();
        daemon.define_and_start(&there).unwrap();
        lab.client.vm_in_state(&there.vm(), v1::VmState::Running).await.unwrap();
        Self { lab, here, there }
    }

    /// Waits until the other host's machine is marked as reachable or not; returns it as it is told then.
    async fn marked(&self, reachable: bool, limit: Duration) -> v1::Vm {
        let begun = Instant::now();
        loop {
            let vm = self.lab.client.vm(&self.there.vm()).await.unwrap();
            if vm.host_reachable == reachable {
                return vm;
            }
            assert!(begun.elapsed() < limit, "after {limit:?}: {vm:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The first host's machine works, whatever became of the other host.
    async fn here_works(&self) {
        self.here.write('A').unwrap();
        let snapshot = self.lab.take(&self.here, "meanwhile").await.unwrap();
        self.here.write('B').unwrap();
        self.lab.return_to(&snapshot).await.unwrap();
        assert_eq!(self.here.report().unwrap().disk, 'A');
        self.lab.remove(&snapshot, v1::DeleteScope::Only).await.unwrap();
        self.lab.nothing_left(&self.here, &snapshot).await.unwrap();
    }

    async fn listed(&self) -> Vec<(String, String, bool)> {
        let vms = self.lab.client.vms().await.unwrap();
        vms.into_iter().map(|vm| (vm.name, vm.host, vm.host_reachable)).collect()
    }

    fn expected(&self, there_reachable: bool) -> Vec<(String, String, bool)> {
        let mut both = vec![
            (self.here.vm(), format!("hosts/{HOST}"), true),
            (self.there.vm(), format!("hosts/{OTHER}"), there_reachable),
        ];
        both.sort();
        both
    }

    /// Everything that would change the other machine is refused at once and says when to ask again.
    async fn there_is_refused(&self, snapshot: &v1::Snapshot) {
        let (client, vm) = (&self.lab.client, self.there.vm());
        let begun = Instant::now();
        let label = v1::Snapshot { display_name: "y".to_owned(), ..snapshot.clone() };
        let planned =
            v1::RevertToSnapshotRequest { name: snapshot.name.clone(), validate_only: true, ..Default::default() };
        let refusals: Vec<Refusal> = [
            client.create(&vm, "x", "").await,
            client.revert(&snapshot.name).await,
            client.revert_as(planned).await,
            client.delete(&snapshot.name, v1::DeleteScope::Only).await,
            client.update(v1::UpdateSnapshotRequest { snapshot: Some(label), ..Default::default() }).await,
            client.purge(v1::PurgeVmRequest { name: vm.clone(), request_id: key(), ..Default::default() }).await,
        ]
        .into_iter()
        .map(Result::unwrap_err)
        .collect();
        let took = begun.elapsed();
        for refusal in refusals {
            assert_eq!((refusal.code, refusal.reason.as_str()), (Code::Unavailable, "HOST_UNREACHABLE"), "{refusal}");
            assert_eq!(refusal.metadata["host"], format!("hosts/{OTHER}"));
            assert!(refusal.details.contains(&"google.rpc.RetryInfo".to_owned()), "{refusal}");
        }
        assert!(took < AT_ONCE, "six refusals took {took:?}");
        let list = client.snapshots(&vm).await.unwrap();
        assert_eq!(list, std::slice::from_ref(snapshot), "listed from the catalogue, unchanged");
    }

    async fn host(&self, name: &str) -> v1::Host {
        let hosts = self.lab.client.hosts().await.unwrap();
        hosts.into_iter().find(|host| host.name == format!("hosts/{name}")).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_gone_takes_nothing_with_it() {
    let mut two = TwoHosts::start().await;
    two.there.write('A').unwrap();
    let operation = two.lab.client.create(&two.there.vm(), "kept", "").await;
    let operation = two.lab.client.done(operation).await.unwrap();
    let kept = two.lab.client.snapshot(&operation.snapshot).await.unwrap();
    two.there.write('B').unwrap();
    assert_eq!(two.listed().await, two.expected(true));

    for crash in [false, true] {
        let agent = two.lab.cluster.host_mut(OTHER).unwrap().agent();
        if crash {
            agent.kill().unwrap();
        } else {
            assert!(agent.stop().unwrap().success(), "a stop in order");
        }
        let last_known = two.marked(false, NOTICED).await;
        assert_eq!((last_known.state(), last_known.snapshot_count), (v1::VmState::Running, 1));
        assert_eq!(two.listed().await, two.expected(false));
        let host = two.host(OTHER).await;
        assert!(!host.reachable && !host.unreachable_reason.is_empty() && host.vm_count == 1, "{host:?}");
        assert!(!host.libvirt_version.is_empty(), "what it was is remembered: {host:?}");
        assert!(two.host(HOST).await.reachable);
        two.there_is_refused(&kept).await;
        two.here_works().await;

        two.lab.cluster.host_mut(OTHER).unwrap().start_agent_again().unwrap();
        two.marked(true, BACK).await;
        assert_eq!(two.listed().await, two.expected(true));
        assert!(two.host(OTHER).await.reachable);
    }

    assert_eq!(two.there.report().unwrap().disk, 'B', "the guest did not notice any of it");
    two.lab.return_to(&kept).await.unwrap();
    assert_eq!(two.there.report().unwrap().disk, 'A');
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changed_on_a_host_while_its_agent_was_away_is_known_when_it_is_back() {
    let mut two = TwoHosts::start().await;
    two.lab.cluster.host_mut(OTHER).unwrap().agent().stop().unwrap();
    two.marked(false, NOTICED).await;
    let daemon = two.lab.cluster.host(OTHER).unwrap().libvirtd().unwrap();
    daemon.virsh(&["snapshot-create-as", two.there.name(), "by-hand"]).unwrap();
    daemon.power_off(&two.there).unwrap();
    let new = Guest::new(&daemon.images().unwrap(), "new").unwrap();
    daemon.define(&new).unwrap();

    two.lab.cluster.host_mut(OTHER).unwrap().start_agent_again().unwrap();
    let there = two.marked(true, BACK).await;
    assert_eq!((there.state(), there.snapshot_count), (v1::VmState::Shutoff, 1));
    let list = two.lab.client.snapshots(&two.there.vm()).await.unwrap();
    assert_eq!(list.iter().map(|one| one.display_name.as_str()).collect::<Vec<_>>(), ["by-hand"]);
    assert_eq!(list[0].origin(), v1::SnapshotOrigin::Foreign);
    assert_eq!(two.lab.client.vm(&new.vm()).await.unwrap().display_name, "new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_ends_in_the_middle_of_an_operation_finishes_it_later() {
    let mut two = TwoHosts::start().await;
    two.there.write('A').unwrap();
    let begun = two.lab.client.create(&two.there.vm(), "cut off", "").await.unwrap();
    two.lab.cluster.host_mut(OTHER).unwrap().agent().kill().unwrap();
    two.marked(false, NOTICED).await;
    two.lab.cluster.host_mut(OTHER).unwrap().start_agent_again().unwrap();
    let ended = two.lab.client.ended(begun).await.unwrap();
    two.marked(true, BACK).await;
    // Done or cleanly undone; the guest runs either way, and nothing is half there.
    let list = two.lab.client.snapshots(&two.there.vm()).await.unwrap();
    assert_eq!(list.len(), usize::from(ended.state() == v1::OperationState::Succeeded), "{ended:?}");
    let daemon = two.lab.cluster.host(OTHER).unwrap().libvirtd().unwrap();
    assert_eq!(daemon.snapshots(&two.there).unwrap().len(), list.len());
    let tags = tests::images::internal_snapshots(two.there.disks()[0].path()).unwrap();
    assert_eq!(tags.len(), list.len());
    assert_eq!(two.there.report().unwrap().disk, 'A');
    two.there.write('B').unwrap();
    let next = two.lab.client.create(&two.there.vm(), "after", "").await;
    two.lab.client.done(next).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_hangs_is_noticed_by_its_silence() {
    let mut two = TwoHosts::start().await;
    two.there.write('A').unwrap();
    let agent = two.lab.cluster.host_mut(OTHER).unwrap().agent();
    agent.signal(Signal::STOP).unwrap();
    // Asked before the silence is noticed: nobody knows yet what will come of it.
    let early = Client::admin(&two.lab.cluster).unwrap();
    let vm = two.there.vm();
    let early = tokio::spawn(async move { (early.create(&vm, "early", "").await, early) });
    two.here_works().await;
    two.marked(false, SILENT).await;
    let begun = Instant::now();
    let late = two.lab.client.create(&two.there.vm(), "late", "").await.unwrap_err();
    assert_eq!((late.code, late.reason.as_str()), (Code::Unavailable, "HOST_UNREACHABLE"), "{late}");
    assert!(begun.elapsed() < AT_ONCE);

    two.lab.cluster.host_mut(OTHER).unwrap().agent().signal(Signal::CONT).unwrap();
    two.marked(true, BACK).await;
    let (early, caller) = early.await.unwrap();
    let succeeded = match early {
        Ok(operation) => caller.ended(operation).await.unwrap().state() == v1::OperationState::Succeeded,
        Err(refusal) => {
            assert_eq!(refusal.reason, "HOST_UNREACHABLE", "{refusal}");
            false
        }
    };
    let list = two.lab.client.snapshots(&two.there.vm()).await.unwrap();
    assert_eq!(list.len(), usize::from(succeeded), "{list:?}");
    let daemon = two.lab.cluster.host(OTHER).unwrap().libvirtd().unwrap();
    assert_eq!(daemon.snapshots(&two.there).unwrap().len(), list.len());
    assert_eq!(two.lab.client.vm(&two.there.vm()).await.unwrap().active_operation, "");
    assert_eq!(two.there.report().unwrap().disk, 'A');
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_api_knows_what_it_knew() {
    let mut two = TwoHosts::start().await;
    two.here.write('A').unwrap();
    let kept = two.lab.take(&two.here, "kept").await.unwrap();
    let operation = two.lab.client.create(&two.there.vm(), "there", "").await;
    let operation = two.lab.client.done(operation).await.unwrap();
    two.here.write('B').unwrap();

    for crash in [false, true] {
        let api = two.lab.cluster.api();
        if crash {
            api.kill().unwrap();
        } else {
            assert!(api.stop().unwrap().success(), "a stop in order");
        }
        let away = two.lab.client.vms().await.unwrap_err();
        assert_eq!((away.code, away.reason.as_str()), (Code::Unavailable, "API_UNAVAILABLE"), "{away}");
        assert!(away.details.contains(&"google.rpc.RetryInfo".to_owned()), "{away}");
        two.lab.cluster.start_api_again().unwrap();
        let list = two.lab.client.snapshots(&two.here.vm()).await.unwrap();
        assert_eq!(list, std::slice::from_ref(&kept), "the catalogue, etags and all");
        assert_eq!(two.lab.client.operation(&operation.name).await.unwrap(), operation);
        for vm in [two.here.vm(), two.there.vm()] {
            two.lab.client.vm_in_state(&vm, v1::VmState::Running).await.unwrap();
        }
        two.here_works_beside(&kept).await;
    }
    two.lab.return_to(&kept).await.unwrap();
    assert_eq!(two.here.report().unwrap().disk, 'A');
}

impl TwoHosts {
    /// After a restart everything goes on, for callers old and new.
    async fn here_works_beside(&self, kept: &v1::Snapshot) {
        let fresh = Client::admin(&self.lab.cluster).unwrap();
        let operation = fresh.create(&self.here.vm(), "more", "").await;
        let operation = fresh.done(operation).await.unwrap();
        let more = fresh.snapshot(&operation.snapshot).await.unwrap();
        assert_eq!(more.parent_snapshot, kept.name);
        self.lab.remove(&more, v1::DeleteScope::Only).await.unwrap();
        assert_eq!(self.lab.daemon().unwrap().state(&self.here).unwrap(), Power::Running.word());
        let list = self.lab.agreed(&self.here).await.unwrap();
        // A child came and went, so only what it did to the parent is new.
        assert_eq!(list.iter().map(|one| (&one.name, &one.etag)).collect::<Vec<_>>(), [(&kept.name, &kept.etag)]);
    }
}

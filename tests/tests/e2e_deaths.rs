//! The agent is killed while libvirt takes a machine back. libvirt goes on with it, and removes files at its end; the next agent
//! must neither lose what other snapshots need nor leave anything behind.

use std::time::Duration;

use proto::v1;
use tests::client::SNAPSHOTS;
use tests::lab::{HOST, Lab, Power, key};

/// From before libvirt has begun to after it has ended: a revert of a running guest takes two seconds, and more on a busy machine.
const DELAYS_MS: [u64; 10] = [20, 150, 400, 700, 1000, 1300, 1600, 2000, 2500, 3200];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_dies_in_a_revert_loses_nothing() {
    let mut lab = Lab::with_policy("stable_paths = false").unwrap();
    let guest = lab.guest("student").await.unwrap();
    let take = async |lab: &Lab, marker: char| {
        guest.write(marker).unwrap();
        let snapshot = Some(v1::Snapshot { display_name: marker.to_string(), ..Default::default() });
        let request = v1::CreateSnapshotRequest {
            parent: guest.vm(),
            snapshot,
            storage: v1::StorageKind::External.into(),
            request_id: key(),
            ..Default::default()
        };
        lab.client.done(lab.client.create_as(request).await).await.unwrap().snapshot
    };
    // The second lies on what the guest wrote after the first: libvirt takes that for a file of a branch that is left.
    let first = take(&lab, 'A').await;
    let second = take(&lab, 'B').await;
    let folder = lab.images().unwrap();
    for delay in DELAYS_MS {
        lab.client.done(lab.client.revert(&first).await).await.unwrap();
        assert_eq!(guest.report().unwrap().disk, 'A', "{delay} ms");
        guest.write('C').unwrap();
        let begun = lab.client.revert(&second).await.unwrap();
        tokio::time::sleep(Duration::from_millis(delay)).await;
        let host = lab.cluster.host_mut(HOST).unwrap();
        host.agent().kill().unwrap();
        host.start_agent_again().unwrap();
        let ended = lab.client.ended(begun).await.unwrap();
        lab.client.vm_in_state(&guest.vm(), v1::VmState::Running).await.unwrap();
        if ended.state() == v1::OperationState::Succeeded {
            assert_eq!(guest.report().unwrap().disk, 'B', "{delay} ms: {ended:?}");
        }
        for (snapshot, marker) in [(&second, 'B'), (&first, 'A')] {
            let done = lab.client.done(lab.client.revert(snapshot).await).await;
            done.unwrap_or_else(|error| panic!("{delay} ms, back to {marker}: {error}"));
            assert_eq!(guest.report().unwrap().disk, marker, "{delay} ms: {ended:?}");
        }
        let second_names: Vec<_> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|last| last == "kept"))
            .collect();
        assert!(second_names.is_empty(), "{delay} ms: {second_names:?}");
    }
    let purge = v1::PurgeVmRequest { name: guest.vm(), request_id: key(), ..Default::default() };
    let purged = lab.client.call((SNAPSHOTS, "PurgeVm"), &purge).await;
    lab.client.done(purged).await.unwrap();
    lab.set(&guest, Power::Off).await.unwrap();
    let left: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let is_image = |name: &std::ffi::OsString| name.to_string_lossy().starts_with("student.") && name != "student.xml";
    assert_eq!(left.iter().filter(|name| is_image(name)).count(), 1, "{left:?}");
}

//! Space that is gone when a merge is to begin.

use std::collections::BTreeSet;

use super::*;

const PLENTY: u64 = 64 << 30;

#[tokio::test]
async fn a_merge_that_finds_no_room_is_left_to_the_next_deletion() {
    for state in [VmState::Shutoff, VmState::Running] {
        // The first of two disks has no room, or only the second.
        for merged in 0..2 {
            let dir = Directory::new();
            let world = with_chain_of(state, Storage::External, 2, &dir).await;
            let before = machine(&world);
            let agent = Agent::start(&world, &dir, None);
            let free: Vec<u64> = std::iter::repeat_n(PLENTY, merged).chain([1 << 20]).collect();
            agent.fake.answer_free(&free);
            let ended = agent.run(delete(2, DeleteScope::Only)).await.unwrap();
            let error = ended.error.unwrap();
            assert_eq!((ended.outcome, error.reason()), (Outcome::Failed, Reason::SpaceLow));
            assert_eq!(
                (error.metadata()["deleted"].as_str(), error.metadata()["free_bytes"].as_str()),
                ("1", "1048576")
            );
            // It is gone for the user; the guest and the other snapshots have what they had.
            let left = machine(&world);
            let listed = |agent: &Agent| {
                let known = agent.machines.get(vm_facts().id).unwrap();
                known.snapshots.iter().map(|one| one.id.clone()).collect::<BTreeSet<_>>()
            };
            assert_eq!(listed(&agent), BTreeSet::from([id(1), id(3)]));
            assert!(left.layers.snapshots[&id(2)].deleted);
            assert_eq!((&left.disks, left.vm.state), (&before.disks, before.vm.state));
            for kept in [1, 3] {
                let content = |path: &String| left.content[path];
                let read: Vec<char> = left.layers.snapshots[&id(kept)].frozen.values().map(content).collect();
                assert_eq!(read, ['A', 'A'], "{kept}");
            }
            assert_eq!(before.layers.files.len() - left.layers.files.len(), merged, "{:?}", left.layers.files);
            // There is room again: the next deletion finishes it.
            let ended = agent.run(delete(3, DeleteScope::Only)).await.unwrap();
            assert_eq!((ended.outcome, ended.error), (Outcome::Succeeded, None));
            let left = machine(&world);
            // Two files a disk, and the memory of the first snapshot where there was one.
            let files = if state == VmState::Running { 5 } else { 4 };
            assert_eq!((left.layers.snapshots.len(), left.layers.files.len(), listed(&agent).len()), (1, files, 1));
            assert_eq!(left.disks, before.disks);
        }
    }
}

/// What is taken back has to be taken back, however little room there is.
#[tokio::test]
async fn a_create_that_failed_halfway_is_taken_back_on_a_full_disk() {
    let dir = Directory::new();
    let world = World::with_machine(VmState::Running);
    let agent = Agent::start(&world, &dir, Some((0, Fault::RefusedHalfway)));
    agent.fake.answer_free(&[0; 10]);
    let request = Request::Create(Create { storage: Some(Storage::External), ..create(1) });
    let ended = agent.run(request).await.unwrap();
    assert_eq!(ended.error.unwrap().reason(), Reason::HypervisorFailed);
    let left = machine(&world);
    assert_eq!((left.layers.files.len(), left.layers.snapshots.len(), &left.disks[..]), (2, 0, &['B'; 2][..]));
}

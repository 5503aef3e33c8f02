//! Anything done to a machine of [`super::model`], ended anywhere.

use proptest::prelude::*;
use uuid::Uuid;

use super::model::Model;
use super::*;

/// How many stories are told: `BACKING_CHAIN_CASES`, or few.
fn cases() -> u32 {
    std::env::var("BACKING_CHAIN_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(256)
}

#[derive(Debug, Clone)]
enum Act {
    Write(u8),
    Create,
    Revert(prop::sample::Index),
    Delete(prop::sample::Index, bool),
    Clone(prop::sample::Index),
    Swap(prop::sample::Index, bool),
}

fn any_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0_u8..6).prop_map(Act::Write),
        4 => Just(Act::Create),
        3 => any::<prop::sample::Index>().prop_map(Act::Revert),
        3 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(pick, subtree)| Act::Delete(pick, subtree)),
        1 => any::<prop::sample::Index>().prop_map(Act::Clone),
        1 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(pick, alone)| Act::Swap(pick, alone)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    /// Whatever we or administrators do, and wherever it ends: nobody's data changes, and in the end only what is needed is there.
    #[test]
    fn no_content_is_lost_and_nothing_is_left(
        acts in proptest::collection::vec(any_act(), 1..40), crashes in proptest::collection::vec(0_usize..12, 0..6),
    ) {
        let mut model = Model::new();
        let mut crashes = crashes.into_iter();
        for act in acts {
            match act {
                Act::Write(block) => {
                    model.written += 1;
                    let (live, value) = (model.live(), model.written);
                    model.blocks.get_mut(&live).unwrap().insert(block, value);
                }
                Act::Create => model.create(),
                Act::Clone(pick) => {
                    let paths = model.wanted();
                    let backing = paths[pick.index(paths.len())].clone();
                    // Nobody clones a file that a machine writes to.
                    if backing == model.live() { continue; }
                    let path = format!("/others/{}.qcow2", model.name());
                    model.add(&path, Some(&backing));
                    model.elsewhere.insert(path);
                }
                Act::Swap(pick, alone) => {
                    let paths = model.wanted();
                    let backing = paths[pick.index(paths.len())].clone();
                    let before = model.content(&model.live());
                    let (live, has_backing) = (model.live(), !alone && backing != model.live());
                    model.swap(has_backing.then_some(backing.as_str()));
                    prop_assert_eq!(model.content(&live), before);
                }
                Act::Revert(pick) => {
                    let ids = model.ids();
                    if ids.is_empty() { continue; }
                    let id = ids[pick.index(ids.len())].clone();
                    let expected = model.layers.snapshots[&id].frozen["vda"].clone();
                    let expected = model.content(&expected);
                    model.revert(&id);
                    prop_assert_eq!(model.content(&model.live()), expected);
                }
                Act::Delete(pick, subtree) => {
                    let ids = model.ids();
                    if ids.is_empty() { continue; }
                    model.mark(&ids[pick.index(ids.len())], subtree);
                    let before = model.contents();
                    let mut noted = Vec::new();
                    loop {
                        let mut budget = crashes.next().unwrap_or(usize::MAX);
                        let done = model.collect(&mut budget, &mut noted);
                        prop_assert_eq!(&model.contents(), &before);
                        if done { break; }
                    }
                    model.check_tidy();
                }
            }
            // Every snapshot that stays can be read, and libvirt's next revert would not remove what it needs.
            let contents = model.contents();
            for id in model.ids() {
                let mut next = model.clone();
                next.revert(&id);
                for (other, content) in next.contents() {
                    // An image that the disk got from somebody stays when the disk leaves it.
                    let before = if other == model.live() { "live" } else { &other };
                    prop_assert!(other == "live" || contents.get(before) == Some(&content), "{} after {}", other, id);
                }
            }
        }
        if model.elsewhere.is_empty() {
            // Without any snapshot the machine is on its own image alone, and on what that was cloned from, with what it had.
            let before = model.content(&model.live());
            model.ids().iter().for_each(|id| model.mark(id, false));
            prop_assert!(model.collect(&mut usize::MAX.clone(), &mut vec![]));
            let left = (model.layers.snapshots.len(), model.layers.files.len(), model.live());
            prop_assert_eq!(left, (0, 2, "/images/desk.qcow2".to_owned()));
            prop_assert_eq!(model.content(&model.live()), before);
        }
    }
}

#[test]
fn nothing_is_put_off_on_a_single_branch() {
    for kept in 1..=5 {
        let mut model = Model::new();
        (0..6).for_each(|_| model.create());
        model.mark(&snapshot(kept), true);
        model.layers.snapshots.get_mut(&snapshot(kept)).unwrap().deleted = false;
        assert!(model.collect(&mut usize::MAX.clone(), &mut vec![]));
        assert_eq!(model.ids().len(), kept as usize);
        assert_eq!((model.layers.deleted().len(), model.layers.files.len()), (0, kept as usize + 2));
    }
}

fn snapshot(n: u128) -> SnapshotId {
    SnapshotId::from_uuid(Uuid::from_u128(n))
}

#[test]
fn a_chain_is_one_merge() {
    let mut model = Model::new();
    (0..6).for_each(|_| model.create());
    for n in 1..=6 {
        model.mark(&snapshot(n), false);
    }
    let merges = model.layers.merges(&model.layers.deleted(), &BTreeSet::new());
    assert_eq!(merges.len(), 1);
    assert_eq!((merges[0].base.as_str(), merges[0].above.len()), ("/images/desk.qcow2", 6));
    assert_eq!(merges[0].top, model.live());
}

#[test]
fn the_active_leaf_under_a_fork_is_put_off_until_the_machine_has_left_it() {
    let mut model = Model::new();
    model.create();
    model.create();
    model.revert(&snapshot(1));
    model.create();
    let leaf = model.current().unwrap();
    model.mark(&leaf, false);
    let before = model.layers.clone();
    assert!(model.collect(&mut usize::MAX.clone(), &mut vec![]));
    assert_eq!(model.layers, before);
    model.revert(&snapshot(2));
    assert!(!model.layers.snapshots.contains_key(&leaf));
    model.check_tidy();
}

#[test]
fn an_image_that_was_there_before_is_never_removed() {
    let mut model = Model::new();
    model.create();
    // The disk was detached: the snapshot is all that knows of its image.
    model.layers.live.clear();
    model.mark(&snapshot(1), false);
    // Its overlay holds what the disk was when it was detached, which nobody has asked to be removed.
    let remains = model.layers.remains(&BTreeSet::new(), &BTreeSet::new());
    assert_eq!((remains.files, remains.snapshots), (vec![], vec![snapshot(1)]));
}

#[test]
fn names_do_not_collide() {
    let id = snapshot(1);
    let paths = overlay_paths([("vda", "/i/desk.qcow2"), ("vdb", "/i/desk.raw"), ("vdc", "/j/no.dots.img")], &id);
    let expected = [format!("/i/desk.{id}"), format!("/i/desk-vdb.{id}"), format!("/j/no.dots.{id}")];
    assert_eq!(paths.into_values().collect::<Vec<_>>(), expected);
    assert_eq!(memory_path("/i/desk.1700000000", &id), format!("/i/desk.{id}.mem"));
}

#[test]
fn a_chain_that_bites_its_tail_ends() {
    let mut layers = Layers::default();
    for (path, backing) in [("a", "b"), ("b", "a")] {
        layers.files.insert(path.to_owned(), Layer { backing: Some(backing.to_owned()), ..Layer::default() });
    }
    layers.live.insert("vda".to_owned(), "a".to_owned());
    assert_eq!(layers.reached(&BTreeSet::new()).len(), 2);
    assert!(layers.merges(&BTreeSet::new(), &BTreeSet::new()).is_empty());
}

//! Every row of the table, and that the rules of names agree with how QEMU looks snapshots up.

use proptest::prelude::*;

use super::*;
use crate::restriction::first;

fn image(features: Features, snapshots: usize) -> ImageFacts {
    let content = Content::Qcow2 { features, snapshots };
    ImageFacts {
        path: "/i/vda.qcow2".to_owned(),
        content,
        fixed: false,
        lockable: false,
        locked: false,
        written: false,
    }
}

fn at(content: Content) -> ImageFacts {
    ImageFacts { content, ..image(Features::default(), 0) }
}

fn disk(chain: Vec<ImageFacts>, is_on: bool) -> DiskImages {
    DiskImages { target: "vda".to_owned(), read_only: false, held: is_on, chain }
}

/// The operations that are unavailable, and the reason, which has to be one.
fn unavailable(chain: Vec<ImageFacts>, is_on: bool) -> (Vec<RestrictedOperation>, Option<Reason>) {
    of(&disk(chain, is_on), is_on)
}

fn of(disk: &DiskImages, is_on: bool) -> (Vec<RestrictedOperation>, Option<Reason>) {
    let found = restrictions(disk, is_on);
    let reasons: std::collections::BTreeSet<Reason> = found.iter().map(|one| one.reason).collect();
    assert!(reasons.len() <= 1, "{found:?}");
    for one in &found {
        assert_eq!(one.disk.as_deref(), Some("vda"));
        assert!(one.message.starts_with("disk vda: ") || one.message.starts_with("disk vda has "), "{}", one.message);
    }
    let all = RestrictedOperation::ALL.into_iter().filter(|operation| first(&found, *operation).is_some());
    (all.collect(), reasons.into_iter().next())
}

use RestrictedOperation as Op;

const ALL: &[Op] = &Op::ALL;
const CREATE_AND_REVERT: &[Op] = &Op::CREATE_AND_REVERT;
const INTERNAL: &[Op] = &[Op::CreateOffline, Op::CreateWithMemory, Op::CreateLive];
const REOPENING: &[Op] = &[Op::CreateOffline, Op::CreateLive, Op::CreateExternal, Op::Revert];
const REOPENING_OFF: &[Op] = &[Op::CreateOffline, Op::CreateLive, Op::CreateExternal, Op::Revert, Op::Delete];

#[test]
fn sound_images_make_nothing_unavailable() {
    let zstd_and_extended_l2 = Features { version: 3, incompatible: 0b11000, ..Features::default() };
    let dirty = Features { version: 3, incompatible: 1, ..Features::default() };
    for features in [Features::default(), zstd_and_extended_l2, dirty] {
        for is_on in [false, true] {
            let chain = vec![image(features.clone(), 1000), image(features.clone(), 3), at(Content::Plain)];
            assert_eq!(unavailable(chain, is_on), (vec![], None), "{features:?}");
        }
    }
}

#[test]
fn what_a_header_says_of_the_active_image() {
    let bits = |incompatible| Features { version: 3, incompatible, ..Features::default() };
    let unknown = Features { unknown_extensions: true, ..Features::default() };
    let bitmaps = Features { bitmaps: 1, ..Features::default() };
    let mut data_file = INTERNAL.to_vec();
    data_file.extend(Op::REVERT);
    for (features, expected, reason) in [
        (bits(1 << 5), ALL, Reason::FeatureUnsupported),
        (bits(1 << 63), ALL, Reason::FeatureUnsupported),
        (unknown, ALL, Reason::FeatureUnsupported),
        (bits(1 << 1), ALL, Reason::ImageUnavailable),
        (bitmaps, CREATE_AND_REVERT, Reason::CheckpointsPresent),
        (bits(1 << 2), data_file.as_slice(), Reason::FeatureUnsupported),
    ] {
        for is_on in [false, true] {
            let found = unavailable(vec![image(features.clone(), 0)], is_on);
            assert_eq!(found, (expected.to_vec(), Some(reason)), "{features:?}");
        }
    }
    for method in 1..4 {
        let encrypted = Features { crypt_method: method, ..Features::default() };
        let found = |is_on| unavailable(vec![image(encrypted.clone(), 0)], is_on);
        assert_eq!(found(true), (CREATE_AND_REVERT.to_vec(), Some(Reason::DiskEncrypted)));
        let with_delete = [CREATE_AND_REVERT, &[Op::Delete]].concat();
        assert_eq!(found(false), (with_delete, Some(Reason::DiskEncrypted)));
    }
}

/// As measured: with two bits two snapshots can be taken, and none of the two be reverted to; the second may be what a revert keeps
/// of the present.
#[test]
fn counters_bound_the_number_of_snapshots() {
    let counted = |order, snapshots| {
        let features = Features { version: 3, refcount_order: order, ..Features::default() };
        unavailable(vec![image(features, snapshots)], false).0
    };
    let mut both = INTERNAL.to_vec();
    both.extend(Op::REVERT);
    for order in [0, 1] {
        assert_eq!(counted(order, 0), INTERNAL);
        assert_eq!(counted(order, 1), both);
    }
    for (order, most) in [(2, 12), (3, 252), (4, 65_532)] {
        assert_eq!(counted(order, most - 1), [], "{order}");
        assert_eq!(counted(order, most), INTERNAL, "{order}");
        assert_eq!(counted(order, most + 1), both, "{order}");
    }
    assert!(counted(5, 65_536).is_empty() && counted(6, 65_536).is_empty());
}

#[test]
fn what_is_below_the_active_image() {
    let bits = |incompatible| image(Features { version: 3, incompatible, ..Features::default() }, 0);
    let top = || image(Features::default(), 2);
    for (below, deletable, reason) in [
        (at(Content::Lost("does not exist".to_owned())), false, Reason::ImageUnavailable),
        (at(Content::Unreadable("EIO".to_owned())), false, Reason::ImageUnavailable),
        (at(Content::Remote), true, Reason::FeatureUnsupported),
        (at(Content::Untold), true, Reason::FeatureUnsupported),
        (bits(1 << 5), false, Reason::FeatureUnsupported),
        (bits(1 << 1), false, Reason::ImageUnavailable),
    ] {
        for depth in 1..4 {
            let mut chain = vec![top(); depth];
            chain.push(below.clone());
            assert_eq!(unavailable(chain.clone(), true), (REOPENING.to_vec(), Some(reason)), "{below:?}");
            let off = if deletable { REOPENING } else { REOPENING_OFF };
            assert_eq!(unavailable(chain, false), (off.to_vec(), Some(reason)), "{below:?}");
        }
    }
    // What only matters where snapshots are.
    let bitmaps = image(Features { bitmaps: 3, ..Features::default() }, 0);
    let one_bit = image(Features { refcount_order: 0, ..Features::default() }, 0);
    for below in [bitmaps, one_bit, bits(1 << 2), ImageFacts { fixed: true, ..top() }] {
        assert_eq!(unavailable(vec![top(), below], false), (vec![], None));
    }
    let encrypted = image(Features { crypt_method: 2, ..Features::default() }, 0);
    assert_eq!(unavailable(vec![top(), encrypted], true).0, CREATE_AND_REVERT);
}

#[test]
fn an_active_image_that_is_lost_can_still_be_forgotten() {
    let lost = at(Content::Lost("does not exist".to_owned()));
    assert_eq!(unavailable(vec![lost.clone()], false), (CREATE_AND_REVERT.to_vec(), Some(Reason::ImageUnavailable)));
    let unreadable = at(Content::Unreadable("EIO".to_owned()));
    assert_eq!(unavailable(vec![unreadable], false), (ALL.to_vec(), Some(Reason::ImageUnavailable)));
    let read_only = DiskImages { read_only: true, ..disk(vec![lost], false) };
    assert_eq!(of(&read_only, false).0, REOPENING_OFF);
}

#[test]
fn what_the_host_says_of_files() {
    let top = || image(Features::default(), 0);
    let fixed = ImageFacts { fixed: true, ..top() };
    let (locked, written) = (ImageFacts { locked: true, ..top() }, ImageFacts { written: true, ..top() });
    for is_on in [false, true] {
        assert_eq!(unavailable(vec![fixed.clone()], is_on), (ALL.to_vec(), Some(Reason::ImageUnavailable)));
        let raw = ImageFacts { fixed: true, ..at(Content::Plain) };
        assert_eq!(unavailable(vec![raw], is_on).0, ALL);
    }
    let offline = [Op::CreateOffline, Op::CreateExternal, Op::Revert, Op::Delete];
    assert_eq!(unavailable(vec![locked.clone()], false), (offline.to_vec(), Some(Reason::ImageInUse)));
    assert_eq!(unavailable(vec![top(), written.clone()], false), (offline.to_vec(), Some(Reason::ImageInUse)));
    // A backing file is open for reading wherever a clone runs, and the VM's own locks are its own.
    assert_eq!(unavailable(vec![top(), locked.clone()], false), (vec![], None));
    assert_eq!(unavailable(vec![locked], true), (vec![], None));
    assert_eq!(unavailable(vec![top(), written], true), (vec![], None));
    let golden = DiskImages { read_only: true, ..disk(vec![fixed], false) };
    assert_eq!(of(&golden, false), (vec![], None));
}

#[test]
fn the_image_of_a_vm_that_is_on_is_the_one_that_it_has_open() {
    let file = |locked| ImageFacts { lockable: true, locked, ..image(Features::default(), 0) };
    assert_eq!(unavailable(vec![file(true)], true), (vec![], None));
    assert_eq!(unavailable(vec![file(false)], true), (ALL.to_vec(), Some(Reason::ImageUnavailable)));
    assert_eq!(unavailable(vec![file(false)], false), (vec![], None), "nobody has it open");
    assert_eq!(
        unavailable(vec![file(true), file(false)], true),
        (vec![], None),
        "a backing file is opened for reading"
    );
    let shared = DiskImages { read_only: true, ..disk(vec![file(false)], true) };
    assert_eq!(of(&shared, true), (vec![], None));
    let raw = ImageFacts { content: Content::Plain, ..file(false) };
    assert_eq!(unavailable(vec![raw], true), (ALL.to_vec(), Some(Reason::ImageUnavailable)));
}

#[test]
fn a_chain_is_as_long_as_libvirt_starts() {
    let chain = |depth| vec![image(Features::default(), 0); depth];
    assert_eq!(unavailable(chain(MAX_CHAIN), false), (vec![], None));
    let deep = unavailable(chain(MAX_CHAIN + 1), false);
    assert_eq!(deep, (REOPENING_OFF.to_vec(), Some(Reason::FeatureUnsupported)));
}

/// QEMU's `find_snapshot_by_id_or_name`.
fn goto<'a>(entries: &'a [Entry], name: &str) -> Option<&'a Entry> {
    entries.iter().find(|entry| entry.id == name).or_else(|| entries.iter().find(|entry| entry.name == name))
}

/// QEMU's `bdrv_snapshot_find`, which deletions use.
fn delete<'a>(entries: &'a [Entry], name: &str) -> Option<&'a Entry> {
    entries.iter().find(|entry| entry.name == name)
}

fn entry() -> impl Strategy<Value = Entry> {
    let text = || prop_oneof![Just("0"), Just("1"), Just("2"), Just("3"), Just("01"), Just("snap"), Just("")];
    (text(), text()).prop_map(|(id, name)| Entry { id: id.to_owned(), name: name.to_owned(), taken: (0, 0) })
}

proptest! {
    /// Over ids and names of all kinds, in different orders on two disks: where nothing is restricted QEMU finds one snapshot of
    /// this name on each disk, and the restrictions are no more than that.
    #[test]
    fn names_and_ids_in_any_order(
        first_disk in proptest::collection::vec(entry(), 0..6),
        second_disk in proptest::collection::vec(entry(), 0..6),
        name in prop_oneof![Just("0"), Just("1"), Just("2"), Just("snap")],
    ) {
        let tables = [("vda".to_owned(), first_disk), ("vdb".to_owned(), second_disk)];
        let disks = ["vda".to_owned(), "vdb".to_owned()];
        let present = &["vda", "vdb"];
        let snapshot = SnapshotImages { name, tables: &tables, disks: &disks, present, is_on: true, has_memory: true };
        let found = of_snapshot(snapshot);
        let restricted = |operation| first(&found, operation).is_some();
        prop_assert_eq!(restricted(Op::Revert), restricted(Op::RevertInPlace));
        let (mut reverted_wrong, mut twice) = (false, false);
        for (_, entries) in &tables {
            reverted_wrong |= goto(entries, name).is_some_and(|entry| entry.name != name);
            twice |= entries.iter().filter(|entry| entry.name == name).count() > 1;
            prop_assert!(delete(entries, name).is_none_or(|entry| entry.name == name));
        }
        prop_assert!(!reverted_wrong || restricted(Op::Revert), "{:?}", tables);
        prop_assert_eq!(restricted(Op::Delete), twice);
        let crossing = tables.iter().flat_map(|(_, entries)| entries).any(|it| it.id == name && it.name != name);
        prop_assert_eq!(restricted(Op::Revert), crossing || twice);
    }
}

#[test]
fn parts_that_were_taken_at_different_times_are_of_different_snapshots() {
    let disks = ["vda".to_owned(), "vdb".to_owned()];
    let of = |first, second, has_memory| {
        let entry = |taken| Entry { id: "1".to_owned(), name: "s".to_owned(), taken };
        let other = Entry { id: "2".to_owned(), name: "other".to_owned(), taken: (9, 9) };
        let tables = [("vda".to_owned(), vec![other, entry(first)]), ("vdb".to_owned(), vec![entry(second)])];
        let present = &["vda", "vdb"];
        of_snapshot(SnapshotImages { name: "s", tables: &tables, disks: &disks, present, is_on: false, has_memory })
    };
    for (first, second, has_memory, is_one) in [
        ((5000, 7), (5000, 7), true, true),
        ((5000, 7), (5000, 8), true, false),
        ((5001, 7), (5000, 7), true, false),
        ((5000, 7), (5000, 8), false, true),
        ((5000, 0), (5600, 9), false, true),
        ((5600, 9), (5000, 0), false, true),
        ((5000, 0), (5601, 0), false, false),
        ((5601, 0), (5000, 0), false, false),
    ] {
        let found = of(first, second, has_memory);
        assert_eq!(found.is_empty(), is_one, "{first:?} {second:?} {has_memory}: {found:?}");
        for one in found {
            assert_eq!((one.operations.as_slice(), one.reason), (&Op::REVERT[..], Reason::SnapshotBroken));
            let later = if first > second { "vda" } else { "vdb" };
            assert_eq!(one.disk.as_deref(), Some(later));
        }
    }
}

#[test]
fn a_disk_that_is_gone_keeps_a_running_vm_from_deleting() {
    let disks = ["vda".to_owned(), "vdb".to_owned()];
    for (present, is_on, expected) in [
        (&["vda", "vdb"][..], true, false),
        (&["vda"], true, true),
        (&["vda"], false, false),
        (&["vda", "vdc"], true, true),
    ] {
        let (tables, has_memory) = (&[], false);
        let found = of_snapshot(SnapshotImages { name: "s", tables, disks: &disks, present, is_on, has_memory });
        assert_eq!(found.len(), usize::from(expected), "{present:?} {is_on}");
        for one in found {
            assert_eq!((one.operations.as_slice(), one.reason), (&[Op::Delete][..], Reason::VmStateUnsupported));
            assert!(one.message.contains("switch the machine off"), "{}", one.message);
        }
    }
}

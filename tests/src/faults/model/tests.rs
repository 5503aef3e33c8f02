use super::*;

fn disk(marker: char, boots: u8) -> Content {
    Content { marker, boots, second: None }
}

fn label() -> Label {
    Label { name: "a".to_owned(), protected: false }
}

/// The guest writes A, a snapshot is taken, it writes B.
fn machine() -> Machine {
    let mut machine = Machine::new("one", disk('_', 1));
    machine.wrote('A');
    machine.created(Some("snap-a"), label(), false, &End::Done);
    machine.wrote('B');
    machine
}

#[test]
fn a_crash_may_lose_what_was_written_since_the_last_snapshot_and_no_more() {
    let mut machine = machine();
    machine.crashed();
    let allowed: Vec<char> = "_AB".chars().filter(|marker| machine.contents.allow(&disk(*marker, 1))).collect();
    assert_eq!(allowed, ['A', 'B']);
    machine.learn(Power::Off, Some(disk('A', 1)));
    assert!(machine.contents.allow(&disk('A', 1)) && !machine.contents.allow(&disk('B', 1)));
}

#[test]
fn without_a_crash_nothing_may_be_lost() {
    let machine = machine();
    assert!(machine.contents.allow(&disk('B', 1)));
    assert!(!machine.contents.allow(&disk('A', 1)));
    assert!(!machine.contents.allow(&disk('B', 2)));
}

#[test]
fn a_revert_that_failed_leaves_the_old_or_the_new() {
    let mut machine = machine();
    machine.reverted("snap-a", v1::RunAfter::AsRecorded, None, &End::Failed("killed".to_owned()));
    assert!(machine.contents.allow(&disk('A', 1)) && machine.contents.allow(&disk('B', 1)));
    assert!(machine.powers.contains(&Power::Off));
}

#[test]
fn a_revert_that_says_that_nothing_was_changed_is_taken_at_its_word() {
    let mut machine = machine();
    let words = "the machine could not be taken back to the snapshot; nothing was changed".to_owned();
    machine.reverted("snap-a", v1::RunAfter::AsRecorded, None, &End::Failed(words));
    assert!(!machine.contents.allow(&disk('A', 1)) && machine.is(Power::Running));
}

#[test]
fn a_snapshot_of_a_machine_that_was_off_is_booted_from() {
    let mut machine = machine();
    machine.learn(Power::Off, Some(disk('B', 1)));
    machine.created(Some("snap-b"), label(), false, &End::Done);
    machine.reverted("snap-b", v1::RunAfter::AsRecorded, None, &End::Done);
    assert!(machine.is(Power::Off) && machine.contents.allow(&disk('B', 1)));
    machine.reverted("snap-b", v1::RunAfter::Running, None, &End::Done);
    assert!(machine.is(Power::Running) && machine.contents.allow(&disk('B', 2)));
    machine.reverted("snap-a", v1::RunAfter::Off, None, &End::Done);
    assert!(machine.is(Power::Off) && machine.contents.allow(&disk('A', 1)));
}

#[test]
fn what_a_revert_kept_must_be_there_if_it_says_so() {
    for (end, kept) in [
        (End::Done, Some(Existence::Must)),
        (End::Failed("what it was is in snapshot snap-b".to_owned()), Some(Existence::Must)),
        (End::Failed("no".to_owned()), None),
        (End::Refused, None),
    ] {
        let mut machine = machine();
        machine.reverted("snap-a", v1::RunAfter::AsRecorded, Some((Some("snap-b"), label())), &end);
        assert_eq!(machine.snapshots.get("snap-b").map(|known| known.existence), kept, "{end:?}");
    }
}

#[test]
fn a_deletion_takes_what_its_scope_says() {
    let tree = || {
        let mut machine = machine();
        machine.created(Some("snap-b"), label(), false, &End::Done);
        machine.created(Some("snap-c"), label(), false, &End::Done);
        machine
    };
    for (scope, left) in [
        (v1::DeleteScope::Only, vec!["snap-a", "snap-c"]),
        (v1::DeleteScope::Subtree, vec!["snap-a"]),
        (v1::DeleteScope::Descendants, vec!["snap-a", "snap-b"]),
    ] {
        let mut machine = tree();
        machine.deleted("snap-b", scope, &End::Done);
        assert_eq!(machine.living(), left, "{scope:?}");
    }
    let mut machine = tree();
    machine.deleted("snap-b", v1::DeleteScope::Only, &End::Done);
    assert_eq!(machine.snapshots["snap-c"].parent.as_deref(), Some("snap-a"));
}

#[test]
fn one_that_was_taken_live_is_booted_from_and_to_libvirt_was_off() {
    let mut machine = Machine::new("m", disk('A', 1));
    machine.created(Some("snap-l"), label(), true, &End::Done);
    machine.wrote('B');
    machine.reverted("snap-l", v1::RunAfter::AsRecorded, None, &End::Done);
    assert!(
        machine.is(Power::Running) && machine.contents.allow(&disk('A', 2)) && !machine.contents.allow(&disk('A', 1))
    );
    machine.reverted_elsewhere("snap-l");
    assert!(machine.is(Power::Off) && machine.contents.allow(&disk('A', 1)));
    machine.reverted("snap-l", v1::RunAfter::Running, None, &End::Done);
    assert!(machine.contents.allow(&disk('A', 2)));
}

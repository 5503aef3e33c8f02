//! Wrong worlds, of which each has to be found out; and the right one, of which nothing may be said.

use super::*;
use crate::faults::model::End;
use proto::v1::DeleteScope;

const SNAP: &str = "snap-a";
const LATER: &str = "snap-b";

fn disks(marker: char, boots: u8, second: char) -> Content {
    Content { marker, boots, second: Some(second) }
}

fn label(name: &str) -> Label {
    Label { name: name.to_owned(), protected: false }
}

/// The guest writes A, a snapshot is taken, it writes B, another is taken, it writes C.
fn machine() -> Machine {
    let mut machine = Machine::new("two", disks('_', 1, '_'));
    machine.wrote('A');
    machine.created(Some(SNAP), label("first"), false, &End::Done);
    machine.wrote('B');
    machine.created(Some(LATER), label("second"), false, &End::Done);
    machine.wrote('C');
    machine
}

fn listed(name: &str, parent: Option<&str>, is_current: bool) -> Listed {
    Listed { name: name.to_owned(), parent: parent.map(str::to_owned), state: "running".to_owned(), is_current }
}

fn row(listed: Listed, name: &str) -> Row {
    Row { listed, label: label(name), state: "Ready".to_owned() }
}

fn said(disk: char, ram: char, second: char) -> Return {
    Return::Said(Report { disk, ram, boots: 1, second_disk: Some(second) })
}

/// What has to be seen of [`machine`].
fn right() -> Seen {
    let all = vec![listed(SNAP, None, false), listed(LATER, Some(SNAP), true)];
    let names = vec![SNAP.to_owned(), LATER.to_owned()];
    Seen {
        catalogue: vec![row(all[0].clone(), "first"), row(all[1].clone(), "second")],
        libvirt: all,
        kept: Vec::new(),
        tags: vec![names.clone(), names],
        power: Power::Running,
        present: Some(disks('C', 1, 'C')),
        returns: [(SNAP.to_owned(), said('A', 'A', 'A')), (LATER.to_owned(), said('B', 'B', 'B'))].into(),
        strangers: Vec::new(),
        damage: Vec::new(),
        open: Vec::new(),
    }
}

/// All snapshots are internal: what is in an image is kept there.
fn kinds(machine: &Machine, seen: &Seen) -> Vec<Kind> {
    let kept = seen.tags.iter().map(|tags| tags.iter().cloned().collect()).collect();
    let seen = Seen { kept, ..seen.clone() };
    let mut kinds: Vec<Kind> = judge(machine, &seen).into_iter().map(|violation| violation.kind).collect();
    kinds.sort();
    kinds.dedup();
    kinds
}

/// What is found when the right world is changed so.
fn found(change: impl FnOnce(&mut Seen)) -> Vec<Kind> {
    let mut seen = right();
    change(&mut seen);
    kinds(&machine(), &seen)
}

/// Takes the later snapshot away everywhere.
fn without_the_later(seen: &mut Seen) {
    seen.catalogue.pop();
    seen.libvirt.pop();
    seen.tags.iter_mut().for_each(|tags| drop(tags.pop()));
    seen.returns.remove(LATER);
}

#[test]
fn of_the_right_world_nothing_is_said() {
    assert_eq!(judge(&machine(), &right()), []);
}

#[test]
fn a_snapshot_that_is_gone_is_lost() {
    assert_eq!(found(without_the_later), [Kind::Lost]);
}

#[test]
fn a_snapshot_that_one_disk_has_nothing_of_is_lost() {
    assert_eq!(found(|seen| drop(seen.tags[1].pop())), [Kind::Lost]);
}

#[test]
fn a_snapshot_that_cannot_be_gone_back_to_is_lost() {
    let failed = Return::Failed("no".to_owned());
    assert_eq!(found(|seen| drop(seen.returns.insert(SNAP.to_owned(), failed))), [Kind::Lost]);
    assert_eq!(found(|seen| seen.catalogue[0].state = "Broken".to_owned()), [Kind::Lost]);
}

#[test]
fn what_was_deleted_and_is_there_is_orphaned() {
    let mut machine = machine();
    machine.deleted(LATER, DeleteScope::Only, &End::Done);
    assert_eq!(kinds(&machine, &right()), [Kind::Orphaned]);
    let mut seen = right();
    without_the_later(&mut seen);
    assert_eq!(kinds(&machine, &seen), []);
}

#[test]
fn what_failed_and_is_there_is_orphaned() {
    let mut machine = machine();
    machine.snapshots.remove(LATER);
    machine.created(Some(LATER), label("second"), false, &End::Failed("no space".to_owned()));
    assert_eq!(kinds(&machine, &right()), [Kind::Orphaned]);
}

#[test]
fn what_nobody_asked_for_is_orphaned() {
    assert_eq!(found(|seen| seen.tags[0].push("snap-c".to_owned())), [Kind::Orphaned]);
    assert_eq!(found(|seen| seen.tags[1].push(SNAP.to_owned())), [Kind::Orphaned]);
    assert_eq!(found(|seen| seen.strangers.push("x.tmp".to_owned())), [Kind::Orphaned]);
    // Done twice.
    assert_eq!(found(|seen| seen.catalogue[1].label = label("first")), [Kind::Orphaned, Kind::Disagree]);
    let stranger = |seen: &mut Seen| {
        let listed = listed("snap-c", None, false);
        seen.catalogue.push(row(listed.clone(), "third"));
        seen.libvirt.push(listed);
        seen.tags.iter_mut().for_each(|tags| tags.push("snap-c".to_owned()));
    };
    assert_eq!(found(stranger), [Kind::Orphaned]);
}

#[test]
fn an_operation_without_an_end_is_stuck() {
    assert_eq!(found(|seen| seen.open.push("operations/1".to_owned())), [Kind::Stuck]);
}

#[test]
fn two_disks_of_different_moments_are_mixed() {
    assert_eq!(found(|seen| drop(seen.returns.insert(SNAP.to_owned(), said('A', 'A', 'B')))), [Kind::Mixed]);
    assert_eq!(found(|seen| seen.present = Some(disks('C', 1, 'A'))), [Kind::Mixed]);
}

#[test]
fn a_memory_of_another_moment_than_the_disk_is_mixed() {
    assert_eq!(found(|seen| drop(seen.returns.insert(SNAP.to_owned(), said('A', 'B', 'A')))), [Kind::Mixed]);
}

#[test]
fn another_content_is_wrong_data() {
    assert_eq!(found(|seen| drop(seen.returns.insert(SNAP.to_owned(), said('B', 'B', 'B')))), [Kind::WrongData]);
    // A boot where the running state should have come back.
    let booted = Return::Said(Report { disk: 'A', ram: 'A', boots: 2, second_disk: Some('A') });
    assert_eq!(found(|seen| drop(seen.returns.insert(SNAP.to_owned(), booted))), [Kind::WrongData]);
    assert_eq!(found(|seen| seen.present = Some(disks('B', 1, 'B'))), [Kind::WrongData]);
    assert_eq!(found(|seen| seen.damage.push("the base was changed".to_owned())), [Kind::WrongData]);
}

#[test]
fn a_guest_that_ran_and_stands_still_is_left_paused() {
    let paused = |seen: &mut Seen| (seen.power, seen.present) = (Power::Paused, None);
    assert_eq!(found(paused), [Kind::LeftPaused]);
}

#[test]
fn two_parts_that_tell_different_things_disagree() {
    assert_eq!(found(|seen| seen.catalogue[1].listed.parent = None), [Kind::Disagree]);
    assert_eq!(found(|seen| seen.catalogue[0].listed.is_current = true), [Kind::Disagree]);
    assert_eq!(found(|seen| seen.catalogue[0].label = label("other")), [Kind::Disagree]);
    assert_eq!(found(|seen| (seen.power, seen.present) = (Power::Off, None)), [Kind::Disagree]);
}

#[test]
fn a_failed_deletion_may_leave_a_broken_snapshot_and_no_other() {
    let mut seen = right();
    seen.catalogue[1].state = "Broken".to_owned();
    seen.tags[1].pop();
    seen.returns.remove(LATER);
    let mut machine = machine();
    assert_eq!(kinds(&machine, &seen), [Kind::Lost]);
    machine.deleted(LATER, DeleteScope::Only, &End::Failed("killed".to_owned()));
    assert_eq!(kinds(&machine, &seen), []);
}

#[test]
fn an_abandoned_create_may_be_there_with_what_there_was() {
    let mut machine = machine();
    machine.abandon("third".to_owned(), true);
    machine.wrote('D');
    let mut seen = right();
    seen.present = Some(disks('D', 1, 'D'));
    assert_eq!(kinds(&machine, &seen), []);
    seen.libvirt[1].is_current = false;
    seen.catalogue[1].listed.is_current = false;
    let third = listed("snap-c", Some(LATER), true);
    seen.catalogue.push(row(third.clone(), "third"));
    seen.libvirt.push(third);
    seen.tags.iter_mut().for_each(|tags| tags.push("snap-c".to_owned()));
    for (marker, expected) in [('C', vec![]), ('D', vec![]), ('B', vec![Kind::WrongData])] {
        seen.returns.insert("snap-c".to_owned(), said(marker, marker, marker));
        assert_eq!(kinds(&machine, &seen), expected, "{marker}");
    }
}

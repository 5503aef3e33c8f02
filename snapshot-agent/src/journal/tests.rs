//! The journal across ends of the process and of the host.

use snapshot_core::Error;
use snapshot_core::ids::{SnapshotId, VmId};
use snapshot_core::operation::{Method, Outcome, Request};
use snapshot_core::plan::Step;
use snapshot_core::vm::VmState;
use uuid::Uuid;

use super::*;
use crate::clock::Moment;

fn entry(n: u128) -> Entry {
    let snapshot: SnapshotId = "snap-x".parse().unwrap();
    Entry {
        operation: OperationId::from_uuid(Uuid::from_u128(n)),
        vm: VmId::from_uuid(Uuid::from_u128(1)),
        request: Request::Purge { force: true },
        issuer: "ravada".to_owned(),
        token_id: "t-1".to_owned(),
        actor: "ravada/alice".to_owned(),
        request_id: "r-1".to_owned(),
        steps: vec![Step::DeleteInternal { snapshot: snapshot.clone() }, Step::DeleteInternal { snapshot }],
        method: Some(Method::Libvirt),
        cancellable: true,
        predicted_pause_ms: None,
        before: Before { state: VmState::Running, instance: Some(7) },
        active: [("vda".to_owned(), "/images/vda.qcow2".to_owned())].into(),
        accepted: Moment::now(),
    }
}

fn ended() -> Ended {
    let error = Some(Error::new(snapshot_core::Reason::Interrupted, "so").with("vm", "vms/x"));
    Ended {
        outcome: Outcome::Failed,
        error,
        method: Some(Method::Libvirt),
        pause_ms: Some(3),
        predicted_pause_ms: None,
        notes: Vec::new(),
    }
}

#[test]
fn marks_are_read_back_as_far_as_they_came() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(&dir.path().join("operations")).unwrap();
    let mut log = journal.accept(&entry(1)).unwrap();
    let read = || {
        let recorded = Journal::open(&journal.dir).unwrap().load().unwrap().pop().unwrap();
        assert_eq!(recorded.entry, entry_at(&recorded));
        (recorded.next, recorded.begun, recorded.ended)
    };
    fn entry_at(recorded: &Recorded) -> Entry {
        Entry { accepted: recorded.entry.accepted.clone(), ..entry(1) }
    }
    assert_eq!(read(), (0, false, None));
    log.begun(0).unwrap();
    assert_eq!(read(), (0, true, None));
    log.done(0).unwrap();
    assert_eq!(read(), (1, false, None));
    log.begun(1).unwrap();
    log.done(1).unwrap();
    assert_eq!(read(), (2, false, None));
    log.ended(&ended()).unwrap();
    assert_eq!(read(), (2, false, Some(ended())));
}

#[test]
fn every_cut_of_the_file_is_an_earlier_state_or_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    let mut log = journal.accept(&entry(1)).unwrap();
    log.begun(0).unwrap();
    log.done(0).unwrap();
    log.ended(&ended()).unwrap();
    let path = name(dir.path(), entry(1).operation);
    let whole = fs::read(&path).unwrap();
    let first_line = whole.iter().position(|byte| *byte == b'\n').unwrap();
    for cut in 0..whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        let loaded = journal.load().unwrap();
        if cut < first_line {
            assert!(loaded.is_empty() && !path.exists(), "{cut}");
            // It was accepted, and is never taken for one that is not known.
            assert_eq!(journal.unreadable().unwrap(), [entry(1).operation], "{cut}");
            continue;
        }
        let mut recorded = loaded.into_iter().next().unwrap();
        assert!(recorded.ended.is_none() || cut == whole.len() - 1, "{cut}");
        // What is appended after a cut is read, whatever the cut left.
        recorded.log.ended(&ended()).unwrap();
        let again = journal.load().unwrap().pop().unwrap();
        assert_eq!(again.ended, Some(ended()), "{cut}");
    }
}

#[test]
fn an_operation_is_taken_on_once() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    journal.accept(&entry(1)).unwrap();
    journal.accept(&entry(2)).unwrap();
    let order: Vec<_> = journal.load().unwrap().into_iter().map(|recorded| recorded.entry.operation).collect();
    assert_eq!(order, [entry(1).operation, entry(2).operation]);
}

/// The ids are of the API's clock and the times of the files of this host's: here both ran backwards all the time.
#[test]
fn what_was_taken_on_first_is_forgotten_first_whatever_the_clocks_said() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    let all: Vec<OperationId> = (0..KEPT as u128 + 5).rev().map(|n| entry(n).operation).collect();
    for (age, id) in (0..).zip(&all) {
        journal.accept(&entry(id.as_uuid().as_u128())).unwrap();
        let file = File::options().write(true).open(name(dir.path(), *id)).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000 - age)).unwrap();
    }
    let mut ended = all.clone();
    ended.sort_unstable();
    assert_eq!(journal.prune(ended), all[..5]);
    // A process that starts anew knows the order, and goes on with it.
    let journal = Journal::open(dir.path()).unwrap();
    let order: Vec<_> = journal.load().unwrap().into_iter().map(|recorded| recorded.entry.operation).collect();
    assert_eq!(order, all[5..]);
    journal.accept(&entry(5000)).unwrap();
    let mut ended = [&all[5..], &[entry(5000).operation]].concat();
    ended.sort_unstable();
    assert_eq!(journal.prune(ended), all[5..6]);
}

#[test]
fn an_entry_of_a_version_that_did_not_number_them_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    let line = serde_json::to_string(&entry(1)).unwrap();
    fs::write(name(dir.path(), entry(1).operation), format!("{line}\n")).unwrap();
    let recorded = journal.load().unwrap().pop().unwrap();
    assert_eq!(Entry { accepted: recorded.entry.accepted.clone(), ..entry(1) }, recorded.entry);
}

#[test]
fn an_entry_whose_rename_was_lost_is_found_and_half_a_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    assert_eq!(files(dir.path(), SPARE).unwrap().len(), SPARES);
    journal.accept(&entry(1)).unwrap();
    let accepted = name(dir.path(), entry(1).operation);
    let whole = fs::read(&accepted).unwrap();
    fs::rename(&accepted, dir.path().join("lost.spare")).unwrap();
    fs::write(dir.path().join("half.spare"), &whole[..whole.len() / 2]).unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    let found: Vec<_> = journal.load().unwrap().into_iter().map(|recorded| recorded.entry.operation).collect();
    assert_eq!(found, [entry(1).operation]);
    assert!(files(dir.path(), SPARE).unwrap().iter().all(|path| fs::metadata(path).unwrap().len() == 0));
}

#[test]
fn more_can_be_taken_on_than_was_prepared_for() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    for n in 0..SPARES as u128 + 2 {
        journal.accept(&entry(n)).unwrap();
    }
    assert_eq!(files(dir.path(), SPARE).unwrap().len(), 0);
    assert_eq!(journal.load().unwrap().len(), SPARES + 2);
    journal.make_spares().unwrap();
    assert_eq!(files(dir.path(), SPARE).unwrap().len(), SPARES);
}

/// A file system that takes only a part of what is written, once.
struct Full {
    taken: Vec<u8>,
    room: Option<usize>,
}

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.room.take() {
            Some(0) => Err(io::Error::from(io::ErrorKind::StorageFull)),
            Some(room) => {
                self.taken.extend_from_slice(&bytes[..room.min(bytes.len())]);
                self.room = Some(0);
                Ok(room.min(bytes.len()))
            }
            None => {
                self.taken.extend_from_slice(bytes);
                Ok(bytes.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An operation that could not mark its first step, and failed for that, must not be carried out by the next process.
#[test]
fn a_mark_that_follows_a_torn_one_is_read() {
    let line = serde_json::to_vec(&Mark::Begun(0)).unwrap();
    for room in 0..=line.len() {
        let (mut file, mut is_torn) = (Full { taken: Vec::new(), room: Some(room) }, false);
        assert!(append(&mut file, &mut is_torn, &line).is_err());
        append(&mut file, &mut is_torn, &serde_json::to_vec(&Mark::Ended(ended())).unwrap()).unwrap();
        append(&mut file, &mut is_torn, &line).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = name(dir.path(), entry(1).operation);
        let first = serde_json::to_string(&FirstLine { number: 1, entry: entry(1) }).unwrap();
        fs::write(&path, [first.as_bytes(), b"\n", &file.taken].concat()).unwrap();
        assert_eq!(Recorded::read(&path).unwrap().ended, Some(ended()), "{room}");
    }
}

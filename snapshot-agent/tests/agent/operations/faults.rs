//! Every call of every operation goes wrong once, in every way.
//!
//! For each request the calls are counted off until the fault no longer happens. After each run, and where the process
//! died after another one has settled what it left, the host has to be as somebody asked for: done, or as it was.

use std::collections::BTreeSet;

use snapshot_agent::hypervisor::{Load, PausedBy};
use snapshot_agent::safety::is_tag;
use snapshot_core::definition_change::DefinitionChange;
use snapshot_core::hardware::Comparison;
use snapshot_core::plan::Step;
use snapshot_core::restriction::{RestrictedOperation, Restriction};
use snapshot_core::snapshot::Content;
use tokio::task::JoinSet;

use super::*;

/// A request, and what the host has to be like when it succeeded.
struct Case {
    name: &'static str,
    state: VmState,
    hardware: fn() -> Comparison,
    request: fn() -> Request,
    done: fn(&Machine) -> bool,
}

/// Whether a snapshot is there with all it should have.
fn has(machine: &Machine, n: u128) -> bool {
    has_with(machine, n, |content| content != '?')
}

fn has_with(machine: &Machine, n: u128, is_good: impl Fn(char) -> bool) -> bool {
    let Some(listed) = machine.snapshots.iter().find(|snapshot| snapshot.id == id(n)) else { return false };
    match (listed.storage, machine.layers.snapshots.get(&id(n))) {
        (Storage::Internal, _) => machine.images.iter().all(|image| image.get(&id(n)).copied().is_some_and(&is_good)),
        (Storage::External, Some(parts)) => {
            let read = |path: &String| machine.content.get(path).copied();
            !parts.deleted && parts.frozen.values().all(|path| read(path).is_some_and(&is_good))
        }
        (Storage::External, None) => false,
    }
}

/// Whether a snapshot is gone for everybody who could ask for it.
fn has_nothing(machine: &Machine, n: u128) -> bool {
    let parts = machine.layers.snapshots.get(&id(n));
    let listed = machine.snapshots.iter().any(|snapshot| snapshot.id == id(n));
    let made = |path: &String| path.ends_with(id(n).as_str());
    match parts {
        Some(parts) => parts.deleted,
        None => {
            let gone = machine.images.iter().all(|image| !image.contains_key(&id(n)));
            // An overlay outlives its snapshot where the machine, or a later snapshot, lies on it.
            let needed = machine.layers.reached(&BTreeSet::new());
            !listed && gone && machine.layers.files.keys().all(|path| !made(path) || needed.contains(path.as_str()))
        }
    }
}

fn update() -> Request {
    Request::Update {
        snapshot: id(2),
        display_name: DisplayName::parse("renamed").unwrap(),
        description: Description::default(),
        protected: true,
    }
}

fn is_renamed(machine: &Machine) -> bool {
    machine.snapshots.iter().any(|snapshot| snapshot.label.display_name.as_str() == "renamed")
}

/// Whether it is reverted and has the definition that it had.
fn is_kept(machine: &Machine) -> bool {
    machine.disks.iter().all(|disk| *disk == 'A') && machine.definition == "now"
}

fn same() -> Comparison {
    Comparison::Same
}

fn other() -> Comparison {
    Comparison::Different("memory".to_owned())
}

static CASES: [Case; 17] = [
    Case {
        name: "create, off",
        state: VmState::Shutoff,
        hardware: same,
        request: || Request::Create(create(9)),
        done: |machine| has(machine, 9) && machine.vm.state == VmState::Shutoff,
    },
    Case {
        name: "create, running",
        state: VmState::Running,
        hardware: same,
        request: || Request::Create(Create { content: Some(Content::DisksAndMemory), ..create(9) }),
        done: |machine| has(machine, 9) && machine.vm.state == VmState::Running,
    },
    Case {
        name: "create, disks of one that runs",
        state: VmState::Running,
        hardware: same,
        request: || Request::Create(create(9)),
        done: |machine| has(machine, 9) && machine.vm.state == VmState::Running,
    },
    Case { name: "update", state: VmState::Running, hardware: same, request: update, done: is_renamed },
    Case {
        name: "revert, running",
        state: VmState::Running,
        hardware: same,
        request: || revert(2, RunAfter::AsRecorded, None),
        done: |machine| machine.disks.iter().all(|disk| *disk == 'A') && machine.vm.state == VmState::Running,
    },
    Case {
        name: "revert, running, other hardware",
        state: VmState::Running,
        hardware: other,
        request: || revert(2, RunAfter::AsRecorded, None),
        done: |machine| machine.disks.iter().all(|disk| *disk == 'A') && machine.vm.state == VmState::Running,
    },
    Case {
        name: "revert, running, nothing to fall back on",
        state: VmState::Running,
        hardware: same,
        request: || revert(2, RunAfter::AsRecorded, None),
        done: |machine| machine.disks.iter().all(|disk| *disk == 'A') && machine.vm.state == VmState::Running,
    },
    Case {
        name: "revert, paused",
        state: VmState::Paused,
        hardware: same,
        request: || revert(2, RunAfter::AsRecorded, None),
        done: |machine| machine.disks.iter().all(|disk| *disk == 'A') && machine.vm.state == VmState::Paused,
    },
    Case {
        name: "revert, off",
        state: VmState::Shutoff,
        hardware: same,
        request: || revert(2, RunAfter::AsRecorded, None),
        done: |machine| machine.disks.iter().all(|disk| *disk == 'A') && machine.vm.state == VmState::Shutoff,
    },
    Case {
        name: "revert, off afterwards",
        state: VmState::Running,
        hardware: same,
        request: || revert(2, RunAfter::Off, None),
        done: |machine| machine.disks.iter().all(|disk| *disk == 'A') && machine.vm.state == VmState::Shutoff,
    },
    Case {
        name: "revert, saving the present",
        state: VmState::Running,
        hardware: same,
        request: || revert(2, RunAfter::AsRecorded, Some(create(9))),
        done: |machine| machine.disks.iter().all(|disk| *disk == 'A') && has_with(machine, 9, |content| content == 'B'),
    },
    Case {
        name: "revert, off, with the definition kept",
        state: VmState::Shutoff,
        hardware: same,
        request: || revert(2, RunAfter::AsRecorded, None),
        done: |machine| is_kept(machine) && machine.vm.state == VmState::Shutoff,
    },
    Case {
        name: "revert, started, with the definition kept",
        state: VmState::Shutoff,
        hardware: same,
        request: || revert(2, RunAfter::Running, None),
        done: |machine| is_kept(machine) && machine.vm.state == VmState::Running,
    },
    Case {
        name: "delete a subtree",
        state: VmState::Running,
        hardware: same,
        request: || delete(2, DeleteScope::Subtree),
        done: |machine| has_nothing(machine, 2) && has_nothing(machine, 3) && has(machine, 1),
    },
    Case {
        name: "delete one, off",
        state: VmState::Shutoff,
        hardware: same,
        request: || delete(2, DeleteScope::Only),
        done: |machine| has_nothing(machine, 2) && has(machine, 1) && has(machine, 3),
    },
    Case {
        name: "delete one, running",
        state: VmState::Running,
        hardware: same,
        request: || delete(1, DeleteScope::Only),
        done: |machine| has_nothing(machine, 1) && has(machine, 2) && has(machine, 3),
    },
    Case {
        name: "purge",
        state: VmState::Shutoff,
        hardware: same,
        request: || Request::Purge { force: false },
        done: |machine| (1..=3).all(|n| has_nothing(machine, n)),
    },
];

/// What has to hold whatever went wrong.
fn check(case: &Case, context: &str, ended: &Ended, before: &Machine, after: &Machine) {
    let context = format!("{}, {context}: {ended:?}\n{after:?}", case.name);
    match ended.outcome {
        Outcome::Succeeded => {
            assert!((case.done)(after), "{context}");
            // Which way it went is what is told.
            if ended.method == Some(Method::InPlace) && after.vm.state != VmState::Shutoff {
                assert_eq!(after.instance, before.instance, "{context}");
                assert!(after.snapshots.iter().any(|one| one.is_current && one.id == id(2)), "{context}");
            }
            assert!(after.loads.values().all(|load| *load == Load::Done), "{context}");
        }
        Outcome::Failed => {
            assert!(ended.error.is_some(), "{context}");
            // A deletion keeps what it had deleted; everything else is as it was.
            let deletes = matches!((case.request)(), Request::Delete { .. } | Request::Purge { .. });
            assert!(deletes || after.disks == before.disks, "{context}");
            assert_eq!(after.vm.state, before.vm.state, "{context}");
            assert_eq!(after.instance, before.instance, "{context}");
            assert_eq!(after.definition, before.definition, "{context}");
            assert!(deletes || after.snapshots.len() == before.snapshots.len() || has(after, 9), "{context}");
        }
        Outcome::Cancelled => panic!("{context}"),
    }
    let is_left = matches!(after.paused_by, Some(PausedBy::Snapshot | PausedBy::Somebody));
    assert!(!is_left || before.vm.state == VmState::Paused, "{context}");
    assert!(
        after.disks.iter().all(|disk| *disk == after.disks[0]) && after.disks[0] != '?',
        "some old and some new: {context}"
    );
    let is_tagged = |image: &BTreeMap<SnapshotId, char>| image.keys().any(|id| is_tag(id.as_str()));
    assert!(!after.images.iter().any(is_tagged), "a safety tag is left: {context}");
    assert!(after.ahead.is_empty(), "QEMU is on files that libvirt does not know: {context}");
    for n in (1..=3).chain([9]) {
        assert!(has(after, n) || has_nothing(after, n), "half of snapshot {n}: {context}");
    }
}

/// How a machine keeps its snapshots, and on how many disks.
const MACHINES: [(Storage, usize); 4] =
    [(Storage::Internal, 1), (Storage::Internal, 2), (Storage::External, 1), (Storage::External, 2)];

/// Each case on each machine that it is possible on.
fn cases() -> impl Iterator<Item = (&'static Case, (Storage, usize))> {
    let all = CASES.iter().flat_map(|case| MACHINES.map(|machine| (case, machine)));
    all.filter(|(case, (storage, _))| !(case.keeps_definition() && *storage == Storage::External))
}

impl Case {
    fn keeps_definition(&self) -> bool {
        self.name.ends_with("with the definition kept")
    }
}

fn prepare(case: &Case, world: &Arc<Mutex<World>>) {
    let mut world = lock(world);
    let machine = world.machines.get_mut(&vm_facts().id).unwrap();
    machine.hardware = (case.hardware)();
    if case.keeps_definition() {
        let [from, to] = ["64 MiB", "16 MiB"].map(|size| Some(size.to_owned()));
        machine.changes = vec![DefinitionChange { what: "memory".to_owned(), from, to }];
    }
    if case.name.ends_with("nothing to fall back on") && machine.layers.snapshots.is_empty() {
        let why = Restriction::new([RestrictedOperation::Revert], Reason::ResourceMissing, "a network is missing");
        machine.against_revert = Some(why.refusal());
        machine.snapshots.iter_mut().for_each(|snapshot| snapshot.restrictions.push(why.clone()));
    }
}

/// Runs a case with one fault; `None` when there is no such call any more.
async fn run(case: &Case, (storage, disks): (Storage, usize), call: usize, fault: Fault) -> Option<()> {
    // In memory: syncing the journal thousands of times would be most of the work.
    let dir = Directory::in_memory();
    let world = with_chain_of(case.state, storage, disks, &dir).await;
    prepare(case, &world);
    let before = machine(&world);
    let agent = Agent::start(&world, &dir, Some((call, fault)));
    let spec = spec((case.request)());
    let Ok(operation) = agent.executor.start(&permit(), spec.clone(), String::new()).await else {
        // What others use is asked before a deletion is taken on.
        let is_unchanged = agent.fake.is_spent() && machine(&world).snapshots == before.snapshots;
        assert!(is_unchanged, "{} was refused", case.name);
        return Some(());
    };
    let mut ended = agent.ended(&operation).await;
    let spent = agent.fake.is_spent();
    if spent && fault.is_death() {
        let next = Agent::start(&world, &dir, None);
        next.executor.settle().await.unwrap();
        ended = next.ended(&next.executor.get(spec.operation).unwrap()).await;
    }
    let context = format!("{storage:?} on {disks}, call {call} {fault:?}");
    check(case, &context, &ended, &before, &machine(&world));
    // The steps of a deletion can be repeated, so nothing that passes is a reason to leave it undone.
    let passes = fault.is_death() || matches!(fault, Fault::Lost | Fault::LostAfter | Fault::LostHalfway);
    let deletes = matches!((case.request)(), Request::Delete { .. } | Request::Purge { .. });
    assert!(!(passes && deletes) || ended.outcome == Outcome::Succeeded, "{}, {context}: {ended:?}", case.name);
    // Whatever came of it, the machine is free again.
    let last = Agent::start(&world, &dir, None);
    last.executor.settle().await.unwrap();
    let purged = last.run(Request::Purge { force: true }).await.expect(&context).outcome == Outcome::Succeeded;
    let left = machine(&world);
    let is_clean = left.images.iter().all(BTreeMap::is_empty) && left.layers.snapshots.is_empty();
    assert!(purged && is_clean && left.layers.files.len() == disks, "{} {context}: {left:#?}", case.name);
    spent.then_some(())
}

/// A case with every fault, at every call.
async fn run_all(case: &Case, machine: (Storage, usize)) {
    for fault in Fault::ALL {
        let mut call = 0;
        while run(case, machine, call, fault).await.is_some() {
            call += 1;
            assert!(call < 80, "{}: it does not end", case.name);
        }
        assert!(call > 0, "{}: no call was made", case.name);
    }
}

/// All cases at a time: an agent that meets a fault mostly waits before it tries again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_of_every_operation_goes_wrong_in_every_way() {
    cases().map(|(case, machine)| run_all(case, machine)).collect::<JoinSet<_>>().join_all().await;
}

/// A step that the cases do not reach would be tried by none of this.
#[tokio::test]
async fn the_cases_have_every_kind_of_step() {
    let mut seen = BTreeSet::new();
    for (case, (storage, disks)) in cases() {
        let dir = Directory::new();
        let world = with_chain_of(case.state, storage, disks, &dir).await;
        prepare(case, &world);
        let agent = Agent::start(&world, &dir, None);
        let plan = agent.executor.plan(&permit(), spec((case.request)())).await.unwrap();
        seen.extend(plan.steps.iter().map(Step::kind));
    }
    // A new kind does not compile until it is added here, and then fails until a case has it.
    let kind = |step: &Step| match step {
        Step::CreateInternal { .. } => "CREATE_INTERNAL",
        Step::CreateLive { .. } => "CREATE_LIVE",
        Step::WriteLabel { .. } => "WRITE_LABEL",
        Step::RevertInternal { .. } => "REVERT_INTERNAL",
        Step::RevertInPlace { .. } => "REVERT_IN_PLACE",
        Step::KeepDefinition { .. } => "KEEP_DEFINITION",
        Step::PowerOff => "POWER_OFF",
        Step::DeleteInternal { .. } => "DELETE_INTERNAL",
        Step::CreateExternal { .. } => "CREATE_EXTERNAL",
        Step::RevertExternal { .. } => "REVERT_EXTERNAL",
        Step::MarkDeleted { .. } => "MARK_DELETED",
        Step::MergeLayers { .. } => "MERGE_LAYERS",
        Step::CleanUp => "CLEAN_UP",
    };
    assert_eq!(kind(&Step::PowerOff), Step::PowerOff.kind());
    let all = [
        "CLEAN_UP",
        "CREATE_EXTERNAL",
        "CREATE_INTERNAL",
        "CREATE_LIVE",
        "DELETE_INTERNAL",
        "KEEP_DEFINITION",
        "MARK_DELETED",
        "MERGE_LAYERS",
        "POWER_OFF",
        "REVERT_EXTERNAL",
        "REVERT_INTERNAL",
        "REVERT_IN_PLACE",
        "WRITE_LABEL",
    ];
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), all);
}

#[tokio::test]
async fn every_step_may_be_carried_out_twice() {
    for (case, (storage, disks)) in cases() {
        let dir = Directory::new();
        let world = with_chain_of(case.state, storage, disks, &dir).await;
        prepare(case, &world);
        let agent = Agent::start(&world, &dir, None);
        let spec = spec((case.request)());
        let operation = agent.executor.start(&permit(), spec.clone(), String::new()).await.unwrap();
        assert_eq!(agent.ended(&operation).await.outcome, Outcome::Succeeded, "{}", case.name);
        // The journal as if nothing of it had been marked: each step is begun again on a host where it is done.
        let path = dir.path().join(format!("{}.jsonl", spec.operation));
        let text = std::fs::read_to_string(&path).unwrap();
        let entry = text.lines().next().unwrap();
        std::fs::write(&path, format!("{entry}\n{{\"begun\":0}}\n")).unwrap();
        let next = Agent::start(&world, &dir, None);
        next.executor.settle().await.unwrap();
        let ended = next.ended(&next.executor.get(spec.operation).unwrap()).await;
        assert_eq!(ended.outcome, Outcome::Succeeded, "{}: {ended:?}", case.name);
        assert!((case.done)(&machine(&world)), "{}: {:?}", case.name, machine(&world));
    }
}

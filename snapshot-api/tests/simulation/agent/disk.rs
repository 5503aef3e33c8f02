//! What outlives an agent's process: its journal and the machines.

use std::collections::BTreeMap;

use proto::convert::Spec;
use snapshot_core::description::Label;
use snapshot_core::ids::{OperationId, SnapshotId, VmId};
use snapshot_core::operation::{DeleteScope, Outcome, Request};
use snapshot_core::snapshot::{Content, Origin, RecordedState, SnapshotFacts, Storage};
use snapshot_core::vm::{Nvram, OrphanSummary, VmFacts, VmState};
use snapshot_core::{Error, Reason};

pub struct Disk {
    journal: BTreeMap<OperationId, Recorded>,
    pub machines: BTreeMap<VmId, Vec<SnapshotFacts>>,
}

struct Recorded {
    spec: Spec,
    ended: Option<Outcome>,
    /// How many times the effect was had.
    applied: u32,
}

impl Disk {
    pub fn new(machines: &[VmId]) -> Self {
        Self { journal: BTreeMap::new(), machines: machines.iter().map(|vm| (*vm, Vec::new())).collect() }
    }

    /// Why something cannot be taken on.
    pub fn refusal(&self, spec: &Spec) -> Option<Error> {
        let machine = &self.machines[&spec.vm];
        match &spec.request {
            Request::Create(_) if machine.len() > 8 => {
                Some(Error::new(Reason::SnapshotLimit, "as many as it may have"))
            }
            Request::Create(_) | Request::Purge { .. } => None,
            Request::Update { snapshot, .. } | Request::Revert { snapshot, .. } | Request::Delete { snapshot, .. } => {
                let there = machine.iter().any(|one| one.id == *snapshot);
                (!there).then(|| Error::snapshot_not_found(spec.vm, snapshot))
            }
        }
    }

    pub fn accept(&mut self, spec: &Spec) {
        let recorded = Recorded { spec: spec.clone(), ended: None, applied: 0 };
        let before = self.journal.insert(spec.operation, recorded);
        assert!(before.is_none(), "taken on twice");
    }

    pub fn end(&mut self, id: OperationId, outcome: Outcome) {
        self.journal.get_mut(&id).unwrap().ended = Some(outcome);
    }

    /// All that was taken on: how it ended, and whether its effect was had.
    pub fn recorded(&self) -> Vec<(Spec, Option<Outcome>, bool)> {
        let one = |recorded: &Recorded| (recorded.spec.clone(), recorded.ended, recorded.applied > 0);
        self.journal.values().map(one).collect()
    }

    /// How many times each operation had its effect.
    pub fn effects(&self) -> BTreeMap<OperationId, u32> {
        self.journal.iter().map(|(id, recorded)| (*id, recorded.applied)).collect()
    }

    /// Has the effect of an operation.
    pub fn apply(&mut self, spec: &Spec) {
        self.journal.get_mut(&spec.operation).unwrap().applied += 1;
        let machine = self.machines.get_mut(&spec.vm).unwrap();
        let current = machine.iter().find(|one| one.is_current).map(|one| one.id.clone());
        match &spec.request {
            Request::Create(create) => {
                let label = Label {
                    issuer: String::new(),
                    disks: None,
                    display_name: create.display_name.clone(),
                    description: create.description.clone(),
                    protected: create.protected,
                    actor: "sim/user".to_owned(),
                };
                let number = i64::try_from(machine.len()).unwrap();
                machine.push(snapshot(create.snapshot.clone(), current, label, number));
                make_current(machine, Some(&create.snapshot));
            }
            Request::Update { snapshot, display_name, description, protected } => {
                let one = machine.iter_mut().find(|one| one.id == *snapshot).unwrap();
                one.label.display_name = display_name.clone();
                one.label.description = description.clone();
                one.label.protected = *protected;
            }
            Request::Revert { snapshot, .. } => make_current(machine, Some(snapshot)),
            Request::Delete { snapshot, scope: DeleteScope::Only, .. } => {
                let place = machine.iter().position(|one| one.id == *snapshot).unwrap();
                let gone = machine.remove(place);
                for child in machine.iter_mut().filter(|one| one.parent.as_ref() == Some(snapshot)) {
                    child.parent = gone.parent.clone();
                }
                if gone.is_current {
                    make_current(machine, gone.parent.as_ref());
                }
            }
            Request::Delete { .. } | Request::Purge { .. } => machine.clear(),
        }
    }
}

fn make_current(machine: &mut [SnapshotFacts], id: Option<&SnapshotId>) {
    for one in machine {
        one.is_current = Some(&one.id) == id;
    }
}

fn snapshot(id: SnapshotId, parent: Option<SnapshotId>, label: Label, create_time: i64) -> SnapshotFacts {
    SnapshotFacts {
        id,
        parent,
        is_current: true,
        create_time,
        label,
        content: Content::Disks,
        storage: Storage::Internal,
        vm_state: RecordedState::Shutoff,
        consistency: None,
        disks: vec!["vda".to_owned()],
        size_bytes: 0,
        origin: Origin::Service,
        broken: None,
        restrictions: Vec::new(),
        revert_denied: None,
    }
}

pub fn facts(vm: VmId) -> VmFacts {
    VmFacts {
        id: vm,
        name: format!("desk-{vm}"),
        state: VmState::Running,
        persistent: true,
        has_managed_save: false,
        block_job_disk: None,
        memory_bytes: 1 << 24,
        disks: Vec::new(),
        nvram: Nvram::Absent,
        missing_medium: None,
        orphans: OrphanSummary::default(),
        restrictions: Vec::new(),
    }
}

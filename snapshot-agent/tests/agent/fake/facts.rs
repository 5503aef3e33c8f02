//! What the host of variables has to begin with.

use snapshot_core::vm::{DiskFacts, Nvram, OrphanSummary};

use super::*;

/// Facts of a machine with two disks that runs.
pub(crate) fn vm_facts() -> VmFacts {
    let disk = |target: &str| DiskFacts {
        target: target.to_owned(),
        path: format!("/images/{target}.qcow2"),
        format: "qcow2".to_owned(),
        read_only: false,
        has_backing_file: false,
        capacity_bytes: 64 << 20,
        allocation_bytes: 1 << 20,
        free_bytes: Some(64 << 30),
    };
    VmFacts {
        id: "0191f7a0-0000-7000-8000-00000000000a".parse().unwrap(),
        name: "desk".to_owned(),
        state: VmState::Running,
        persistent: true,
        has_managed_save: false,
        block_job_disk: None,
        memory_bytes: 16 << 20,
        disks: vec![disk("vda"), disk("vdb")],
        nvram: Nvram::Absent,
        missing_medium: None,
        orphans: OrphanSummary::default(),
        restrictions: Vec::new(),
    }
}

impl World {
    /// A host with one machine, in this state.
    pub(crate) fn with_machine(state: VmState) -> Arc<Mutex<Self>> {
        Self::with_disks(state, 2)
    }

    /// The same with one disk or two.
    pub(crate) fn with_disks(state: VmState, disks: usize) -> Arc<Mutex<Self>> {
        let mut vm = VmFacts { state, ..vm_facts() };
        vm.disks.truncate(disks);
        let instance = (state != VmState::Shutoff).then_some(1);
        let (layers, content) = super::external::images(&vm);
        let (disks, images) = (vec!['B'; disks], vec![BTreeMap::new(); disks]);
        let (snapshots, ahead) = (vec![], BTreeSet::new());
        let (loads, hardware) = (BTreeMap::new(), Comparison::Same);
        let machine = Machine {
            snapshots,
            instance,
            paused_by: None,
            disks,
            images,
            layers,
            content,
            ahead,
            loads,
            hardware,
            runs_on_unmarked: false,
            changes: Vec::new(),
            definition: "now".to_owned(),
            reverts_halfway: false,
            restores_nothing: false,
            against_revert: None,
            vm,
        };
        let machines = BTreeMap::from([(machine.vm.id, machine)]);
        Arc::new(Mutex::new(Self { machines, runs: 1, ..Self::default() }))
    }

    /// Switches a machine on, as somebody else would.
    pub(crate) fn start(&mut self, vm: VmId) {
        self.runs += 1;
        let machine = self.machines.get_mut(&vm).unwrap();
        (machine.vm.state, machine.instance) = (VmState::Running, Some(self.runs));
    }
}

//! What every look and every call of the host of variables has in common.

use super::*;

impl Fake {
    pub(super) fn seen(&self, vm: VmId) -> Result<Observed, Failure> {
        // Only changes are counted: what a look may be answered with is tried by the others.
        assert!(!lock(&self.state).dead, "this process is dead");
        let mut world = lock(&self.world);
        let machine = machine(&mut world, vm)?;
        let mut snapshots = machine.snapshots.clone();
        snapshots.retain(|snapshot| !machine.is_deleted(&snapshot.id));
        for snapshot in &mut snapshots {
            let lost = match snapshot.storage {
                Storage::Internal => machine.images.iter().any(|image| !image.contains_key(&snapshot.id)),
                Storage::External => machine.has_lost_files(&snapshot.id),
            };
            snapshot.broken = lost.then_some(Reason::SnapshotBroken);
        }
        let tags = machine.images.iter().flat_map(BTreeMap::keys);
        let tags = tags.filter(|id| machine.listed(id).is_err() && !snapshot_agent::safety::is_tag(id.as_str()));
        machine.reparent(&mut snapshots);
        Ok(Observed {
            vm: machine.vm.clone(),
            snapshots,
            layers: machine.seen_layers(),
            instance: machine.instance,
            paused_by: machine.paused_by,
            strays: tags.map(ToString::to_string).collect(),
            images: machine.contents(),
        })
    }

    pub(super) fn call<T: Default>(
        &self,
        act: impl FnOnce(&mut World) -> Result<T, Failure>,
        halfway: impl FnOnce(&mut World),
    ) -> Result<T, Failure> {
        let fault = {
            let mut state = lock(&self.state);
            let number = state.calls;
            if state.stall == Some(number) {
                self.stalled.notify_one();
                state = self
                    .go_on
                    .wait_while(state, |state| state.stall == Some(number))
                    .unwrap_or_else(PoisonError::into_inner);
            }
            assert!(!state.dead, "this process is dead");
            let due = state.fault.take_if(|(call, _)| *call == number).map(|(_, fault)| fault);
            state.calls += 1;
            state.dead = due.is_some_and(Fault::is_death);
            due
        };
        let mut world = lock(&self.world);
        let refused = || Failure::Refused { code: 1, message: "as told".to_owned() };
        let lost = || Failure::Unreachable("as told".to_owned());
        match fault {
            None => act(&mut world),
            Some(Fault::Refused) => Err(refused()),
            Some(Fault::Lost) => Err(lost()),
            Some(Fault::RefusedAfter) => act(&mut world).and(Err(refused())),
            Some(Fault::LostAfter) => act(&mut world).and(Err(lost())),
            Some(Fault::RefusedHalfway) => {
                halfway(&mut world);
                Err(refused())
            }
            Some(Fault::LostHalfway) => {
                halfway(&mut world);
                Err(lost())
            }
            Some(Fault::Panics | Fault::Dies) => panic!("as told"),
            Some(Fault::PanicsAfter | Fault::DiesAfter) => panic!("as told, after {}", act(&mut world).is_ok()),
            Some(Fault::DiesHalfway) => {
                halfway(&mut world);
                panic!("as told, halfway")
            }
        }
    }
}

//! A user's operation on a VM of the room, with administrators at work on the same VM and beside it; and what has to be so afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use proto::v1;
use tokio::task::block_in_place;

use super::super::ask::{Answer, Caller, Change};
use super::super::model::End;
use super::super::script;
use super::content::May;
use super::ledger::{Disk, Vm};
use super::room::{Effect, HOSTS, Race, Room};
use super::script::{Move, Wish};
use crate::client::OPERATIONS;
use crate::lab::{id, key};

/// The most snapshots of a VM.
const SNAPSHOTS: usize = 4;

/// Looks at a VM that an operation may be under way on, and the wait between two.
const IDLE_LOOKS: u32 = 120;
const IDLE_AGAIN: Duration = Duration::from_millis(500);

/// An operation that has ended.
pub(super) struct Ended {
    pub(super) wish: Wish,
    /// The snapshot that it is about.
    pub(super) snapshot: Option<String>,
    pub(super) end: End,
    /// The VM before it.
    pub(super) before: Vm,
    pub(super) effects: Vec<Effect>,
}

impl Ended {
    /// Whether it may have put a former state in the place of the current one.
    pub(super) fn may_have_reverted(&self) -> bool {
        matches!(self.wish, Wish::Revert { .. }) && self.end != End::Refused
    }

    /// The snapshots that it deletes.
    pub(super) fn doomed(&self) -> BTreeSet<String> {
        let target = self.snapshot.clone().unwrap_or_default();
        match self.wish {
            Wish::Purge => self.before.snapshots.keys().cloned().collect(),
            Wish::Delete(v1::DeleteScope::Subtree) => self.before.subtree(&target),
            Wish::Delete(_) => [target].into(),
            Wish::Create | Wish::Revert { .. } => BTreeSet::new(),
        }
    }

    /// What the snapshot that it is about holds of a disk.
    pub(super) fn held(&self, target: &str) -> Option<&May> {
        self.before.snapshots.get(self.snapshot.as_ref()?)?.disks.get(target)
    }
}

impl Room {
    /// A user wants something of one of the VMs.
    pub(super) async fn wish(&mut self, wish: Wish, which: u64, moves: &[Move]) -> Result<bool> {
        let is_one = |vm: &usize| self.ledger.vms[*vm].is_served && self.ledger.vms[*vm].is_defined();
        let mut all: Vec<usize> = (0..self.ledger.vms.len()).filter(is_one).collect();
        let on_two_hosts: Vec<usize> = all.iter().copied().filter(|vm| !self.ledger.twins(*vm).is_empty()).collect();
        if (which >> 24).is_multiple_of(2) && !on_two_hosts.is_empty() {
            all = on_two_hosts;
        }
        let Some(&vm) = all.get((which % all.len().max(1) as u64) as usize) else { return Ok(true) };
        let ids: Vec<String> = self.ledger.vms[vm].snapshots.keys().cloned().collect();
        let chosen = ids.get(((which >> 8) % ids.len().max(1) as u64) as usize).cloned();
        let wish = match (wish, &chosen) {
            (Wish::Create, Some(_)) if ids.len() >= SNAPSHOTS => Wish::Delete(v1::DeleteScope::Only),
            (Wish::Revert { .. }, Some(_)) if ids.len() >= SNAPSHOTS + 2 => Wish::Delete(v1::DeleteScope::Only),
            (_, None) => Wish::Create,
            (wish, Some(_)) => wish,
        };
        self.wish_of(wish, vm, chosen, which.is_multiple_of(2), moves).await
    }

    /// Asks the service, acts meanwhile, and looks at what came of it. `false` when nobody knows the operation's end.
    pub(super) async fn wish_of(
        &mut self,
        wish: Wish,
        vm: usize,
        chosen: Option<String>,
        json: bool,
        moves: &[Move],
    ) -> Result<bool> {
        let before = self.ledger.vms[vm].clone();
        if !before.is_defined() {
            return Ok(true);
        }
        // The same VM on another host may be the one that it is done to.
        let entries: Vec<(usize, Vm)> =
            self.ledger.twins(vm).into_iter().map(|twin| (twin, self.ledger.vms[twin].clone())).collect();
        let change = self.request(wish, &before, chosen.as_deref().unwrap_or_default());
        self.tell(&format!("{wish:?} {chosen:?} of {} {}", before.name, before.uuid));
        self.race = Some(Race { vm, ..Race::default() });
        let asked = tokio::spawn(self.ask(change, json));
        self.acts(moves).await?;
        let answer = asked.await?;
        let Race { mut effects, mut moved, .. } = self.race.take().unwrap_or_default();
        let Some(mut answer) = answer else { return Ok(false) };
        let verb = format!("{wish:?}");
        let verb = verb.split([' ', '(']).next().unwrap_or_default();
        let how = match &answer.end {
            End::Done => "succeeded",
            End::Failed(_) => "failed",
            End::Refused => "refused",
            End::Unknown => "unknown",
        };
        self.world.history.count(&format!("beside foreign operations: {verb} {how} {}", answer.reason));
        if answer.end == End::Unknown {
            // An answer was lost. Once nothing is under way on the VM it is as after an operation that failed.
            if !self.is_idle(&before).await {
                return Ok(false);
            }
            answer.end = End::Failed(String::new());
        }
        let snapshot = chosen.filter(|_| wish != Wish::Create);
        let entries: Vec<(usize, Vm)> = [(vm, before)].into_iter().chain(entries).collect();
        let world = Arc::clone(&self.world);
        let _calm = world.calm.meddle().await;
        block_in_place(|| {
            self.turn_moved(&mut moved, &mut effects, &answer)?;
            let done_to = self.done_to(&entries, &answer)?;
            let ended = entries.into_iter().map(|(entry, before)| {
                let of_entry = effects.iter().filter(|(of, _)| *of == entry).map(|(_, effect)| effect.clone());
                let end = if done_to.contains(&entry) { answer.end.clone() } else { End::Refused };
                (entry, Ended { wish, snapshot: snapshot.clone(), end, before, effects: of_entry.collect() })
            });
            let (done, left): (Vec<_>, Vec<_>) = ended.partition(|(entry, _)| done_to.contains(entry));
            for (entry, ended) in &done {
                self.note_snapshots(*entry, ended, &answer);
            }
            self.enter_moved(&moved, &done);
            for (entry, ended) in &done {
                self.reconcile(*entry, ended)?;
            }
            for (entry, ended) in &left {
                self.note_other_host(*entry, &done);
                self.reconcile(*entry, ended)?;
            }
            self.read_moved(&moved, &done)?;
            Ok(true)
        })
    }

    /// Which entries of a VM an operation was done to: those of the hosts that have taken it on.
    fn done_to(&self, entries: &[(usize, Vm)], answer: &Answer) -> Result<Vec<usize>> {
        let all = entries.iter().map(|(entry, _)| *entry);
        if entries.len() < 2 {
            return Ok(all.collect());
        }
        let hosts = match &answer.operation {
            Some(operation) => self.world.taken_on(id(&operation.name))?,
            None => BTreeSet::new(),
        };
        let is_known = !hosts.is_empty() || answer.end == End::Refused;
        let done_to: Vec<usize> =
            entries.iter().filter(|(_, vm)| !is_known || hosts.contains(&vm.host)).map(|(entry, _)| *entry).collect();
        self.tell(&format!("of {entries:?} it was done to {done_to:?}", entries = all.collect::<Vec<_>>()));
        self.world.history.count(match done_to.len() {
            1 => "operations on a VM of two hosts: done by one",
            0 => "operations on a VM of two hosts: refused",
            _ => "operations on a VM of two hosts: of which it is not known which one did them",
        });
        Ok(done_to)
    }

    /// What an operation that another host has done to the same VM means for this one: the images may be the same, and so are the data
    /// of the snapshots.
    fn note_other_host(&mut self, entry: usize, done: &[(usize, Ended)]) {
        for (other, ended) in done {
            // A disk that it reverted may have got another image since: by a block copy, while the operation was under way.
            let reverted =
                ended.before.disks.iter().filter(|_| ended.may_have_reverted()).filter_map(|(target, disk)| {
                    Some(Disk { path: disk.path.clone(), may: ended.held(target)?.clone() })
                });
            let theirs: Vec<Disk> = self.ledger.vms[*other].disks.values().cloned().chain(reverted).collect();
            let vm = &mut self.ledger.vms[entry];
            for disk in vm.disks.values_mut() {
                for same in theirs.iter().filter(|same| same.path == disk.path) {
                    disk.may = disk.may.clone().or(&same.may);
                }
            }
            if matches!(ended.wish, Wish::Delete(_) | Wish::Purge) && ended.end != End::Refused {
                for id in ended.doomed() {
                    if let Some(known) = vm.snapshots.get_mut(&id) {
                        known.may_be_gone = true;
                    }
                }
            }
        }
    }

    /// Waits until no operation is under way on a VM.
    async fn is_idle(&self, vm: &Vm) -> bool {
        let request = v1::ListOperationsRequest { active_only: true, page_size: 1000, ..Default::default() };
        for _ in 0..IDLE_LOOKS {
            let answer: Result<v1::ListOperationsResponse, _> =
                self.grpc.call((OPERATIONS, "ListOperations"), &request).await;
            if answer.is_ok_and(|answer| answer.operations.iter().all(|operation| operation.vm != vm.resource())) {
                return true;
            }
            tokio::time::sleep(IDLE_AGAIN).await;
        }
        false
    }

    /// Does the acts of a step, none of them while libvirt is down or the storage is full.
    pub(super) async fn acts(&mut self, moves: &[Move]) -> Result<()> {
        let world = Arc::clone(&self.world);
        for it in moves {
            tokio::time::sleep(it.pause).await;
            if let Some(_calm) = world.calm.meddle().await {
                block_in_place(|| self.act(it))?;
            }
        }
        Ok(())
    }

    fn ask(&self, change: Change, json: bool) -> impl Future<Output = Option<Answer>> + Send + use<> {
        let (world, name) = (Arc::clone(&self.world), self.name.clone());
        let (by_json, by_grpc) = (Arc::clone(&self.json), Arc::clone(&self.grpc));
        async move {
            let caller = Caller { world: &world, machine: None, name: &name, json: &by_json, grpc: &by_grpc };
            let (act, manner) = (script::Act::Update, script::Manner::Follow);
            let step = script::Step { act, which: 0, manner, json, pause: Duration::ZERO };
            caller.ask(&step, &change, true).await
        }
    }

    fn request(&mut self, wish: Wish, vm: &Vm, chosen: &str) -> Change {
        let (name, request_id) = (format!("{}/snapshots/{chosen}", vm.resource()), key());
        let display_name = self.fresh("by-user");
        match wish {
            Wish::Create => {
                let snapshot = Some(v1::Snapshot { display_name, ..Default::default() });
                let mut request =
                    v1::CreateSnapshotRequest { parent: vm.resource(), snapshot, request_id, ..Default::default() };
                request.set_storage(self.storage);
                Change::Create(request)
            }
            Wish::Revert { save_current } => Change::Revert(v1::RevertToSnapshotRequest {
                name,
                save_current,
                save_current_display_name: if save_current { display_name } else { String::new() },
                run_after: v1::RunAfter::Off.into(),
                request_id,
                ..Default::default()
            }),
            Wish::Delete(scope) => Change::Delete(v1::DeleteSnapshotRequest {
                name,
                scope: scope.into(),
                force: true,
                request_id,
                ..Default::default()
            }),
            Wish::Purge => {
                Change::Purge(v1::PurgeVmRequest { name: vm.resource(), force: true, request_id, ..Default::default() })
            }
        }
    }

    /// What snapshots there are now, by what was asked for and answered.
    fn note_snapshots(&mut self, vm: usize, ended: &Ended, answer: &Answer) {
        let operation = answer.operation.clone().unwrap_or_default();
        let mut held = self.may_hold(vm, ended);
        if !ended.effects.is_empty() && ended.end == End::Done {
            let created = if ended.wish == Wish::Create { &operation.snapshot } else { &operation.saved_snapshot };
            held = self.held_by_record(vm, id(created), held);
        }
        let vm = &mut self.ledger.vms[vm];
        match (ended.wish, &ended.end) {
            (Wish::Create, End::Done) => vm.created(id(&operation.snapshot), held),
            (Wish::Revert { .. }, End::Done) => {
                if !operation.saved_snapshot.is_empty() {
                    vm.created(id(&operation.saved_snapshot), held);
                }
                vm.current.clone_from(&ended.snapshot);
            }
            (Wish::Revert { .. }, End::Failed(words)) => {
                let saved = id(&operation.saved_snapshot);
                if !saved.is_empty() && words.contains(saved) {
                    vm.created(saved, held);
                }
            }
            (Wish::Delete(_) | Wish::Purge, End::Done | End::Failed(_)) => {
                for snapshot in ended.doomed() {
                    if ended.end == End::Done {
                        vm.forget(&snapshot);
                    } else if let Some(known) = vm.snapshots.get_mut(&snapshot) {
                        known.may_be_gone = true;
                    }
                }
                if ended.wish == Wish::Purge {
                    // Whoever asks for all snapshots of a VM to be deleted means those that libvirt has lost sight of, too.
                    let words = [format!(" of {}, whose", vm.name), format!("({})", vm.uuid)];
                    self.ledger.displaced.retain(|(what, _)| !words.iter().any(|words| what.contains(words)));
                }
            }
            (_, End::Refused | End::Unknown) | (Wish::Create, End::Failed(_)) => {}
        }
    }

    /// What a snapshot that was created by this operation may hold.
    fn may_hold(&self, vm: usize, ended: &Ended) -> BTreeMap<String, May> {
        let mut held: BTreeMap<String, May> = BTreeMap::new();
        let now = &self.ledger.vms[vm].disks;
        let disks = ended.before.disks.iter().chain(now).map(|(target, disk)| (target, &disk.may));
        let others = ended.effects.iter().filter_map(|effect| match effect {
            Effect::Attached(target, _, may) | Effect::Swapped(target, _, _, may) => Some((target, may)),
            Effect::Wrote(..) | Effect::Detached(..) | Effect::Undefined => None,
        });
        for (target, may) in disks.chain(others) {
            let already = held.remove(target).unwrap_or_default();
            held.insert(target.clone(), already.or(may));
        }
        for effect in &ended.effects {
            // Each write came before or after it.
            if let Effect::Wrote(target, slot, number) = effect
                && let Some(may) = held.get_mut(target)
            {
                *may = may.clone().or(&may.with(*slot, *number));
            }
        }
        held
    }

    /// Of the disks that a snapshot may hold, those that it holds by libvirt's record: one that was attached or detached meanwhile may be
    /// in it or not.
    fn held_by_record(&self, vm: usize, snapshot: &str, mut held: BTreeMap<String, May>) -> BTreeMap<String, May> {
        let mut vm = self.ledger.vms[vm].clone();
        let mut recorded = self.frozen(&vm, snapshot);
        if recorded.is_empty() {
            // It was moved meanwhile.
            vm.host = (vm.host + 1) % HOSTS;
            recorded = self.frozen(&vm, snapshot);
        }
        held.retain(|target, _| recorded.contains_key(target));
        held
    }
}

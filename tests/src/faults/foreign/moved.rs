//! VMs that an administrator has moved to the other host while a user's operation on them was under way.
//!
//! What the other host was told is of some moment of the operation. So what is on its disks is one of the states that the operation may leave
//! or revert to; and where that was a revert, which gives up the current state, an image may be gone that the other host was told of.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use super::super::ask::Answer;
use super::super::judge::Kind;
use super::super::model::End;
use super::content::May;
use super::ledger::{Disk, Known, Vm};
use super::room::{Effect, Room};
use super::user::Ended;
use crate::lab::id;

/// What the other host was told.
#[derive(Debug, Clone)]
pub struct Moved {
    /// The entry of the VM in the ledger.
    pub entry: usize,
    /// The host that it was moved to.
    pub to: usize,
    /// The snapshots that went along.
    pub snapshots: Vec<String>,
}

impl Room {
    /// Where the operation was done to the VM on the other host, which had it already, that one is the VM from now on, and what is left on
    /// the first host, if anything, is what was moved.
    pub(super) fn turn_moved(
        &mut self,
        moved: &mut Vec<Moved>,
        effects: &mut Vec<(usize, Effect)>,
        answer: &Answer,
    ) -> Result<()> {
        let Some(operation) = &answer.operation else { return Ok(()) };
        if moved.is_empty() {
            return Ok(());
        }
        let hosts = self.world.taken_on(id(&operation.name))?;
        for one in std::mem::take(moved) {
            if hosts != [one.to].into() {
                moved.push(one);
                continue;
            }
            self.tell("the operation was done by the host that the VM was moved to");
            let was = self.ledger.vms[one.entry].clone();
            self.ledger.vms[one.entry].host = one.to;
            if was.is_defined() {
                moved.push(Moved {
                    entry: one.entry,
                    to: was.host,
                    snapshots: was.snapshots.keys().cloned().collect(),
                });
                self.ledger.vms[one.entry].snapshots.retain(|id, _| one.snapshots.contains(id));
            } else {
                self.ledger.vms[one.entry].undefined = None;
                effects.retain(|(of, effect)| *of != one.entry || *effect != Effect::Undefined);
                self.displace_all_but(one.entry, &one.snapshots);
            }
        }
        Ok(())
    }

    /// Makes an entry of what the other host was told, when the operation has ended. Its disks are not known before they are read.
    pub(super) fn enter_moved(&mut self, moved: &[Moved], done: &[(usize, Ended)]) {
        for one in moved {
            let mut twin: Vm = self.ledger.vms[one.entry].clone();
            let before = done.iter().filter(|(of, _)| *of == one.entry).flat_map(|(_, ended)| {
                let doomed = if ended.end == End::Refused { BTreeSet::new() } else { ended.doomed() };
                ended.before.snapshots.iter().map(move |(id, known)| {
                    (id.clone(), Known { may_be_gone: known.may_be_gone || doomed.contains(id), ..known.clone() })
                })
            });
            for (id, known) in before {
                twin.snapshots.entry(id).or_insert(known);
            }
            twin.host = one.to;
            twin.undefined = None;
            twin.disks = BTreeMap::new();
            twin.snapshots.retain(|id, _| one.snapshots.contains(id));
            twin.current = twin.current.filter(|id| one.snapshots.contains(id));
            self.ledger.vms.push(twin);
        }
    }

    /// Reads their disks, and forgets the entries of the host that they were moved from.
    pub(super) fn read_moved(&mut self, moved: &[Moved], done: &[(usize, Ended)]) -> Result<()> {
        let first = self.ledger.vms.len() - moved.len();
        for (entry, one) in (first..).zip(moved) {
            let ended = done.iter().find(|(of, _)| *of == one.entry).map(|(_, ended)| ended);
            for (target, path) in self.paths(&self.ledger.vms[entry])? {
                let known = self.ledger.vms[one.entry].disks.get(&target).map(|disk| disk.may.clone());
                let held = ended.filter(|it| it.may_have_reverted()).and_then(|it| it.held(&target)).cloned();
                let is_given_up = held.is_some();
                let before = ended.and_then(|ended| ended.before.disks.get(&target)).map(|disk| disk.may.clone());
                let written = [before, held].into_iter().flatten().map(|may| match ended {
                    Some(ended) => ended.with_any_writes(&target, may),
                    None => may,
                });
                let of_path = self.ledger.loose.get(&path).cloned();
                let may = written.chain(known).chain(of_path).fold(May::default(), |may, it| may.or(&it));
                match self.read(&path, None) {
                    Ok(content) => {
                        if !may.has(content) {
                            let what = format!("{target} ({}) of a VM that was moved has {content:?}", path.display());
                            self.violated(Kind::WrongData, format!("{what} and must have {may:?}"));
                        }
                        self.ledger.taken(&path);
                        let disk = Disk { path, may: May::exactly(content) };
                        self.ledger.vms[entry].disks.insert(target, disk);
                    }
                    Err(error) if is_given_up => {
                        self.world.history.count("VMs that were moved on an image that a revert gave up");
                        self.tell(&format!("{} was given up by the revert: {error:#}", path.display()));
                    }
                    Err(error) => {
                        let what = format!("{target} ({}) of a VM that was moved cannot be read", path.display());
                        self.violated(Kind::Lost, format!("{what}: {error:#}"));
                    }
                }
            }
            let vm = &self.ledger.vms[entry];
            if vm.disks.len() < self.paths(vm)?.len() {
                // It is of no use: its administrator removes it, and has the snapshots.
                let uuid = vm.uuid.to_string();
                self.virsh_for(entry, &["undefine", &uuid, "--snapshots-metadata", "--checkpoints-metadata"])?;
                self.ledger.vms[entry].undefined = Some(String::new());
            }
        }
        for one in moved.iter().rev().filter(|one| !self.ledger.vms[one.entry].is_defined()).collect::<Vec<_>>() {
            self.forget_entry(one.entry);
        }
        // Those that were of no use, if any, are the last ones.
        while let Some(last) = self.ledger.vms.len().checked_sub(1)
            && self.ledger.vms[last].undefined.as_deref() == Some("")
        {
            self.forget_entry(last);
        }
        Ok(())
    }

    /// A host has a VM no more that another one has: what it had is that one's, or nobody's.
    pub(super) fn forget_entry(&mut self, entry: usize) {
        let all: Vec<String> = self.ledger.vms[entry].snapshots.keys().cloned().collect();
        for snapshot in all {
            self.ledger.displace(entry, &snapshot);
        }
        for disk in self.ledger.vms[entry].disks.clone().into_values() {
            self.ledger.let_go(entry, disk.path, disk.may);
        }
        self.ledger.vms.remove(entry);
    }
}

impl Ended {
    /// What may be on a disk that was written to while the operation was under way, of which the last writes are on another image.
    fn with_any_writes(&self, target: &str, from: May) -> May {
        let written = self.effects.iter().filter_map(|effect| match effect {
            Effect::Wrote(of, slot, number) if of == target => Some((*slot, *number)),
            _ => None,
        });
        let both = written.fold((from.clone(), from), |(latest, all), (slot, number)| {
            let latest = latest.with(slot, number);
            (latest.clone(), all.or(&latest))
        });
        both.1
    }
}

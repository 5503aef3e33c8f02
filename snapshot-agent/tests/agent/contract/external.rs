//! External snapshots: the same calls on real guests and on the host of variables. After each of them what is seen, what
//! the guest reads, and which files there are is written down, and the two accounts have to be the same.
//!
//! Files go by names here: libvirt calls the overlay of a revert after the second it is made in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use snapshot_agent::hypervisor::{Failure, NewExternal, Observed, Reread, Watch};
use snapshot_core::description::Label;
use snapshot_core::ids::SnapshotId;
use snapshot_core::layers::{Layers, memory_path, overlay_paths};
use snapshot_core::plan::PowerState;
use snapshot_core::vm::VmState;
use uuid::Uuid;

use super::{Imagined, Subject};
use crate::fake::{Fake, World};
use crate::guest::Guest;

/// Nobody who could end a call.
struct Nobody;

impl Watch for Nobody {
    fn progress(&self, _: u64, _: u64) {}

    fn is_cancelled(&self) -> bool {
        false
    }
}

/// What happened, step by step.
struct Account<'a> {
    subject: &'a dyn Subject,
    ids: Vec<SnapshotId>,
    /// By file name: the overlays of reverts.
    reverts: BTreeMap<String, String>,
    steps: Vec<String>,
}

impl<'a> Account<'a> {
    fn new(subject: &'a dyn Subject) -> Self {
        let ids = (0..8).map(|_| SnapshotId::from_uuid(Uuid::now_v7())).collect();
        Self { subject, ids, reverts: BTreeMap::new(), steps: Vec::new() }
    }

    /// With a record by which everything but the images of before is ours, and everything that nobody needs was given up.
    fn look(&self) -> Observed {
        let mut seen = self.subject.hypervisor().observe(self.subject.vm(), Reread::All).unwrap();
        let files = seen.layers.files.keys().filter(|path| !path.ends_with(".qcow2"));
        seen.layers.ours = files.cloned().collect();
        seen.layers.discarded = seen.layers.ours.clone();
        seen
    }

    fn letter(&self, id: &SnapshotId) -> char {
        self.ids.iter().zip('a'..).find(|(known, _)| *known == id).map_or('?', |(_, letter)| letter)
    }

    fn name(&mut self, path: &str) -> String {
        let mut name = Path::new(path).file_name().unwrap().to_str().unwrap().to_owned();
        for (id, letter) in self.ids.iter().zip('a'..) {
            name = name.replace(id.as_str(), &letter.to_string());
        }
        match name.rsplit_once('.') {
            Some((stem, second)) if second.bytes().all(|byte| byte.is_ascii_digit()) => {
                let made = self.reverts.keys().filter(|known| known.starts_with(&format!("{stem}."))).count();
                let short = format!("{stem}.revert{}", made + 1);
                self.reverts.entry(name.clone()).or_insert(short).clone()
            }
            _ => name,
        }
    }

    fn names<'b>(&mut self, paths: impl IntoIterator<Item = (&'b String, &'b String)>) -> String {
        let named: Vec<String> =
            paths.into_iter().map(|(target, path)| format!("{target}={}", self.name(path))).collect();
        named.join(" ")
    }

    /// Writes down what came of a step, and what is there now.
    fn tell(&mut self, step: &str, result: &Result<(), Failure>) {
        let outcome = match result {
            Ok(()) => "done".to_owned(),
            Err(Failure::Precondition(error)) => error.reason().to_string(),
            Err(Failure::Refused { .. }) => "refused".to_owned(),
            Err(other) => format!("{other:?}"),
        };
        self.steps.push(format!("== {step}: {outcome}"));
        let seen = self.look();
        self.tell_machine(&seen);
        self.tell_layers(&seen.layers);
        for path in self.subject.files() {
            let name = self.name(&path);
            self.add(&format!("on the disk {name}"));
        }
        assert_eq!(seen.layers.unreadable, None);
    }

    fn add(&mut self, line: &str) {
        let step = self.steps.last_mut().unwrap();
        step.push_str("\n  ");
        step.push_str(line);
    }

    fn tell_machine(&mut self, seen: &Observed) {
        let runs = seen.instance.is_some();
        let vm = &seen.vm;
        self.add(&format!("{:?} {:?} runs={runs} busy={:?}", vm.state, seen.paused_by, vm.block_job_disk));
        for disk in &vm.disks {
            let path = self.name(&disk.path);
            let line = format!("disk {} {path} {} backed={}", disk.target, disk.format, disk.has_backing_file);
            self.add(&line);
        }
        let mut listed: Vec<_> = seen.snapshots.iter().collect();
        listed.sort_by(|one, other| one.id.cmp(&other.id));
        for one in listed {
            let parent = one.parent.as_ref().map(|id| self.letter(id));
            self.add(&format!(
                "snapshot {} under {parent:?} current={} {:?} {:?} {:?} {:?} {:?} {:?}",
                self.letter(&one.id),
                one.is_current,
                one.storage,
                one.content,
                one.vm_state,
                one.disks,
                one.label.display_name,
                one.broken
            ));
        }
        assert!(seen.strays.is_empty(), "{:?}", seen.strays);
    }

    fn tell_layers(&mut self, layers: &Layers) {
        for (path, layer) in &layers.files {
            let (name, backing) = (self.name(path), layer.backing.as_ref().map(|path| self.name(path)));
            self.add(&format!("file {name} {} on {backing:?} pinned={}", layer.format, layer.pinned));
        }
        for (id, parts) in &layers.snapshots {
            let parent = parts.parent.as_ref().map(|id| self.letter(id));
            let (frozen, overlays) = (self.names(&parts.frozen), self.names(&parts.overlays));
            let memory = parts.memory_file.as_ref().map(|path| self.name(path));
            self.add(&format!(
                "parts of {} under {parent:?} current={} deleted={} froze {frozen} below {overlays} {memory:?}",
                self.letter(id),
                parts.is_current,
                parts.deleted
            ));
        }
        let live = self.names(&layers.live);
        let kept: Vec<String> = layers.kept.iter().map(|path| self.name(path)).collect();
        self.add(&format!("live {live} kept {kept:?}"));
    }

    fn take(&mut self, index: usize, memory: bool) {
        let (seen, id) = (self.look(), self.ids[index].clone());
        let overlays = overlay_paths(seen.vm.disks.iter().map(|disk| (disk.target.as_str(), disk.path.as_str())), &id);
        let memory_file = memory.then(|| memory_path(&seen.vm.disks[0].path, &id));
        let label = Label::foreign("name", "text");
        let new = NewExternal {
            id: &id,
            label: &label,
            overlays: &overlays,
            memory_file: memory_file.as_deref(),
            quiesce: false,
        };
        let result = self.subject.hypervisor().create_external(&seen.vm, &new, &Nobody);
        self.tell(&format!("take {} memory={memory}", self.letter(&id)), &result);
    }

    /// As the agent does it: what libvirt could take for the active files is guarded.
    fn revert(&mut self, index: usize, then: PowerState) {
        let (seen, id) = (self.look(), self.ids[index].clone());
        let overlays = seen.layers.snapshots.values().flat_map(|parts| parts.overlays.values());
        let guarded: Vec<String> =
            overlays.filter(|path| !seen.layers.live.values().any(|live| live == *path)).cloned().collect();
        let (hypervisor, vm) = (self.subject.hypervisor(), self.subject.vm());
        hypervisor.guard(&guarded).unwrap();
        let result = hypervisor.revert_external(vm, &seen.layers, &id, then);
        hypervisor.unguard(&guarded).unwrap();
        self.tell(&format!("revert {} {then:?}", self.letter(&id)), &result);
        let another = self.look().instance;
        assert!(another.is_none() || another != seen.instance);
    }

    fn mark(&mut self, index: usize) {
        let id = self.ids[index].clone();
        let result = self.subject.hypervisor().mark_deleted(self.subject.vm(), &self.look().layers, &id);
        self.tell(&format!("mark {}", self.letter(&id)), &result);
    }

    /// Merges and removes what the marks have left, as the agent does it.
    fn merge(&mut self) {
        let (hypervisor, vm, nobody) = (self.subject.hypervisor(), self.subject.vm(), BTreeSet::new());
        for _ in 0..20 {
            let seen = self.look();
            let Some(merge) = seen.layers.merges(&seen.layers.deleted(), &nobody).into_iter().next() else { break };
            let (top, base) = (self.name(&merge.top), self.name(&merge.base));
            let result = hypervisor.commit(&seen.vm, &seen.layers, &merge, &Nobody);
            self.tell(&format!("commit {top} to {base}"), &result);
            let seen = self.look();
            let result = hypervisor.redirect(&seen.vm, &seen.layers, &merge);
            self.tell(&format!("redirect {top} to {base}"), &result);
            let seen = self.look();
            let reached = seen.layers.reached(&BTreeSet::new());
            let free: Vec<String> =
                merge.above.iter().filter(|path| !reached.contains(path.as_str())).cloned().collect();
            self.tell(&format!("unlink what is above {base}"), &hypervisor.unlink(&free));
        }
        let remains = self.look().layers.remains(&nobody, &nobody);
        self.tell("unlink what remains", &hypervisor.unlink(&remains.files));
        self.tell("once more", &hypervisor.unlink(&remains.files));
        for id in remains.snapshots {
            self.tell(&format!("forget {}", self.letter(&id)), &hypervisor.forget(vm, &id));
        }
    }

    fn write(&mut self, marker: char) {
        self.subject.write(marker);
    }

    fn read(&mut self) {
        let read = self.subject.read();
        self.add(&format!("the guest reads {read:?}"));
    }

    fn start(&mut self) {
        self.subject.start();
        self.read();
    }

    fn off(&self) {
        self.subject.hypervisor().power_off(self.subject.vm()).unwrap();
    }
}

/// Taken off, running and with memory; gone back to each; a fork; then the root, a branch and the fork go, off.
fn a_fork(account: &mut Account<'_>) {
    account.subject.start();
    account.write('A');
    account.off();
    account.take(0, false);
    account.subject.start();
    account.write('B');
    account.take(1, false);
    account.write('C');
    account.take(2, true);
    account.take(2, true);
    account.write('D');
    account.revert(1, PowerState::Running);
    account.read();
    account.write('E');
    account.take(3, false);
    account.revert(2, PowerState::Paused);
    account.subject.hypervisor().resume(account.subject.vm()).unwrap();
    account.read();
    account.revert(3, PowerState::Off);
    account.start();
    account.off();
    account.revert(0, PowerState::Off);
    account.start();
    account.revert(2, PowerState::Running);
    account.read();
    account.off();
    account.revert(7, PowerState::Off);
    account.mark(1);
    account.mark(1);
    account.mark(7);
    account.merge();
    account.mark(0);
    account.merge();
    for index in [2, 3] {
        account.revert(index, PowerState::Running);
        account.read();
    }
    account.off();
    account.mark(3);
    account.merge();
    account.revert(2, PowerState::Running);
    account.read();
    account.off();
    account.mark(2);
    account.merge();
    account.start();
}

/// A chain below a machine that runs: its middle, its active layer and its root are merged away.
fn a_chain(account: &mut Account<'_>) {
    account.subject.start();
    for (index, marker) in ['A', 'B', 'C', 'D'].into_iter().enumerate() {
        account.write(marker);
        account.take(index, index == 1);
    }
    account.write('E');
    for index in [2, 3, 0, 1] {
        account.mark(index);
        account.merge();
        account.read();
    }
    account.off();
    account.start();
}

/// Files that others need, that are guarded, and that are not there.
fn files(account: &mut Account<'_>) {
    let subject = account.subject;
    let (hypervisor, vm) = (subject.hypervisor(), subject.vm());
    subject.start();
    account.write('A');
    account.off();
    account.take(0, false);
    account.take(1, false);
    let seen = account.look();
    let frozen = seen.layers.snapshots[&account.ids[1]].frozen["vda"].clone();
    let elsewhere = |path: &String| hypervisor.elsewhere(vm).unwrap().contains(path);
    assert!(seen.layers.files.keys().all(|path| !elsewhere(path)));
    let neighbour = subject.neighbour(&frozen);
    let reached: Vec<&String> = seen.layers.files.keys().filter(|path| elsewhere(path)).collect();
    assert_eq!(reached, seen.layers.chain(&frozen).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>());
    drop(neighbour);

    let missing = format!("{frozen}.missing");
    let both = [frozen.clone(), missing];
    hypervisor.guard(&both).unwrap();
    hypervisor.guard(&both).unwrap();
    hypervisor.unlink(&both).unwrap();
    account.tell("unlink what is guarded", &Ok(()));
    hypervisor.unguard(&both).unwrap();
    account.tell("unguard it", &Ok(()));
    hypervisor.unguard(&both).unwrap();
    hypervisor.unlink(&[]).unwrap();
    account.start();
    assert_eq!(account.look().vm.state, VmState::Running);
    // One that was there all the time stays, and one that was not guarded any more does not come back.
    hypervisor.unguard(&both).unwrap();
    account.tell("unguard it once more", &Ok(()));
}

fn tells_the_same(story: fn(&mut Account<'_>)) {
    let told = |subject: &dyn Subject| {
        let mut account = Account::new(subject);
        story(&mut account);
        account.steps
    };
    let guest = Guest::new(2);
    let real = told(&guest);
    let world = World::with_machine(VmState::Shutoff);
    let imagined = told(&Imagined { fake: Fake::new(&world, None), world });
    for (real, imagined) in real.iter().zip(&imagined) {
        assert!(real == imagined, "libvirt:\n{real}\nthe fake:\n{imagined}");
    }
    assert_eq!(real.len(), imagined.len());
}

#[test]
fn a_fork_is_the_same_on_libvirt_and_on_the_fake() {
    tells_the_same(a_fork);
}

#[test]
fn a_chain_that_is_merged_while_the_guest_runs_is_the_same_on_libvirt_and_on_the_fake() {
    tells_the_same(a_chain);
}

#[test]
fn files_that_others_need_and_that_are_guarded_are_the_same_on_libvirt_and_on_the_fake() {
    tells_the_same(files);
}

//! After a user's operation: what libvirt has is read, held against what may be, and becomes what must be from now on.
//!
//! - A disk that is still there holds what it may hold: its state of before, with every write that was acknowledged, or the snapshot that
//!   the operation reverted to.
//! - The state of a disk that was detached, or that got another image, is where it was, or in another image of the room. Only a revert to
//!   a snapshot that holds the disk may have given it up, if it came first.
//! - An image that became a disk, or stopped to be one, holds what it held.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use proto::v1::StorageKind;

use super::super::judge::Kind;
use super::super::model::End;
use super::content::{Content, May};
use super::disk_tools as tools;
use super::ledger::Disk;
use super::room::{Effect, Room, disks_of};
use super::user::Ended;

/// Looks at a VM before it counts as one that cannot be looked at.
const LOOKS: u32 = 40;
const AGAIN: Duration = Duration::from_millis(250);

type Seen = BTreeMap<String, (PathBuf, Content)>;

impl Room {
    /// Reads the VM and makes the ledger say what is so.
    pub(super) fn reconcile(&mut self, vm: usize, ended: &Ended) -> Result<()> {
        let seen = match self.observe(vm, ended) {
            Ok(seen) => seen,
            Err(error) => {
                let name = &self.ledger.vms[vm].name;
                self.violated(Kind::Lost, format!("{name} cannot be read after {:?}: {error:#}", ended.wish));
                return Ok(());
            }
        };
        for (target, (path, content)) in &seen {
            let may = self.allowed(vm, ended, target).or(self.ledger.loose.get(path).unwrap_or(&May::default()));
            if !may.has(*content) {
                let what = format!("{target} ({}) has {content:?} and must have {may:?}", path.display());
                self.violated(Kind::WrongData, format!("after {:?} {:?}: {what}", ended.wish, ended.end));
            }
            if let Some(may) = self.ledger.loose.get(path).cloned()
                && !may.has(*content)
                && !self.is_somewhere(&may)
            {
                let what = format!("{} held {may:?}, which nobody has given up, and has {content:?}", path.display());
                self.violated(Kind::Lost, what);
            }
        }
        self.note_frozen(vm);
        self.separated(vm, ended, &seen);
        for (path, _) in seen.values() {
            self.ledger.taken(path);
        }
        let disks =
            seen.into_iter().map(|(target, (path, content))| (target, Disk { path, may: May::exactly(content) }));
        self.ledger.vms[vm].disks = disks.collect();
        if !self.ledger.vms[vm].is_defined() {
            let all: Vec<String> = self.ledger.vms[vm].snapshots.keys().cloned().collect();
            for snapshot in all {
                self.ledger.displace(vm, &snapshot);
            }
        }
        Ok(())
    }

    /// The VM's disks with what is on them; of one that was undefined meanwhile, by the definition that it had.
    fn observe(&mut self, vm: usize, ended: &Ended) -> Result<Seen> {
        let mut looks = 0;
        loop {
            looks += 1;
            let paths = self.paths(&self.ledger.vms[vm]);
            let paths = match (paths, self.ledger.vms[vm].undefined.clone()) {
                (Ok(paths), undefined) => {
                    if undefined.is_some() {
                        self.world.history.count("undefined VMs that an operation defined again");
                        self.ledger.vms[vm].undefined = None;
                    }
                    Ok(paths)
                }
                (Err(error), Some(_)) if !format!("{error:#}").contains("failed to get domain") => Err(error),
                (Err(_), Some(xml)) => Ok(disks_of(&xml, &self.directories[1])),
                (Err(error), None) => Err(error),
            };
            let seen = paths.and_then(|paths| {
                let read = |(target, path): (String, PathBuf)| Ok((target, (path.clone(), self.read(&path, None)?)));
                paths.into_iter().map(read).collect::<Result<Seen>>()
            });
            if seen.is_ok() || looks >= LOOKS {
                return seen;
            }
            if looks == 1 {
                let why = seen.as_ref().err().map(|error| format!("{error:#}"));
                self.tell(&format!("after {:?} it is not to be read: {why:?}", ended.wish));
            }
            std::thread::sleep(AGAIN);
        }
    }

    /// Notes what external snapshots of the VM hold, by libvirt's records.
    fn note_frozen(&mut self, vm: usize) {
        if self.storage != StorageKind::External {
            return;
        }
        let vm = &self.ledger.vms[vm];
        let frozen: BTreeSet<PathBuf> = vm.snapshots.keys().flat_map(|id| self.frozen(vm, id).into_values()).collect();
        self.ledger.frozen.extend(frozen);
    }

    /// What may be on a disk that is there.
    fn allowed(&self, vm: usize, ended: &Ended, target: &str) -> May {
        let before = ended.before.disks.get(target).map(|disk| disk.may.clone()).unwrap_or_default();
        let now = self.ledger.vms[vm].disks.get(target).map(|disk| disk.may.clone()).unwrap_or_default();
        let mine = ended.effects.iter().filter(|effect| effect.target() == Some(target));
        let has_other_image = mine.clone().any(|effect| !matches!(effect, Effect::Wrote(..)));
        let reverted = ended.may_have_reverted().then(|| ended.held(target)).flatten();
        // A write that was acknowledged is there, unless a revert came after it.
        let mut may = if has_other_image { before.or(&now) } else { now };
        if let Some(held) = reverted {
            if ended.end == End::Done && ended.effects.is_empty() {
                return held.clone();
            }
            may = may.or(held);
            for effect in mine.clone() {
                // Each write came before or after the revert.
                if let Effect::Wrote(_, slot, number) = effect {
                    may = may.clone().or(&may.with(*slot, *number));
                }
            }
        }
        mine.fold(may, |may, effect| match effect {
            Effect::Attached(_, _, held) | Effect::Swapped(_, _, _, held) => may.or(held),
            Effect::Wrote(..) | Effect::Detached(..) | Effect::Undefined => may,
        })
    }

    /// What is no longer on a disk of the VM: where must it be?
    fn separated(&mut self, vm: usize, ended: &Ended, seen: &Seen) {
        let active: BTreeSet<PathBuf> = seen.values().map(|(path, _)| path.clone()).collect();
        let below = self.below(&active);
        let now = self.ledger.vms[vm].disks.clone();
        for (target, disk) in ended.before.disks.clone() {
            if active.contains(&disk.path) {
                continue;
            }
            let cut: Vec<PathBuf> = ended.effects.iter().filter_map(|effect| effect.separated(&target)).collect();
            let latest = now.get(&target).map(|disk| disk.may.clone()).unwrap_or_default();
            let may = ended.written_before_cut(&target, &disk.may).or(&latest);
            match (cut.is_empty(), seen.contains_key(&target)) {
                (true, true) => {}
                (true, false) if ended.may_have_reverted() => {
                    self.ledger.let_go(vm, disk.path, may);
                }
                (true, false) => {
                    let what = format!("{target} of {} is gone, which nobody has detached", ended.before.name);
                    self.violated(Kind::Lost, what);
                }
                (false, _) => {
                    let given_up = ended.may_have_reverted() && ended.held(&target).is_some();
                    let hints = cut
                        .into_iter()
                        .chain([disk.path])
                        .filter(|path| !active.contains(path) && !below.contains(path));
                    self.adopt(vm, &hints.collect::<Vec<_>>(), &may, given_up, &target, ended);
                }
            }
        }
        for effect in &ended.effects {
            let (Effect::Attached(target, new, may) | Effect::Swapped(target, _, new, may)) = effect else { continue };
            if !active.contains(new) && !below.contains(new) && !self.ledger.loose.contains_key(new) {
                let latest = now.get(target).filter(|disk| disk.path == *new).map(|disk| disk.may.clone());
                self.ledger.let_go(vm, new.clone(), may.clone().or(&latest.unwrap_or_default()));
            }
        }
    }

    /// Finds the state of a disk that was taken away while an operation was under way: from now on it must stay where it is.
    fn adopt(&mut self, vm: usize, hints: &[PathBuf], may: &May, given_up: bool, target: &str, ended: &Ended) {
        let bases = self.bases();
        for path in hints.iter().filter(|path| !bases.contains(*path)) {
            if let Ok(content) = self.read(path, None)
                && may.has(content)
            {
                self.ledger.let_go(vm, path.clone(), May::exactly(content));
                return;
            }
        }
        if given_up {
            return;
        }
        if self.is_somewhere(may) {
            let what = format!("{target} of {} when it was taken away", ended.before.name);
            self.ledger.displaced.push((what, may.clone()));
        } else {
            let what =
                format!("{may:?}, which {target} of {} held when it was taken away, is nowhere", ended.before.name);
            self.violated(Kind::Lost, format!("after {:?} {:?}: {what}", ended.wish, ended.end));
        }
    }

    /// All that images lie on.
    fn below(&self, images: &BTreeSet<PathBuf>) -> BTreeSet<PathBuf> {
        let all = tools::all(&self.directories);
        let mut found = BTreeSet::new();
        let mut next: Vec<PathBuf> = images.iter().cloned().collect();
        while let Some(path) = next.pop() {
            if let Some(Some(base)) = all.get(&path)
                && found.insert(base.clone())
            {
                next.push(base.clone());
            }
        }
        found
    }
}

impl Ended {
    /// What may be on a disk when an administrator takes it away: with every write that was acknowledged before. A revert came before or
    /// after each of them.
    fn written_before_cut(&self, target: &str, before: &May) -> May {
        let on_it = self.effects.iter().take_while(|effect| effect.separated(target).is_none());
        on_it.fold(before.clone(), |may, effect| match effect {
            Effect::Wrote(of, slot, number) if of == target => {
                let after = may.with(*slot, *number);
                if self.may_have_reverted() { after.or(&may) } else { after }
            }
            _ => may,
        })
    }
}

impl Effect {
    /// The disk that it is about.
    fn target(&self) -> Option<&str> {
        match self {
            Self::Wrote(target, ..)
            | Self::Detached(target, _)
            | Self::Attached(target, ..)
            | Self::Swapped(target, ..) => Some(target),
            Self::Undefined => None,
        }
    }

    /// The image that a disk had when this took it away.
    fn separated(&self, from: &str) -> Option<PathBuf> {
        match self {
            Self::Detached(target, path) | Self::Swapped(target, path, ..) if target == from => Some(path.clone()),
            _ => None,
        }
    }
}

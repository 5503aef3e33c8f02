//! What must be true of a machine, from nothing but what was asked, what was answered, and what the guest was made to
//! write. Pure: it knows neither the service's code nor its records.
//!
//! - The **present** is a set of what may be on the disks and of what the machine may be doing. After an acknowledged
//!   act it has one element. A killed QEMU widens it: what a guest wrote and did not flush may be lost, from each disk
//!   for itself, as on a real machine. A look at the machine narrows it to what was seen, which must be in the set.
//! - A **snapshot** must exist, may exist (nobody was told how it went), or must be gone; and it has the set of what it
//!   may hold, which is the present at the time.

mod contents;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use proto::v1;

pub use self::contents::{Content, Contents};
use crate::lab::Power;

/// Whether there is a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existence {
    /// There must be.
    Must,
    /// There may be.
    May,
    /// There must not be.
    Gone,
}

/// A name and whether it is protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// The display name.
    pub name: String,
    /// Whether deletion is refused unless forced.
    pub protected: bool,
}

/// What is known of a snapshot.
#[derive(Debug, Clone)]
pub struct Known {
    /// Whether it is there.
    pub existence: Existence,
    /// What it may hold.
    pub contents: Contents,
    /// What the machine may have been doing.
    pub powers: Vec<Power>,
    /// Whether the disks alone were taken if the machine ran.
    pub live: bool,
    /// What it may be called; empty for those of other tools.
    pub labels: Vec<Label>,
    /// The snapshot it was taken on top of.
    pub parent: Option<String>,
    /// Whether a deletion of it failed, so that it may be shown as broken.
    pub may_be_broken: bool,
}

/// A create that nobody was told the end of: there may be a snapshot of this display name.
#[derive(Debug, Clone)]
pub struct Abandoned {
    /// The display name, which no other snapshot has.
    pub name: String,
    /// Where in the machine's past it was asked for.
    since: usize,
    /// Where it can no longer have begun.
    until: Option<usize>,
}

/// How a change ended, for those who were told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It was done.
    Done,
    /// It failed, with these words.
    Failed(String),
    /// It was refused before anything was done.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// What must be true of a machine.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// What may be on its disks now.
    pub contents: Contents,
    /// What it may be doing now.
    pub powers: Vec<Power>,
    /// Its snapshots, by their ids.
    pub snapshots: BTreeMap<String, Known>,
    /// The snapshot that the present descends from.
    pub current: Option<String>,
    /// Creates with an unknown end.
    pub abandoned: Vec<Abandoned>,
    /// What a crash of its QEMU may bring back: everything since it was started.
    shadows: Contents,
    /// Everything that was ever present, in order.
    past: Vec<Contents>,
}

impl Machine {
    /// A machine that runs and has nothing on its disks yet.
    pub fn new(name: &str, first: Content) -> Self {
        let contents = Contents::exactly(first);
        let (shadows, past) = (contents.clone(), vec![contents.clone()]);
        let (snapshots, abandoned) = (BTreeMap::new(), Vec::new());
        let powers = vec![Power::Running];
        Self { name: name.to_owned(), contents, powers, snapshots, current: None, abandoned, shadows, past }
    }

    /// Whether it does this and nothing else.
    pub fn is(&self, power: Power) -> bool {
        self.powers == [power]
    }

    /// The snapshots that there are or may be.
    pub fn living(&self) -> Vec<&String> {
        self.snapshots.iter().filter(|(_, known)| known.existence != Existence::Gone).map(|(id, _)| id).collect()
    }

    /// Everything that was ever on its disks.
    pub fn ever(&self) -> impl Iterator<Item = &Content> {
        self.past.iter().flat_map(|contents| &contents.any_of)
    }

    fn now_is(&mut self, contents: Contents, powers: Vec<Power>) {
        self.contents = contents;
        self.powers = powers;
        self.remember();
    }

    fn remember(&mut self) {
        self.past.push(self.contents.clone());
        self.shadows.add(&self.contents);
    }

    /// The guest was made to write a marker, and said that it has.
    pub fn wrote(&mut self, marker: char) {
        for content in &mut self.contents.any_of {
            content.marker = marker;
            content.second = content.second.map(|_| marker);
        }
        self.remember();
    }

    /// The guest was told to write a marker, and said nothing.
    pub fn may_have_written(&mut self, marker: char) {
        let before = self.contents.clone();
        self.wrote(marker);
        self.contents.add(&before);
        self.contents.torn = true;
        self.remember();
    }

    /// Its QEMU was killed, or may have been.
    pub fn crashed(&mut self) {
        self.contents.add(&self.shadows.clone());
        self.contents.torn = true;
        if !self.powers.contains(&Power::Off) {
            self.powers.push(Power::Off);
        }
        self.remember();
    }

    /// The harness has brought it into another state.
    pub fn powered(&mut self, power: Power) {
        let contents = match power {
            Power::Running if self.powers.contains(&Power::Off) => self.contents.booted(),
            _ => self.contents.clone(),
        };
        self.now_is(contents, vec![power]);
    }

    /// The harness has tried to, and does not know how far it came.
    pub fn may_be(&mut self, power: Power) {
        let before = self.powers.clone();
        self.powered(power);
        self.crashed();
        self.powers.extend(before);
    }

    /// It was looked at and this was seen, which [`super::judge`] has judged. What is on the disks of a paused machine is
    /// not to be seen.
    pub fn learn(&mut self, power: Power, content: Option<Content>) {
        let restarted = power == Power::Off || self.powers.contains(&Power::Off);
        self.powers = vec![power];
        if let Some(content) = content {
            self.contents = Contents::exactly(content);
            if restarted {
                self.shadows = Contents::default();
            }
            self.remember();
        }
    }

    /// A snapshot was asked for. `id` is there when somebody was told it; `live` says that its running state was not.
    pub fn created(&mut self, id: Option<&str>, label: Label, live: bool, end: &End) {
        match (id, end) {
            (Some(id), End::Done) => {
                self.keep(id, vec![label], live);
                self.current = Some(id.to_owned());
                // Taking it flushes the images.
                self.shadows = self.contents.clone();
            }
            (Some(id), End::Failed(_)) => {
                self.keep(id, vec![label], live);
                self.forget(id);
            }
            (_, End::Refused) | (None, End::Done | End::Failed(_)) => {}
            (_, End::Unknown) => self.abandon(label.name, true),
        }
    }

    /// A create whose end nobody will learn. `for_good` says that it can still begin at any time.
    pub fn abandon(&mut self, name: String, for_good: bool) {
        let since = self.past.len() - 1;
        self.abandoned.push(Abandoned { name, since, until: (!for_good).then_some(since) });
    }

    /// What the snapshot of an abandoned create may hold.
    pub fn contents_of(&self, abandoned: &Abandoned) -> Contents {
        let until = abandoned.until.unwrap_or(self.past.len() - 1);
        let mut all = Contents::default();
        for contents in &self.past[abandoned.since..=until] {
            all.add(contents);
        }
        all
    }

    /// Another tool took a snapshot.
    pub fn created_elsewhere(&mut self, id: &str) {
        self.keep(id, Vec::new(), false);
        self.current = Some(id.to_owned());
        self.shadows = self.contents.clone();
    }

    fn keep(&mut self, id: &str, labels: Vec<Label>, live: bool) {
        let known = Known {
            existence: Existence::Must,
            contents: self.contents.clone(),
            powers: self.powers.clone(),
            live,
            labels,
            parent: self.current.clone(),
            may_be_broken: false,
        };
        self.snapshots.insert(id.to_owned(), known);
    }

    /// A revert was asked for. `saved` is what became of the snapshot of the present, if one was to be taken: its id,
    /// where somebody was told, and its label.
    pub fn reverted(&mut self, id: &str, run_after: v1::RunAfter, saved: Option<(Option<&str>, Label)>, end: &End) {
        if let Some((saved, label)) = saved {
            let kept = match (saved, end) {
                (Some(_), End::Done) => End::Done,
                (Some(saved), End::Failed(words)) if words.contains(saved) => End::Done,
                (_, End::Refused) => End::Refused,
                (_, End::Failed(_) | End::Done | End::Unknown) => End::Unknown,
            };
            self.created(saved, label, false, &kept);
        }
        let Some(target) = self.snapshots.get(id).cloned() else { return };
        let (contents, powers) = after_revert(&target, run_after);
        match end {
            End::Refused => {}
            End::Done => {
                self.shadows = Contents::default();
                self.now_is(contents, powers);
                self.current = Some(id.to_owned());
            }
            End::Failed(words) if words.contains("nothing was changed") || words.contains("is as it was") => {}
            End::Failed(words) if words.contains("was left off") => {
                self.contents.add(&contents);
                self.powers = vec![Power::Off];
                self.remember();
            }
            End::Failed(_) | End::Unknown => {
                self.contents.add(&contents);
                self.powers.extend(powers);
                self.powers.push(Power::Off);
                self.remember();
            }
        }
    }

    /// Another tool took the machine back.
    pub fn reverted_elsewhere(&mut self, id: &str) {
        let Some(known) = self.snapshots.get(id).cloned() else { return };
        // One that was taken live is to libvirt of a machine that was off.
        let told = |power: &Power| if known.live && *power == Power::Running { Power::Off } else { *power };
        let as_told = Known { powers: known.powers.iter().map(told).collect(), ..known.clone() };
        self.snapshots.insert(id.to_owned(), as_told);
        self.reverted(id, v1::RunAfter::AsRecorded, None, &End::Done);
        self.snapshots.insert(id.to_owned(), known);
    }

    /// A deletion was asked for.
    pub fn deleted(&mut self, id: &str, scope: v1::DeleteScope, end: &End) {
        let mut doomed = Vec::new();
        if !matches!(scope, v1::DeleteScope::Descendants) {
            doomed.push(id.to_owned());
        }
        if matches!(scope, v1::DeleteScope::Subtree | v1::DeleteScope::Descendants) {
            doomed.extend(self.descendants(id));
        }
        self.doom(doomed, end);
    }

    /// All were to be deleted.
    pub fn purged(&mut self, end: &End) {
        let all = self.living().into_iter().cloned().collect();
        self.doom(all, end);
    }

    fn doom(&mut self, doomed: Vec<String>, end: &End) {
        for id in doomed {
            match end {
                End::Done => self.forget(&id),
                End::Refused => {}
                End::Failed(_) | End::Unknown => {
                    if let Some(known) = self.snapshots.get_mut(&id)
                        && known.existence == Existence::Must
                    {
                        known.existence = Existence::May;
                        known.may_be_broken = true;
                    }
                }
            }
        }
    }

    fn descendants(&self, id: &str) -> Vec<String> {
        let mut all = Vec::new();
        let mut next = vec![id.to_owned()];
        while let Some(parent) = next.pop() {
            let children = self
                .snapshots
                .iter()
                .filter(|(_, known)| known.existence != Existence::Gone && known.parent.as_ref() == Some(&parent));
            let children: Vec<String> = children.map(|(id, _)| id.clone()).collect();
            all.extend(children.iter().cloned());
            next.extend(children);
        }
        all
    }

    /// Its children move up to its parent, and so does the present.
    fn forget(&mut self, id: &str) {
        let Some(known) = self.snapshots.get_mut(id) else { return };
        known.existence = Existence::Gone;
        let parent = known.parent.clone();
        for child in self.snapshots.values_mut().filter(|child| child.parent.as_deref() == Some(id)) {
            child.parent.clone_from(&parent);
        }
        if self.current.as_deref() == Some(id) {
            self.current = parent;
        }
    }

    /// Another label was asked for.
    pub fn labelled(&mut self, id: &str, label: Label, end: &End) {
        let Some(known) = self.snapshots.get_mut(id) else { return };
        match end {
            End::Done => known.labels = vec![label],
            End::Refused => {}
            End::Failed(_) | End::Unknown => known.labels.push(label),
        }
    }
}

/// What a machine may hold and do after a revert. A snapshot without a running state is booted from, if it is to run.
pub fn after_revert(target: &Known, run_after: v1::RunAfter) -> (Contents, Vec<Power>) {
    let (mut contents, mut powers) = (Contents { torn: target.contents.torn, ..Contents::default() }, Vec::new());
    for recorded in &target.powers {
        let then = match run_after {
            v1::RunAfter::Running => Power::Running,
            v1::RunAfter::Off => Power::Off,
            v1::RunAfter::Unspecified | v1::RunAfter::AsRecorded => *recorded,
        };
        let has_no_memory = *recorded == Power::Off || (target.live && *recorded == Power::Running);
        let boots = has_no_memory && then == Power::Running;
        contents.add(&if boots { target.contents.booted() } else { target.contents.clone() });
        powers.push(then);
    }
    (contents, powers)
}

//! Holds what was seen of a machine against what must be true of it. Pure, so that it can be fed wrong worlds.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use proto::v1::RunAfter;

use super::model::{Content, Contents, Existence, Label, Machine, after_revert};
use crate::guest::Report;
use crate::lab::Power;
use crate::libvirtd::Listed;

/// A way of failing a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A snapshot that must be there is not, or cannot be gone back to.
    Lost,
    /// Something is there that nobody asked for, or that was deleted.
    Orphaned,
    /// An operation does not end, or a machine does not answer.
    Stuck,
    /// Two disks, or a disk and the memory, are of different moments.
    Mixed,
    /// A guest reads what it must not.
    WrongData,
    /// A guest stands still that ran.
    LeftPaused,
    /// Two parts of the system tell different things, or one tells something that is not so.
    Disagree,
}

impl Kind {
    /// As reports say it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Lost => "LOST",
            Self::Orphaned => "ORPHANED",
            Self::Stuck => "STUCK",
            Self::Mixed => "MIXED",
            Self::WrongData => "WRONG_DATA",
            Self::LeftPaused => "LEFT_PAUSED",
            Self::Disagree => "DISAGREE",
        }
    }
}

/// Something that must never be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// What kind.
    pub kind: Kind,
    /// The machine.
    pub machine: String,
    /// What exactly.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}: {}", self.kind.word(), self.machine, self.what)
    }
}

/// A snapshot in the catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// As virsh would list it.
    pub listed: Listed,
    /// What it is called.
    pub label: Label,
    /// Its life's state in the catalogue, `Ready` when it is whole.
    pub state: String,
}

/// What became of a revert to a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Return {
    /// The guest ran afterwards, and said this.
    Said(Report),
    /// It was refused or failed.
    Failed(String),
}

/// A machine as it was seen when everything was quiet.
#[derive(Debug, Clone)]
pub struct Seen {
    /// ListSnapshots.
    pub catalogue: Vec<Row>,
    /// What virsh lists.
    pub libvirt: Vec<Listed>,
    /// The snapshots in each image, by qemu-img.
    pub tags: Vec<Vec<String>>,
    /// By disk, the snapshots whose data is there.
    pub kept: Vec<BTreeSet<String>>,
    /// What it does.
    pub power: Power,
    /// What is on its disks, unless it is paused.
    pub present: Option<Content>,
    /// What came of going back to each snapshot.
    pub returns: BTreeMap<String, Return>,
    /// Files that belong to nothing.
    pub strangers: Vec<String>,
    /// What is wrong with the images.
    pub damage: Vec<String>,
    /// Operations that have not ended.
    pub open: Vec<String>,
}

/// What a guest said, as what is on its disks. An error when its memory is not of the same moment: what the guest
/// remembers is always what it wrote last, or read when it booted.
pub fn content(report: &Report) -> Result<Content, String> {
    if report.ram == report.disk {
        return Ok(Content { marker: report.disk, boots: report.boots, second: report.second_disk });
    }
    Err(format!("the guest remembers {:?} and reads {:?} from its disk", report.ram, report.disk))
}

/// Everything that is wrong with a machine.
pub fn judge(machine: &Machine, seen: &Seen) -> Vec<Violation> {
    let mut judge = Judge { machine, found: Vec::new() };
    judge.present(seen.power, seen.present.as_ref());
    judge.existence(seen);
    judge.agreement(seen);
    for (id, came) in &seen.returns {
        judge.came_back(id, came, seen);
    }
    for (kind, all) in [(Kind::Orphaned, &seen.strangers), (Kind::WrongData, &seen.damage), (Kind::Stuck, &seen.open)] {
        all.iter().for_each(|what| judge.find(kind, what.clone()));
    }
    judge.found
}

/// What is wrong with a machine's present.
pub fn judge_present(machine: &Machine, power: Power, present: Option<&Content>) -> Vec<Violation> {
    let mut judge = Judge { machine, found: Vec::new() };
    judge.present(power, present);
    judge.found
}

struct Judge<'a> {
    machine: &'a Machine,
    found: Vec<Violation>,
}

impl Judge<'_> {
    fn find(&mut self, kind: Kind, what: String) {
        self.found.push(Violation { kind, machine: self.machine.name.clone(), what });
    }

    fn present(&mut self, power: Power, present: Option<&Content>) {
        let machine = self.machine;
        if !machine.powers.contains(&power) {
            let kind = if power == Power::Paused { Kind::LeftPaused } else { Kind::Disagree };
            self.find(kind, format!("it is {}, and must be any of {:?}", power.word(), machine.powers));
        }
        if let Some(present) = present {
            self.contents("its present", &machine.contents, present);
        }
    }

    fn contents(&mut self, whose: &str, allowed: &Contents, seen: &Content) {
        if allowed.allow(seen) {
            return;
        }
        // Two disks whose parts were never there together, each of which was there once.
        let ever = |is: &dyn Fn(&Content) -> bool| self.machine.ever().any(is);
        let apart = seen.second.is_some()
            && !ever(&|content| (content.marker, content.second) == (seen.marker, seen.second))
            && ever(&|content| content.marker == seen.marker)
            && ever(&|content| content.second == seen.second);
        let kind = if apart { Kind::Mixed } else { Kind::WrongData };
        self.find(kind, format!("{whose} is {seen:?}, and must be {allowed:?}"));
    }

    fn existence(&mut self, seen: &Seen) {
        let listed: BTreeSet<&str> = seen.libvirt.iter().map(|listed| listed.name.as_str()).collect();
        for (id, known) in &self.machine.snapshots {
            match (known.existence, listed.contains(id.as_str())) {
                (Existence::Must, false) => self.find(Kind::Lost, format!("snapshot {id} is gone: {:?}", known.labels)),
                (Existence::Gone, true) => {
                    self.find(Kind::Orphaned, format!("snapshot {id} was deleted or has failed"))
                }
                (Existence::Must | Existence::May | Existence::Gone, _) => {}
            }
        }
        let mut names = BTreeSet::new();
        for row in &seen.catalogue {
            let id = &row.listed.name;
            // Every request has a display name of its own.
            if !row.label.name.is_empty() && !names.insert(&row.label.name) {
                self.find(Kind::Orphaned, format!("two snapshots were made of the request for {}", row.label.name));
            }
            let expected = self.machine.snapshots.get(id);
            match expected {
                None if self.abandoned(&row.label.name).is_some() => {}
                None => self.find(Kind::Orphaned, format!("nobody asked for snapshot {id}, {:?}", row.label)),
                Some(known) if !known.labels.is_empty() && !known.labels.contains(&row.label) => {
                    self.find(
                        Kind::Disagree,
                        format!("{id} is called {:?}, and must be {:?}", row.label, known.labels),
                    );
                }
                Some(_) => {}
            }
            let may_be_broken = expected.is_some_and(|known| known.may_be_broken);
            if row.state != "Ready" && !may_be_broken {
                self.find(Kind::Lost, format!("{id} is {}", row.state));
            }
        }
    }

    fn abandoned(&self, name: &str) -> Option<Contents> {
        let found = self.machine.abandoned.iter().find(|abandoned| abandoned.name == name);
        found.map(|abandoned| self.machine.contents_of(abandoned))
    }

    fn agreement(&mut self, seen: &Seen) {
        let mut told: Vec<&Listed> = seen.catalogue.iter().map(|row| &row.listed).collect();
        told.sort();
        let mut libvirts: Vec<&Listed> = seen.libvirt.iter().collect();
        libvirts.sort();
        if told != libvirts {
            self.find(Kind::Disagree, format!("the catalogue says {told:?}, libvirt says {libvirts:?}"));
        }
        let broken = |name: &str| seen.catalogue.iter().any(|row| row.listed.name == name && row.state != "Ready");
        for (disk, tags) in seen.tags.iter().enumerate() {
            let mut once = BTreeSet::new();
            for tag in tags {
                if !once.insert(tag.as_str()) {
                    self.find(Kind::Orphaned, format!("disk {disk} has {tag} twice"));
                }
                if !libvirts.iter().any(|listed| listed.name == *tag) {
                    self.find(Kind::Orphaned, format!("disk {disk} has {tag}, which libvirt does not list"));
                }
            }
        }
        for (disk, kept) in seen.kept.iter().enumerate() {
            for listed in libvirts.iter().filter(|listed| !kept.contains(&listed.name) && !broken(&listed.name)) {
                self.find(Kind::Lost, format!("disk {disk} has nothing of {}", listed.name));
            }
        }
    }

    fn came_back(&mut self, id: &str, came: &Return, seen: &Seen) {
        let known = self.machine.snapshots.get(id);
        if known.is_some_and(|known| known.existence == Existence::Gone) {
            // That it is there has been said.
            return;
        }
        let report = match came {
            Return::Said(report) => report,
            Return::Failed(why) => {
                if known.is_none_or(|known| !known.may_be_broken) {
                    self.find(Kind::Lost, format!("{id} cannot be gone back to: {why}"));
                }
                return;
            }
        };
        let content = match content(report) {
            Ok(content) => content,
            Err(apart) => return self.find(Kind::Mixed, format!("after going back to {id} {apart}")),
        };
        let allowed = match known {
            Some(known) => after_revert(known, RunAfter::Running).0,
            None => {
                let row = seen.catalogue.iter().find(|row| row.listed.name == id);
                // Whether it booted hangs on what the machine did at a moment that nobody knows.
                let Some(contents) = row.and_then(|row| self.abandoned(&row.label.name)) else { return };
                Contents { torn: true, ..contents }
            }
        };
        self.contents(&format!("what {id} holds"), &allowed, &content);
    }
}

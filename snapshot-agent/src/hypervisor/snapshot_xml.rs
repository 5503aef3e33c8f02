//! A snapshot's XML: <https://libvirt.org/formatsnapshot.html>.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Deserialize;
use snapshot_core::description::Label;
use snapshot_core::resources::{self, Resource};
use snapshot_core::restriction::Restriction;
use snapshot_core::snapshot::{Consistency, Content, RecordedState, Storage};

use super::domain_xml::{Domain, Medium, Unresolved};
use super::{definition, hardware_xml};

#[derive(Debug, Deserialize)]
struct Snapshot {
    name: String,
    description: Option<String>,
    state: Option<String>,
    parent: Option<Parent>,
    #[serde(rename = "creationTime", default)]
    creation_time: i64,
    memory: Option<Location>,
    #[serde(default)]
    disks: Disks,
    domain: Option<Domain>,
}

#[derive(Debug, Deserialize)]
struct Parent {
    name: String,
}

#[derive(Debug, Deserialize)]
struct Location {
    #[serde(rename = "@snapshot")]
    snapshot: Option<String>,
    #[serde(rename = "@file")]
    file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
struct Disks {
    #[serde(rename = "disk", default)]
    disks: Vec<DiskElement>,
}

#[derive(Debug, Deserialize)]
struct DiskElement {
    #[serde(rename = "@name")]
    name: String,
    #[serde(rename = "@snapshot")]
    snapshot: Option<String>,
    source: Option<Source>,
}

#[derive(Debug, Deserialize)]
struct Source {
    #[serde(rename = "@file")]
    file: Option<PathBuf>,
}

/// The files of an external snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Files {
    /// By target: the disk as it was, and its format.
    pub(super) frozen: BTreeMap<String, (PathBuf, String)>,
    /// By target: what was laid on top of it.
    pub(super) overlays: BTreeMap<String, PathBuf>,
    /// The running state.
    pub(super) memory: Option<PathBuf>,
}

/// A snapshot as its XML tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Recorded {
    /// libvirt's name.
    pub(super) name: String,
    /// libvirt's name of the parent.
    pub(super) parent: Option<String>,
    /// When it was taken, in seconds of the Unix epoch.
    pub(super) create_time: i64,
    /// What the user wrote, or what can be made of another tool's words.
    pub(super) label: Label,
    /// What it holds.
    pub(super) content: Content,
    /// How it is stored.
    pub(super) storage: Storage,
    /// What the machine was doing.
    pub(super) state: RecordedState,
    /// How consistent its file systems are.
    pub(super) consistency: Option<Consistency>,
    /// The targets of the disks in it.
    pub(super) disks: Vec<String>,
    /// The images that the snapshot is inside of, by target: where they were when it was taken, which is where a
    /// revert looks for them.
    pub(super) images: BTreeMap<String, PathBuf>,
    /// The files it is made of, where it is external.
    pub(super) files: Files,
    /// Whether it is deleted for everybody but libvirt.
    pub(super) deleted: bool,
    /// The media without which a revert to a running machine fails.
    pub(super) media: Vec<Medium>,
    /// Disks that the guest could write to then and that are not in it: the running state would come back without them.
    pub(super) disks_left_out: Vec<String>,
    /// Disks of then that are volumes whose paths are not known now.
    pub(super) unresolved: Vec<Unresolved>,
    /// What the definition of then makes unavailable.
    pub(super) restrictions: Vec<Restriction>,
    /// What of the host the definitions in it need, beside the images of the disks in it.
    pub(super) resources: BTreeSet<Resource>,
}

/// Reads a snapshot's XML, without the paths of volumes.
pub(super) fn parse(xml: &str) -> Result<Recorded, quick_xml::DeError> {
    parse_with(xml, |_, _| None)
}

/// Reads a snapshot's XML; the path of a volume is asked by its pool and its name.
pub(super) fn parse_with(
    xml: &str,
    path: impl Fn(&str, &str) -> Option<PathBuf>,
) -> Result<Recorded, quick_xml::DeError> {
    let mut snapshot = quick_xml::de::from_str::<Snapshot>(xml)?;
    let mut unresolved = snapshot.domain.as_mut().map(|domain| domain.resolve(path)).unwrap_or_default();
    // The snapshot is in disks. A medium is looked for when a revert is planned.
    unresolved.retain(|one| !one.is_removable);
    let recorded = snapshot.recorded();
    let restrictions = definition::snapshot_restrictions(xml, recorded.content);
    let resources = needed(xml, &recorded.disks);
    Ok(Recorded { unresolved, restrictions, resources, ..recorded })
}

/// What libvirt starts, and what the VM is defined as after a revert.
fn needed(xml: &str, disks: &[String]) -> BTreeSet<Resource> {
    let unknown = || Resource::Unknown("the definition in the snapshot".to_owned());
    let Ok(Some(snapshot)) = hardware_xml::read(xml) else { return BTreeSet::from([unknown()]) };
    let without = disks.iter().cloned().collect();
    let definitions =
        snapshot.children.iter().filter(|child| matches!(child.name.as_str(), "domain" | "inactiveDomain"));
    definitions.flat_map(|domain| resources::needed(domain, &without)).collect()
}

impl Snapshot {
    fn recorded(self) -> Recorded {
        let memory = self.memory.as_ref().and_then(|memory| memory.snapshot.as_deref()).unwrap_or("no");
        let located = |disk: &&DiskElement| disk.snapshot.as_deref() != Some("no");
        let inside = |target: &str| {
            let disk = self.disks.disks.iter().find(|disk| disk.name == target);
            disk.is_some_and(|disk| disk.snapshot.as_deref() == Some("internal"))
        };
        let external = memory == "external"
            || self.disks.disks.iter().filter(located).any(|disk| disk.snapshot.as_deref() != Some("internal"));
        let disks: Vec<String> = self.disks.disks.iter().filter(located).map(|disk| disk.name.clone()).collect();
        let then: Vec<_> = self.domain.iter().flat_map(Domain::disks).collect();
        let with_memory = memory != "no";
        let outside = |disk: &&DiskElement| located(disk) && disk.snapshot.as_deref() != Some("internal");
        let files = Files {
            frozen: then
                .iter()
                .filter(|disk| self.disks.disks.iter().filter(outside).any(|other| other.name == disk.target))
                .filter_map(|disk| Some((disk.target.clone(), (disk.path.clone()?, disk.format.clone()))))
                .collect(),
            overlays: self
                .disks
                .disks
                .iter()
                .filter(outside)
                .filter_map(|disk| Some((disk.name.clone(), disk.source.as_ref()?.file.clone()?)))
                .collect(),
            memory: self.memory.as_ref().filter(|_| memory == "external").and_then(|memory| memory.file.clone()),
        };
        let label = self
            .description
            .as_deref()
            .and_then(Label::decode)
            .unwrap_or_else(|| Label::foreign(&self.name, self.description.as_deref().unwrap_or_default()));
        let state = match recorded_state(self.state.as_deref(), with_memory) {
            // To libvirt one that was taken live is of a machine that was off.
            RecordedState::Shutoff if label.disks.is_some() => RecordedState::DiskOnly,
            state => state,
        };
        Recorded {
            consistency: match state {
                RecordedState::DiskOnly => label.disks,
                RecordedState::Shutoff | RecordedState::Running | RecordedState::Paused => Some(Consistency::Complete),
            },
            state,
            label,
            parent: self.parent.map(|parent| parent.name),
            create_time: self.creation_time,
            content: if with_memory { Content::DisksAndMemory } else { Content::Disks },
            storage: if external { Storage::External } else { Storage::Internal },
            images: then
                .iter()
                .filter(|disk| inside(&disk.target) && disk.format == "qcow2")
                .filter_map(|disk| Some((disk.target.clone(), disk.path.clone()?)))
                .collect(),
            files,
            deleted: self.description.as_deref().is_some_and(Label::is_deleted),
            media: self.domain.iter().flat_map(Domain::media).collect(),
            disks_left_out: then
                .iter()
                .filter(|disk| !disk.read_only && !disks.contains(&disk.target))
                .map(|disk| disk.target.clone())
                .collect(),
            disks,
            unresolved: Vec::new(),
            restrictions: Vec::new(),
            resources: BTreeSet::new(),
            name: self.name,
        }
    }
}

fn recorded_state(state: Option<&str>, with_memory: bool) -> RecordedState {
    match (state, with_memory) {
        (Some("shutoff"), false) => RecordedState::Shutoff,
        (_, false) => RecordedState::DiskOnly,
        (Some("running" | "blocked"), true) => RecordedState::Running,
        (_, true) => RecordedState::Paused,
    }
}

#[cfg(test)]
mod tests;

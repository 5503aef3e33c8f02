//! A snapshot's XML: <https://libvirt.org/formatsnapshot.html>.

use std::collections::BTreeMap;
use std::path::PathBuf;

use quick_xml::events::{BytesText, Event};
use quick_xml::{Reader, Writer};
use serde::Deserialize;
use snapshot_core::description::Label;
use snapshot_core::ids::SnapshotId;
use snapshot_core::snapshot::{Content, RecordedState, Storage};

use super::domain_xml::{Domain, Medium};

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
    /// The targets of the disks in it.
    pub(super) disks: Vec<String>,
    /// The images that the snapshot is inside of, by target: where they were when it was taken, which is where a
    /// revert looks for them.
    pub(super) images: BTreeMap<String, PathBuf>,
    /// The media without which a revert to a running machine fails.
    pub(super) media: Vec<Medium>,
    /// Disks that the guest could write to then and that are not in it: the running state would come back without them.
    pub(super) disks_left_out: Vec<String>,
}

/// Reads a snapshot's XML.
pub(super) fn parse(xml: &str) -> Result<Recorded, quick_xml::DeError> {
    quick_xml::de::from_str::<Snapshot>(xml).map(Snapshot::recorded)
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
        Recorded {
            label: self
                .description
                .as_deref()
                .and_then(Label::decode)
                .unwrap_or_else(|| Label::foreign(&self.name, self.description.as_deref().unwrap_or_default())),
            parent: self.parent.map(|parent| parent.name),
            create_time: self.creation_time,
            content: if with_memory { Content::DisksAndMemory } else { Content::Disks },
            storage: if external { Storage::External } else { Storage::Internal },
            state: recorded_state(self.state.as_deref(), with_memory),
            images: then
                .iter()
                .filter(|disk| inside(&disk.target) && disk.format == "qcow2")
                .filter_map(|disk| Some((disk.target.clone(), disk.path.clone()?)))
                .collect(),
            media: self.domain.iter().flat_map(Domain::media).collect(),
            disks_left_out: then
                .iter()
                .filter(|disk| !disk.read_only && !disks.contains(&disk.target))
                .map(|disk| disk.target.clone())
                .collect(),
            disks,
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

/// The XML of a new snapshot inside the images of these disks.
pub(super) fn create<'a>(
    id: &SnapshotId,
    label: &Label,
    memory: bool,
    disks: impl IntoIterator<Item = &'a str>,
) -> Result<String, std::io::Error> {
    write(|writer| {
        text(writer, "name", id.as_str())?;
        text(writer, "description", &label.encode())?;
        location(writer, memory)?;
        inside(writer, disks)
    })
}

/// The XML by which libvirt comes to know of a snapshot that is in the images of these disks already. It serves to have
/// libvirt delete it, so it tells no more than that takes; `domain` is the domain's own XML.
pub(super) fn adopt<'a>(
    id: &SnapshotId,
    disks: impl IntoIterator<Item = &'a str>,
    domain: &str,
) -> Result<String, std::io::Error> {
    write(|writer| {
        text(writer, "name", id.as_str())?;
        text(writer, "state", "shutoff")?;
        text(writer, "creationTime", "0")?;
        location(writer, false)?;
        inside(writer, disks)?;
        // What libvirt wrote is XML already.
        writer.write_event(Event::Text(BytesText::from_escaped(domain)))
    })
}

type XmlWriter = Writer<Vec<u8>>;

fn write(content: impl FnOnce(&mut XmlWriter) -> std::io::Result<()>) -> Result<String, std::io::Error> {
    let mut writer = Writer::new(Vec::new());
    writer.create_element("domainsnapshot").write_inner_content(content)?;
    String::from_utf8(writer.into_inner()).map_err(std::io::Error::other)
}

fn text(writer: &mut XmlWriter, element: &str, content: &str) -> std::io::Result<()> {
    writer.create_element(element).write_text_content(BytesText::new(content)).map(drop)
}

fn location(writer: &mut XmlWriter, memory: bool) -> std::io::Result<()> {
    let location = if memory { "internal" } else { "no" };
    writer.create_element("memory").with_attribute(("snapshot", location)).write_empty().map(drop)
}

fn inside<'a>(writer: &mut XmlWriter, disks: impl IntoIterator<Item = &'a str>) -> std::io::Result<()> {
    let write_disks = |writer: &mut XmlWriter| {
        for disk in disks {
            let element = writer.create_element("disk").with_attribute(("name", disk));
            element.with_attribute(("snapshot", "internal")).write_empty()?;
        }
        Ok(())
    };
    writer.create_element("disks").write_inner_content(write_disks).map(drop)
}

/// The same snapshot with another description: every other byte stays, because libvirt takes the whole as the new
/// definition.
pub(super) fn with_description(xml: &str, label: &Label) -> Result<String, quick_xml::Error> {
    let mut reader = Reader::from_str(xml);
    let mut writer = Writer::new(Vec::with_capacity(xml.len() + 256));
    let mut depth = 0_u32;
    loop {
        let event = reader.read_event()?;
        match &event {
            Event::Eof => break,
            Event::Start(start) if depth == 1 && start.name().as_ref() == "description" => {
                reader.read_to_end(start.name())?;
                continue;
            }
            Event::Empty(start) if depth == 1 && start.name().as_ref() == "description" => continue,
            Event::Start(_) => depth += 1,
            Event::End(_) => depth = depth.saturating_sub(1),
            _ => {}
        }
        let opens_the_snapshot = depth == 1 && matches!(event, Event::Start(_));
        writer.write_event(event)?;
        if opens_the_snapshot {
            text(&mut writer, "description", &label.encode())?;
        }
    }
    String::from_utf8(writer.into_inner()).map_err(|error| std::io::Error::other(error).into())
}

#[cfg(test)]
mod tests;

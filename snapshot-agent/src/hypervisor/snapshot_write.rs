//! Writes snapshots' XML, and changes it: <https://libvirt.org/formatsnapshot.html>.

use quick_xml::events::{BytesStart, BytesText, Event};
use quick_xml::{Reader, Writer, XmlVersion};
use snapshot_core::description::Label;
use snapshot_core::ids::SnapshotId;
use snapshot_core::vm::VmFacts;

use super::NewExternal;

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

/// What libvirt has to be told of a snapshot that was taken live.
pub(super) struct Taken<'a> {
    pub(super) id: &'a SnapshotId,
    pub(super) label: &'a Label,
    /// libvirt's name of the snapshot that was current.
    pub(super) parent: Option<&'a str>,
    /// In seconds of the Unix epoch.
    pub(super) create_time: i64,
}

/// The XML by which libvirt comes to know of a whole snapshot that is in the images of these disks: as it would have written it
/// itself, had the machine been off. `domain` is what the machine boots as, in libvirt's own words.
pub(super) fn taken<'a>(
    taken: &Taken<'_>,
    disks: impl IntoIterator<Item = &'a str>,
    domain: &str,
) -> Result<String, std::io::Error> {
    write(|writer| {
        text(writer, "name", taken.id.as_str())?;
        text(writer, "description", &taken.label.encode())?;
        text(writer, "state", "shutoff")?;
        if let Some(parent) = taken.parent {
            writer.create_element("parent").write_inner_content(|writer| text(writer, "name", parent))?;
        }
        text(writer, "creationTime", &taken.create_time.to_string())?;
        location(writer, false)?;
        inside(writer, disks)?;
        // What libvirt wrote is XML already.
        writer.write_event(Event::Text(BytesText::from_escaped(domain)))
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
pub(super) fn with_description(xml: &str, description: &str) -> Result<String, quick_xml::Error> {
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
            text(&mut writer, "description", description)?;
        }
    }
    String::from_utf8(writer.into_inner()).map_err(|error| std::io::Error::other(error).into())
}

/// The XML of a new snapshot in overlays. Disks that the guest cannot write to are left out.
pub(super) fn create_external(new: &NewExternal<'_>, vm: &VmFacts) -> Result<String, std::io::Error> {
    write(|writer| {
        text(writer, "name", new.id.as_str())?;
        text(writer, "description", &new.label.encode())?;
        match new.memory_file {
            Some(path) => writer
                .create_element("memory")
                .with_attributes([("snapshot", "external"), ("file", path)])
                .write_empty()
                .map(drop)?,
            None => location(writer, false)?,
        }
        writer.create_element("disks").write_inner_content(|writer| {
            for disk in &vm.disks {
                let element = writer.create_element("disk").with_attribute(("name", disk.target.as_str()));
                match new.overlays.get(&disk.target) {
                    Some(path) => {
                        element.with_attribute(("snapshot", "external")).write_inner_content(|writer| {
                            writer.create_element("driver").with_attribute(("type", "qcow2")).write_empty()?;
                            writer.create_element("source").with_attribute(("file", path.as_str())).write_empty()?;
                            Ok(())
                        })?;
                    }
                    None => _ = element.with_attribute(("snapshot", "no")).write_empty()?,
                }
            }
            Ok(())
        })?;
        Ok(())
    })
}

/// A domain or a snapshot in which disks have `base` where they had `top`. What libvirt had written about the chains below
/// any disk goes as well: it would believe that rather than the images, and find no file where a merge was.
pub(super) fn with_source(xml: &str, top: &str, base: &str, format: &str) -> Result<String, quick_xml::Error> {
    let mut reader = Reader::from_str(xml);
    let mut writer = Writer::new(Vec::with_capacity(xml.len() + 256));
    // The events of a `<disk>`, until it is known whether it is one of these.
    let mut disk: Option<Vec<Event<'_>>> = None;
    loop {
        let event = reader.read_event()?;
        match (&event, &mut disk) {
            (Event::Eof, _) => break,
            (Event::Start(start), None) if start.name().as_ref() == "disk" => disk = Some(vec![event]),
            (Event::End(end), Some(_)) if end.name().as_ref() == "disk" => {
                let mut events = disk.take().unwrap_or_default();
                events.push(event);
                write_disk(&mut writer, events, (top, base, format))?;
            }
            (_, Some(events)) => events.push(event),
            (_, None) => writer.write_event(event)?,
        }
    }
    String::from_utf8(writer.into_inner()).map_err(|error| std::io::Error::other(error).into())
}

/// The same without what was written about chains.
pub(super) fn without_chains(xml: &str) -> Result<String, quick_xml::Error> {
    with_source(xml, "", "", "")
}

/// Writes a `<disk>`; one whose own source is `top` with what replaces it.
fn write_disk(
    writer: &mut XmlWriter,
    events: Vec<Event<'_>>,
    (top, base, format): (&str, &str, &str),
) -> Result<(), quick_xml::Error> {
    let mut depth = 0_u32;
    let mut is_top = false;
    for event in &events {
        match event {
            Event::Start(start) | Event::Empty(start) if depth == 1 && start.name().as_ref() == "source" => {
                is_top |= attribute(start, "file")?.as_deref() == Some(top);
            }
            _ => {}
        }
        depth = after(event, depth);
    }
    depth = 0;
    let mut skipping = false;
    for event in events {
        let (before, now) = (depth, after(&event, depth));
        let of = |name: &str| match &event {
            Event::Start(start) | Event::Empty(start) => start.name().as_ref() == name,
            _ => false,
        };
        let opens = is_top && before == 1;
        let told = is_top || matches!(event, Event::Start(_));
        let chain = told && before == 1 && of("backingStore");
        if chain || skipping {
            // Until the depth is back where the element began.
            skipping = now > 1;
        } else if opens && of("source") {
            replace(writer, &event, ("file", base))?;
        } else if opens && of("driver") {
            replace(writer, &event, ("type", format))?;
        } else {
            writer.write_event(event)?;
        }
        depth = now;
    }
    Ok(())
}

fn after(event: &Event<'_>, depth: u32) -> u32 {
    match event {
        Event::Start(_) => depth + 1,
        Event::End(_) => depth.saturating_sub(1),
        _ => depth,
    }
}

fn attribute(start: &BytesStart<'_>, name: &str) -> Result<Option<String>, quick_xml::Error> {
    let found = start.try_get_attribute(name)?;
    found.map(|attribute| Ok(attribute.normalized_value(XmlVersion::Implicit1_0)?.into_owned())).transpose()
}

/// The same element with another value of one attribute.
fn replace(writer: &mut XmlWriter, event: &Event<'_>, (name, value): (&str, &str)) -> Result<(), quick_xml::Error> {
    let (start, is_empty) = match event {
        Event::Start(start) => (start, false),
        Event::Empty(start) => (start, true),
        _ => return Ok(()),
    };
    let mut changed = BytesStart::new(start.name().as_ref().to_owned());
    for attribute in start.attributes() {
        let attribute = attribute.map_err(quick_xml::Error::from)?;
        if attribute.key.as_ref() == name {
            changed.push_attribute((name, value));
        } else {
            changed.push_attribute(attribute);
        }
    }
    let event = if is_empty { Event::Empty(changed) } else { Event::Start(changed) };
    Ok(writer.write_event(event)?)
}

#[cfg(test)]
mod tests;

//! What a machine is made of, as libvirt's XML tells it.

use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};
use snapshot_core::definition_change::Definition;
use snapshot_core::hardware::{Element, Hardware};

/// How deep libvirt's XML may be; it is some eight deep.
const DEEPEST: usize = 64;

/// A machine that is on: as it runs, and as it starts the next time.
pub(super) fn now(running: &str, next_start: &str) -> Result<Option<Hardware>, quick_xml::Error> {
    let Some((running, cpu)) = read(running)?.map(without_cpu) else { return Ok(None) };
    Ok(Some(Hardware { running, cpu, next_start: read(next_start)? }))
}

/// The machine when a snapshot of it was taken while it was on. What CPU was asked for is written beside its devices; the one that
/// the guest saw, in what libvirt calls a cookie.
pub(super) fn then(snapshot: &str) -> Result<Option<Hardware>, quick_xml::Error> {
    let Some(snapshot) = read(snapshot)? else { return Ok(None) };
    let Some((running, _)) = child(snapshot.clone(), "domain").map(without_cpu) else { return Ok(None) };
    let cpu = child(snapshot.clone(), "cookie").and_then(|cookie| child(cookie, "cpu"));
    let next_start = child(snapshot, "inactiveDomain").map(|domain| Element { name: running.name.clone(), ..domain });
    Ok(Some(Hardware { running, cpu, next_start }))
}

/// The definition of a VM: as it runs, if it does, and as it starts the next time.
pub(super) fn definition(running: Option<&str>, next_start: &str) -> Result<Definition, quick_xml::Error> {
    let running = running.map(read).transpose()?.flatten();
    Ok(Definition { next_start: read(next_start)?, running: running.map(|domain| without_cpu(domain).0) })
}

/// The definition that a snapshot holds. Of a VM that was off there is one; of one that was on, the running one, and beside it the
/// one for the next start, where libvirt wrote it.
pub(super) fn recorded(snapshot: &str) -> Result<Definition, quick_xml::Error> {
    let Some(snapshot) = read(snapshot)? else { return Ok(Definition::default()) };
    let was_on = child(snapshot.clone(), "state")
        .is_some_and(|state| matches!(state.text.as_str(), "running" | "blocked" | "paused" | "disk-snapshot"));
    let Some(domain) = child(snapshot.clone(), "domain") else { return Ok(Definition::default()) };
    if !was_on {
        return Ok(Definition { next_start: Some(domain), running: None });
    }
    let next_start =
        child(snapshot, "inactiveDomain").map(|inactive| Element { name: domain.name.clone(), ..inactive });
    Ok(Definition { next_start, running: Some(without_cpu(domain).0) })
}

fn without_cpu(mut domain: Element) -> (Element, Option<Element>) {
    let place = domain.children.iter().position(|child| child.name == "cpu");
    let cpu = place.map(|place| domain.children.remove(place));
    (domain, cpu)
}

fn child(element: Element, name: &str) -> Option<Element> {
    element.children.into_iter().find(|child| child.name == name)
}

/// The outermost element of libvirt's XML; `None` where there is none, or where they are nested without end.
pub(super) fn read(xml: &str) -> Result<Option<Element>, quick_xml::Error> {
    let mut reader = Reader::from_str(xml);
    let mut open: Vec<Element> = Vec::new();
    loop {
        let closed = match reader.read_event()? {
            Event::Start(start) if open.len() < DEEPEST => {
                open.push(element(&start)?);
                None
            }
            Event::Empty(start) => Some(element(&start)?),
            Event::End(_) => open.pop(),
            Event::Text(text) => {
                add(&mut open, &text.xml10_content());
                None
            }
            Event::GeneralRef(reference) => {
                // Which character it stands for matters less than that two are told apart.
                add(&mut open, &format!("&{};", reference.xml10_content()));
                None
            }
            Event::CData(data) => {
                add(&mut open, &data.xml10_content());
                None
            }
            Event::Eof | Event::Start(_) => return Ok(None),
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => None,
        };
        let Some(mut closed) = closed else { continue };
        closed.text = closed.text.trim().to_owned();
        match open.last_mut() {
            Some(parent) => parent.children.push(closed),
            None => return Ok(Some(closed)),
        }
    }
}

fn add(open: &mut [Element], text: &str) {
    if let Some(element) = open.last_mut() {
        element.text.push_str(text);
    }
}

fn element(start: &BytesStart<'_>) -> Result<Element, quick_xml::Error> {
    let mut element = Element { name: start.name().as_ref().to_owned(), ..Element::default() };
    for attribute in start.attributes() {
        let attribute = attribute.map_err(quick_xml::Error::from)?;
        let value = attribute.normalized_value(XmlVersion::Implicit1_0)?.into_owned();
        element.attributes.insert(attribute.key.as_ref().to_owned(), value);
    }
    Ok(element)
}

#[cfg(test)]
mod tests {
    use snapshot_core::definition_change::changes;
    use snapshot_core::hardware::{Comparison, compare};

    use super::super::xml_samples::{HARDWARE_NEXT_START, HARDWARE_RUNNING, HARDWARE_SNAPSHOT, SNAPSHOT_OFF};
    use super::*;

    /// What is told of a machine that was started anew since the snapshot.
    fn told(running: &str, next_start: &str) -> String {
        let now = now(running, next_start).unwrap().unwrap();
        match compare(&then(HARDWARE_SNAPSHOT).unwrap().unwrap(), &now) {
            Comparison::Same => String::new(),
            Comparison::Different(what) => what,
        }
    }

    #[test]
    fn the_machine_of_a_snapshot_is_the_one_that_it_was_taken_of() {
        assert_eq!(told(HARDWARE_RUNNING, HARDWARE_NEXT_START), "");
    }

    #[test]
    fn other_hardware_is_told() {
        let changed = |from: &str, to: &str| {
            assert!(HARDWARE_RUNNING.contains(from), "{from}");
            told(&HARDWARE_RUNNING.replace(from, to), HARDWARE_NEXT_START)
        };
        assert!(changed("16384</memory>", "32768</memory>").starts_with("memory was"));
        assert!(changed("lahf_lm", "svm").contains("cpu/feature"));
        assert!(changed("static'>1</vcpu>", "static'>2</vcpu>").starts_with("vcpu was"));
        assert!(changed("pc-i440fx-10.0", "pc-i440fx-9.2").contains("os/type: machine was"));
        assert!(changed("slot='0x03'", "slot='0x0a'").contains("address"));
        assert!(changed("/images/g-b.qcow2", "/images/other.qcow2").contains("source: file was"));
        assert_eq!(changed("<devices>", "<devices><watchdog model='itco'/>"), "devices/watchdog is new");
        let next = HARDWARE_NEXT_START.replace("<devices>", "<devices><watchdog model='itco'/>");
        assert_eq!(told(HARDWARE_RUNNING, &next), "at its next start: devices/watchdog is new");
    }

    #[test]
    fn a_vm_that_was_only_started_anew_has_the_definition_of_its_snapshot() {
        let told = |running: Option<&str>, next_start: &str, snapshot: &str| {
            let (now, then) = (definition(running, next_start).unwrap(), recorded(snapshot).unwrap());
            changes(&now, &then, false).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let none: [&str; 0] = [];
        assert_eq!(told(Some(HARDWARE_RUNNING), HARDWARE_NEXT_START, HARDWARE_SNAPSHOT), none);
        assert_eq!(told(None, HARDWARE_NEXT_START, HARDWARE_SNAPSHOT), none);
        // An old libvirt wrote the running definition alone.
        let start = HARDWARE_SNAPSHOT.find("<inactiveDomain").unwrap();
        let end = HARDWARE_SNAPSHOT.find("</inactiveDomain>").unwrap() + "</inactiveDomain>".len();
        let old = [&HARDWARE_SNAPSHOT[..start], &HARDWARE_SNAPSHOT[end..]].concat();
        assert_eq!(told(Some(HARDWARE_RUNNING), HARDWARE_NEXT_START, &old), none);
        assert_eq!(told(None, HARDWARE_NEXT_START, &old), none);
        let more = HARDWARE_NEXT_START.replace("16384</memory>", "65536</memory>").replace("'>1</vcpu>", "'>4</vcpu>");
        assert_eq!(told(None, &more, HARDWARE_SNAPSHOT), ["memory: 64 MiB \u{2192} 16 MiB", "vCPUs: 4 \u{2192} 1"]);
        let plugged = HARDWARE_RUNNING.replace("<devices>", "<devices><watchdog model='itco'/>");
        assert_eq!(
            told(Some(&plugged), HARDWARE_NEXT_START, HARDWARE_SNAPSHOT),
            ["watchdog itco is removed"],
            "in the process alone"
        );
        assert_eq!(told(None, HARDWARE_NEXT_START, "").len(), 1, "a snapshot without a definition is told");
    }

    #[test]
    fn what_is_not_told_is_not_made_up() {
        let off = then(SNAPSHOT_OFF).unwrap().unwrap();
        assert!(off.cpu.is_none() && off.next_start.is_none(), "{off:?}");
        assert_eq!(then("<domainsnapshot/>").unwrap(), None);
        assert_eq!(then("").unwrap(), None);
        assert_eq!(then(&"<a>".repeat(100_000)).unwrap(), None);
        let text = read("<a>  x &amp; <b c='1 &lt; 2'/> y </a>").unwrap().unwrap();
        assert_eq!((text.text.as_str(), text.children[0].attributes["c"].as_str()), ("x &amp;  y", "1 < 2"));
    }
}

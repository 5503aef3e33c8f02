//! Whether a machine is still made of what it was made of when a snapshot was taken.
//!
//! A revert in place loads the running state into the QEMU process that there is. QEMU checks little of what it loads: it
//! refuses another size of RAM and a device that it does not have, but a device that the state knows nothing of simply stays
//! as it is, in the middle of a guest that has never seen it. So this decides before QEMU is asked, from what libvirt wrote
//! about the machine then and what it tells of it now.
//!
//! Everything that is told counts, known here or not, but for what is listed here as of no weight: it belongs to the host's
//! side of a device, which the running process keeps, or to this run of it. What has state outside of QEMU counts always. A
//! difference costs nothing but time: libvirt's own revert is what comes then.

use std::collections::BTreeMap;

/// An element of libvirt's description of a machine (<https://libvirt.org/formatdomain.html>).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Element {
    /// Its name, such as `disk`.
    pub name: String,
    /// Its attributes.
    pub attributes: BTreeMap<String, String>,
    /// Its text, without white space around it.
    pub text: String,
    /// What is in it, in the order of the text, which means nothing.
    pub children: Vec<Element>,
}

/// What a machine is made of, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hardware {
    /// `<domain>` as it runs, without its CPU.
    pub running: Element,
    /// The CPU that the guest really sees; `None` when that is not told.
    pub cpu: Option<Element>,
    /// `<domain>` as it starts the next time, which a revert brings back as well; `None` when that is not told.
    pub next_start: Option<Element>,
}

/// What came of a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Comparison {
    /// A running state of then fits the machine of now.
    Same,
    /// It may not: the first difference, for a person to read.
    Different(String),
}

/// Elements of no weight, wherever they are: how a process is confined, and libvirt's names for devices, which are not written
/// about a snapshot. What QEMU loads goes by their addresses.
const FREE_ANYWHERE: [&str; 2] = ["alias", "seclabel"];

/// Elements of no weight: names and notes, where the process is accounted, how much of its RAM the guest lends back (which is
/// part of the running state), the files below an image, which a snapshot inside it does not change, and the host's ends of
/// lines and network cards.
const FREE: [&str; 19] = [
    "name",
    "title",
    "description",
    "metadata",
    "currentMemory",
    "resource",
    "devices/disk/backingStore",
    "devices/disk/source/privateData",
    "devices/interface/target",
    "devices/serial/source",
    "devices/serial/log",
    "devices/parallel/source",
    "devices/parallel/log",
    "devices/console/source",
    "devices/console/log",
    "devices/channel/source",
    "devices/channel/log",
    "devices/graphics/listen",
    "devices/graphics/channel",
];

/// Attributes of no weight: of this run, or of the host's side.
const FREE_ATTRIBUTES: [(&str, &str); 14] = [
    ("", "id"),
    ("devices/disk/source", "index"),
    ("devices/interface/source", "portid"),
    ("devices/channel/target", "state"),
    ("devices/console", "tty"),
    ("devices/graphics", "port"),
    ("devices/graphics", "tlsPort"),
    ("devices/graphics", "websocket"),
    ("devices/graphics", "websocketGenerated"),
    ("devices/graphics", "listen"),
    ("devices/graphics", "socket"),
    ("devices/graphics", "passwd"),
    ("devices/graphics", "passwdValidTo"),
    ("devices/graphics", "connected"),
];

/// Devices with state of their own outside of QEMU, or outside of what it loads; and what libvirt's own revert treats in its
/// own way: the UEFI variables, and the number by which a guest learns that it was taken back.
const OUTSIDE: [&str; 7] =
    ["genid", "devices/tpm", "devices/hostdev", "devices/filesystem", "devices/shmem", "devices/vsock", "os/nvram"];

/// Compares the machine of a snapshot with that of now.
pub fn compare(then: &Hardware, now: &Hardware) -> Comparison {
    let found = outside(&now.running, "")
        .or_else(|| differ("", &weighed(&then.running, ""), &weighed(&now.running, "")))
        .or_else(|| match (&then.cpu, &now.cpu) {
            (Some(then), Some(now)) => differ("cpu", &weighed(then, "cpu"), &weighed(now, "cpu")),
            _ => Some("the CPU of then or of now is not known".to_owned()),
        })
        .or_else(|| match (&then.next_start, &now.next_start) {
            (Some(then), Some(now)) => {
                differ("", &weighed(then, ""), &weighed(now, "")).map(|what| format!("at its next start: {what}"))
            }
            _ => Some("how the machine starts the next time is not known".to_owned()),
        });
    found.map_or(Comparison::Same, Comparison::Different)
}

fn within(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") }
}

fn outside(element: &Element, path: &str) -> Option<String> {
    element.children.iter().find_map(|child| {
        let path = within(path, &child.name);
        if OUTSIDE.contains(&path.as_str()) {
            return Some(format!("{path} has state that QEMU does not load"));
        }
        outside(child, &path)
    })
}

/// The element with what has weight only, and in one order.
pub(crate) fn weighed(element: &Element, path: &str) -> Element {
    // The bridge of a network is told while the machine runs, and belongs to the network.
    let of_network = path == "devices/interface/source" && element.attributes.contains_key("network");
    let is_free = |name: &str| FREE_ATTRIBUTES.contains(&(path, name)) || (of_network && name == "bridge");
    let attributes = element.attributes.iter().filter(|(name, _)| !is_free(name));
    let mut children: Vec<Element> = element
        .children
        .iter()
        .map(|child| (child, within(path, &child.name)))
        .filter(|(child, path)| !FREE_ANYWHERE.contains(&child.name.as_str()) && !FREE.contains(&path.as_str()))
        .map(|(child, path)| weighed(child, &path))
        .collect();
    children.sort();
    Element {
        name: element.name.clone(),
        attributes: attributes.map(|(name, value)| (name.clone(), value.clone())).collect(),
        text: element.text.trim().to_owned(),
        children,
    }
}

/// The first difference of two weighed elements.
fn differ(path: &str, then: &Element, now: &Element) -> Option<String> {
    if then == now {
        return None;
    }
    let what = if path.is_empty() { then.name.as_str() } else { path };
    let names = then.attributes.keys().chain(now.attributes.keys());
    for name in names {
        let (was, is) = (then.attributes.get(name), now.attributes.get(name));
        if was != is {
            let told =
                |value: Option<&String>| value.map_or("absent".to_owned(), |value| format!("\u{201c}{value}\u{201d}"));
            return Some(format!("{what}: {name} was {} and is {}", told(was), told(is)));
        }
    }
    if then.text != now.text {
        return Some(format!("{what} was \u{201c}{}\u{201d} and is \u{201c}{}\u{201d}", then.text, now.text));
    }
    let (gone, new) = (less(&then.children, &now.children), less(&now.children, &then.children));
    let (gone_first, new_first) = (gone.first(), new.first());
    for was in &gone {
        if let Some(is) = new.iter().find(|is| is.name == was.name && label(is) == label(was)) {
            return differ(&within(path, &was.name), was, is).or_else(|| Some(format!("{what} is told otherwise")));
        }
    }
    match (gone_first, new_first) {
        (_, Some(is)) => Some(format!("{} is new", title(path, is))),
        (Some(was), None) => Some(format!("{} is gone", title(path, was))),
        (None, None) => Some(format!("{what} is told otherwise")),
    }
}

/// What is in the first and not in the second, each as often as it is there more often.
fn less<'a>(these: &'a [Element], those: &[Element]) -> Vec<&'a Element> {
    let mut left: Vec<&Element> = those.iter().collect();
    let mut more = Vec::new();
    for element in these {
        match left.iter().position(|other| *other == element) {
            Some(place) => drop(left.swap_remove(place)),
            None => more.push(element),
        }
    }
    more
}

/// What tells an element from others of its name.
fn label(element: &Element) -> Option<&str> {
    let inner = |child: &str, name: &str| {
        element.children.iter().find(|other| other.name == child).and_then(|other| other.attributes.get(name))
    };
    let own = |name: &str| element.attributes.get(name);
    let found = inner("target", "dev").or_else(|| inner("mac", "address")).or_else(|| own("name"));
    found.or_else(|| own("index")).or_else(|| own("id")).map(String::as_str)
}

fn title(path: &str, element: &Element) -> String {
    let name = within(path, &element.name);
    label(element).map_or(name.clone(), |label| format!("{name} {label}"))
}

#[cfg(test)]
mod tests;

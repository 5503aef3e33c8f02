//! What a revert changes in a VM's definition, by name and value.
//!
//! libvirt's revert gives a VM the definition that it had when the snapshot was taken: its RAM, vCPUs, network cards, boot
//! order, title. An administrator's memory limit or network isolation is undone by it, so a plan names every difference.
//!
//! 1. The definitions by which the VM starts the next time are compared; where both are known of a running VM, the running ones
//!    as well, which tells of devices that were plugged into the process alone.
//! 2. Elements are paired by what identifies them (a target, a MAC address, an index), and then in their order.
//! 3. What differs is reported by a name where there is one, and by its path in libvirt's XML
//!    (<https://libvirt.org/formatdomain.html>) otherwise. Nothing is left out but what is on the lists of weightless things.

mod name;
mod weight;

use std::fmt;

use crate::hardware::Element;

/// The most changes that are listed one by one; the number of the others is told.
const MOST: usize = 64;

/// One difference between the VM's definition and the one that a revert restores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefinitionChange {
    /// What changes, such as `memory`, `network card 52:54:00:00:00:01: link` or `disk vda: driver/cache`.
    pub what: String,
    /// Its value now; `None` where the VM does not have it and gets it.
    pub from: Option<String>,
    /// Its value after the revert; `None` where it is removed.
    pub to: Option<String>,
}

impl DefinitionChange {
    fn new(what: impl Into<String>, from: Option<String>, to: Option<String>) -> Self {
        Self { what: what.into(), from, to }
    }

    /// The size of a disk in bytes, now and in the snapshot; `None` where it stays.
    pub fn disk_size(target: &str, now: u64, then: u64) -> Option<Self> {
        let how = match then.cmp(&now) {
            std::cmp::Ordering::Less => "shrinks",
            std::cmp::Ordering::Equal => return None,
            std::cmp::Ordering::Greater => "grows",
        };
        Some(Self::new(format!("disk {target} {how}"), Some(name::size(now)), Some(name::size(then))))
    }

    /// Whether it is in the image of a disk and not in the definition: the disk's size.
    pub fn is_of_image(&self) -> bool {
        self.what.starts_with("disk ") && [" shrinks", " grows"].iter().any(|how| self.what.ends_with(how))
    }

    /// Whether the VM can keep what it has now when its disks are reverted. It cannot where its disks or UEFI variables are others, and
    /// where it is not known what differs.
    pub fn can_stay(&self) -> bool {
        let in_place = |setting: &str| setting == "boot order" || setting.starts_with("iotune");
        match self.what.strip_prefix("disk ") {
            Some(disk) => disk.split_once(": ").is_some_and(|(_, setting)| in_place(setting)),
            None => {
                let firmware = ["nvram", "loader", "firmware", "varstore"];
                let is_known = self.what != "definition" && !self.what.ends_with("further settings");
                is_known && !firmware.iter().any(|word| self.what.contains(word))
            }
        }
    }

    /// For a definition that could not be compared.
    pub fn unknown(why: &str) -> Self {
        let now = format!("the present one, which could not be compared ({why})");
        Self::new("definition", Some(now), Some("that of the snapshot".to_owned()))
    }
}

impl fmt::Display for DefinitionChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = |value: &str| if value.is_empty() { String::new() } else { format!(" ({value})") };
        match (&self.from, &self.to) {
            (Some(from), Some(to)) => write!(f, "{}: {from} \u{2192} {to}", self.what),
            (Some(from), None) => write!(f, "{}{} is removed", self.what, value(from)),
            (None, Some(to)) => write!(f, "{}{} is added", self.what, value(to)),
            (None, None) => write!(f, "{} changes", self.what),
        }
    }
}

/// A VM's definition at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Definition {
    /// `<domain>` by which it starts the next time; `None` where that is not recorded.
    pub next_start: Option<Element>,
    /// `<domain>` as it runs, without its CPU; `None` where it does not run.
    pub running: Option<Element>,
}

impl Definition {
    /// Whether the VM has an emulated TPM, whose state is in a directory of the host.
    pub fn has_emulated_tpm(&self) -> bool {
        let mut domains = self.next_start.iter().chain(&self.running);
        domains.any(|domain| {
            let devices = domain.children.iter().filter(|child| child.name == "devices");
            let tpms = devices.flat_map(|devices| &devices.children).filter(|device| device.name == "tpm");
            let mut backends = tpms.flat_map(|tpm| &tpm.children).filter(|child| child.name == "backend");
            backends.any(|backend| backend.attributes.get("type").is_some_and(|kind| kind == "emulator"))
        })
    }
}

/// What becomes of the definition of `now` when that of `then` is restored. The images of an external snapshot's disks differ
/// by their nature and are no difference.
pub fn changes(now: &Definition, then: &Definition, external: bool) -> Vec<DefinitionChange> {
    let mut found = Vec::new();
    match (&now.next_start, &then.next_start) {
        (Some(now), Some(then)) => {
            let weighed = |domain: &Element| weight::of_next_start(domain, external);
            compare(&Place::default(), &weighed(now), &weighed(then), &mut found);
        }
        (Some(next_start), None) => match &then.running {
            // What is recorded of a process is compared with a process, or with what it would be started from.
            Some(then) => {
                let now = now.running.as_ref().unwrap_or(next_start);
                let (now, then) = (weight::of_running(now, external), weight::of_running(then, external));
                compare(&Place::default(), &now, &then, &mut found);
            }
            None => found.push(DefinitionChange::unknown("the snapshot has none")),
        },
        (None, _) => found.push(DefinitionChange::unknown("the VM's cannot be read")),
    }
    if let (Some(now), Some(then), true) = (&now.running, &then.running, then.next_start.is_some()) {
        let mut of_process = Vec::new();
        let (now, then) = (weight::of_running(now, external), weight::of_running(then, external));
        compare(&Place::default(), &now, &then, &mut of_process);
        of_process.retain(|change| !found.iter().any(|known| known.what == change.what));
        found.append(&mut of_process);
    }
    if let Some(memory) = found.iter().find(|change| change.what == "memory").cloned() {
        // It follows the memory, unless somebody set it to something else.
        found.retain(|change| change.what != name::BALLOON || (&change.from, &change.to) != (&memory.from, &memory.to));
    }
    let more = found.len().saturating_sub(MOST);
    if more > 0 {
        found.truncate(MOST);
        found.push(DefinitionChange::new(format!("{more} further settings"), None, None));
    }
    found
}

/// Where in the definition a comparison is.
#[derive(Debug, Clone, Default)]
struct Place {
    /// The path from the domain, such as `devices/disk/driver`; empty for the domain itself.
    path: String,
    /// The device it is in, by name, and the length of that device's path.
    device: Option<(String, usize)>,
}

impl Place {
    fn enter(&self, element: &Element) -> Self {
        let path = if self.path.is_empty() { element.name.clone() } else { format!("{}/{}", self.path, element.name) };
        let device = match &self.device {
            None if self.path == "devices" => Some((name::device(element), path.len())),
            device => device.clone(),
        };
        Self { path, device }
    }

    /// What is here, for a person to read; `attribute` is one of the element's, or none.
    fn what(&self, attribute: Option<&str>) -> String {
        let known = name::known(&self.path, attribute);
        let full = attribute.map_or(self.path.clone(), |attribute| match self.path.as_str() {
            "" => attribute.to_owned(),
            path => format!("{path}/{attribute}"),
        });
        match (&self.device, known) {
            (Some((device, _)), Some(known)) => format!("{device}: {known}"),
            (Some((device, length)), None) => match full.get(length + 1..) {
                Some(inner) => format!("{device}: {inner}"),
                None => device.clone(),
            },
            (None, Some(known)) => known.to_owned(),
            (None, None) => full,
        }
    }
}

/// Reports every difference of two weighed elements.
fn compare(place: &Place, now: &Element, then: &Element, found: &mut Vec<DefinitionChange>) {
    if now == then {
        return;
    }
    if name::is_size(&place.path)
        && let (Some(from), Some(to)) = (name::memory(now), name::memory(then))
    {
        return found.extend((from != to).then(|| DefinitionChange::new(place.what(None), Some(from), Some(to))));
    }
    for attribute in merged(now.attributes.keys(), then.attributes.keys()) {
        let (from, to) = (now.attributes.get(attribute), then.attributes.get(attribute));
        if from != to {
            let value = |value: Option<&String>| name::attribute(&place.path, attribute, value.map(String::as_str));
            let (mut from, to) = (value(from), value(to));
            if name::is_secret(attribute) {
                from = from.map(|_| "the present one".to_owned());
            }
            found.push(DefinitionChange::new(place.what(Some(attribute)), from, to));
        }
    }
    if now.text != then.text {
        let value = |text: &str| Some(name::text(text));
        found.push(DefinitionChange::new(place.what(None), value(&now.text), value(&then.text)));
    }
    children(place, now, then, found);
}

fn children(place: &Place, now: &Element, then: &Element, found: &mut Vec<DefinitionChange>) {
    // The order means something here only, and nothing tells one from another.
    if place.path == "os" {
        let order = |os: &Element| {
            let boots = os.children.iter().filter(|child| child.name == "boot");
            boots.filter_map(|boot| boot.attributes.get("dev").cloned()).collect::<Vec<_>>().join(", ")
        };
        let (from, to) = (order(now), order(then));
        if from != to {
            found.push(DefinitionChange::new("boot order", Some(name::text(&from)), Some(name::text(&to))));
        }
    }
    let paired = |element: &&Element| !(place.path == "os" && element.name == "boot");
    let mut before: Vec<&Element> = now.children.iter().filter(paired).collect();
    let mut after: Vec<&Element> = then.children.iter().filter(paired).collect();
    // What is the same on both sides, as often as it is on both.
    before.retain(|element| match after.iter().position(|other| other == element) {
        Some(same) => {
            after.remove(same);
            false
        }
        None => true,
    });
    for element in before {
        let key = name::key(element);
        match after.iter().position(|other| name::key(other) == key) {
            Some(same) => compare(&place.enter(element), element, after.remove(same), found),
            None => found.push(one_sided(&place.enter(element), element, true)),
        }
    }
    for element in after {
        found.push(one_sided(&place.enter(element), element, false));
    }
}

/// An element that only one side has.
fn one_sided(place: &Place, element: &Element, is_now: bool) -> DefinitionChange {
    // An absent setting has a value, too.
    if let Some((attribute, absent)) = name::default_of(&place.path) {
        let (value, absent) = (element.attributes.get(attribute).cloned(), Some(absent.to_owned()));
        let (from, to) = if is_now { (value, absent) } else { (absent, value) };
        return DefinitionChange::new(place.what(Some(attribute)), from, to);
    }
    // A device is named by what it is already.
    let value = Some(name::describe(element)).filter(|value| !place.what(None).ends_with(value.as_str()));
    let value = Some(value.unwrap_or_default());
    let (from, to) = if is_now { (value, None) } else { (None, value) };
    DefinitionChange::new(place.what(None), from, to)
}

/// The names of both, each once.
fn merged<'a>(these: impl Iterator<Item = &'a String>, those: impl Iterator<Item = &'a String>) -> Vec<&'a str> {
    let mut all: Vec<&str> = these.chain(those).map(String::as_str).collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
mod name_tests;
#[cfg(test)]
mod tests;

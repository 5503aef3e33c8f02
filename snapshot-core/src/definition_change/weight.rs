//! What of a definition is no difference that a revert makes.

use crate::hardware::{Element, weighed};

/// Elements that libvirt writes by itself: what a running disk is copied to and what is below its image, which follow from the
/// image, and the number by which a guest learns of a revert, which is a new one after each.
const WEIGHTLESS: [&str; 4] =
    ["genid", "devices/disk/backingStore", "devices/disk/mirror", "devices/disk/source/privateData"];

/// Of attributes, those of one run of the VM.
const WEIGHTLESS_ATTRIBUTES: [(&str, &str); 2] = [("", "id"), ("devices/disk/source", "index")];

/// What an external snapshot changes by being taken: a disk moves to another image, which is qcow2.
const MOVED: [(&str, &str); 3] =
    [("devices/disk/source", "file"), ("devices/disk/source", "dev"), ("devices/disk/driver", "type")];

/// A definition by which a VM is started, with what has weight only.
pub(super) fn of_next_start(domain: &Element, external: bool) -> Element {
    keep(domain, "", external)
}

/// A running VM, without what belongs to its run and to the host's side of its devices.
pub(super) fn of_running(domain: &Element, external: bool) -> Element {
    let mut domain = weighed(domain, "");
    // Of a process it is not told as it was asked for.
    domain.children.retain(|child| child.name != "cpu");
    keep(&domain, "", external)
}

fn keep(element: &Element, path: &str, external: bool) -> Element {
    let is_weightless = |name: &str| {
        let place = (path, name);
        WEIGHTLESS_ATTRIBUTES.contains(&place) || external && MOVED.contains(&place)
    };
    let attributes = element.attributes.iter().filter(|(name, _)| !is_weightless(name));
    let children = element.children.iter().filter_map(|child| {
        let path = if path.is_empty() { child.name.clone() } else { format!("{path}/{}", child.name) };
        let is_weightless = WEIGHTLESS.contains(&path.as_str()) || is_made_up(child);
        (!is_weightless).then(|| keep(child, &path, external))
    });
    Element {
        name: element.name.clone(),
        attributes: attributes.map(|(name, value)| (name.clone(), value.clone())).collect(),
        text: element.text.trim().to_owned(),
        children: children.collect(),
    }
}

/// Whether it is a device's name of libvirt's own making; a user's begins with `ua-`.
fn is_made_up(element: &Element) -> bool {
    element.name == "alias" && element.attributes.get("name").is_none_or(|name| !name.starts_with("ua-"))
}

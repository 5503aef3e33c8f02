//! Resources that are paths.

use std::collections::BTreeSet;

use super::{Resource, attribute, child};
use crate::hardware::Element;

/// Parts of a domain in which text that begins with `/` is no path: names and notes of others, what the guest sees, names of
/// control groups and labels, certificates in base64.
const NO_PATHS: [&str; 11] = [
    "name",
    "uuid",
    "title",
    "description",
    "metadata",
    "cpu",
    "features",
    "resource",
    "seclabel",
    "launchSecurity",
    "currentMemory",
];

pub(super) fn has_no_paths(name: &str) -> bool {
    NO_PATHS.contains(&name)
}

/// Every absolute path in an element.
pub(super) fn generic(element: &Element, needed: &mut BTreeSet<Resource>) {
    if matches!(element.name.as_str(), "alias" | "address" | "seclabel" | "target") {
        return;
    }
    if element.name == "log" {
        return parent(attribute(element, "file"), needed);
    }
    let values = element.attributes.values().chain([&element.text]);
    values.for_each(|value| path(value, needed));
    element.children.iter().for_each(|child| generic(child, needed));
}

/// A path that has to exist, if it is one.
pub(super) fn path(value: &str, needed: &mut BTreeSet<Resource>) {
    if value.starts_with('/') {
        needed.insert(Resource::Path(value.to_owned()));
    }
}

/// The directory of a file or a socket that is created in it. libvirt makes those that it names after a run of a domain itself.
pub(super) fn parent(value: &str, needed: &mut BTreeSet<Resource>) {
    let Some((directory, _)) = value.rsplit_once('/') else { return };
    let is_of_a_run = directory.split('/').any(|part| {
        part.strip_prefix("domain-")
            .is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit() || first == '-'))
    });
    if !is_of_a_run {
        path(if directory.is_empty() { "/" } else { directory }, needed);
    }
}

/// A file with the variables of the UEFI that does not exist is made from its template. libvirt since 12.1 compares their formats
/// even where the file exists.
pub(super) fn nvram(element: &Element, needed: &mut BTreeSet<Resource>) {
    let file = child(element, "source").map_or(element.text.as_str(), |source| attribute(source, "file"));
    match attribute(element, "template") {
        "" => parent(file, needed),
        template => {
            parent(file, needed);
            path(template, needed);
            let format = |name| Some(attribute(element, name)).filter(|format| !format.is_empty()).unwrap_or("raw");
            let (from, to) = (format("templateFormat").to_owned(), format("format").to_owned());
            if from != to {
                needed.insert(Resource::NvramConversion { from, to });
            }
        }
    }
}

/// The host's end of a character device (<https://libvirt.org/formatdomain.html#host-interface>), of the type that `device` has.
pub(super) fn character(device: &Element, needed: &mut BTreeSet<Resource>) {
    let sources = || device.children.iter().filter(|child| child.name == "source");
    match attribute(device, "type") {
        // QEMU opens a new terminal, and libvirt writes down which.
        "pty" | "null" | "vc" | "stdio" | "tcp" | "udp" | "spicevmc" | "spiceport" | "dbus" | "qemu-vdagent" | "" => {}
        "file" => sources().for_each(|source| parent(attribute(source, "path"), needed)),
        "unix" => sources().for_each(|source| match attribute(source, "mode") {
            "connect" => path(attribute(source, "path"), needed),
            _ => parent(attribute(source, "path"), needed),
        }),
        "dev" | "pipe" | "nmdm" => sources().for_each(|source| generic(source, needed)),
        kind => _ = needed.insert(Resource::Unknown(format!("{} of type {kind}", device.name))),
    }
    let rest = device.children.iter().filter(|child| !matches!(child.name.as_str(), "source" | "protocol" | "target"));
    rest.for_each(|child| generic(child, needed));
}

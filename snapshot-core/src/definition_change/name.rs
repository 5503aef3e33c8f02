//! Names and values of a definition's settings, for people.

use crate::hardware::Element;

/// The most characters of a value that are shown.
const MOST_CHARS: usize = 100;

/// The name of `<currentMemory>`.
pub(super) const BALLOON: &str = "memory at the start (balloon)";

/// The setting's name, where it has one that is better than its path.
pub(super) fn known(path: &str, attribute: Option<&str>) -> Option<&'static str> {
    let name = match (path, attribute) {
        ("currentMemory", None) => BALLOON,
        ("maxMemory", None) => "maximum memory",
        ("vcpu", None) => "vCPUs",
        ("vcpu", Some("current")) => "vCPUs at the start",
        ("os/type", Some("machine")) => "machine type",
        ("devices/interface/link", Some("state")) => "link",
        ("devices/interface/source", Some("network")) => "network",
        ("devices/interface/source", Some("bridge")) => "bridge",
        ("devices/interface/model", Some("type")) => "model",
        ("devices/disk/source", Some("file")) => "image",
        ("devices/disk/source", Some("dev")) => "block device",
        ("devices/graphics", Some("passwd")) => "password",
        (_, Some("order")) if path.starts_with("devices/") && path.ends_with("/boot") => "boot order",
        _ => return None,
    };
    Some(name)
}

/// The attribute that an optional element is there for, and the value that its absence stands for.
pub(super) fn default_of(path: &str) -> Option<(&'static str, &'static str)> {
    match path {
        "devices/interface/link" => Some(("state", "up")),
        _ if path.starts_with("devices/") && path.ends_with("/boot") => Some(("order", "none")),
        _ => None,
    }
}

/// Whether it is a size with a unit.
pub(super) fn is_size(path: &str) -> bool {
    matches!(path, "memory" | "currentMemory" | "maxMemory")
}

/// Whether its value is not for everybody's eyes.
pub(super) fn is_secret(attribute: &str) -> bool {
    matches!(attribute, "passwd" | "password")
}

/// The value of an attribute; of one that is absent, its default or that it is not set.
pub(super) fn attribute(path: &str, name: &str, value: Option<&str>) -> Option<String> {
    let absent = default_of(path).filter(|(attribute, _)| *attribute == name).map_or("not set", |(_, absent)| absent);
    Some(match value {
        Some(_) if is_secret(name) => "that of the snapshot".to_owned(),
        Some(value) => text(value),
        None => absent.to_owned(),
    })
}

/// What an element tells of memory; `None` where it is written in a way that is not known.
pub(super) fn memory(element: &Element) -> Option<String> {
    let unit: u64 = match element.attributes.get("unit").map_or("KiB", String::as_str) {
        "b" | "bytes" => 1,
        "KiB" | "k" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        _ => return None,
    };
    let is_plain = element.attributes.keys().all(|name| name == "unit") && element.children.is_empty();
    let bytes = element.text.parse::<u64>().ok()?.checked_mul(unit)?;
    is_plain.then(|| size(bytes))
}

/// Bytes in the largest unit that they are a whole number of.
pub(super) fn size(bytes: u64) -> String {
    let units = [(1_u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes > 0 && bytes.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{} {name}", bytes / unit),
        None => format!("{bytes} bytes"),
    }
}

/// A value in one line, and not too long.
pub(super) fn text(text: &str) -> String {
    let plain = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&");
    let line = plain.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MOST_CHARS) {
        Some((end, _)) => format!("{}\u{2026}", &line[..end]),
        None if line.is_empty() => "empty".to_owned(),
        None => line,
    }
}

/// The name of a device, such as `disk vda`.
pub(super) fn device(element: &Element) -> String {
    let kind = match (element.name.as_str(), own(element, "device")) {
        ("disk", Some("cdrom")) => "CD drive",
        ("disk", Some("floppy")) => "floppy drive",
        ("disk", _) => "disk",
        ("interface", _) => "network card",
        ("hostdev", _) => "host device",
        ("filesystem", _) => "shared directory",
        ("redirdev", _) => "USB redirection",
        ("tpm", _) => "TPM",
        ("sound", _) => "sound card",
        ("video", _) => "video card",
        (name, _) => name,
    };
    match identity(element).or_else(|| model(element)) {
        Some(label) => format!("{kind} {label}"),
        None => kind.to_owned(),
    }
}

/// What tells an element from others beside it.
pub(super) fn key(element: &Element) -> (&str, Option<String>) {
    (&element.name, identity(element))
}

fn identity(element: &Element) -> Option<String> {
    match element.name.as_str() {
        "disk" => inner(element, "target", "dev"),
        "filesystem" => inner(element, "target", "dir"),
        "interface" => inner(element, "mac", "address"),
        "controller" => Some(format!("{} {}", own(element, "type")?, own(element, "index")?)),
        "channel" => inner(element, "target", "name"),
        "serial" | "console" | "parallel" => inner(element, "target", "port"),
        "hostdev" => {
            let address = child(child(element, "source")?, "address")?;
            Some(address.attributes.values().cloned().collect::<Vec<_>>().join(":"))
        }
        "graphics" | "input" => own(element, "type").map(str::to_owned),
        "feature" | "timer" | "parameter" | "variable" | "entry" => own(element, "name").map(str::to_owned),
        "audio" | "cell" | "iothread" => own(element, "id").map(str::to_owned),
        _ => None,
    }
}

fn model(element: &Element) -> Option<String> {
    own(element, "model").map(str::to_owned).or_else(|| inner(element, "model", "type"))
}

/// What an element is, in a few words: for one that appears or disappears as a whole.
pub(super) fn describe(element: &Element) -> String {
    if !element.text.is_empty() {
        return memory(element).filter(|_| is_size(&element.name)).unwrap_or_else(|| text(&element.text));
    }
    if matches!(element.name.as_str(), "disk" | "interface" | "filesystem") {
        let source = child(element, "source").map(|source| pairs(source, &["network", "bridge"]));
        return source.or_else(|| own(element, "type").map(str::to_owned)).unwrap_or_default();
    }
    pairs(element, &[])
}

/// The attributes, those of the first names given as words, the others as pairs.
fn pairs(element: &Element, words: &[&str]) -> String {
    let shown = element.attributes.iter().filter(|(name, _)| !is_secret(name) && *name != "portid" && *name != "index");
    let shown = shown.map(|(name, value)| match name.as_str() {
        "file" | "dev" | "dir" | "type" | "model" => value.clone(),
        name if words.contains(&name) => format!("{name} {value}"),
        name => format!("{name}={value}"),
    });
    let line = shown.collect::<Vec<_>>().join(", ");
    if line.is_empty() { line } else { text(&line) }
}

fn child<'a>(element: &'a Element, name: &str) -> Option<&'a Element> {
    element.children.iter().find(|child| child.name == name)
}

fn own<'a>(element: &'a Element, name: &str) -> Option<&'a str> {
    element.attributes.get(name).map(String::as_str)
}

fn inner(element: &Element, name: &str, attribute: &str) -> Option<String> {
    child(element, name).and_then(|child| own(child, attribute)).map(str::to_owned)
}

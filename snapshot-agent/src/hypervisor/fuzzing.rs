//! Doors for the fuzzers (`make fuzz`) to what is otherwise inside.

use snapshot_core::description::Label;

use super::{domain_xml, snapshot_write, snapshot_xml};

/// Reads a domain as the agent does, all of it; whether it can be read.
pub fn domain(xml: &str) -> bool {
    let Ok(domain) = domain_xml::parse(xml) else { return false };
    let (disks, media, volumes) = (domain.disks().count(), domain.media().count(), domain.volumes().count());
    let _ = (domain.memory_bytes(), domain.nvram(), domain.files(), disks, media, volumes);
    true
}

/// The name and the label of a snapshot, where it can be read.
pub fn snapshot(xml: &str) -> Option<(String, Label)> {
    snapshot_xml::parse(xml).ok().map(|recorded| (recorded.name, recorded.label))
}

/// The same snapshot with another label.
pub fn relabelled(xml: &str, label: &Label) -> Option<String> {
    snapshot_write::with_description(xml, &label.encode()).ok()
}

/// The same domain or snapshot with `base` in the place of `top`.
pub fn moved(xml: &str, top: &str, base: &str) -> Option<String> {
    snapshot_write::with_source(xml, top, base, "qcow2").ok()
}

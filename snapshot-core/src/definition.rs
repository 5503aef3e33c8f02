//! What a domain's definition makes unavailable: a closed list over its XML.
//!
//! 1. Every element and every attribute is looked up in the tables of what is understood (`definition/*.txt`). One that is not
//!    there restricts what it may break: of a disk, every snapshot and every revert; of anything else, what needs the
//!    device state that QEMU saves and loads. The restriction names its path.
//! 2. Rules (`definition/rules.rs`, `definition/disk_rules.rs`) restrict exactly the operations that an element that is understood
//!    was measured, or is documented, to break.
//!
//! The same list is asked about the definition in a snapshot: what it names is what a revert brings back.

mod disk_rules;
#[cfg(test)]
mod rule_tests;
mod rules;
mod table;
#[cfg(test)]
mod tests;

use crate::error::Reason;
use crate::hardware::Element;
use crate::restriction::{RestrictedOperation, Restriction};
use crate::snapshot::Content;
use table::{Entry, TABLE, Table, Understood};

/// What the definition of a VM, as it is now, makes unavailable.
pub fn restrictions(domain: &Element) -> Vec<Restriction> {
    collect(domain, |finding| Some((finding.operations.to_vec(), finding.reason)))
}

/// What the definition in a snapshot with this content makes unavailable: reverts to it.
pub fn snapshot_restrictions(domain: &Element, content: Content) -> Vec<Restriction> {
    collect(domain, |finding| {
        let restricts = match finding.revert {
            Revert::Never => false,
            Revert::WithMemory => content == Content::DisksAndMemory,
            Revert::Always => true,
        };
        restricts.then(|| (RestrictedOperation::REVERT.to_vec(), finding.reason))
    })
}

/// Which reverts to a snapshot with this in its definition are unavailable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Revert {
    /// None.
    Never,
    /// Those to a snapshot with memory.
    WithMemory,
    /// All.
    Always,
}

/// Something in a definition that makes operations unavailable.
#[derive(Debug, Clone)]
struct Finding {
    /// What it restricts in the VM that has it now.
    operations: &'static [RestrictedOperation],
    /// What it restricts in a snapshot whose definition has it.
    revert: Revert,
    reason: Reason,
    message: String,
    disk: Option<String>,
}

fn collect(
    domain: &Element,
    restricts: impl Fn(&Finding) -> Option<(Vec<RestrictedOperation>, Reason)>,
) -> Vec<Restriction> {
    let mut findings = Vec::new();
    match TABLE.domain() {
        Some(entry) if domain.name == "domain" || domain.name == "inactiveDomain" => {
            Walk { table: &TABLE, findings: &mut findings, disk: None }.element(domain, entry, "");
        }
        _ => findings.push(not_understood(&domain.name, Part::Domain)),
    }
    rules::find(domain, &mut findings);
    let mut restrictions: Vec<Restriction> = Vec::new();
    for finding in findings {
        let Some((operations, reason)) = restricts(&finding) else { continue };
        let mut restriction = Restriction::new(operations, reason, finding.message);
        restriction.disk = finding.disk;
        if !restrictions.contains(&restriction) {
            restrictions.push(restriction);
        }
    }
    restrictions
}

/// Looks for what the tables do not have.
struct Walk<'a> {
    table: &'a Table,
    findings: &'a mut Vec<Finding>,
    /// The target of the disk that the walk is in.
    disk: Option<String>,
}

impl Walk<'_> {
    fn element(&mut self, element: &Element, entry: &Entry, path: &str) {
        for (name, value) in &element.attributes {
            // A declaration of a namespace; what is in it has its prefix.
            if name == "xmlns" || name.starts_with("xmlns:") {
                continue;
            }
            let what = match self.table.attribute(entry, name, value) {
                Understood::Yes => continue,
                Understood::NotTheValue => format!("{path}/@{name}='{value}'"),
                Understood::No => format!("{path}/@{name}"),
            };
            let part = if path.is_empty() && name == "type" { Part::Domain } else { self.part() };
            self.findings.push(not_understood(what.trim_start_matches('/'), part));
        }
        for child in &element.children {
            let path = if path.is_empty() { child.name.clone() } else { format!("{path}/{}", child.name) };
            if path == "devices/disk" {
                self.disk = Some(disk_rules::target(child));
            }
            match self.table.child(entry, &child.name) {
                Some(entry) => self.element(child, entry, &path),
                None => self.findings.push(not_understood(&path, self.part())),
            }
            if path == "devices/disk" {
                self.disk = None;
            }
        }
    }

    fn part(&self) -> Part<'_> {
        self.disk.as_deref().map_or(Part::Other, Part::Disk)
    }
}

/// The part of a definition that something not understood is in.
#[derive(Debug, Clone, Copy)]
enum Part<'a> {
    /// The outermost element or its type, which decide how everything else is done.
    Domain,
    /// The disk with this target: what is in it decides about its content.
    Disk(&'a str),
    /// Outside of disks: it decides about the running state alone.
    Other,
}

fn not_understood(path: &str, part: Part<'_>) -> Finding {
    let (operations, revert, what) = match part {
        Part::Domain => (&RestrictedOperation::ALL[..], Revert::Always, "all operations on snapshots"),
        Part::Disk(_) => (&RestrictedOperation::CREATE_AND_REVERT[..], Revert::Always, "snapshots and reverts"),
        Part::Other => {
            (&RestrictedOperation::MEMORY[..], Revert::WithMemory, "snapshots with memory and reverts in place")
        }
    };
    let disk = if let Part::Disk(target) = part { Some(target) } else { None };
    let of = disk.map(|target| format!(" of disk {target}")).unwrap_or_default();
    let message = format!(
        "{path}{of} in the definition of the VM is not known to this version of the service: {what} are unavailable; \
         remove it from the definition, or update the service"
    );
    Finding { operations, revert, reason: Reason::FeatureUnsupported, message, disk: disk.map(str::to_owned) }
}

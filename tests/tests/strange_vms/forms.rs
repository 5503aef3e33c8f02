//! The forms of VMs, in groups.

use std::path::Path;

use anyhow::Result;

use super::draft::{Draft, Machine};

mod backing;
mod definitions;
mod devices;
mod images;
mod neighbours;
mod snapshots;
mod sources;
mod states;

/// A form of VMs.
pub struct Form {
    /// The group it is in, a heading of the table.
    pub group: &'static str,
    /// What it is, for users to read.
    pub name: &'static str,
    /// Whether it is examined in every test run.
    sample: bool,
    make: fn(Draft) -> Result<Machine>,
    number: usize,
}

impl Form {
    /// A form that is examined by `make vm-matrix`.
    fn new(name: &'static str, make: fn(Draft) -> Result<Machine>) -> Self {
        Self { group: "", name, sample: false, make, number: 0 }
    }

    /// A form that is examined in every test run.
    fn sample(name: &'static str, make: fn(Draft) -> Result<Machine>) -> Self {
        Self { sample: true, ..Self::new(name, make) }
    }

    /// Makes a VM of this form in the host's directory of images.
    pub fn make(&self, images: &Path) -> Result<Machine> {
        (self.make)(Draft::new(images, &format!("vm-{:03}", self.number))?)
    }

    /// Whether it is wanted by `STRANGE_VMS`.
    pub fn is_wanted(&self, wanted: &str) -> bool {
        match wanted {
            "" => self.sample,
            "all" => true,
            words => words.split('|').any(|word| self.name.contains(word)),
        }
    }
}

/// Every form there is.
pub fn all() -> Vec<Form> {
    let groups = [
        ("Images", images::forms()),
        ("Where disks are", sources::forms()),
        ("Backing files", backing::forms()),
        ("Settings of disks", definitions::forms()),
        ("Devices and firmware", devices::forms()),
        ("Other users of an image", neighbours::forms()),
        ("Snapshots of other tools", snapshots::forms()),
        ("States", states::forms()),
    ];
    let forms = groups.into_iter().flat_map(|(group, forms)| forms.into_iter().map(move |form| Form { group, ..form }));
    forms.enumerate().map(|(number, form)| Form { number, ..form }).collect()
}

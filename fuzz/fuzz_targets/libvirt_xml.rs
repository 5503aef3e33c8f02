//! The XML of domains and snapshots, and what is written into it.
//!
//! A snapshot that can be read can be given another label, is then the same snapshot with that label, and stays readable
//! when a disk of it is moved.

#![no_main]

use libfuzzer_sys::fuzz_target;
use snapshot_agent::hypervisor::fuzzing::{domain, moved, relabelled, snapshot};
use snapshot_core::description::Label;
use snapshot_core::text::{Description, DisplayName};

fuzz_target!(|xml: &str| {
    let was_domain = domain(xml);
    if let Some(xml) = moved(xml, "/images/top.qcow2", "/images/<base>&.qcow2") {
        assert!(!was_domain || domain(&xml), "a domain was broken: {xml}");
    }
    let Some((name, _)) = snapshot(xml) else { return };
    let label = Label {
        display_name: DisplayName::parse("a <name> & \"more\"").expect("a name"),
        description: Description::parse("]]> --").expect("a description"),
        protected: true,
        actor: "i/s".to_owned(),
        issuer: "i".to_owned(),
        disks: None,
    };
    let Some(xml) = relabelled(xml, &label) else { return };
    assert_eq!(snapshot(&xml), Some((name, label)), "{xml}");
});

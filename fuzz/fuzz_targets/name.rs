//! Names of resources, what users write, and the text in libvirt's descriptions.
//!
//! What is read is written back as it was.

#![no_main]

use libfuzzer_sys::fuzz_target;
use proto::names;
use snapshot_core::description::Label;
use snapshot_core::ids::SnapshotId;
use snapshot_core::text::{Description, DisplayName};

fuzz_target!(|text: &str| {
    if let Ok(vm) = names::parse_vm("name", text) {
        assert!(names::vm(vm).eq_ignore_ascii_case(text), "{text}");
    }
    if let Ok((vm, id)) = names::parse_snapshot("name", text) {
        let back = names::snapshot(vm, &id);
        assert_eq!(names::parse_snapshot("name", &back).expect("our own name"), (vm, id));
    }
    if let Ok(operation) = names::parse_operation("name", text) {
        assert!(names::operation(operation).eq_ignore_ascii_case(text), "{text}");
    }
    if let Ok(host) = names::parse_host("name", text) {
        assert_eq!(names::host(&host), text);
    }
    let id = SnapshotId::of_name(text);
    assert_eq!(id.as_str().parse::<SnapshotId>().as_ref(), Ok(&id), "{text}");
    if let Ok(name) = DisplayName::parse(text) {
        assert!(!name.as_str().chars().any(char::is_control) && (1..=128).contains(&name.as_str().chars().count()));
    }
    if let Ok(description) = Description::parse(text) {
        assert!(!description.as_str().chars().any(char::is_control) && description.as_str().chars().count() <= 4096);
    }
    let foreign = Label::foreign(text, text);
    assert_eq!(Label::decode(&foreign.encode()).as_ref(), Some(&foreign));
    if let Some(label) = Label::decode(text) {
        assert_eq!(Label::decode(&label.encode()), Some(label));
    }
    let _ = Label::is_deleted(text);
});

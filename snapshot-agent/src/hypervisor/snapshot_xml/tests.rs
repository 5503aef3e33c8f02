//! Real XML in, facts out; and what is written comes back as it was.

use proptest::prelude::*;
use snapshot_core::ids::SnapshotId;
use snapshot_core::text::{Description, DisplayName};

use super::super::snapshot_write::{adopt, create, with_description};
use super::super::xml_samples::{DOMAIN_RUNNING, SNAPSHOT_EXTERNAL, SNAPSHOT_OFF, SNAPSHOT_RUNNING};
use super::*;

fn images(disks: &[&str]) -> BTreeMap<String, PathBuf> {
    disks.iter().map(|disk| ((*disk).to_owned(), PathBuf::from(format!("/images/{disk}.qcow2")))).collect()
}

#[test]
fn with_the_running_state() {
    let recorded = parse(SNAPSHOT_RUNNING).unwrap();
    assert_eq!(recorded.name, "snap-b");
    assert_eq!(recorded.parent, None);
    assert_eq!(recorded.label, Label::foreign("snap-b", ""));
    assert_eq!(recorded.content, Content::DisksAndMemory);
    assert_eq!(recorded.storage, Storage::Internal);
    assert_eq!(recorded.state, RecordedState::Running);
    assert_eq!(recorded.disks, ["vda", "vdb"]);
    assert_eq!(recorded.images, images(&["vda", "vdb"]));
    assert_eq!((recorded.media.len(), recorded.disks_left_out.len()), (0, 0));
    assert!(recorded.create_time > 1_700_000_000);
}

#[test]
fn of_a_machine_that_was_off() {
    let recorded = parse(SNAPSHOT_OFF).unwrap();
    assert_eq!(recorded.parent.as_deref(), Some("snap-b"));
    assert_eq!(recorded.content, Content::Disks);
    assert_eq!(recorded.state, RecordedState::Shutoff);
    assert_eq!(recorded.images, images(&["vda", "vdb"]));
}

#[test]
fn of_another_tool_in_overlays() {
    let recorded = parse(SNAPSHOT_EXTERNAL).unwrap();
    assert_eq!(recorded.storage, Storage::External);
    assert_eq!(recorded.content, Content::DisksAndMemory);
    assert_eq!(recorded.label, Label::foreign("ext", "a <b> & c"));
    assert_eq!(recorded.disks, ["vda", "vdb"]);
    assert_eq!(recorded.images, BTreeMap::new());
    let frozen = |disk: &str| (PathBuf::from(format!("/images/{disk}.qcow2")), "qcow2".to_owned());
    assert_eq!(recorded.files.frozen["vda"], frozen("vda"));
    assert_eq!(recorded.files.frozen["vdb"], frozen("vdb"));
    assert_eq!(recorded.files.overlays["vdb"], PathBuf::from("/images/ov2.qcow2"));
    assert_eq!(recorded.files.memory, Some(PathBuf::from("/images/mem.save")));
    assert!(!recorded.deleted);
    let marked = with_description(SNAPSHOT_EXTERNAL, &recorded.label.encode_deleted()).unwrap();
    assert!(parse(&marked).unwrap().deleted);
}

#[test]
fn a_disk_left_out_is_seen() {
    let xml = SNAPSHOT_RUNNING.replace("<disk name='vdb' snapshot='internal'/>", "<disk name='vdb' snapshot='no'/>");
    let recorded = parse(&xml).unwrap();
    assert_eq!(recorded.disks, ["vda"]);
    assert_eq!(recorded.disks_left_out, ["vdb"]);
    assert_eq!(recorded.storage, Storage::Internal);
}

#[test]
fn what_the_machine_did() {
    for (state, memory, expected) in [
        ("paused", "internal", RecordedState::Paused),
        ("running", "no", RecordedState::DiskOnly),
        ("disk-snapshot", "no", RecordedState::DiskOnly),
        ("shutoff", "no", RecordedState::Shutoff),
    ] {
        let xml = format!(
            "<domainsnapshot><name>x</name><state>{state}</state><memory snapshot='{memory}'/></domainsnapshot>"
        );
        assert_eq!(parse(&xml).unwrap().state, expected, "{state} {memory}");
    }
}

#[test]
fn adopting_carries_the_domain_along() {
    let id: SnapshotId = "snap-x".parse().unwrap();
    let xml = adopt(&id, ["vda", "vdb"], DOMAIN_RUNNING).unwrap();
    let recorded = parse(&xml).unwrap();
    assert_eq!((recorded.name.as_str(), recorded.content), ("snap-x", Content::Disks));
    assert_eq!(recorded.images, images(&["vda", "vdb"]));
}

#[test]
fn a_description_is_added_where_there_was_none_and_nothing_else_changes() {
    let changed = with_description(SNAPSHOT_OFF, &label("n", "d").encode()).unwrap();
    let (before, rest) = changed.split_once("<description>").unwrap();
    let (_, after) = rest.split_once("</description>").unwrap();
    assert_eq!(format!("{before}{after}"), SNAPSHOT_OFF);
    let again = with_description(&changed, &label("other", "d").encode()).unwrap();
    assert_eq!(parse(&again).unwrap().label, label("other", "d"));
    assert_eq!(again.matches("<description>").count(), 1);
}

#[test]
fn a_description_of_something_else_is_left_alone() {
    let xml = "<domainsnapshot><name>x</name><description/><domain><name>y</name><memory>1</memory>\
               <description>the domain's &amp; own</description><os/></domain></domainsnapshot>";
    let changed = with_description(xml, &label("n", "d").encode()).unwrap();
    assert!(changed.contains("<description>the domain's &amp; own</description>"), "{changed}");
    assert_eq!(parse(&changed).unwrap().label, label("n", "d"));
}

fn label(name: &str, description: &str) -> Label {
    Label {
        display_name: DisplayName::parse(name).unwrap(),
        description: Description::parse(description).unwrap(),
        protected: true,
        actor: "ravada/alice <a@b>".to_owned(),
        issuer: "ravada <a@b>".to_owned(),
        disks: None,
    }
}

proptest! {
    #[test]
    fn whatever_people_write_survives_xml(name in "\\PC{1,128}", description in "\\PC{0,300}") {
        prop_assume!(DisplayName::parse(&name).is_ok() && Description::parse(&description).is_ok());
        let label = label(&name, &description);
        let id: SnapshotId = "snap-x".parse().unwrap();
        let xml = create(&id, &label, true, ["vda"]).unwrap();
        prop_assert_eq!(&parse(&xml).unwrap().label, &label);
        let rewritten = with_description(SNAPSHOT_RUNNING, &label.encode()).unwrap();
        prop_assert_eq!(&parse(&rewritten).unwrap().label, &label);
    }

    #[test]
    fn garbage_never_panics(text in any::<String>(), cut in 0usize..SNAPSHOT_OFF.len()) {
        let _ = parse(&text);
        let _ = parse(&SNAPSHOT_OFF[..cut]);
        let _ = with_description(&text, &label("n", "d").encode());
    }
}

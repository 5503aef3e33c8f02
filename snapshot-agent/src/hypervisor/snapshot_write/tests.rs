//! What is written, read back.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::super::snapshot_xml::parse;
use super::super::xml_samples::{DOMAIN_OFF, SNAPSHOT_EXTERNAL};
use super::super::{domain_xml, snapshot_xml};
use super::*;

#[test]
fn a_snapshot_is_sent_to_where_its_disk_now_is_and_the_other_disk_is_left_alone() {
    let changed = with_source(SNAPSHOT_EXTERNAL, "/images/vda.qcow2", "/images/base & <more>.raw", "raw").unwrap();
    let (before, after) = (parse(SNAPSHOT_EXTERNAL).unwrap(), parse(&changed).unwrap());
    assert_eq!(after.files.frozen["vda"], (PathBuf::from("/images/base & <more>.raw"), "raw".to_owned()));
    assert_eq!(after.files.frozen["vdb"], before.files.frozen["vdb"]);
    assert_eq!(after.files.overlays, before.files.overlays);
    // In the running definition and in the other one.
    assert_eq!(changed.matches("/images/base &amp; &lt;more&gt;.raw").count(), 2);
    let same = with_source(SNAPSHOT_EXTERNAL, "/images/nobody", "/images/x", "raw").unwrap();
    assert_eq!(same, SNAPSHOT_EXTERNAL);
    assert_eq!(without_chains(SNAPSHOT_EXTERNAL).unwrap(), SNAPSHOT_EXTERNAL);
}

#[test]
fn what_was_known_of_the_chain_below_goes() {
    assert!(DOMAIN_OFF.contains("<backingStore type='file'>"));
    let disk = domain_xml::parse(DOMAIN_OFF).unwrap().disks().next().unwrap();
    let path = disk.path.unwrap();
    let changed = with_source(DOMAIN_OFF, path.to_str().unwrap(), "/images/base", "raw").unwrap();
    assert!(!changed.contains("<backingStore type='file'>"), "{changed}");
    assert!(!without_chains(DOMAIN_OFF).unwrap().contains("<backingStore type='file'>"));
    let disk = domain_xml::parse(&changed).unwrap().disks().next().unwrap();
    assert_eq!((disk.path, disk.format.as_str()), (Some(PathBuf::from("/images/base")), "raw"));
}

#[test]
fn a_new_one_in_overlays() {
    let id: SnapshotId = "snap-x".parse().unwrap();
    let label = Label::foreign("name", "");
    let overlays = BTreeMap::from([("vda".to_owned(), "/images/a & b".to_owned())]);
    let new = |memory_file| NewExternal { id: &id, label: &label, overlays: &overlays, memory_file, quiesce: false };
    let vm = super::super::tests::vm(&["vda", "vdb"]);
    let xml = create_external(&new(Some("/images/m")), &vm).unwrap();
    let recorded = snapshot_xml::parse(&xml).unwrap();
    assert_eq!(recorded.files.overlays["vda"], PathBuf::from("/images/a & b"));
    assert_eq!((recorded.disks, recorded.files.memory), (vec!["vda".to_owned()], Some(PathBuf::from("/images/m"))));
    assert!(xml.contains("<disk name=\"vdb\" snapshot=\"no\"/>"), "{xml}");
    let xml = create_external(&new(None), &vm).unwrap();
    assert!(xml.contains("<memory snapshot=\"no\"/>"), "{xml}");
}

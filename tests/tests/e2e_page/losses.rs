//! What a revert changes beside the disks is on the page before it is confirmed; and where the present cannot be kept, a person is
//! told why and what is lost, and can revert all the same.

use serde_json::json;
use tests::lab::{Lab, Power};

use super::browser::Browser;
use super::{link, no_complaints};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_is_told_what_changes_and_can_revert_by_default() {
    let lab = Lab::with_policy("max_snapshots_per_vm = 2\n").unwrap();
    let guest = lab.guest("desk").await.unwrap();
    guest.write('A').unwrap();
    lab.set(&guest, Power::Off).await.unwrap();
    lab.take(&guest, "before exam").await.unwrap();
    let daemon = lab.daemon().unwrap();
    let xml = daemon.virsh(&["dumpxml", "--inactive", guest.name()]).unwrap();
    let xml = xml.replace("16384</memory>", "65536</memory>").replace("<memory ", "<title>Exam</title><memory ");
    std::fs::write(guest.xml_file(), xml).unwrap();
    daemon.virsh(&["define", &guest.xml_file().display().to_string()]).unwrap();

    let browser = Browser::start(lab.cluster.folder()).unwrap();
    let (student, _) = browser.open("student", &link(&lab.cluster, "student")).unwrap();
    student.act("choose", json!({"vm": guest.uuid()})).unwrap();
    student.until("the snapshot", |seen| seen.names() == ["before exam"]).unwrap();
    student.act("ask", json!({"name": "before exam", "what": "revert"})).unwrap();
    let seen =
        student.until("the changes", |seen| seen["changes"].as_array().is_some_and(|all| all.len() == 2)).unwrap();
    assert_eq!(seen["changes"], json!(["title (Exam) is removed", "memory: 64 MiB \u{2192} 16 MiB"]));
    student.screenshot("revert-changes").unwrap();
    student.act("cancel", json!({"dialog": "revert"})).unwrap();

    // More snapshots than are allowed: the present cannot be kept.
    lab.take(&guest, "second").await.unwrap();
    daemon.virsh(&["snapshot-create-as", guest.name(), "foreign"]).unwrap();
    student.until("the third", |seen| seen.names().len() == 3).unwrap();
    student.act("ask", json!({"name": "before exam", "what": "revert"})).unwrap();
    let seen =
        student.until("what is lost", |seen| seen["losses"].as_array().is_some_and(|all| !all.is_empty())).unwrap();
    assert!(seen.reasons().contains(&"SNAPSHOT_LIMIT".to_owned()), "{seen:?}");
    student.screenshot("revert-without-saving").unwrap();
    no_complaints(&browser, false);
}

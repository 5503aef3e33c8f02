//! The pictures in README.md: `make screenshots` copies them to `docs/`.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proto::v1;
use serde_json::json;
use tests::guest::Guest;
use tests::lab::{HOST, Lab, id, key};

use super::browser::{Browser, Seen, pictures};
use super::{link, no_complaints};

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_picture_of_the_page() {
    let mut lab = Lab::start().unwrap();
    let guest = lab.guest("debian-desktop").await.unwrap();
    lab.guest("exam-room-1").await.unwrap();

    let fresh = take(&lab, &guest, "fresh install", "Debian 13, nothing added").await;
    let kernel = take(&lab, &guest, "try the new kernel", "").await;
    lab.return_to(&fresh).await.unwrap();
    let course = take(&lab, &guest, "packages of the course", "").await;
    let exam = take(&lab, &guest, "before exam", "everything handed in so far").await;
    let protect = v1::UpdateSnapshotRequest {
        snapshot: Some(v1::Snapshot { name: fresh.name.clone(), protected: true, ..Default::default() }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["protected".to_owned()] }),
        request_id: key(),
        ..Default::default()
    };
    lab.client.done(lab.client.update(protect).await).await.unwrap();
    let ages = [
        (&fresh, 23 * DAY + 5 * HOUR),
        (&kernel, 16 * DAY - 47 * MINUTE),
        (&course, 9 * DAY + 2 * HOUR + 11 * MINUTE),
        (&exam, 40 * MINUTE),
    ];
    for (snapshot, age) in ages {
        grow_old(&lab, &guest, snapshot, age);
    }
    // libvirt tells nobody of that, so the agent reads it when it comes up.
    let host = lab.cluster.host_mut(HOST).unwrap();
    host.agent().stop().unwrap();
    host.start_agent_again().unwrap();

    let browser = Browser::start(lab.cluster.folder()).unwrap();
    let (student, _) = browser.open("student", &link(&lab.cluster, "student")).unwrap();
    student.act("resize", json!({"width": 1100, "height": 850})).unwrap();
    student.until("both machines", |seen| seen.machines().len() == 2).unwrap();
    student.act("choose", json!({"vm": guest.uuid()})).unwrap();
    let is_old = |seen: &Seen| seen.row("before exam")["age"].as_str().is_some_and(|age| age.ends_with("minutes ago"));
    let seen = student.until("the ages", is_old).unwrap();
    assert_eq!(
        seen.tree().iter().map(|(name, depth)| (name.as_str(), *depth)).collect::<Vec<_>>(),
        [("fresh install", 0), ("try the new kernel", 1), ("packages of the course", 0), ("before exam", 0)]
    );
    assert_eq!(seen.here(), "before exam");
    student.screenshot("page").unwrap();

    // Each form by itself.
    let file = |name: &str| pictures().unwrap().join(format!("{name}.png"));
    let typed = json!([{"to": "create-name", "type": "before the upgrade"}, {"press": "Tab"}]);
    student.act("keys", json!({ "steps": typed })).unwrap();
    student.until("what it costs", |seen| seen["cost"].as_str().is_some_and(|cost| cost.contains("takes up"))).unwrap();
    student.act("picture", json!({"id": "create-form", "file": file("create")})).unwrap();
    for (what, of) in
        [("revert", "packages of the course"), ("edit", "before exam"), ("remove", "packages of the course")]
    {
        student.act("ask", json!({"name": of, "what": what})).unwrap();
        let more = |list: &str, count: usize| {
            student.until(list, |seen| seen[list].as_array().is_some_and(|all| all.len() == count)).unwrap();
        };
        match what {
            "revert" => {
                student.act("press", json!({"id": "revert-save-current"})).unwrap();
                more("losses", 2);
            }
            "remove" => {
                student.act("press", json!({"id": "remove-scope-subtree"})).unwrap();
                more("victims", 2);
            }
            _ => {}
        }
        student.act("picture", json!({"id": format!("{what}-dialog"), "file": file(what)})).unwrap();
        student.act("cancel", json!({"dialog": what})).unwrap();
    }

    // On a telephone it is one column, and as wide as that.
    student.act("resize", json!({"width": 390, "height": 844})).unwrap();
    assert_eq!(student.seen().unwrap()["tooWide"], false);
    student.screenshot("page-narrow").unwrap();
    no_complaints(&browser, false);
}

async fn take(lab: &Lab, guest: &Guest, name: &str, description: &str) -> v1::Snapshot {
    let operation = lab.client.done(lab.client.create(&guest.vm(), name, description).await).await.unwrap();
    lab.client.snapshot(&operation.snapshot).await.unwrap()
}

/// Tells libvirt that a snapshot was taken so many seconds ago: a tree like this one grows over weeks.
fn grow_old(lab: &Lab, guest: &Guest, snapshot: &v1::Snapshot, seconds: u64) {
    let daemon = lab.daemon().unwrap();
    let xml = daemon.virsh(&["snapshot-dumpxml", guest.name(), id(&snapshot.name)]).unwrap();
    let (before, rest) = xml.split_once("<creationTime>").unwrap();
    let (_, after) = rest.split_once("</creationTime>").unwrap();
    let then = (SystemTime::now() - Duration::from_secs(seconds)).duration_since(UNIX_EPOCH).unwrap().as_secs();
    let file = lab.cluster.folder().join("old.xml");
    fs::write(&file, format!("{before}<creationTime>{then}</creationTime>{after}")).unwrap();
    let mut redefine = vec!["snapshot-create", guest.name(), file.to_str().unwrap(), "--redefine"];
    if daemon.current_snapshot(guest).unwrap().as_deref() == Some(id(&snapshot.name)) {
        redefine.push("--current");
    }
    daemon.virsh(&redefine).unwrap();
}

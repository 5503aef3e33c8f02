//! Hundreds of snapshots: what changes costs what it is, and not what is there. Counted, because time depends on the machine.

use serde_json::json;
use tests::guest::Guest;
use tests::lab::Lab;

use super::browser::Browser;
use super::{link, no_complaints};

const MANY: usize = 300;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_more_among_hundreds_touches_one() {
    let lab = Lab::with_policy("max_snapshots_per_vm = 1000").unwrap();
    let guest = Guest::new(&lab.images().unwrap(), "debian-desktop").unwrap();
    let daemon = lab.daemon().unwrap();
    daemon.define(&guest).unwrap();
    // By one virsh, which is as fast as it gets.
    let take = |number: usize| format!("snapshot-create-as {} s{number:03}", guest.name());
    let all: Vec<String> = (0..MANY).map(take).collect();
    daemon.virsh(&[all.join("; ").as_str()]).unwrap();

    let browser = Browser::start(lab.cluster.folder()).unwrap();
    let (student, _) = browser.open("student", &link(&lab.cluster, "student")).unwrap();
    let listed = |seen: &super::browser::Seen| seen.names().len() == MANY && seen["create"]["possible"] == true;
    let seen = student.until("all of them", listed).unwrap();
    assert_eq!((seen["count"].as_str().unwrap(), seen.here()), ("300 snapshots", "s299"));

    // One more: an item with what is in it, and the marks and buttons of the rows that change while something goes on.
    student.act("count", json!({})).unwrap();
    student.change("create", json!({"name": "one more"})).unwrap().done().unwrap();
    student.until("it", |seen| seen.here() == "one more" && seen["create"]["possible"] == true).unwrap();
    let touched = student.act("counted", json!({})).unwrap();
    let count = |what: &str| touched[what].as_u64().unwrap();
    assert!(count("added") < 40 && count("removed") < 40, "the list is not made anew: {touched}");

    // A new name: that row, and not the others. Buttons are switched off while it goes on, and on again.
    student.act("count", json!({})).unwrap();
    student.change("edit", json!({"name": "s150", "newName": "half way"})).unwrap().done().unwrap();
    student.until("its name", |seen| seen.row("half way")["state"] == "READY").unwrap();
    let touched = student.act("counted", json!({})).unwrap();
    let count = |what: &str| touched[what].as_u64().unwrap();
    assert!(count("added") < 40 && count("removed") < 40, "{touched}");
    assert!(count("changed") <= 2 * 3 * (MANY as u64 + 1) + 40, "each button twice at the most: {touched}");

    // One in the middle goes: its item, and the children stay.
    student.act("count", json!({})).unwrap();
    student.change("remove", json!({"name": "half way", "scope": "only"})).unwrap().done().unwrap();
    student.until("the others", |seen| seen.names().len() == MANY).unwrap();
    let touched = student.act("counted", json!({})).unwrap();
    assert!(touched["added"].as_u64().unwrap() < 40 && touched["removed"].as_u64().unwrap() < 40, "{touched}");
    no_complaints(&browser, false);
}

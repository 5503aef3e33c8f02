//! Everybody can use it: by the keyboard alone, by ear, on light and on dark.

use rustix::process::Signal;
use serde_json::{Value, json};
use tests::lab::{Lab, Power};

use super::browser::Browser;
use super::{link, no_complaints, page};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_state_of_the_page_shuts_anybody_out() {
    let mut lab = Lab::start().unwrap();
    let guest = lab.guest("debian-desktop").await.unwrap();
    let browser = Browser::start(lab.cluster.folder()).unwrap();
    let (light, _) = browser.open("light", &page(&lab.cluster)).unwrap();
    light.audit("nobody signed in").unwrap();
    let (light, _) = browser.open("light-2", &link(&lab.cluster, "student")).unwrap();
    light.until("the form", |seen| seen["create"]["possible"] == true).unwrap();
    light.audit("no snapshots").unwrap();

    // Nothing has come yet.
    let slow = format!("{}&vm={}", link(&lab.cluster, "student"), guest.uuid());
    lab.cluster.api().signal(Signal::STOP).unwrap();
    let (waiting, _) = browser.open("waiting", &slow).unwrap();
    waiting.until("that it loads", |seen| seen["loading"] == "Loading the snapshots…").unwrap();
    waiting.audit("loading").unwrap();
    waiting.screenshot("loading").unwrap();
    lab.cluster.api().signal(Signal::CONT).unwrap();
    waiting.until("the form", |seen| seen["create"]["possible"] == true).unwrap();
    waiting.close().unwrap();

    // A tree with a fork, a protected one, one of another tool.
    let first = lab.take(&guest, "before exam").await.unwrap();
    lab.take(&guest, "packages of the course").await.unwrap();
    lab.return_to(&first).await.unwrap();
    lab.take(&guest, "another way").await.unwrap();
    lab.set(&guest, Power::Off).await.unwrap();
    lab.daemon().unwrap().virsh(&["snapshot-create-as", guest.name(), "by-hand"]).unwrap();
    light.change("edit", json!({"name": "before exam", "protect": true})).unwrap().done().unwrap();
    lab.daemon().unwrap().power_on(&guest).unwrap();

    let narrow = json!({"dark": true, "width": 360, "height": 740});
    let (dark, _) = browser.open_as("dark", &link(&lab.cluster, "student"), narrow).unwrap();
    for (tab, name) in [(&light, "light"), (&dark, "dark")] {
        let all = |seen: &super::browser::Seen| seen.names().len() == 4 && seen["create"]["possible"] == true;
        tab.until("the tree", all).unwrap();
        tab.audit("a tree").unwrap();
        tab.screenshot(&format!("list-{name}")).unwrap();
        for what in ["revert", "edit", "remove"] {
            tab.act("ask", json!({"name": "before exam", "what": what})).unwrap();
            tab.audit(what).unwrap();
            assert_eq!(tab.act("measure", json!({})).unwrap()["scrolls"], false, "{name}: {what}");
            tab.screenshot(&format!("{what}-{name}")).unwrap();
            tab.act("cancel", json!({"dialog": what})).unwrap();
        }
    }

    // An outcome, a refusal, and a service that is gone.
    light.change("create", json!({"name": "one more"})).unwrap().done().unwrap();
    light.audit("an outcome").unwrap();
    let (dark_seen, _) = (dark.until("the news", |seen| seen.names().len() == 5).unwrap(), ());
    assert!(dark_seen.is_live());
    dark.act("offline", json!({"offline": true})).unwrap();
    dark.change("create", json!({"name": "on the train"})).unwrap().problem().unwrap();
    dark.audit("an error").unwrap();
    dark.screenshot("error-dark").unwrap();
    lab.cluster.gateway().kill().unwrap();
    light.until("the loss", |seen| seen["connection"] == "lost").unwrap();
    light.audit("a lost connection").unwrap();
    no_complaints(&browser, true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_without_a_mouse_takes_goes_back_undoes_and_removes() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("debian-desktop").await.unwrap();
    let browser = Browser::start(lab.cluster.folder()).unwrap();
    let (student, _) = browser.open("student", &link(&lab.cluster, "student")).unwrap();
    student.until("the form", |seen| seen["create"]["possible"] == true).unwrap();
    let keys = |steps: Value| student.act("keys", json!({ "steps": steps })).unwrap();
    let quiet = |seen: &super::browser::Seen| seen["create"]["possible"] == true && seen["running"] == json!([]);

    guest.write('A').unwrap();
    let at = keys(json!([{"to": "create-name", "type": "before exam"}, {"press": "Enter"}]));
    assert_eq!((&at["inside"], &at["marked"]), (&json!(true), &json!(true)), "where one is can be seen: {at}");
    let seen = student.until("the snapshot", |seen| seen.here() == "before exam" && quiet(seen)).unwrap();
    assert_eq!(seen["announced"], "Taking the snapshot “before exam”", "what begins is read out");

    // A dialog that is given up gives the focus back to where it was.
    guest.write('B').unwrap();
    let asked = keys(json!([{"to": "snapshot-revert", "row": "before exam", "press": "Enter"}]));
    assert_eq!(asked["dialog"], "revert-dialog");
    let back = keys(json!([{"press": "Escape"}]));
    assert_eq!((&back["id"], &back["row"]), (&json!("snapshot-revert"), &json!("before exam")));

    // Back: the dialog says what is lost before it can be confirmed.
    keys(json!([{"press": "Enter"}, {"to": "revert-confirm", "press": "Enter"}]));
    student.until("the way back", |seen| seen["undo"] == true && quiet(seen)).unwrap();
    assert_eq!(guest.report().unwrap().disk, 'A');
    let focus = student.act("focus", json!({})).unwrap();
    assert_eq!(focus["inside"], true, "the focus stays in the element: {focus}");

    // And undone.
    keys(json!([{"to": "operation-undo", "press": "Enter"}, {"to": "revert-confirm", "press": "Enter"}]));
    student.until("the undo", |seen| seen.names().len() == 3 && quiet(seen)).unwrap();
    assert_eq!(guest.report().unwrap().disk, 'B');

    // And tidied up: the radio by an arrow, the button by Enter.
    keys(json!([
        {"to": "snapshot-remove", "row": "before exam", "press": "Enter"},
        {"to": "remove-scope-only", "press": "ArrowDown"},
        {"to": "remove-confirm", "press": "Enter"},
    ]));
    student.until("an empty tree", |seen| seen["empty"] == true && quiet(seen)).unwrap();
    assert_eq!(student.act("focus", json!({})).unwrap()["inside"], true, "the row is gone, and the focus is not lost");
    assert!(lab.agreed(&guest).await.unwrap().is_empty());
    assert_eq!(guest.report().unwrap().disk, 'B');
    no_complaints(&browser, false);
}

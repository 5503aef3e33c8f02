//! The element in pages of somebody else: AngularJS 1.8 and Bootstrap 4, as Ravada has them, and a dark one.

use serde_json::{Value, json};
use tests::guest::Guest;
use tests::lab::Lab;

use super::browser::Browser;
use super::{no_complaints, page};

const BRACES: &str = "{{1+1}} before exam";

/// What the host page's server hands out: a token for each machine, for exactly that.
fn tokens(lab: &Lab, guests: &[&Guest]) -> Value {
    let token = |guest: &&Guest| {
        let uuid = guest.uuid().to_string();
        let actions = ["read", "create", "update", "revert", "delete"];
        let token = lab.cluster.identity().token("student", &uuid, &actions).unwrap();
        (uuid, Value::from(token))
    };
    Value::Object(guests.iter().map(token).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_angularjs_has_it_as_one_of_its_own() {
    let lab = Lab::start().unwrap();
    let (desk, room) = (lab.guest("desk-1").await.unwrap(), lab.guest("room-2").await.unwrap());
    let browser = Browser::start(lab.cluster.folder()).unwrap();
    let base = uuid::Uuid::nil();
    let url = format!("{}host/page.html#!/{},{},{base}", page(&lab.cluster), desk.uuid(), room.uuid());
    let how = json!({"tokens": tokens(&lab, &[&desk, &room])});
    let (student, seen) = browser.open_as("angular", &url, how).unwrap();
    assert!(seen["connection"].is_null(), "the tab is not open: {seen:?}");

    // It comes with the tab, takes a snapshot, and what is typed is text and no template.
    let press = |id: &str| student.act("press", json!({ "id": id })).unwrap();
    press("host-snapshots");
    student.until("the machine", |seen| seen.is_live() && seen["machine"]["name"] == "desk-1").unwrap();
    desk.write('A').unwrap();
    student.change("create", json!({"name": BRACES})).unwrap().done().unwrap();
    let seen = student.until("the snapshot", |seen| seen.here() == BRACES).unwrap();
    assert_eq!(seen.names(), [BRACES]);
    student.audit_within("ravada-snapshots", "inside AngularJS and Bootstrap").unwrap();
    student.screenshot("angular").unwrap();
    desk.write('B').unwrap();
    let undone = student.change("revert", json!({"name": BRACES, "save": true})).unwrap();
    undone.done().unwrap();
    assert_eq!(desk.report().unwrap().disk, 'A');
    student.act("ask", json!({"name": BRACES, "what": "remove"})).unwrap();
    student.audit_within("ravada-snapshots", "a dialog there").unwrap();
    student.screenshot("angular-remove").unwrap();
    student.act("cancel", json!({"dialog": "remove"})).unwrap();

    // The host page changes its attributes, takes it away, and puts it back.
    press("host-language-ca");
    let seen = student.until("Catalan", |seen| seen["count"] == "2 instantànies").unwrap();
    assert!(seen.is_live());
    press("host-machine-1");
    student.until("the other machine", |seen| seen.is_live() && seen["machine"]["name"] == "room-2").unwrap();
    press("host-settings");
    student.until("nothing of it", |seen| seen["connection"].is_null() && seen["machine"].is_null()).unwrap();
    press("host-snapshots");
    student.until("it again", |seen| seen.is_live() && seen["machine"]["name"] == "room-2").unwrap();
    assert!(lab.agreed(&room).await.unwrap().is_empty());

    // A machine for which there is no token says why, in the reader's language.
    press("host-machine-2");
    let why = "Aquesta màquina és una base per a d'altres, i les bases no tenen instantànies.";
    student.until("the reason", |seen| seen["access"].as_str().is_some_and(|text| text.starts_with(why))).unwrap();
    let (errors, _) = browser.complaints().unwrap();
    let others: Vec<_> = errors.iter().filter(|error| !error.contains("409")).collect();
    assert!(others.is_empty(), "{others:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_dark_page_it_is_dark() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("desk-1").await.unwrap();
    lab.take(&guest, "before exam").await.unwrap();
    let browser = Browser::start(lab.cluster.folder()).unwrap();
    let url = format!("{}host/dark.html#{}", page(&lab.cluster), guest.uuid());
    let (student, _) =
        browser.open_as("dark", &url, json!({"tokens": tokens(&lab, &[&guest]), "locale": "de-DE"})).unwrap();
    student.until("the machine", |seen| seen.is_live() && seen["create"]["possible"] == true).unwrap();
    let measured = student.act("measure", json!({})).unwrap();
    assert_eq!(measured["language"], "en", "the page's language comes before the browser's");
    assert!(measured["surface"].as_f64().unwrap() < 0.3, "what it stands on is dark: {measured}");
    assert!(measured["text"].as_f64().unwrap() > 0.7, "and what is written is light: {measured}");
    student.audit("a dark page").unwrap();
    student.act("ask", json!({"name": "before exam", "what": "revert"})).unwrap();
    student.audit("a dialog on a dark page").unwrap();
    student.screenshot("dark-host").unwrap();
    no_complaints(&browser, false);
}

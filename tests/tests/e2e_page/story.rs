//! A person takes a snapshot, breaks things, goes back, changes their mind, and tidies up.

use proto::v1;
use serde_json::json;
use tests::lab::{Lab, id};

use super::browser::{Browser, Seen, pictures, texts};
use super::{link, no_complaints, page};

const SAVED: &str = "Before the return to before exam";
const MARKUP: &str = "<img src=x onerror=alert(1)> & co";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_takes_goes_back_changes_their_mind_and_tidies_up() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("debian-desktop").await.unwrap();
    let beside = lab.guest("exam-room-2").await.unwrap();
    let browser = Browser::start(lab.cluster.folder()).unwrap();
    let file = |name: &str| pictures().unwrap().join(format!("{name}.png"));

    // A link with a token opens the page, and the token is out of the address at once.
    let link = link(&lab.cluster, "student");
    let (student, seen) = browser.open("student", &link).unwrap();
    assert_eq!((&seen["address"], &seen["token"]), (&json!(page(&lab.cluster)), &json!("held")), "{seen:?}");
    assert!(seen["tokenText"].as_str().unwrap().starts_with("Signed in as student, until "), "{seen:?}");
    let seen = student.until("both machines", |seen| seen.machines().len() == 2).unwrap();
    assert_eq!(seen.machines(), [guest.name(), beside.name()]);
    assert!(seen["machine"].is_null(), "with two there is a choice: {seen:?}");
    student.act("choose", json!({"vm": guest.uuid()})).unwrap();
    let seen = student.until("an empty tree", |seen| seen["empty"] == true).unwrap();
    assert_eq!(seen["address"], format!("{}#vm={}", page(&lab.cluster), guest.uuid()));
    assert_eq!(seen["machine"], json!({"name": guest.name(), "state": "Running", "host": "on alpha"}));
    student.screenshot("empty").unwrap();

    // Take.
    guest.write('A').unwrap();
    let what =
        json!({"name": "before exam", "description": "all packages installed", "screenshot": file("create-form")});
    let taken = student.change("create", what).unwrap();
    let said = taken.done().unwrap();
    assert!(said.starts_with("The snapshot “before exam” is taken. The machine stood still for "), "{said}");
    assert!(taken.progress().contains(&"Taking the snapshot “before exam”".to_owned()), "{taken:?}");
    let seen = student.until("the snapshot", |seen| seen.row("before exam")["state"] == "READY").unwrap();
    assert_eq!((seen.tree(), seen.here()), (vec![("before exam".to_owned(), 0)], "before exam"));
    let row = seen.row("before exam");
    assert_eq!((&row["description"], &row["marks"]), (&json!("all packages installed"), &json!(["memory"])));
    assert!(row["size"].as_str().unwrap().ends_with("iB of its own"), "{row}");
    assert_eq!(seen["create"]["name"], "", "the form is ready for the next");
    let exam = lab.agreed(&guest).await.unwrap().remove(0);
    assert_eq!((exam.display_name.as_str(), exam.actor.as_str()), ("before exam", "ravada/student"));
    assert_eq!(exam.content(), v1::SnapshotContent::DisksAndMemory);

    // Somebody else looks at the same machine from now on.
    let (ben, _) = browser.open("ben", &page(&lab.cluster)).unwrap();
    let token = lab.cluster.identity().token("ben", &guest.uuid().to_string(), &["read"]).unwrap();
    ben.act("give", json!({"token": token})).unwrap();
    let seen = ben.until("the only machine", |seen| seen.is_live()).unwrap();
    assert_eq!((seen.machines(), seen.names()), (vec![guest.name().to_owned()], vec!["before exam".to_owned()]));

    // Go back, and keep what was there.
    assert_eq!(guest.write('B').unwrap().disk, 'B');
    let back = json!({"name": "before exam", "save": true, "screenshot": file("revert-dialog")});
    let back = student.change("revert", back).unwrap();
    let lost = back.said("lost");
    assert_eq!(lost["byDefault"], "kept", "the present is kept unless the user says otherwise");
    assert_ne!(lost["kept"], lost["unkept"], "what is kept is not lost");
    assert!(!texts(&lost["unkept"]).is_empty(), "{lost}");
    let said = back.done().unwrap();
    let expected = format!("The machine is back at “before exam”. What it had before is kept as “{SAVED}”.");
    assert!(said.starts_with(&expected), "{said}");
    assert!(back.progress().contains(&"Reverting to “before exam”".to_owned()), "{back:?}");
    let report = guest.report().unwrap();
    assert_eq!((report.disk, report.ram), ('A', 'A'), "the guest reads what was there before the exam");
    for tab in [&student, &ben] {
        let told = |seen: &Seen| seen.row(SAVED)["state"] == "READY" && seen.here() == "before exam";
        let seen = tab.until("the kept present and the place the machine is at", told).unwrap();
        assert_eq!(seen.tree(), [("before exam".to_owned(), 0), (SAVED.to_owned(), 1)], "{seen:?}");
    }
    lab.agreed(&guest).await.unwrap();

    // Undo that.
    let undo = student.change("revert", json!({"name": SAVED, "save": false})).unwrap();
    assert!(undo.done().unwrap().starts_with(&format!("The machine is back at “{SAVED}”.")), "{undo:?}");
    let report = guest.report().unwrap();
    assert_eq!((report.disk, report.ram), ('B', 'B'), "the exam is back");
    let seen = student.until("the place it is at now", |seen| seen.here() == SAVED).unwrap();
    assert_eq!(seen.tree(), [("before exam".to_owned(), 0), (SAVED.to_owned(), 0)], "one line, with no fork");

    // Call it something else.
    let words = json!({"name": "before exam", "newName": "before the maths exam", "description": "keep until June",
        "screenshot": file("edit-dialog")});
    let said = student.change("edit", words).unwrap().done().unwrap();
    assert_eq!(said, "The changes of “before the maths exam” are saved.");
    for tab in [&student, &ben] {
        let seen = tab.until("the new name", |seen| seen.names()[0] == "before the maths exam").unwrap();
        assert_eq!(seen.row("before the maths exam")["description"], "keep until June");
    }
    let told = lab.daemon().unwrap().description(&guest, id(&exam.name)).unwrap();
    assert!(told.starts_with("before the maths exam\nkeep until June\n"), "virsh shows {told:?}");

    // What a script does is seen as well, and nothing in its words is more than words.
    lab.client.done(lab.client.create(&guest.vm(), MARKUP, MARKUP).await).await.unwrap();
    for tab in [&student, &ben] {
        let seen = tab.until("the script's snapshot", |seen| seen.here() == MARKUP).unwrap();
        assert_eq!(seen.names(), ["before the maths exam", SAVED, MARKUP]);
        assert_eq!(seen.row(MARKUP)["description"], MARKUP);
    }

    // A reload forgets nothing.
    let before = student.seen().unwrap();
    student.act("reload", json!({})).unwrap();
    let after = student.until("the page again", |seen| seen.is_live() && !seen.names().is_empty()).unwrap();
    assert_eq!((after.tree(), after.here(), &after["address"]), (before.tree(), before.here(), &before["address"]));

    // Tidy up: one alone, then all that is left.
    let one = student.change("remove", json!({"name": SAVED, "scope": "only"})).unwrap();
    assert_eq!(texts(one.said("named")), [SAVED]);
    assert_eq!(one.done().unwrap(), format!("“{SAVED}” is removed."));
    let seen = student.until("two left", |seen| seen.names().len() == 2).unwrap();
    assert_eq!(seen.names(), ["before the maths exam", MARKUP]);
    let all = json!({"name": "before the maths exam", "scope": "subtree", "screenshot": file("remove-dialog")});
    let all = student.change("remove", all).unwrap();
    let mut named = texts(all.said("named"));
    named.sort();
    assert_eq!(named, [MARKUP, "before the maths exam"]);
    assert_eq!(all.done().unwrap(), "“before the maths exam” is removed.");
    assert!(all.progress().contains(&"Removing “before the maths exam”".to_owned()), "{all:?}");
    for tab in [&student, &ben] {
        tab.until("an empty tree", |seen| seen["empty"] == true).unwrap();
    }
    lab.nothing_left(&guest, &exam).await.unwrap();
    assert_eq!(guest.report().unwrap().disk, 'B', "a removal leaves the machine alone");
    no_complaints(&browser, false);
    let annas = link.split_once("token=").unwrap().1;
    for (process, log) in lab.cluster.logs().unwrap() {
        assert!(!log.contains(annas) && !log.contains(&token), "{process} has logged a token");
    }
}

//! What somebody may not see or do, and what cannot be done, is said in words or not said at all.

use serde_json::json;
use tests::guest::{Disk, Format, Guest};
use tests::lab::Lab;

use super::browser::Browser;
use super::{link, no_complaints, page};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_opens_its_machine_and_shows_nothing_of_another() {
    let lab = Lab::start().unwrap();
    let (annas, bens) = (lab.guest("annas-desktop").await.unwrap(), lab.guest("bens-desktop").await.unwrap());
    lab.take(&annas, "annas secret plans").await.unwrap();
    let browser = Browser::start(lab.cluster.folder()).unwrap();
    let token = lab.cluster.identity().token("ben", &bens.uuid().to_string(), &["read"]).unwrap();

    // Even when he knows which machine to ask for.
    let address = format!("{}#vm={}&token={token}", page(&lab.cluster), annas.uuid());
    let (ben, seen) = browser.open("ben", &address).unwrap();
    assert_eq!(seen["address"], format!("{}#vm={}", page(&lab.cluster), annas.uuid()));
    let seen = ben.until("the refusal", |seen| seen["connection"] == "refused" && !seen.machines().is_empty()).unwrap();
    assert_eq!((seen.machines(), seen.reasons()), (vec!["bens-desktop".to_owned()], vec!["VM_NOT_FOUND".to_owned()]));
    assert_eq!(seen["problems"][0]["text"], "There is no such machine, or this token does not open it.");
    assert!(seen["machine"].is_null() && seen["create"].is_null() && seen.names().is_empty(), "{seen:?}");
    let html = seen["html"].as_str().unwrap();
    assert!(!html.contains("annas") && !html.contains(&token), "{html}");
    ben.screenshot("another-machine").unwrap();

    // On his own machine he may look and not touch.
    ben.act("choose", json!({"vm": bens.uuid()})).unwrap();
    let refused = ben.change("create", json!({"name": "before exam"})).unwrap();
    let (reason, text, next) = refused.problem().unwrap();
    assert_eq!(
        (reason.as_str(), text.as_str()),
        ("ACTION_NOT_GRANTED", "You may see this machine, but not do this to it.")
    );
    assert_eq!(next, "Ask the owner of the machine or your administrator.");
    assert_eq!(ben.seen().unwrap()["create"]["name"], "before exam", "what was typed is still there");
    ben.screenshot("refused").unwrap();
    assert!(lab.agreed(&bens).await.unwrap().is_empty());

    // A token that is over, and something that is none.
    ben.act("give", json!({"token": lab.cluster.identity().expired_token().unwrap()})).unwrap();
    let seen = ben.until("the end of the access", |seen| seen["token"] == "ended").unwrap();
    assert!(seen["tokenText"].as_str().unwrap().starts_with("Your access has ended."), "{seen:?}");
    let (carl, _) = browser.open("carl", &page(&lab.cluster)).unwrap();
    let seen = carl.act("give", json!({"token": "correct horse battery staple"})).unwrap();
    assert_eq!((&seen["token"], &seen["machines"]), (&json!("none"), &json!([])));
    no_complaints(&browser, false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_done_is_said_before_it_is_tried() {
    let lab = Lab::start().unwrap();
    let folder = lab.images().unwrap();
    let disk = Disk::boot(&folder.join("archive.img"), Format::Raw).unwrap();
    let raw = Guest::with_disks(&folder, "archive", vec![disk]).unwrap();
    lab.run(&raw).await.unwrap();
    let browser = Browser::start(lab.cluster.folder()).unwrap();
    let (student, _) = browser.open("student", &link(&lab.cluster, "student")).unwrap();
    let seen = student.until("the machine", |seen| seen.is_live()).unwrap();
    assert_eq!(seen["create"]["possible"], false);
    assert_eq!(
        seen["create"]["reason"],
        "No snapshot can be taken now. A disk of this machine is of a kind that cannot hold snapshots. \
         Your administrator can convert it to qcow2."
    );
    student.screenshot("cannot").unwrap();

    // Nothing named, then a name that is too long: said at the field, and nobody is asked.
    let guest = lab.guest("debian-desktop").await.unwrap();
    student.act("reload", json!({})).unwrap();
    student.until("both machines", |seen| seen.machines().len() == 2).unwrap();
    student.act("choose", json!({"vm": guest.uuid()})).unwrap();
    student.until("the form", |seen| seen["create"]["possible"] == true).unwrap();
    for (name, problem) in
        [(" ".to_owned(), "Give it a name."), ("x".repeat(129), "The name has 129 characters; the most is 128.")]
    {
        let seen = student.act("submit", json!({"name": name})).unwrap();
        assert_eq!(seen["create"]["nameProblem"], problem);
    }
    assert!(lab.agreed(&guest).await.unwrap().is_empty());
    no_complaints(&browser, false);
}

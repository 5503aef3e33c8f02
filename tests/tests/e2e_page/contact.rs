//! The page loses its service, and finds it again by itself.

use serde_json::json;
use tests::client::{Client, Grpc};
use tests::lab::Lab;

use super::browser::Browser;
use super::{link, no_complaints};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_service_is_told_of_and_found_again() {
    let mut lab = Lab::start().unwrap();
    let guest = lab.guest("debian-desktop").await.unwrap();
    lab.take(&guest, "fresh install").await.unwrap();
    let browser = Browser::start(lab.cluster.folder()).unwrap();
    let (student, _) = browser.open("student", &link(&lab.cluster, "student")).unwrap();
    student.until("the only machine", |seen| seen.is_live() && seen.here() == "fresh install").unwrap();

    lab.cluster.gateway().kill().unwrap();
    let seen = student.until("the loss", |seen| seen["connection"] == "lost").unwrap();
    assert!(seen["banner"].as_str().unwrap().starts_with("Connection lost. Trying again in "), "{seen:?}");
    assert_eq!(seen.names(), ["fresh install"], "what was known stays to be read");
    assert_eq!((&seen["create"]["possible"], &seen.row("fresh install")["may"]), (&json!(false), &json!([])));
    student.screenshot("lost").unwrap();

    // Life goes on without the page.
    let ports = lab.cluster.ports();
    let direct = Grpc::tls(ports.public, &lab.cluster.identity().ca()).unwrap();
    let direct = Client::new(Box::new(direct), lab.cluster.identity().admin_token().unwrap());
    direct.done(direct.create(&guest.vm(), "while you were away", "").await).await.unwrap();

    lab.cluster.start_gateway_again().unwrap();
    let seen = student.until("the service again", |seen| seen.is_live() && seen["create"]["possible"] == true).unwrap();
    assert_eq!(
        (seen.names(), seen.here()),
        (vec!["fresh install".to_owned(), "while you were away".to_owned()], "while you were away")
    );
    assert_eq!(seen["banner"], "");
    let through = seen.connections();
    assert!(through.contains(&"lost".to_owned()) && through.last().unwrap() == "live", "{through:?}");

    // The API goes away behind a gateway that stays: for the page it is the same.
    lab.cluster.api().kill().unwrap();
    student.until("the loss", |seen| seen["connection"] == "lost").unwrap();
    lab.cluster.start_api_again().unwrap();
    student.until("the service again", |seen| seen.is_live() && seen["create"]["possible"] == true).unwrap();

    // And the person's own network, whose return the browser tells of.
    student.act("offline", json!({"offline": true})).unwrap();
    let lost = student.change("create", json!({"name": "on the train"})).unwrap();
    let (reason, text, next) = lost.problem().unwrap();
    assert_eq!((reason.as_str(), text.as_str()), ("", "The service cannot be reached."));
    assert_eq!(next, "Check your connection; the page keeps trying by itself.");
    student.act("offline", json!({"offline": false})).unwrap();
    let seen = student.until("the service again", |seen| seen.is_live() && seen["create"]["possible"] == true).unwrap();
    assert_eq!(seen["create"]["name"], "on the train", "what was typed is still there");
    let again = student.change("create", json!({"name": "on the train"})).unwrap();
    assert!(again.done().unwrap().starts_with("The snapshot “on the train” is taken."), "{again:?}");
    let names: Vec<String> =
        lab.agreed(&guest).await.unwrap().into_iter().map(|snapshot| snapshot.display_name).collect();
    assert_eq!(names, ["fresh install", "while you were away", "on the train"], "asked for twice, taken once");
    no_complaints(&browser, true);
}

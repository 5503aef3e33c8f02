//! What goes on is seen while it goes on: in every tab, after a reload, and it can be stopped where that can be.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tests::lab::Lab;

use super::browser::Browser;
use super::{link, no_complaints};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_outlives_a_reload_and_all_tabs_agree() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("debian-desktop").await.unwrap();
    let browser = Browser::start(lab.cluster.folder()).unwrap();
    let (one, _) = browser.open("one", &link(&lab.cluster, "student")).unwrap();
    let (two, _) = browser.open("two", &link(&lab.cluster, "student")).unwrap();
    for tab in [&one, &two] {
        let seen = tab.until("the form", |seen| !seen["cost"].as_str().unwrap_or("").is_empty()).unwrap();
        let cost = seen["cost"].as_str().unwrap();
        assert!(cost.starts_with("The machine will stand still for about "), "{cost}");
        assert_eq!(seen["left"], "100 more snapshots can be kept, of 100.");
        assert_eq!(seen["memory"]["enabled"], false, "only a snapshot with the running state is possible: {seen:?}");
        assert!(!seen["memory"]["hint"].as_str().unwrap().is_empty(), "and it says why");
    }
    let size = |seen: &super::browser::Seen| seen["cost"].as_str().is_some_and(|cost| cost.contains("It takes up to "));
    one.until("the plan of the service", size).unwrap();

    // A QEMU that stands still holds libvirt in the middle of it.
    let qemu = Pid::from_raw(lab.daemon().unwrap().qemu_pid(&guest).unwrap()).unwrap();
    kill_process(qemu, Signal::STOP).unwrap();
    one.act("begin", json!({"name": "before exam"})).unwrap();
    let what = "Taking the snapshot “before exam”";
    for tab in [&one, &two] {
        let seen = tab.until("the progress", |seen| seen["running"] == json!([what])).unwrap();
        assert_eq!(seen["create"]["possible"], false, "one thing at a time");
        assert_eq!(seen["stoppable"], false, "no button that would do nothing");
    }
    one.screenshot("progress").unwrap();
    one.audit("progress").unwrap();
    one.act("reload", json!({})).unwrap();
    one.until("the progress again", |seen| seen["running"] == json!([what])).unwrap();
    // One of them is out of touch when it ends, and hears of it afterwards.
    two.act("offline", json!({"offline": true})).unwrap();
    kill_process(qemu, Signal::CONT).unwrap();
    let told = |seen: &super::browser::Seen| {
        seen["done"][0].as_str().is_some_and(|done| done.starts_with("The snapshot “before exam” is taken."))
    };
    one.until("the end", |seen| told(seen) && seen["running"] == json!([])).unwrap();
    two.act("offline", json!({"offline": false})).unwrap();
    two.until("the end", |seen| told(seen) && seen["running"] == json!([]) && seen.is_live()).unwrap();
    let left = "99 more snapshots can be kept, of 100.";
    for tab in [&one, &two] {
        tab.until("what is left", |seen| seen["left"] == left && seen.here() == "before exam").unwrap();
    }
    assert_eq!(lab.agreed(&guest).await.unwrap().len(), 1);
    no_complaints(&browser, true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_be_stopped_is_stopped_and_says_what_is_left() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("debian-desktop").await.unwrap();
    for name in ["one", "two", "three"] {
        lab.take(&guest, name).await.unwrap();
    }
    let browser = Browser::start(lab.cluster.folder()).unwrap();
    let (student, _) = browser.open("student", &link(&lab.cluster, "student")).unwrap();
    student.until("the tree", |seen| seen.names().len() == 3 && seen["create"]["possible"] == true).unwrap();

    student.act("ask", json!({"name": "one", "what": "remove"})).unwrap();
    student.act("press", json!({"id": "remove-scope-subtree"})).unwrap();
    student.until("all names", |seen| seen["victims"].as_array().is_some_and(|all| all.len() == 3)).unwrap();
    let qemu = Pid::from_raw(lab.daemon().unwrap().qemu_pid(&guest).unwrap()).unwrap();
    kill_process(qemu, Signal::STOP).unwrap();
    student.act("press", json!({"id": "remove-confirm"})).unwrap();
    student.until("a way to stop it", |seen| seen["stoppable"] == true).unwrap();
    student.act("stop", json!({})).unwrap();
    kill_process(qemu, Signal::CONT).unwrap();
    let is_told = |seen: &super::browser::Seen| seen["cancelled"].as_array().is_some_and(|told| told.len() == 1);
    let seen = student.until("the end", |seen| is_told(seen) && seen["create"]["possible"] == true).unwrap();
    let said = seen["cancelled"][0].as_str().unwrap();
    assert_eq!(said, "Stopped: Removing “one”. What was removed by then stays removed.");
    let left: Vec<String> =
        lab.agreed(&guest).await.unwrap().into_iter().map(|snapshot| snapshot.display_name).collect();
    assert!(!left.is_empty() && left.contains(&"one".to_owned()), "leaves go first, so the root is left: {left:?}");
    student.until("the same", |seen| seen.names() == left).unwrap();
    no_complaints(&browser, false);
}

//! The page in other languages, from the right to the left, on narrow screens and on dark ones.

use serde_json::{Value, json};
use tests::lab::Lab;

use super::browser::Browser;
use super::{link, no_complaints};

const LANGUAGES: &[&str] = &[
    "ar", "ca", "cs", "de", "en", "es", "eu", "fa", "fr", "gl", "he", "hi", "id", "it", "ja", "ko", "nb", "pt", "ru",
    "tr", "vi", "zh-CN", "zh-TW",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_reads_their_own_language() {
    let lab = Lab::start().unwrap();
    let guest = lab.guest("debian-desktop").await.unwrap();
    let first = lab.take(&guest, "before exam").await.unwrap();
    lab.take(&guest, "packages of the course").await.unwrap();
    lab.return_to(&first).await.unwrap();
    lab.take(&guest, "another way").await.unwrap();
    let browser = Browser::start(lab.cluster.folder()).unwrap();

    // Nothing is cut off or sticks out in any of them, on the narrowest of screens.
    for language in LANGUAGES {
        let how = json!({"locale": language, "width": 360, "height": 740});
        let (tab, _) = browser.open_as(&format!("narrow-{language}"), &link(&lab.cluster, "student"), how).unwrap();
        tab.until("the tree", |seen| seen.names().len() == 3 && seen["create"]["possible"] == true).unwrap();
        tab.act("ask", json!({"name": "before exam", "what": "revert"})).unwrap();
        let measured = tab.act("measure", json!({})).unwrap();
        assert_eq!((&measured["language"], &measured["pageLanguage"]), (&json!(language), &json!(language)));
        assert_eq!((&measured["outside"], &measured["scrolls"]), (&json!([]), &json!(false)), "{language}");
        tab.screenshot(&format!("revert-{language}")).unwrap();
        tab.close().unwrap();
    }

    // From the right: the rail is at the right, and what branches off is set in from there.
    let (arabic, _) = browser.open_as("arabic", &link(&lab.cluster, "student"), json!({"locale": "ar"})).unwrap();
    let (english, _) = browser.open("english", &link(&lab.cluster, "student")).unwrap();
    for tab in [&arabic, &english] {
        tab.until("the tree", |seen| seen.names().len() == 3 && seen["create"]["possible"] == true).unwrap();
    }
    let side = |rows: &Value, name: &str, what: &str, edge: &str| {
        let row = rows.as_array().unwrap().iter().find(|row| row["name"] == name).unwrap();
        row[what][edge].as_i64().unwrap()
    };
    let there = arabic.act("measure", json!({})).unwrap();
    let rows = &there["rows"];
    assert_eq!((&there["direction"], &there["outside"]), (&json!("rtl"), &json!([])));
    let (line, branch) = ("before exam", "packages of the course");
    assert!(side(rows, branch, "title", "right") < side(rows, line, "title", "right"), "{rows}");
    assert!(side(rows, line, "actions", "left") < side(rows, line, "title", "left"), "{rows}");
    let here = english.act("measure", json!({})).unwrap();
    let rows = &here["rows"];
    assert_eq!(here["direction"], "ltr");
    assert!(side(rows, branch, "title", "left") > side(rows, line, "title", "left"), "{rows}");
    assert!(side(rows, line, "actions", "left") > side(rows, line, "title", "left"), "{rows}");
    arabic.audit("from the right").unwrap();
    arabic.screenshot("list-ar").unwrap();

    // And what is done is told in the language, too.
    let said = arabic.change("create", json!({"name": "قبل الامتحان"})).unwrap().done().unwrap();
    assert!(said.contains("أُخذت اللقطة") && said.contains("قبل الامتحان"), "{said}");
    english.until("the news", |seen| seen.here() == "قبل الامتحان").unwrap();

    // Whoever chooses another than the browser's keeps it.
    english.act("choice", json!({"value": "ca"})).unwrap();
    english.until("Catalan", |seen| seen["count"] == "4 instantànies").unwrap();
    english.act("reload", json!({})).unwrap();
    english.until("Catalan still", |seen| seen.is_live() && seen["count"] == "4 instantànies").unwrap();
    let (tab, _) = browser.open_as("brazilian", &link(&lab.cluster, "student"), json!({"locale": "pt-BR"})).unwrap();
    tab.until("Portuguese", |seen| seen["count"] == "4 instantâneos").unwrap();
    no_complaints(&browser, false);
}

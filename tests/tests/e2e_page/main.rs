//! The page in Debian's Chromium, on a whole system with real guests: what a person does there happens to the machine, and
//! what happens to the machine is seen there. Pictures of it are left in `target/screenshots`.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use tests::cluster::{ALL_ACTIONS, Cluster};

use self::browser::Browser;

mod access;
mod browser;
mod contact;
mod host;
mod languages;
mod limits;
mod live;
mod losses;
mod many;
mod orphans;
mod picture;
mod story;

/// The address of the page.
fn page(cluster: &Cluster) -> String {
    format!("http://127.0.0.1:{}/", cluster.ports().gateway)
}

/// The address that Ravada would send somebody to: with a token for every machine.
fn link(cluster: &Cluster, subject: &str) -> String {
    let token = cluster.identity().token(subject, "*", &ALL_ACTIONS).unwrap();
    format!("{}#token={token}", page(cluster))
}

/// Fails when the browser saw a fault of the page. `cut` says that the test has taken the service away.
fn no_complaints(browser: &Browser, cut: bool) {
    let (errors, network) = browser.complaints().unwrap();
    assert!(errors.is_empty(), "the browser complains: {errors:#?}");
    assert!(cut || network.is_empty(), "requests reached nobody: {network:#?}");
}

//! When certificates end, as the log and the metric have it. The clock is the test's.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mtls::TlsFiles;
use mtls::dev_ca::{issue_for, refresh};
use mtls::expiry::{Expiry, Kind, Nearness};

use crate::support::{Ca, eventually, leaf};

const DAY: i64 = 24 * 60 * 60;

fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

#[tokio::test]
async fn what_ends_soon_is_told_at_once_and_daily_and_once_more_when_it_ends() {
    let ca = Ca::new();
    // The leaves are good for 30 days, the list for 90, the CA for ten years.
    let mut expiry = Expiry::of(&ca.files("api")).unwrap();
    let begin = now();
    let leaf_ends = begin + 30 * DAY;
    assert_eq!(expiry.look(begin), []);
    assert_eq!(expiry.look(leaf_ends - 15 * DAY), []);
    let near = [(Kind::Certificate, Nearness::Near)];
    assert_eq!(expiry.look(leaf_ends - 13 * DAY), near, "fourteen days ahead");
    assert_eq!(expiry.look(leaf_ends - 13 * DAY + 60), [], "but not all the time");
    assert_eq!(expiry.look(leaf_ends - 12 * DAY + 60), near, "daily");
    let imminent = [(Kind::Certificate, Nearness::Imminent)];
    assert_eq!(expiry.look(leaf_ends - DAY / 2), imminent, "the last day");
    assert_eq!(expiry.look(leaf_ends + 60), [(Kind::Certificate, Nearness::Over)]);
    assert_eq!(expiry.look(leaf_ends + 120), []);

    let ends = Expiry::of(&ca.files("api")).unwrap().look(begin + 3700 * DAY);
    let kinds: Vec<Kind> = ends.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [Kind::Certificate, Kind::Ca, Kind::Crl], "each file is looked at");
    assert!(ends.iter().all(|(_, near)| *near == Nearness::Over));
    assert_eq!(Expiry::of(&TlsFiles { crl: None, ..ca.files("api") }).unwrap().look(begin + 100 * DAY).len(), 1);
}

#[tokio::test]
async fn a_new_certificate_counts_once_it_is_there() {
    let ca = Ca::new();
    issue_for(ca.dir(), &leaf("api", "api"), Duration::from_secs(3600)).unwrap();
    let mut expiry = Expiry::of(&ca.files("api")).unwrap();
    let begin = now();
    assert_eq!(expiry.look(begin), [(Kind::Certificate, Nearness::Imminent)]);
    ca.reissue("api", "api");
    refresh(ca.dir(), 1).unwrap();
    let expiry = std::sync::Mutex::new(expiry);
    eventually("the list's new end is not seen", || async {
        let told = expiry.lock().unwrap().look(begin + 1);
        Some(told).filter(|told| *told == [(Kind::Crl, Nearness::Imminent)])
    })
    .await;
    fs::remove_file(ca.path("crl.pem")).unwrap();
    assert_eq!(expiry.lock().unwrap().look(begin + 2), [], "what is gone is as it was");
}

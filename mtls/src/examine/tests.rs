use std::fs::{self, Permissions};
use std::path::PathBuf;

use doctor::Level;

use super::*;
use crate::dev_ca::{self, Leaf};

const YEAR: i64 = 365 * DAY;

struct Files {
    _folder: tempfile::TempDir,
    tls: TlsFiles,
}

fn files() -> Files {
    let folder = tempfile::tempdir().unwrap();
    dev_ca::create(folder.path(), "example.org", &[], 3650, false).unwrap();
    for (stem, path) in [("agent", "agent/alpha"), ("other", "agent/beta")] {
        let leaf =
            Leaf { file_stem: stem.to_owned(), spiffe_path: path.to_owned(), dns: Vec::new(), ip_addrs: Vec::new() };
        dev_ca::issue(folder.path(), &leaf, 365).unwrap();
    }
    let file = |name: &str| folder.path().join(name);
    let tls = TlsFiles {
        ca: file("ca.pem"),
        certificate: file("agent.pem"),
        key: file("agent.key"),
        crl: Some(file("crl.pem")),
    };
    Files { _folder: folder, tls }
}

fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

/// The checks that found something, with how bad it is.
fn found(files: &TlsFiles, at: i64) -> Vec<(&'static str, Level)> {
    let bad = mutual(files, "agent/alpha", at).into_iter().filter(|finding| finding.level != Level::Ok);
    bad.inspect(|finding| assert!(!finding.remedy.is_empty(), "{finding:?}")).map(|it| (it.check, it.level)).collect()
}

#[test]
fn a_good_set_has_nothing_to_be_told_of() {
    let files = files();
    assert_eq!(found(&files.tls, now()), []);
    assert!(mutual(&files.tls, "agent/alpha", now()).len() >= 5);
}

#[test]
fn each_fault_is_named() {
    let Files { _folder, tls } = self::files();
    let file = |name: &str| -> PathBuf { tls.ca.with_file_name(name) };
    assert_eq!(found(&tls, now() + YEAR - 10 * DAY), [("certificate", Level::Warn), ("revocation list", Level::Warn)]);
    assert_eq!(found(&tls, now() + YEAR + DAY), [("certificate", Level::Fail), ("revocation list", Level::Warn)]);
    assert_eq!(found(&tls, now() - 2 * DAY)[0], ("certificate", Level::Fail), "not yet good");

    let of_another = TlsFiles { key: file("other.key"), ..tls.clone() };
    assert_eq!(found(&of_another, now()), [("key", Level::Fail)]);
    let another = TlsFiles { certificate: file("other.pem"), key: file("other.key"), ..tls.clone() };
    assert_eq!(found(&another, now()), [("identity", Level::Warn)]);
    let missing = TlsFiles { ca: file("none.pem"), ..tls.clone() };
    assert_eq!(found(&missing, now()), [("certificate", Level::Fail)]);

    fs::set_permissions(&tls.key, Permissions::from_mode(0o644)).unwrap();
    assert_eq!(found(&tls, now()), [("key", Level::Fail)]);
    fs::set_permissions(&tls.key, Permissions::from_mode(0o600)).unwrap();

    dev_ca::revoke(tls.ca.parent().unwrap(), &tls.certificate).unwrap();
    assert_eq!(found(&tls, now()), [("chain", Level::Fail)]);
    let stranger = files();
    assert_eq!(found(&TlsFiles { ca: stranger.tls.ca.clone(), crl: None, ..tls }, now()), [("chain", Level::Fail)]);
}

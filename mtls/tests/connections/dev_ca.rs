//! The development CA: what it writes, and what it will not do.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use mtls::dev_ca::{DevCaError, create, issue, renew, revoke};
use mtls::{IdentityError, PeerIdentity};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::support::{Ca, DOMAIN, id, leaf};

#[test]
fn keys_are_for_their_owner_only() {
    let ca = Ca::new();
    let mut names = 0;
    for entry in fs::read_dir(ca.dir()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        let expected = match entry.path().extension().unwrap().to_str().unwrap() {
            "key" => 0o600,
            "pem" => 0o644,
            other => panic!("{other} was left behind"),
        };
        assert_eq!(mode, expected, "{:?}", entry.path());
        names += 1;
    }
    assert_eq!(names, 11, "the CA, its revocation list, and four leaves");
}

#[test]
fn a_ca_is_not_overwritten_by_accident() {
    let ca = Ca::new();
    let before = fs::read(ca.path("ca.pem")).unwrap();
    assert!(matches!(create(ca.dir(), DOMAIN, &[], 30, false), Err(DevCaError::Exists(_))));
    assert_eq!(fs::read(ca.path("ca.pem")).unwrap(), before);
    create(ca.dir(), DOMAIN, &[], 30, true).unwrap();
    assert_ne!(fs::read(ca.path("ca.pem")).unwrap(), before);
}

#[test]
fn leaves_can_be_added_and_carry_their_name() {
    let ca = Ca::new();
    issue(ca.dir(), &leaf("host-2", "agent/host-2"), 1).unwrap();
    let identity = |file| PeerIdentity::from_certificate(&CertificateDer::from_pem_file(ca.path(file)).unwrap());
    assert_eq!(*identity("host-2.pem").unwrap().id(), id("agent/host-2"));
    assert!(matches!(identity("ca.pem"), Err(IdentityError::NotSpiffe(_))), "a CA is nobody");
}

#[test]
fn a_leaf_is_renewed_with_all_its_names() {
    let ca = Ca::new();
    let of = |file: &str| CertificateDer::from_pem_file(ca.path(file)).unwrap();
    let before = (of("api.pem"), fs::read(ca.path("api.key")).unwrap());
    renew(ca.dir(), "api", 1).unwrap();
    let after = (of("api.pem"), fs::read(ca.path("api.key")).unwrap());
    assert!(before.0 != after.0 && before.1 != after.1);
    let names = |der: &CertificateDer<'_>| {
        let (_, certificate) = X509Certificate::from_der(der).unwrap();
        format!("{:?}", certificate.subject_alternative_name().unwrap().unwrap().value)
    };
    assert_eq!(names(&before.0), names(&after.0));
    assert!(renew(ca.dir(), "nobody", 1).is_err());
}

#[test]
fn only_its_own_leaves_can_be_revoked() {
    let (ca, foreign) = (Ca::new(), Ca::new());
    let before = fs::read(ca.path("crl.pem")).unwrap();
    assert!(matches!(revoke(ca.dir(), &foreign.path("api.pem")), Err(DevCaError::Invalid(_))));
    assert!(matches!(revoke(ca.dir(), &ca.path("api.key")), Err(DevCaError::Invalid(_))));
    assert_eq!(fs::read(ca.path("crl.pem")).unwrap(), before);
    revoke(ca.dir(), &ca.path("api.pem")).unwrap();
    assert_ne!(fs::read(ca.path("crl.pem")).unwrap(), before);
}

#[test]
fn what_cannot_be_a_name_is_refused() {
    let ca = Ca::new();
    for (stem, path) in [("ca", "x"), ("", "x"), ("../x", "x"), (".x", "x"), ("x", ""), ("x", "/x"), ("x", "a b")] {
        assert!(issue(ca.dir(), &leaf(stem, path), 1).is_err(), "{stem:?} {path:?}");
    }
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(create(empty.path(), "Not A Domain", &[], 1, false), Err(DevCaError::Invalid(_))));
    assert!(matches!(issue(empty.path(), &leaf("x", "x"), 1), Err(DevCaError::Io { .. })));
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0);
}

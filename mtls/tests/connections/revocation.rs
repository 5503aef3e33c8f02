//! Certificates that are taken back, or whose time ends, while their bearer is connected.

use std::fs;
use std::time::Duration;

use futures_util::StreamExt;
use mtls::TlsFiles;
use mtls::dev_ca::{issue_for, refresh, revoke};
use rcgen::{CertificateRevocationListParams, Issuer, KeyIdMethod, KeyPair, SerialNumber, date_time_ymd};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::support::{Ca, assert_refused, connect, eventually, id, leaf, serve, whoami};

#[tokio::test]
async fn a_revoked_client_is_cut_off_and_no_other() {
    let ca = Ca::new();
    let server = serve(ca.mutual("agent-a", &["api", "other"]), None).await;
    let (bad, good) = (connect(server, ca.files("api"), "agent/a"), connect(server, ca.files("other"), "agent/a"));
    let stream = HealthClient::new(bad.clone()).watch(HealthCheckRequest::default()).await.unwrap();
    let mut stream = stream.into_inner();
    assert!(stream.next().await.unwrap().is_ok());
    assert_eq!(whoami(&good).await.unwrap(), id("other").to_string());

    revoke(ca.dir(), &ca.path("api.pem")).unwrap();
    let end = tokio::time::timeout(Duration::from_secs(30), stream.next()).await;
    assert!(end.expect("its open stream goes on").unwrap().is_err());
    assert_refused(&bad, "CertificateRevoked").await;
    assert_refused(&connect(server, ca.files("api"), "agent/a"), "CertificateRevoked").await;
    for _ in 0..100 {
        assert_eq!(whoami(&good).await.unwrap(), id("other").to_string());
    }
    // The name is not what was revoked.
    ca.reissue("api", "api");
    assert_eq!(whoami(&connect(server, ca.files("api"), "agent/a")).await.unwrap(), id("api").to_string());
}

#[tokio::test]
async fn a_revoked_server_is_left_and_no_other() {
    let ca = Ca::new();
    // A stolen server looks at no list.
    let bad = serve(stolen(&ca, "agent-a"), None).await;
    let good = serve(ca.mutual("agent-b", &["api"]), None).await;
    let (to_bad, to_good) = (connect(bad, ca.files("api"), "agent/a"), connect(good, ca.files("api"), "agent/b"));
    let stream = HealthClient::new(to_bad.clone()).watch(HealthCheckRequest::default()).await.unwrap();
    let mut stream = stream.into_inner();
    assert!(stream.next().await.unwrap().is_ok() && whoami(&to_good).await.is_ok());

    revoke(ca.dir(), &ca.path("agent-a.pem")).unwrap();
    let end = tokio::time::timeout(Duration::from_secs(30), stream.next()).await;
    assert!(end.expect("the open stream goes on").unwrap().is_err());
    assert_refused(&to_bad, "Revoked").await;
    assert!(whoami(&to_good).await.is_ok());
}

fn stolen(ca: &Ca, stem: &str) -> mtls::server::ServerTls {
    let files = TlsFiles { crl: None, ..ca.files(stem) };
    mtls::server::ServerTls::Mutual { files, allow: crate::support::list(&["api"]) }
}

#[tokio::test]
async fn a_certificate_that_expires_ends_its_open_connection() {
    let ca = Ca::new();
    issue_for(ca.dir(), &leaf("api", "api"), Duration::from_secs(15)).unwrap();
    let server = serve(ca.mutual("agent-a", &["api", "other"]), None).await;
    let (short, long) = (connect(server, ca.files("api"), "agent/a"), connect(server, ca.files("other"), "agent/a"));
    assert!(whoami(&short).await.is_ok());
    let said = eventually("an expired certificate keeps its connection", || async {
        assert!(whoami(&long).await.is_ok(), "and no other connection may end");
        whoami(&short).await.err()
    })
    .await;
    let refused = connect(server, ca.files("api"), "agent/a");
    assert!(whoami(&refused).await.is_err(), "{said:?}");
}

#[tokio::test]
async fn a_list_whose_time_is_over_goes_on_to_count() {
    let ca = Ca::new();
    revoke(ca.dir(), &ca.path("other.pem")).unwrap();
    refresh(ca.dir(), 0).unwrap();
    let server = serve(ca.mutual("agent-a", &["api", "other"]), None).await;
    assert!(whoami(&connect(server, ca.files("api"), "agent/a")).await.is_ok(), "what is not in it passes");
    assert_refused(&connect(server, ca.files("other"), "agent/a"), "CertificateRevoked").await;
}

#[tokio::test]
async fn a_list_that_the_ca_did_not_sign_lets_nobody_in() {
    let ca = Ca::new();
    let server = serve(ca.mutual("agent-a", &["api"]), None).await;
    assert!(whoami(&connect(server, ca.files("api"), "agent/a")).await.is_ok());
    // The CA's name over another key: an empty list that somebody made to have a revoked certificate forgotten.
    let forger = KeyPair::generate().unwrap();
    let issuer = Issuer::from_ca_cert_pem(&fs::read_to_string(ca.path("ca.pem")).unwrap(), forger).unwrap();
    let params = CertificateRevocationListParams {
        this_update: date_time_ymd(2020, 1, 1),
        next_update: date_time_ymd(2099, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    fs::write(ca.path("crl.pem"), params.signed_by(&issuer).unwrap().pem().unwrap()).unwrap();
    eventually("a forged list is taken", || async { whoami(&connect(server, ca.files("api"), "agent/a")).await.err() })
        .await;
}

#[tokio::test]
async fn a_list_that_cannot_be_read_leaves_the_one_from_before() {
    let ca = Ca::new();
    revoke(ca.dir(), &ca.path("other.pem")).unwrap();
    let server = serve(ca.mutual("agent-a", &["api", "other"]), None).await;
    // The clients' own copies stay good: it is the server's that is broken.
    let (api, other) = (ca.files_besides("api"), ca.files_besides("other"));
    for broken in ["", "nonsense", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"] {
        fs::write(ca.path("crl.pem"), broken).unwrap();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(whoami(&connect(server, api.clone(), "agent/a")).await.is_ok(), "{broken:?}");
        assert_refused(&connect(server, other.clone(), "agent/a"), "CertificateRevoked").await;
    }
    // What cannot be read at the start is an error.
    let unread = mtls::server::Acceptor::new(ca.mutual("agent-a", &["api"]));
    assert!(unread.is_err());
}

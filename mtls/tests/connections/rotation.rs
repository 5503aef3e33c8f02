//! Certificates change under a running service.

use std::fs;

use futures_util::StreamExt;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::support::{Ca, assert_refused, connect, eventually, id, serve, whoami};

#[tokio::test]
async fn a_server_presents_its_new_certificate_and_keeps_open_connections() {
    let ca = Ca::new();
    let server = serve(ca.mutual("agent-a", &["api"]), None).await;
    let old = connect(server, ca.files("api"), "agent/a");
    let stream = HealthClient::new(old.clone()).watch(HealthCheckRequest::default()).await.unwrap();
    let mut stream = stream.into_inner();
    assert!(stream.next().await.unwrap().is_ok());

    // Under another name, so that it can be told apart.
    ca.reissue("agent-a", "agent/b");
    eventually("the new certificate was not presented", || async {
        whoami(&connect(server, ca.files("api"), "agent/b")).await.ok()
    })
    .await;
    assert_refused(&connect(server, ca.files("api"), "agent/a"), "NotExpected").await;

    assert_eq!(whoami(&old).await.unwrap(), id("api").to_string(), "the open connection goes on");
    let silence = tokio::time::timeout(std::time::Duration::from_millis(500), stream.next()).await;
    assert!(silence.is_err(), "and so does its stream");
}

#[tokio::test]
async fn a_client_moves_to_a_new_connection_for_its_new_certificate_and_loses_nothing() {
    let ca = Ca::new();
    let server = serve(ca.mutual("agent-a", &["api", "other"]), None).await;
    let channel = connect(server, ca.files("api"), "agent/a");
    let renewal = channel.renewal();
    let stream = HealthClient::new(channel.clone()).watch(HealthCheckRequest::default()).await.unwrap();
    let mut stream = stream.into_inner();
    assert!(stream.next().await.unwrap().is_ok());
    assert_eq!(whoami(&channel).await.unwrap(), id("api").to_string());
    // Under another name, so that it can be told apart.
    ca.reissue("api", "other");
    eventually("the new certificate was not presented", || async {
        let name = whoami(&channel).await.expect("no call fails meanwhile");
        Some(name).filter(|name| *name == id("other").to_string())
    })
    .await;
    tokio::time::timeout(std::time::Duration::from_secs(20), renewal).await.expect("it says so");
    let silence = tokio::time::timeout(std::time::Duration::from_millis(500), stream.next()).await;
    assert!(silence.is_err(), "a stream on the connection from before goes on");
}

#[tokio::test]
async fn a_ca_that_is_taken_away_stops_counting() {
    let (ca, next) = (Ca::new(), Ca::new());
    let server = serve(ca.mutual("agent-a", &["api"]), None).await;
    let bundle = [fs::read(ca.path("ca.pem")).unwrap(), fs::read(next.path("ca.pem")).unwrap()].concat();
    let newcomer =
        || connect(server, mtls::TlsFiles { ca: ca.path("ca-for-clients.pem"), ..next.files("api") }, "agent/a");
    fs::copy(ca.path("ca.pem"), ca.path("ca-for-clients.pem")).unwrap();
    assert!(whoami(&newcomer()).await.is_err());

    fs::write(ca.path("ca.pem"), bundle).unwrap();
    eventually("the new CA does not count", || async { whoami(&newcomer()).await.ok() }).await;
    assert!(whoami(&connect(server, ca.files("api"), "agent/a")).await.is_ok(), "both, while they are replaced");

    let open = connect(server, ca.files_besides("api"), "agent/a");
    let good = newcomer();
    assert!(whoami(&open).await.is_ok() && whoami(&good).await.is_ok());
    fs::copy(next.path("ca.pem"), ca.path("ca.pem")).unwrap();
    let veteran =
        || connect(server, mtls::TlsFiles { ca: ca.path("ca-for-clients.pem"), ..ca.files("api") }, "agent/a");
    eventually("the old CA still counts", || async { whoami(&veteran()).await.err() }).await;
    assert!(whoami(&newcomer()).await.is_ok());
    eventually("a connection by the old CA goes on", || async {
        assert!(whoami(&good).await.is_ok(), "and no other connection may end");
        whoami(&open).await.err()
    })
    .await;
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let ca = Ca::new();
    let server = serve(ca.mutual("agent-a", &["api"]), None).await;
    mtls::dev_ca::issue(ca.dir(), &crate::support::leaf("api", "api"), 0).unwrap();
    let said = eventually("an expired certificate is accepted", || async {
        whoami(&connect(server, ca.files("api"), "agent/a")).await.err()
    })
    .await;
    assert!(format!("{said:?}").contains("CertificateExpired"), "{said:?}");
}

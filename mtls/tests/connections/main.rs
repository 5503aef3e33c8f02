//! Real TLS over the loopback interface: who gets through, who does not, and what a change of certificates does.
#![expect(
    clippy::unwrap_used,
    reason = "clippy knows test functions, not their helpers; what panics here is a failed test"
)]

mod dev_ca;
mod expiry;
mod revocation;
mod rotation;
mod support;
mod trouble;

use std::time::{Duration, Instant};

use mtls::client::{ClientTimeouts, channel, contact_lost};
use mtls::server::{Acceptor, ServerTls};
use mtls::{TlsError, TlsFiles};
use rustls::version::{TLS12, TLS13};
use support::{Ca, assert_refused, connect, id, list, raw, serve, whoami};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

#[tokio::test]
async fn a_listed_peer_is_let_in_and_known_by_name() {
    let ca = Ca::new();
    let server = serve(ca.mutual("agent-a", &["api", "other"]), None).await;
    for name in ["api", "other"] {
        let channel = connect(server, ca.files(name), "agent/a");
        assert_eq!(whoami(&channel).await.unwrap(), id(name).to_string());
    }
}

#[tokio::test]
async fn another_ca_counts_for_nothing_on_either_side() {
    let (ca, foreign) = (Ca::new(), Ca::new());
    let server = serve(ca.mutual("agent-a", &["api"]), None).await;

    let client = TlsFiles { ca: ca.path("ca.pem"), ..foreign.files("api") };
    assert_refused(&connect(server, client, "agent/a"), "UnknownCA").await;
    let client = TlsFiles { ca: foreign.path("ca.pem"), ..ca.files("api") };
    assert_refused(&connect(server, client, "agent/a"), "invalid peer certificate").await;
}

#[tokio::test]
async fn the_right_ca_with_the_wrong_name_is_refused_on_either_side() {
    let ca = Ca::new();
    let server = serve(ca.mutual("agent-a", &["api"]), None).await;
    assert_refused(&connect(server, ca.files("other"), "agent/a"), "CertificateUnknown").await;
    assert_refused(&connect(server, ca.files("api"), "agent/b"), "NotExpected").await;

    let nobody = serve(ca.mutual("agent-a", &[]), None).await;
    assert_refused(&connect(nobody, ca.files("api"), "agent/a"), "CertificateUnknown").await;
}

#[tokio::test]
async fn mutual_tls_is_13_with_a_certificate_or_not_at_all() {
    let ca = Ca::new();
    let server = serve(ca.mutual("agent-a", &["api"]), None).await;
    assert!(raw(server, ca.plain_client(&[&TLS12], &["h2"])).await.is_err(), "TLS 1.2");
    assert!(raw(server, ca.plain_client(&[&TLS13], &["http/1.1"])).await.is_err(), "not HTTP/2");

    // With TLS 1.3 the client is done before the server has seen that there is no certificate.
    let mut anonymous = raw(server, ca.plain_client(&[&TLS13], &["h2"])).await.unwrap();
    let refusal = anonymous.read_u8().await.unwrap_err();
    assert!(refusal.to_string().contains("CertificateRequired"), "{refusal}");
}

#[tokio::test]
async fn a_public_listener_takes_clients_without_a_certificate() {
    let ca = Ca::new();
    for (http1, offered, chosen) in [
        (false, vec!["h2", "http/1.1"], Some(&b"h2"[..])),
        (true, vec!["http/1.1"], Some(&b"http/1.1"[..])),
        (true, vec![], None),
    ] {
        let server = serve(ca.server_only("agent-a", http1), None).await;
        for version in [&TLS12, &TLS13] {
            let tls = raw(server, ca.plain_client(&[version], &offered)).await.unwrap();
            assert_eq!(tls.get_ref().1.alpn_protocol(), chosen);
        }
    }
    let server = serve(ca.server_only("agent-a", false), None).await;
    assert!(raw(server, ca.plain_client(&[&TLS13], &["http/1.1"])).await.is_err(), "HTTP/1.1 is not offered");
    // Our own clients show a certificate only where they are asked for one.
    assert_eq!(whoami(&connect(server, ca.files("api"), "agent/a")).await.unwrap(), "nobody");
}

#[tokio::test]
async fn one_connection_can_be_accepted_by_hand() {
    let ca = Ca::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = Acceptor::new(ca.server_only("agent-a", true)).unwrap();
    let server = tokio::spawn(async move {
        let mut tls = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        assert!(!tls.is_http2() && tls.peer_info().identity().is_none());
        let mut word = [0; 4];
        tls.read_exact(&mut word).await.unwrap();
        tls.write_all(&word).await.unwrap();
        tls.shutdown().await.unwrap();
    });
    let mut client = raw(address, ca.plain_client(&[&TLS13], &["http/1.1"])).await.unwrap();
    client.write_all(b"echo").await.unwrap();
    let mut said = String::new();
    client.read_to_string(&mut said).await.unwrap();
    assert_eq!(said, "echo");
    server.await.unwrap();
}

#[tokio::test]
async fn a_service_may_admit_fewer_than_its_listener() {
    let ca = Ca::new();
    let server = serve(ca.mutual("agent-a", &["api", "other"]), Some(list(&["api"]))).await;
    assert_eq!(whoami(&connect(server, ca.files("api"), "agent/a")).await.unwrap(), id("api").to_string());
    let refusal = whoami(&connect(server, ca.files("other"), "agent/a")).await.unwrap_err();
    assert_eq!(refusal.code(), Code::PermissionDenied);
    assert!(!contact_lost(&refusal));

    let public = serve(ca.server_only("agent-a", false), Some(list(&["api"]))).await;
    let refusal = whoami(&connect(public, ca.files("api"), "agent/a")).await.unwrap_err();
    assert_eq!(refusal.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_configuration_that_cannot_work_is_an_error_at_once() {
    let ca = Ca::new();
    let mixed = TlsFiles { key: ca.path("other.key"), ..ca.files("api") };
    let swapped = TlsFiles { certificate: ca.path("api.key"), ..ca.files("api") };
    let missing = ca.files("nobody");
    for files in [mixed.clone(), swapped.clone(), missing.clone()] {
        assert!(Acceptor::new(ServerTls::Mutual { files: files.clone(), allow: list(&[]) }).is_err());
        assert!(channel("https://127.0.0.1:1", files, id("api"), ClientTimeouts::default()).is_err());
    }
    for uri in ["http://127.0.0.1:1", "127.0.0.1:1", "https://127.0.0.1", "unix:/tmp/x"] {
        let refused = channel(uri, ca.files("api"), id("api"), ClientTimeouts::default());
        assert!(matches!(refused, Err(TlsError::Uri { .. })), "{uri}");
    }
    let config: Result<TlsFiles, _> = toml::from_str(
        r#"ca = "a"
        certificate = "b"
        key = "c"
        insecure = true"#,
    );
    assert!(config.is_err(), "an unknown key is refused");
}

/// Of the address that has too many under way the next is closed; another address is served at once.
#[tokio::test]
async fn handshakes_of_one_address_do_not_delay_another() {
    let ca = Ca::new();
    let server = serve(ca.server_only("agent-a", false), None).await;
    let other = || async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        socket.connect(server).await.unwrap()
    };
    let mut idle = Vec::new();
    for _ in 0..600 {
        idle.push(other().await);
    }
    let begun = Instant::now();
    assert_eq!(whoami(&connect(server, ca.files("api"), "agent/a")).await.unwrap(), "nobody");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    // The last of them was closed, the first one waits for its client.
    let mut byte = [0];
    assert!(matches!(idle.last_mut().unwrap().read(&mut byte).await, Ok(0) | Err(_)));
}

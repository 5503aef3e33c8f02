//! Peers that stall, babble, or vanish without a word.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use mtls::client::contact_lost;
use mtls::server::HANDSHAKE_TIMEOUT;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::support::{Ca, connect, id, serve, whoami};

/// Passes connections on, until told to swallow what they carry.
pub(crate) struct Relay {
    address: SocketAddr,
    mood: watch::Sender<Mood>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    Pass,
    /// Connections stay open and nothing comes through any more, as when a cable is pulled.
    Swallow,
}

impl Relay {
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mood, moods) = watch::channel(Mood::Pass);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, server, moods.clone()));
            }
        });
        Self { address, mood }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    fn swallow(&self) {
        self.mood.send_replace(Mood::Swallow);
    }
}

async fn pass(mut client: TcpStream, server: SocketAddr, mut moods: watch::Receiver<Mood>) {
    moods.mark_unchanged();
    let Ok(mut upstream) = TcpStream::connect(server).await else { return };
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut upstream) => {}
        _ = moods.changed() => {
            if *moods.borrow() == Mood::Swallow {
                let _ = moods.changed().await;
            }
        }
    }
}

#[tokio::test]
async fn a_stalled_handshake_holds_up_nobody_and_ends() {
    let ca = Ca::new();
    let server = serve(ca.mutual("agent-a", &["api"]), None).await;
    let started = Instant::now();
    let mut stalled = Vec::new();
    for _ in 0..50 {
        stalled.push(TcpStream::connect(server).await.unwrap());
    }
    for _ in 0..5 {
        let channel = connect(server, ca.files("api"), "agent/a");
        assert_eq!(whoami(&channel).await.unwrap(), id("api").to_string());
    }
    assert!(started.elapsed() < HANDSHAKE_TIMEOUT, "the good ones had to wait: {:?}", started.elapsed());
    for mut tcp in stalled {
        let end = tokio::time::timeout(HANDSHAKE_TIMEOUT * 2, tcp.read_u8()).await;
        assert!(end.expect("a stalled handshake was never given up").is_err());
    }
}

#[tokio::test]
async fn babble_concerns_its_own_connection_only() {
    let ca = Ca::new();
    let server = serve(ca.mutual("agent-a", &["api"]), None).await;
    for babble in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[0x16, 3, 1, 0xff, 0xff]]
    {
        let mut tcp = TcpStream::connect(server).await.unwrap();
        tcp.write_all(babble).await.unwrap();
        tcp.shutdown().await.unwrap();
        let mut rest = Vec::new();
        let _ = tcp.read_to_end(&mut rest).await;
        assert_eq!(whoami(&connect(server, ca.files("api"), "agent/a")).await.unwrap(), id("api").to_string());
    }
}

#[tokio::test]
async fn a_peer_that_vanished_is_noticed() {
    let ca = Ca::new();
    let server = serve(ca.mutual("agent-a", &["api"]), None).await;
    let relay = Relay::to(server).await;
    let channel = connect(relay.address(), ca.files("api"), "agent/a");
    let stream = HealthClient::new(channel.clone()).watch(HealthCheckRequest::default()).await.unwrap();
    let mut stream = stream.into_inner();
    assert!(stream.next().await.unwrap().is_ok());

    relay.swallow();
    let end = tokio::time::timeout(Duration::from_secs(5), stream.next()).await;
    let status = end.expect("the stream hangs").unwrap().unwrap_err();
    assert!(contact_lost(&status), "{status:?}");
    // New connections pass, and the channel makes one by itself.
    let name =
        crate::support::eventually("the channel did not recover", || async { whoami(&channel).await.ok() }).await;
    assert_eq!(name, id("api").to_string());
}

#[tokio::test]
async fn a_server_that_is_not_there_is_an_error_at_once() {
    let ca = Ca::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let started = Instant::now();
    let refusal = whoami(&connect(address, ca.files("api"), "agent/a")).await.unwrap_err();
    assert_eq!(refusal.code(), tonic::Code::Unavailable);
    assert!(started.elapsed() < Duration::from_secs(2));

    // One that takes the connection and says nothing: the time-out for connecting covers the handshake.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let started = Instant::now();
    let address = silent.local_addr().unwrap();
    let refusal = whoami(&connect(address, ca.files("api"), "agent/a")).await.unwrap_err();
    assert_eq!(refusal.code(), tonic::Code::Unavailable, "{refusal:?}");
    assert!(started.elapsed() < Duration::from_secs(5));
}

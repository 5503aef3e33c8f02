//! Connections and calls that are begun and never go on.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tests::client::Client;
use tokio::io::AsyncWriteExt as _;

use crate::beside::undisturbed;
use crate::raw::{END_HEADERS, END_STREAM, GET_VM, HEADERS, PREFACE, Target, ends, frame, head};
use crate::{SLACK, STRANGER, cluster, targets, token, was_logged};

const CONNECTIONS: usize = 20;
const CALLS: u32 = 50;
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

/// How long it takes until all calls of one connection have an end that begin now and have no body.
async fn calls_without_a_body(target: &Target, path: &str) -> Duration {
    let mut raw = target.http2(STRANGER).await;
    let begun = Instant::now();
    let head = head(path);
    let calls: Vec<u8> = (0..CALLS).flat_map(|call| frame(HEADERS, END_HEADERS, call * 2 + 1, &head)).collect();
    raw.send(&calls).await.unwrap();
    let mut ended = 0;
    while ended < CALLS {
        let frame = raw.next(Duration::from_secs(30)).await.expect("an answer");
        ended += u32::from(frame.kind == HEADERS && frame.flags & END_STREAM != 0);
    }
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_without_a_body_end() {
    let cluster = cluster("receive_seconds = 2", "");
    let limit = Duration::from_secs(2);
    for target in targets(&cluster) {
        for path in [GET_VM, REFLECTION] {
            let attack = async || join_all((0..CONNECTIONS).map(|_| calls_without_a_body(&target, path))).await;
            let slowest = undisturbed(&cluster, &target, attack).await.into_iter().max().unwrap();
            assert!(slowest < limit + SLACK, "{} {path}: {slowest:?}", target.name);
        }
        was_logged(&cluster, &target, "body");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_says_nothing_or_half_of_it_is_closed() {
    let cluster = cluster("receive_seconds = 2\nhandshake_seconds = 1", "");
    let unfinished = frame(HEADERS, 0, 1, &head(GET_VM));
    for target in targets(&cluster) {
        let begun = Instant::now();
        let says = |bytes: &[u8]| {
            let (target, bytes) = (target.clone(), bytes.to_vec());
            async move {
                let mut io = target.connect(STRANGER).await.unwrap();
                io.write_all(&bytes).await.unwrap();
                io.flush().await.unwrap();
                ends(&mut *io, Duration::from_secs(20)).await
            }
        };
        let settings = [PREFACE, &frame(4, 0, 0, b"")].concat();
        let block = [settings.as_slice(), &unfinished].concat();
        let closed = join_all([&b""[..], b"PRI", PREFACE, &settings, &block].map(says));
        assert_eq!(closed.await, [true; 5], "{}", target.name);
        // The one that has spoken HTTP/2 is asked to go when its first call does not come, and need not answer.
        assert!(begun.elapsed() < Duration::from_secs(4) + SLACK, "{}: {:?}", target.name, begun.elapsed());
        // In plain text the preface is what comes first; with TLS it is the handshake.
        let begun = Instant::now();
        assert!(ends(&mut target.tcp(STRANGER).await, Duration::from_secs(20)).await, "{}", target.name);
        assert!(begun.elapsed() < Duration::from_secs(2) + SLACK, "{}: {:?}", target.name, begun.elapsed());
        was_logged(&cluster, &target, if target.name == "API" { "handshake" } else { "preface" });
        was_logged(&cluster, &target, "preface");
        was_logged(&cluster, &target, "headers");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_without_calls_do_not_delay_a_stop() {
    let mut cluster = cluster("", "");
    let targets = targets(&cluster);
    let mut held = Vec::new();
    for target in &targets {
        held.push(target.connect(STRANGER).await.unwrap());
        let mut half = target.connect(STRANGER).await.unwrap();
        half.write_all(PREFACE).await.unwrap();
        held.push(half);
        // It answers no PING.
        held.push(target.http2(STRANGER).await.io);
        held.push(Box::new(target.tcp(STRANGER).await));
    }
    for process in ["API", "gateway"] {
        let begun = Instant::now();
        let process = if process == "API" { cluster.api() } else { cluster.gateway() };
        process.stop().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(2) + SLACK, "{}: {:?}", process.name(), begun.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_of_one_address_do_not_delay_another() {
    let cluster = cluster("", "");
    let token = token(&cluster);
    for target in targets(&cluster) {
        let call = async || {
            let begun = Instant::now();
            Client::new(Box::new(target.client(Ipv4Addr::LOCALHOST)), token.clone()).vms().await.unwrap();
            begun.elapsed()
        };
        let before = call().await;
        let mut idle = Vec::new();
        for _ in 0..600 {
            idle.push(target.tcp(STRANGER).await);
        }
        let meanwhile = call().await;
        assert!(meanwhile < before * 2 + Duration::from_millis(500), "{}: {before:?}, {meanwhile:?}", target.name);
    }
}

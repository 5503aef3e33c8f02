//! What a caller may use.

use futures_util::future::join_all;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{GET_VM, PATIENCE, WATCH_VM, World, frame, frames};

#[tokio::test]
async fn a_request_that_is_too_large_is_refused_and_its_sender_gets_to_know() {
    let world = World::start().await;
    for bytes in [70_000, 3_000_000] {
        let body = format!(r#"{{"name":"{}"}}"#, "x".repeat(bytes));
        let answer = world.json(GET_VM, &body).await;
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(answer.json()["code"], "resource_exhausted");
        let info = answer.detail("google.rpc.ErrorInfo");
        assert_eq!((&info["reason"], &info["metadata"]["max_bytes"]), (&json!("REQUEST_TOO_LARGE"), &json!("65536")));
    }
    assert_eq!(world.json(GET_VM, r#"{"name":"vms/1"}"#).await.status, StatusCode::OK);
}

#[tokio::test]
async fn so_is_one_that_is_too_large_once_unpacked() {
    use std::io::Write;
    let world = World::start().await;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    write!(gzip, r#"{{"name":"{}"}}"#, "x".repeat(100_000)).expect("a string");
    let headers = [("content-type", "application/json"), ("content-encoding", "gzip")];
    let answer = world.send(Method::POST, GET_VM, &headers, &gzip.finish().expect("gzip")).await;
    assert_eq!(answer.detail("google.rpc.ErrorInfo")["reason"], "REQUEST_TOO_LARGE");
}

#[tokio::test]
async fn an_address_that_asks_too_often_has_to_wait() {
    let world = World::with("limits = { requests_per_second = 1, request_burst = 3 }").await;
    for _ in 0..3 {
        assert_eq!(world.json(GET_VM, r#"{"name":"vms/1"}"#).await.status, StatusCode::OK);
    }
    let answer = world.json(GET_VM, r#"{"name":"vms/1"}"#).await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer.detail("google.rpc.ErrorInfo")["reason"], "RATE_LIMITED");
    assert_eq!(answer.headers["retry-after"], "1");
    assert!(answer.detail("google.rpc.RetryInfo")["retryDelay"].is_string());
    // The one that asks whether the process is alive is no caller.
    assert_eq!(world.get("/healthz").await.status, StatusCode::OK);
}

#[tokio::test]
async fn calls_beyond_the_limit_are_refused_at_once() {
    let world = World::with("limits = { calls = 4 }").await;
    let stuck = (0..8).map(|_| async {
        let headers = [("content-type", "application/json"), ("connect-timeout-ms", "1500")];
        world.send(Method::POST, GET_VM, &headers, br#"{"name":"vms/stuck"}"#).await
    });
    let answers = join_all(stuck).await;
    let codes: Vec<Value> = answers.iter().map(|answer| answer.json()["code"].clone()).collect();
    assert_eq!(codes.iter().filter(|code| **code == "unavailable").count(), 4, "{codes:?}");
    assert_eq!(codes.iter().filter(|code| **code == "deadline_exceeded").count(), 4, "{codes:?}");
    let refused = answers.iter().find(|answer| answer.status == StatusCode::SERVICE_UNAVAILABLE).expect("one");
    assert_eq!(refused.detail("google.rpc.ErrorInfo")["reason"], "GATEWAY_OVERLOADED");
}

#[tokio::test]
async fn streams_have_places_of_their_own() {
    let world = World::with("limits = { streams = 1 }").await;
    let watch = || async {
        let headers = [("content-type", "application/connect+json"), ("connect-timeout-ms", "1500")];
        let answer = world.send(Method::POST, WATCH_VM, &headers, &frame(br#"{"name":"vms/forever"}"#)).await;
        let end: Value = serde_json::from_slice(&frames(&answer.body).pop().expect("an end").1).expect("JSON");
        end["error"]["code"].as_str().unwrap_or_default().to_owned()
    };
    let (mut ends, call) = tokio::join!(join_all([watch(), watch()]), world.json(GET_VM, r#"{"name":"vms/1"}"#));
    ends.sort_unstable();
    assert_eq!(ends, ["deadline_exceeded", "unavailable"]);
    assert_eq!(call.status, StatusCode::OK);
}

/// Sends these bytes and waits for the gateway to close the connection.
async fn closes(world: &World, bytes: &[u8]) -> String {
    let mut tcp = TcpStream::connect(world.address).await.expect("a connection");
    tcp.write_all(bytes).await.expect("sent");
    let mut answer = Vec::new();
    timeout(PATIENCE, tcp.read_to_end(&mut answer)).await.expect("closed in time").expect("closed");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_connection_that_dawdles_is_closed() {
    let world = World::with("limits = { receive_seconds = 1, idle_seconds = 1 }").await;
    let head = format!("POST {GET_VM} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n");
    let slow_body = format!("{head}content-length: 100\r\n\r\n{{");
    let whole = format!("{head}content-length: 16\r\n\r\n{{\"name\":\"vms/1\"}}");
    let dawdlers = [&b""[..], b"P", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", head.as_bytes()];
    let (_, slow, whole) = tokio::join!(
        join_all(dawdlers.map(|bytes| closes(&world, bytes))),
        closes(&world, slow_body.as_bytes()),
        closes(&world, whole.as_bytes())
    );
    assert!(slow.starts_with("HTTP/1.1 408"), "{slow}");
    assert!(whole.starts_with("HTTP/1.1 200"), "{whole}");
}

#[tokio::test]
async fn one_address_cannot_take_all_connections() {
    let world = World::with("limits = { connections_per_address = 1 }").await;
    let mut first = TcpStream::connect(world.address).await.expect("a connection");
    first.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("sent");
    let mut head = [0; 15];
    timeout(PATIENCE, first.read_exact(&mut head)).await.expect("in time").expect("an answer");
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    // Beyond the limit one request is answered: health as ever, everything else by a refusal.
    for (request, status) in [("GET /healthz", "200 OK"), ("GET /readyz", "200 OK"), ("GET /", "503 Ser")] {
        let mut answer = String::new();
        let mut second = TcpStream::connect(world.address).await.expect("a connection");
        second.write_all(format!("{request} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.expect("sent");
        timeout(PATIENCE, second.read_to_string(&mut answer)).await.expect("closed in time").expect("an answer");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
        assert_eq!(answer.contains("GATEWAY_OVERLOADED"), status.starts_with("503"), "{request}: {answer}");
    }
}

//! gRPC-Web, as the page speaks it, and its text form.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use prost::Message;
use serde_json::json;

use crate::support::{Answer, GET_VM, WATCH_VM, World, frame, frames, proto, unproto};

const BINARY: &str = "application/grpc-web+proto";
const TEXT: &str = "application/grpc-web-text+proto";

fn body(vm: &str) -> Vec<u8> {
    frame(&proto("ravada.snapshot.v1.GetVmRequest", json!({ "name": vm })))
}

/// The messages of an answer, and its trailers as text.
fn parts(body: &[u8]) -> (Vec<Vec<u8>>, String) {
    let mut frames = frames(body);
    let (flags, trailers) = frames.pop().expect("trailers");
    assert_eq!(flags, 0x80);
    (frames.into_iter().map(|(_, body)| body).collect(), String::from_utf8(trailers).expect("text"))
}

fn trailer<'a>(trailers: &'a str, name: &str) -> Option<&'a str> {
    trailers
        .lines()
        .find_map(|line| line.split_once(':').filter(|(key, _)| *key == name))
        .map(|(_, value)| value.trim())
}

fn untext(answer: &Answer) -> Vec<u8> {
    assert_eq!(answer.headers["content-type"], TEXT);
    let mut out = Vec::new();
    for group in answer.body.chunks(4) {
        STANDARD.decode_vec(group, &mut out).expect("base64");
    }
    out
}

#[tokio::test]
async fn a_call_passes() {
    let world = World::start().await;
    let answer = world.post(GET_VM, BINARY, &body("vms/1")).await;
    assert_eq!((answer.status, &answer.headers["content-type"]), (StatusCode::OK, &BINARY.parse().expect("a value")));
    let (messages, trailers) = parts(&answer.body);
    assert_eq!(unproto("ravada.snapshot.v1.Vm", &messages[0])["name"], "vms/1");
    assert_eq!(trailer(&trailers, "grpc-status"), Some("0"));
}

#[tokio::test]
async fn a_stream_passes() {
    let world = World::start().await;
    let (messages, trailers) = parts(&world.post(WATCH_VM, BINARY, &body("vms/1")).await.body);
    assert_eq!(messages.len(), 3);
    assert_eq!(unproto("ravada.snapshot.v1.WatchVmResponse", &messages[1])["resumeToken"], "7");
    assert_eq!(trailer(&trailers, "grpc-status"), Some("0"));
}

#[tokio::test]
async fn an_error_keeps_its_details() {
    let world = World::start().await;
    for path in [GET_VM, WATCH_VM] {
        let answer = world.post(path, BINARY, &body("vms/missing")).await;
        let (messages, trailers) = parts(&answer.body);
        assert_eq!((messages.len(), trailer(&trailers, "grpc-status")), (0, Some("5")));
        let details = trailer(&trailers, "grpc-status-details-bin").expect("details");
        let details =
            base64::engine::general_purpose::STANDARD_NO_PAD.decode(details.trim_end_matches('=')).expect("base64");
        let status = tonic_types::Status::decode(&*details).expect("a status");
        assert_eq!((status.code, status.details.len()), (5, 5));
        assert!(status.details.iter().any(|detail| detail.type_url == "type.googleapis.com/google.rpc.ErrorInfo"));
    }
}

#[tokio::test]
async fn text_is_the_same_in_base64() {
    let world = World::start().await;
    let answer = world.post(WATCH_VM, TEXT, STANDARD.encode(body("vms/1")).as_bytes()).await;
    let (messages, trailers) = parts(&untext(&answer));
    assert_eq!((messages.len(), trailer(&trailers, "grpc-status")), (3, Some("0")));

    let answer = world.post(GET_VM, TEXT, b"no base64!").await;
    let (messages, trailers) = parts(&untext(&answer));
    assert_eq!((messages.len(), trailer(&trailers, "grpc-status")), (0, Some("3")));
}

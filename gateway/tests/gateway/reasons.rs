//! Whatever is wrong with a request, in whatever protocol it comes: the answer is an error of this project's, with a reason.

use std::io::Write as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{Method, StatusCode};
use prost::Message;
use serde_json::{Value, json};
use tonic_types::RpcStatusExt as _;

use crate::support::{Answer, GET_VM, WATCH_VM, World, detail, frame, frames, proto};

/// A content type, a method that it fits, the header for compression, and whether messages are in frames and in JSON.
const FORMS: [(&str, &str, &str, bool, bool); 8] = [
    ("application/json", GET_VM, "content-encoding", false, true),
    ("application/proto", GET_VM, "content-encoding", false, false),
    ("application/connect+json", WATCH_VM, "connect-content-encoding", true, true),
    ("application/connect+proto", WATCH_VM, "connect-content-encoding", true, false),
    ("application/grpc", GET_VM, "grpc-encoding", true, false),
    ("application/grpc+json", WATCH_VM, "grpc-encoding", true, true),
    ("application/grpc-web+proto", GET_VM, "grpc-encoding", true, false),
    ("application/grpc-web", WATCH_VM, "grpc-encoding", true, false),
];

fn message(vm: &str, is_json: bool) -> Vec<u8> {
    let json = json!({ "name": vm });
    if is_json { json.to_string().into_bytes() } else { proto("ravada.snapshot.v1.GetVmRequest", json).to_vec() }
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(body).expect("memory");
    encoder.finish().expect("memory")
}

/// The reason, the code and the metadata of an answer that must be an error, in whatever protocol.
fn reason(answer: &Answer) -> (String, String, Value) {
    let kind = answer.headers["content-type"].to_str().expect("text").to_owned();
    let in_json = |error: &Value| {
        let info = detail(error, "google.rpc.ErrorInfo");
        assert_eq!(info["domain"], "snapshots.ravada", "{answer:?}");
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        (text(&info["reason"]), text(&error["code"]), info["metadata"].clone())
    };
    if kind.starts_with("application/json") {
        assert!(!answer.status.is_success(), "{answer:?}");
        return in_json(&answer.json());
    }
    if kind.starts_with("application/connect") {
        let frames = frames(&answer.body);
        assert_eq!((frames.len(), frames[0].0), (1, 2), "{answer:?}");
        return in_json(&serde_json::from_slice::<Value>(&frames[0].1).expect("JSON")["error"]);
    }
    let trailer = |name: &str| match kind.starts_with("application/grpc-web") {
        true => {
            let (_, trailers) = frames(&answer.body).pop().expect("trailers");
            let text = String::from_utf8(trailers).expect("text");
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}:")).map(str::to_owned));
            line.map(|value| value.trim().to_owned())
        }
        false => answer.trailers.get(name).map(|value| value.to_str().expect("text").to_owned()),
    };
    let code = trailer("grpc-status").unwrap_or_else(|| panic!("no status: {answer:?}"));
    let details = trailer("grpc-status-details-bin").unwrap_or_else(|| panic!("no details: {answer:?}"));
    let details = STANDARD_NO_PAD.decode(details.trim_end_matches('=')).expect("base64");
    let status = tonic_types::Status::decode(&*details).expect("a status");
    let info = status.get_error_details().error_info().cloned().unwrap_or_else(|| panic!("no reason: {status:?}"));
    assert_eq!(info.domain, "snapshots.ravada");
    (info.reason, code, json!(info.metadata))
}

struct Case {
    world: World,
    kind: &'static str,
    encoding: &'static str,
    framed: bool,
    path: &'static str,
}

impl Case {
    async fn reason(&self, method: Method, path: &str, more: &[(&str, &str)], body: &[u8]) -> (String, String, Value) {
        let mut headers = vec![("content-type", self.kind)];
        headers.extend(more);
        reason(&self.world.send(method, path, &headers, body).await)
    }

    async fn posted(&self, more: &[(&str, &str)], body: &[u8]) -> String {
        self.reason(Method::POST, self.path, more, body).await.0
    }

    /// A message as the protocol has it, with these flags.
    fn body(&self, message: &[u8], flags: u8) -> Vec<u8> {
        if !self.framed {
            return message.to_vec();
        }
        let mut framed = frame(message);
        framed[0] = flags;
        framed
    }
}

#[tokio::test]
async fn every_fault_of_a_request_is_told_with_a_reason_in_every_protocol() {
    for (kind, path, encoding, framed, is_json) in FORMS {
        let case = Case { world: World::start().await, kind, encoding, framed, path };
        let sound = case.body(&message("vms/1", is_json), 0);
        let fine = case.world.send(Method::POST, path, &[("content-type", kind)], &sound).await;
        assert_eq!(fine.status, StatusCode::OK, "{kind}: {fine:?}");

        for method in [Method::GET, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS] {
            let told = case.reason(method.clone(), path, &[], b"").await;
            assert_eq!(told.0, "METHOD_UNKNOWN", "{kind} {method}");
        }
        for wrong in [format!("/{path}"), format!("//{path}"), format!("{path}/"), path.to_lowercase()] {
            assert_eq!(case.reason(Method::POST, &wrong, &[], &sound).await.0, "METHOD_UNKNOWN", "{kind} {wrong}");
        }
        for told in ["br", "deflate", "zstd", "x-gzip", "gzip, gzip", "\"", "snappy"] {
            let (found, _, facts) = case.reason(Method::POST, path, &[(encoding, told)], &sound).await;
            assert_eq!((&*found, &facts["header"]), ("REQUEST_MALFORMED", &json!(encoding)), "{kind} {told}");
        }
        assert_eq!(case.posted(&[(encoding, "gzip"), (encoding, "gzip")], &sound).await, "REQUEST_MALFORMED", "{kind}");
        let two = [("authorization", "Bearer a.b.c"), ("authorization", "Bearer d.e.f")];
        let (found, code, facts) = case.reason(Method::POST, path, &two, &sound).await;
        assert_eq!((&*found, &facts["cause"]), ("TOKEN_INVALID", &json!("TOKEN_AMBIGUOUS")), "{kind}");
        assert!(["unauthenticated", "16"].contains(&&*code), "{kind}: {code}");

        case.sizes(is_json).await;
        case.shapes(&sound).await;
    }
}

impl Case {
    /// What is too large, also only once it is unpacked.
    async fn sizes(&self, is_json: bool) {
        for bytes in [70_000, 600_000] {
            let name = "x".repeat(bytes);
            let packed = self.body(&gzip(&message(&name, is_json)), 1);
            assert!(packed.len() < 60_000, "{}", packed.len());
            let told = self.posted(&[(self.encoding, "gzip")], &packed).await;
            assert_eq!(told, "REQUEST_TOO_LARGE", "{} {bytes}", self.kind);
            let told = self.posted(&[], &self.body(&message(&name, is_json), 0)).await;
            assert_eq!(told, "REQUEST_TOO_LARGE", "{} {bytes}", self.kind);
        }
        let packed = self.body(&gzip(&message("vms/1", is_json)), 1);
        let headers = [("content-type", self.kind), (self.encoding, "gzip")];
        let fine = self.world.send(Method::POST, self.path, &headers, &packed).await;
        assert_eq!(fine.status, StatusCode::OK, "{}: {fine:?}", self.kind);
        let whole = gzip(&message("vms/1", is_json));
        for wrong in [&b"no gzip"[..], &whole[..whole.len() - 3]] {
            let told = self.posted(&[(self.encoding, "gzip")], &self.body(wrong, 1)).await;
            assert_eq!(told, "REQUEST_MALFORMED", "{} {wrong:?}", self.kind);
        }
    }

    /// What is no one message, or of no content type that is known.
    async fn shapes(&self, sound: &[u8]) {
        if self.framed {
            let twice = [sound, sound].concat();
            let mut flagged = sound.to_vec();
            flagged[0] = 1;
            let mut odd = sound.to_vec();
            odd[0] = 0x40;
            for wrong in
                [&b""[..], b"\0\0", &sound[..sound.len() - 1], &twice, &flagged, &odd, &[0, 0xff, 0xff, 0xff, 0xff]]
            {
                let told = self.posted(&[], wrong).await;
                assert!(
                    ["REQUEST_MALFORMED", "REQUEST_TOO_LARGE"].contains(&&*told),
                    "{} {wrong:?}: {told}",
                    self.kind
                );
            }
            let told = self.posted(&[("content-encoding", "gzip")], sound).await;
            assert_eq!(told, "REQUEST_MALFORMED", "{}", self.kind);
        }
        for wrong in
            [format!("{}+thrift", self.kind), format!("x-{}", self.kind), "text/html".to_owned(), String::new()]
        {
            let headers = [("content-type", &*wrong)];
            let answer = self.world.send(Method::POST, self.path, &headers, sound).await;
            assert_eq!(reason(&answer).0, "REQUEST_MALFORMED", "{wrong}");
        }
        let answer = self.world.send(Method::POST, self.path, &[], sound).await;
        assert_eq!(reason(&answer).0, "REQUEST_MALFORMED", "no content type");
    }
}

#[tokio::test]
async fn a_stream_is_not_asked_for_as_a_call_nor_a_call_as_a_stream() {
    let world = World::start().await;
    for (path, kind) in [
        (WATCH_VM, "application/json"),
        (WATCH_VM, "application/proto"),
        (GET_VM, "application/connect+json"),
        (GET_VM, "application/connect+proto"),
    ] {
        assert_eq!(reason(&world.post(path, kind, b"{}").await).0, "REQUEST_MALFORMED", "{path} {kind}");
    }
}

#[tokio::test]
async fn a_verb_and_an_encoding_that_are_not_known_name_those_that_are() {
    let world = World::start().await;
    let answer = world.get(GET_VM).await;
    assert_eq!(
        (answer.status, &answer.headers["allow"]),
        (StatusCode::METHOD_NOT_ALLOWED, &"POST".parse().expect("a value"))
    );
    let headers = [("content-type", "application/json"), ("content-encoding", "br")];
    let answer = world.send(Method::POST, GET_VM, &headers, b"{}").await;
    assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(answer.headers["accept-encoding"], "gzip");
}

#[tokio::test]
async fn a_key_that_is_there_twice_is_refused_with_its_path() {
    let world = World::start().await;
    let create = "/ravada.snapshot.v1.SnapshotService/CreateSnapshot";
    for (json, path) in [
        (r#"{"parent":"vms/1","parent":"vms/2"}"#, "parent"),
        (r#"{"requestId":"a","request_id":"b"}"#, "request_id"),
        (r#"{"snapshot":{"displayName":"a","displayName":"b"}}"#, "snapshot.display_name"),
    ] {
        let answer = world.json(create, json).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{json}");
        let (found, code, facts) = reason(&answer);
        assert_eq!((&*found, &*code, &facts["field"]), ("REQUEST_MALFORMED", "invalid_argument", &json!(path)));
        assert_eq!(answer.detail("google.rpc.BadRequest")["fieldViolations"][0]["field"], path);
        let answer = world.post(create, "application/grpc-web+json", &frame(json.as_bytes())).await;
        assert_eq!(reason(&answer).2["field"], path);
    }
}

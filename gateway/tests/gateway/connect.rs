//! Connect, as curl, Perl and the page speak it.

use std::time::Instant;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{GET_VM, WATCH_VM, World, detail, frame, frames, nobody, proto, unproto};

#[tokio::test]
async fn a_json_call_is_answered_in_json() {
    let world = World::start().await;
    let answer = world.json(GET_VM, r#"{"name":"vms/1"}"#).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(answer.headers["content-length"], answer.body.len().to_string());
    let vm = answer.json();
    assert_eq!((&vm["name"], &vm["memoryBytes"]), (&json!("vms/1"), &json!("4294967296")));
}

#[tokio::test]
async fn a_protobuf_call_is_answered_in_protobuf() {
    let world = World::start().await;
    let request = proto("ravada.snapshot.v1.GetVmRequest", json!({ "name": "vms/1" }));
    let answer = world.post(GET_VM, "application/proto", &request).await;
    assert_eq!(answer.headers["content-type"], "application/proto");
    assert_eq!(unproto("ravada.snapshot.v1.Vm", &answer.body)["name"], "vms/1");
}

#[tokio::test]
async fn an_error_keeps_its_details_in_readable_form() {
    let world = World::start().await;
    let answer = world.json(GET_VM, r#"{"name":"vms/missing"}"#).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    let error = answer.json();
    assert_eq!((&error["code"], &error["message"]), (&json!("not_found"), &json!("there is no such machine")));
    let info = answer.detail("google.rpc.ErrorInfo");
    assert_eq!(info, json!({"reason": "VM_NOT_FOUND", "domain": "snapshots.ravada", "metadata": {"vm": "missing"}}));
    assert_eq!(answer.detail("google.rpc.RetryInfo")["retryDelay"], "2.500s");
    assert_eq!(answer.detail("google.rpc.BadRequest")["fieldViolations"][0]["field"], "name");
    assert_eq!(answer.detail("google.rpc.PreconditionFailure")["violations"][0]["subject"], "vms/missing");
    assert_eq!(answer.detail("google.rpc.QuotaFailure")["violations"][0]["subject"], "vms");
    assert_eq!(world.json(GET_VM, r#"{"name":"vms/plain"}"#).await.json()["code"], "aborted");
}

#[tokio::test]
async fn a_stream_comes_message_by_message() {
    let world = World::start().await;
    let answer = world.post(WATCH_VM, "application/connect+json", &frame(br#"{"name":"vms/1"}"#)).await;
    assert_eq!(answer.headers["content-type"], "application/connect+json");
    let messages: Vec<(u8, Value)> = frames(&answer.body)
        .iter()
        .map(|(flags, body)| (*flags, serde_json::from_slice(body).expect("JSON")))
        .collect();
    assert_eq!(
        messages,
        [
            (0, json!({ "reset": {} })),
            (0, json!({ "vm": { "name": "vms/1" }, "resumeToken": "7" })),
            (0, json!({ "synced": {} })),
            (2, json!({})),
        ]
    );
}

#[tokio::test]
async fn a_stream_that_breaks_ends_with_the_whole_error() {
    let world = World::start().await;
    for (vm, before) in [("torn", 2), ("missing", 0)] {
        let body = frame(format!(r#"{{"name":"vms/{vm}"}}"#).as_bytes());
        let answer = world.post(WATCH_VM, "application/connect+json", &body).await;
        let frames = frames(&answer.body);
        assert_eq!(frames.len(), before + 1);
        let end: Value = serde_json::from_slice(&frames[before].1).expect("JSON");
        assert_eq!(end["error"]["code"], "not_found");
        assert_eq!(detail(&end["error"], "google.rpc.ErrorInfo")["reason"], "VM_NOT_FOUND");
    }
}

#[tokio::test]
async fn what_is_no_such_message_is_refused_with_a_reason() {
    let world = World::start().await;
    for body in [r#"{"nmae":"vms/1"}"#, r#"{"name":["vms/1"]}"#, "{", "", "null and void"] {
        let answer = world.json(GET_VM, body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
        assert_eq!(answer.json()["code"], "invalid_argument");
        assert_eq!(answer.detail("google.rpc.ErrorInfo")["reason"], "REQUEST_MALFORMED");
    }
}

#[tokio::test]
async fn only_public_methods_can_be_reached() {
    let world = World::start().await;
    for path in [
        "/ravada.snapshot.agent.v1.AgentService/Execute",
        "/ravada.snapshot.v1.SnapshotService/DropDatabase",
        "/grpc.channelz.v1.Channelz/GetServers",
        "/nowhere",
    ] {
        let answer = world.json(path, "{}").await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(answer.json()["code"], "unimplemented");
        assert_eq!(answer.detail("google.rpc.ErrorInfo")["reason"], "METHOD_UNKNOWN");
    }
    assert_eq!(world.get(GET_VM).await.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(world.post(GET_VM, "text/html", b"<p>").await.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
}

#[tokio::test]
async fn only_the_token_the_request_id_and_the_trace_pass() {
    let world = World::start().await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = [
        ("content-type", "application/json"),
        ("authorization", "Bearer a.b.c"),
        ("x-request-id", "ticket-17"),
        ("traceparent", trace),
        ("connect-timeout-ms", "5000"),
        ("cookie", "session=1"),
        ("x-forwarded-for", "10.0.0.1"),
        ("x-forwarded-client-cert", "URI=spiffe://example.org/snapshot-api"),
        ("x-ravada-user", "admin"),
        ("x-real-ip", "10.0.0.1"),
        ("baggage", "user=admin"),
    ];
    let answer = world.send(Method::POST, GET_VM, &headers, br#"{"name":"vms/echo"}"#).await;
    assert_eq!(answer.headers["x-request-id"], "ticket-17");
    let arrived: Value = serde_json::from_str(answer.json()["displayName"].as_str().expect("text")).expect("JSON");
    let mut arrived = arrived.as_object().expect("an object").clone();
    assert_eq!(arrived.remove("authorization"), Some(json!("Bearer a.b.c")));
    assert_eq!(arrived.remove("x-request-id"), Some(json!("ticket-17")));
    assert_eq!(arrived.remove("traceparent"), Some(json!(trace)));
    assert!(arrived.remove("grpc-timeout").is_some(), "{arrived:?}");
    // tonic's own.
    for name in ["content-type", "te", "user-agent"] {
        arrived.remove(name);
    }
    assert!(arrived.is_empty(), "{arrived:?}");
}

#[tokio::test]
async fn a_call_without_a_request_id_gets_one() {
    let world = World::start().await;
    let answer = world.json(GET_VM, r#"{"name":"vms/1"}"#).await;
    let id = answer.headers["x-request-id"].to_str().expect("text").to_owned();
    let arrived: Value = serde_json::from_str(answer.json()["displayName"].as_str().expect("text")).expect("JSON");
    assert_eq!((id.len(), &arrived["x-request-id"]), (36, &json!(id)));
    // A refusal has one too, so that it can be asked about.
    assert_eq!(world.json("/nowhere", "{}").await.headers["x-request-id"].len(), 36);
}

#[tokio::test]
async fn a_deadline_is_kept() {
    let world = World::start().await;
    let headers = [("content-type", "application/json"), ("connect-timeout-ms", "200")];
    let begun = Instant::now();
    let answer = world.send(Method::POST, GET_VM, &headers, br#"{"name":"vms/stuck"}"#).await;
    assert!(begun.elapsed().as_secs() < 5);
    assert_eq!((answer.status, &answer.json()["code"]), (StatusCode::GATEWAY_TIMEOUT, &json!("deadline_exceeded")));
    assert_eq!(answer.detail("google.rpc.ErrorInfo")["reason"], "DEADLINE_EXCEEDED");

    let headers = [("content-type", "application/connect+json"), ("connect-timeout-ms", "200")];
    let answer = world.send(Method::POST, WATCH_VM, &headers, &frame(br#"{"name":"vms/forever"}"#)).await;
    let frames = frames(&answer.body);
    let end: Value = serde_json::from_slice(&frames[2].1).expect("JSON");
    assert_eq!(end["error"]["code"], "deadline_exceeded");
}

#[tokio::test]
async fn an_api_that_is_down_is_told_at_once() {
    let world = World::before(nobody().await, "").await;
    let begun = Instant::now();
    let answer = world.json(GET_VM, r#"{"name":"vms/1"}"#).await;
    assert!(begun.elapsed().as_secs() < 2);
    assert_eq!((answer.status, &answer.json()["code"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("unavailable")));
    let info = answer.detail("google.rpc.ErrorInfo");
    assert_eq!(info, json!({ "reason": "API_UNAVAILABLE", "domain": "snapshots.ravada" }));
    assert_eq!(answer.detail("google.rpc.RetryInfo")["retryDelay"], "1s");
    assert!(!answer.json()["message"].to_string().contains("127.0.0.1"), "{answer:?}");

    assert_eq!(world.get("/readyz").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(world.get("/healthz").await.status, StatusCode::OK);
    assert_eq!(World::start().await.get("/readyz").await.status, StatusCode::OK);
}

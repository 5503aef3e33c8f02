//! Requests in every protocol that the gateway speaks, over HTTP/1.1, to an API that answers nothing in particular.
//!
//! Each is answered, in time, and none ends the gateway.

#![no_main]

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use gateway::config::Config;
use gateway::{Gateway, Upstream};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};
use tonic::body::Body;
use tower::util::BoxCloneSyncService;

const KINDS: [&str; 10] = [
    "application/grpc-web+proto",
    "application/grpc-web-text+proto",
    "application/grpc-web-text",
    "application/grpc-web+json",
    "application/grpc+proto",
    "application/json",
    "application/proto",
    "application/connect+json",
    "application/connect+proto",
    "text/plain",
];
const METHODS: [&str; 5] = [
    "/ravada.snapshot.v1.SnapshotService/DeleteSnapshot",
    "/ravada.snapshot.v1.SnapshotService/WatchVm",
    "/ravada.snapshot.v1.HostService/ListHosts",
    "/grpc.health.v1.Health/Check",
    "/ravada.snapshot.agent.v1.AgentService/StartOperation",
];
const ENCODINGS: [&str; 4] = ["", "gzip", "identity", "br"];
const LIMIT: Duration = Duration::from_secs(10);

struct World {
    runtime: Runtime,
    gateway: Gateway,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let text = r#"
        listen = "127.0.0.1:0"
        [api]
        uri = "https://127.0.0.1:1"
        peer = "spiffe://example.test/snapshot-api"
        tls = { ca = "/ca", certificate = "/certificate", key = "/key" }
        [limits]
        requests_per_second = 0
        request_bytes = 4096
    "#;
    let config = Config::parse(text, Path::new("gateway.toml")).expect("a configuration");
    let gateway = Gateway::new(&config, upstream(), Default::default()).expect("a gateway");
    World { runtime: Builder::new_current_thread().enable_all().build().expect("a runtime"), gateway }
});

/// Answers every call with one empty message.
fn upstream() -> Upstream {
    BoxCloneSyncService::new(tower::service_fn(|request: Request<Body>| async move {
        let _ = request.into_body().collect().await;
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let frames: [Result<_, Infallible>; 2] =
            [Ok(Frame::data(Bytes::from_static(&[0; 5]))), Ok(Frame::trailers(trailers))];
        let body = StreamBody::new(futures_util::stream::iter(frames));
        let response = Response::builder().header("content-type", "application/grpc+proto").body(Body::new(body));
        Ok(response.expect("a response"))
    }))
}

async fn ask(kind: u8, method: u8, encoding: u8, body: Bytes) {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let gateway = WORLD.gateway.clone();
    let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let service = hyper::service::service_fn(move |request| gateway::fuzzing::answer(gateway.clone(), peer, request));
    let server = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(theirs), service);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(ours)).await.expect("a connection");
    let pick = |list: &'static [&str], which: u8| list[usize::from(which) % list.len()];
    let mut request =
        Request::post(pick(&METHODS, method)).header("host", "gateway").header("content-type", pick(&KINDS, kind));
    let encoding = pick(&ENCODINGS, encoding);
    if !encoding.is_empty() {
        for name in ["grpc-encoding", "content-encoding", "connect-content-encoding"] {
            request = request.header(name, encoding);
        }
    }
    let request = request.body(Full::new(body)).expect("a request");
    let exchange = async {
        let response = sender.send_request(request).await.expect("an answer");
        response.into_body().collect().await.expect("a whole answer");
        drop(sender);
    };
    let (_, _, ()) = tokio::join!(server, connection, exchange);
}

fuzz_target!(|data: &[u8]| {
    let [kind, method, encoding, body @ ..] = data else { return };
    let asked = ask(*kind, *method, *encoding, Bytes::copy_from_slice(body));
    WORLD.runtime.block_on(async { tokio::time::timeout(LIMIT, asked).await }).expect("no answer");
});

//! A gateway, an API behind it, and a caller.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use gateway::config::Config;
use gateway::descriptors::Methods;
use gateway::{Gateway, from_channel, server};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use prost::Message;
use prost_reflect::{DynamicMessage, MessageDescriptor};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

pub(crate) mod api;

pub(crate) const GET_VM: &str = "/ravada.snapshot.v1.SnapshotService/GetVm";
pub(crate) const WATCH_VM: &str = "/ravada.snapshot.v1.SnapshotService/WatchVm";

/// Longer than anything takes here; a test that gets there has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

static METHODS: LazyLock<Methods> = LazyLock::new(|| Methods::load().expect("the built-in descriptors"));

pub(crate) struct World {
    pub(crate) address: SocketAddr,
    pub(crate) stopping: CancellationToken,
    pub(crate) server: JoinHandle<()>,
    client: Client<HttpConnector, Full<Bytes>>,
    /// gRPC has its status in trailers, which HTTP/1 seldom passes.
    http2: Client<HttpConnector, Full<Bytes>>,
}

/// An answer that has been read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: HeaderMap,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The readable form of a detail of a Connect error.
    pub(crate) fn detail(&self, name: &str) -> Value {
        detail(&self.json(), name)
    }
}

/// The readable form of a detail of a Connect error.
pub(crate) fn detail(error: &Value, name: &str) -> Value {
    let details = error["details"].as_array().unwrap_or_else(|| panic!("no details: {error}"));
    let found = details.iter().find(|detail| detail["type"] == name).unwrap_or_else(|| panic!("no {name}: {error}"));
    assert!(found["value"].is_string(), "{found}");
    found["debug"].clone()
}

/// A configuration; the section on the API is not used by these tests.
pub(crate) fn config(more: &str) -> Config {
    let text = format!(
        r#"
        listen = "127.0.0.1:0"
        {more}
        [api]
        uri = "https://127.0.0.1:1"
        peer = "spiffe://example.org/snapshot-api"
        [api.tls]
        ca = "ca.pem"
        certificate = "gateway.pem"
        key = "gateway.key"
        "#
    );
    Config::parse(&text, Path::new("test")).expect("a configuration")
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with("").await
    }

    /// With these lines in the configuration.
    pub(crate) async fn with(more: &str) -> Self {
        Self::before(api::start().await, more).await
    }

    /// With an API at this address, or none.
    pub(crate) async fn before(api: SocketAddr, more: &str) -> Self {
        let config = config(more);
        let stopping = CancellationToken::new();
        let channel = Endpoint::from_shared(format!("http://{api}")).expect("a URI").connect_lazy();
        let gateway = Gateway::new(&config, from_channel(channel), stopping.clone()).expect("a gateway");
        let listener = TcpListener::bind(config.listen).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let token = stopping.clone();
        let server = tokio::spawn(async move { server::serve(listener, None, &config, gateway, token).await });
        let client = Client::builder(TokioExecutor::new()).build_http();
        let http2 = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
        Self { address, stopping, server, client, http2 }
    }

    pub(crate) async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body))).expect("a request");
        let grpc = headers.iter().any(|(name, value)| *name == "content-type" && is_grpc(value));
        let client = if grpc { &self.http2 } else { &self.client };
        let exchange = async {
            let (head, body) = client.request(request).await.expect("an answer").into_parts();
            let body = body.collect().await.expect("a body");
            let trailers = body.trailers().cloned().unwrap_or_default();
            Answer { status: head.status, headers: head.headers, body: body.to_bytes(), trailers }
        };
        tokio::time::timeout(PATIENCE, exchange).await.expect("an answer in time")
    }

    pub(crate) async fn post(&self, path: &str, kind: &str, body: &[u8]) -> Answer {
        self.send(Method::POST, path, &[("content-type", kind)], body).await
    }

    pub(crate) async fn json(&self, path: &str, body: &str) -> Answer {
        self.post(path, "application/json", body.as_bytes()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], b"").await
    }
}

fn is_grpc(content_type: &str) -> bool {
    content_type.starts_with("application/grpc") && !content_type.starts_with("application/grpc-web")
}

/// An address where nobody listens.
pub(crate) async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address")
}

pub(crate) fn message(name: &str) -> MessageDescriptor {
    METHODS.pool().get_message_by_name(name).unwrap_or_else(|| panic!("no {name}"))
}

/// The protobuf form of some JSON.
pub(crate) fn proto(name: &str, json: Value) -> Bytes {
    DynamicMessage::deserialize(message(name), json).expect("a message").encode_to_vec().into()
}

/// The JSON form of some protobuf.
pub(crate) fn unproto(name: &str, bytes: &[u8]) -> Value {
    serde_json::to_value(DynamicMessage::decode(message(name), bytes).expect("a message")).expect("JSON")
}

/// One message in the five-byte frame of gRPC and of Connect's streams.
pub(crate) fn frame(body: &[u8]) -> Vec<u8> {
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(body.len()).expect("a length").to_be_bytes());
    framed.extend_from_slice(body);
    framed
}

/// The frames of a body, each with its flags.
pub(crate) fn frames(mut body: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while !body.is_empty() {
        let (head, rest) = body.split_at(5);
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        frames.push((head[0], rest[..length].to_vec()));
        body = &rest[length..];
    }
    frames
}

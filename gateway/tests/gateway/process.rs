//! The program itself: configuration, mutual TLS to the API, TLS to callers, and a stop by signal.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use bytes::Bytes;
use gateway::codec::RawCodec;
use http::uri::PathAndQuery;
use mtls::dev_ca::{self, Leaf};
use mtls::server::{Acceptor, ServerTls, incoming};
use mtls::{SpiffeId, TlsFiles};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

use crate::support::{GET_VM, PATIENCE, api, nobody, proto, unproto};

const GATEWAY: &str = "spiffe://example.org/gateway";
const TOKEN: &str = "secret.token.value";

fn files(dir: &Path, stem: &str) -> TlsFiles {
    TlsFiles {
        ca: dir.join("ca.pem"),
        certificate: dir.join(format!("{stem}.pem")),
        key: dir.join(format!("{stem}.key")),
        crl: None,
    }
}

fn id(text: &str) -> SpiffeId {
    text.parse().expect("a SPIFFE id")
}

/// A folder with a CA and the certificates of both, and the port of an API that speaks to nobody but a gateway.
async fn api_with_tls() -> (TempDir, u16) {
    let dir = TempDir::new().expect("a folder");
    let leaf = |stem: &str, path: &str| Leaf {
        file_stem: stem.to_owned(),
        spiffe_path: path.to_owned(),
        dns: Vec::new(),
        ip_addrs: Vec::new(),
    };
    let leaves = [leaf("api", "snapshot-api"), leaf("gateway", "gateway")];
    dev_ca::create(dir.path(), "example.org", &leaves, 1, false).expect("a CA");
    let tls = ServerTls::Mutual { files: files(dir.path(), "api"), allow: [id(GATEWAY)].into_iter().collect() };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let connections = incoming(listener, Acceptor::new(tls).expect("certificates"));
    let router = api::router().await;
    tokio::spawn(async move { router.serve_with_incoming(connections).await });
    (dir, port)
}

/// The program, running.
struct Program {
    child: Child,
    port: u16,
    metrics: SocketAddr,
    /// All that it says after it has begun to serve.
    log: JoinHandle<String>,
}

/// Starts it; it tells its port in its log.
async fn start(dir: &Path, api: u16, peer: &str) -> Program {
    let metrics = nobody().await;
    let config = format!(
        r#"
        listen = "127.0.0.1:0"
        metrics = "{metrics}"
        log_format = "json"
        [tls]
        certificate = "{0}/gateway.pem"
        key = "{0}/gateway.key"
        [api]
        uri = "https://127.0.0.1:{api}"
        peer = "{peer}"
        [api.tls]
        ca = "{0}/ca.pem"
        certificate = "{0}/gateway.pem"
        key = "{0}/gateway.key"
        "#,
        dir.display()
    );
    let file = dir.join("gateway.toml");
    std::fs::write(&file, config).expect("written");
    let mut child = Command::new(env!("CARGO_BIN_EXE_snapshot-gateway"))
        .arg("--config")
        .arg(&file)
        .env("RUST_LOG", "trace")
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("a process");
    let mut lines = BufReader::new(child.stderr.take().expect("its log")).lines();
    let port = async {
        while let Some(line) = lines.next_line().await.expect("a line") {
            let line: Value = serde_json::from_str(&line).expect("JSON");
            if line["fields"]["message"] == "serving" {
                let address = line["fields"]["address"].as_str().expect("an address");
                return address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
            }
        }
        panic!("it ended before it served");
    };
    let port = timeout(PATIENCE, port).await.expect("serving in time");
    let log = tokio::spawn(async move {
        let mut log = String::new();
        while let Ok(Some(line)) = lines.next_line().await {
            log.push_str(&line);
        }
        log
    });
    Program { child, port, metrics, log }
}

/// A call by gRPC over TLS, by a caller that believes whatever certificate has the gateway's id.
async fn call(dir: &Path, port: u16) -> Result<Bytes, Status> {
    let uri = format!("https://127.0.0.1:{port}");
    let channel =
        mtls::client::channel(&uri, files(dir, "gateway"), id(GATEWAY), Default::default()).expect("a channel");
    let mut client = Grpc::new(channel);
    client.ready().await.expect("ready");
    let mut request = Request::new(proto("ravada.snapshot.v1.GetVmRequest", json!({ "name": "vms/1" })));
    request.metadata_mut().insert("authorization", format!("Bearer {TOKEN}").parse().expect("a value"));
    let answer = client.unary(request, PathAndQuery::from_static(GET_VM), RawCodec);
    timeout(PATIENCE, answer).await.expect("in time").map(tonic::Response::into_inner)
}

/// What Prometheus would read.
async fn metrics(address: SocketAddr) -> String {
    let mut tcp = TcpStream::connect(address).await.expect("a connection");
    tcp.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.expect("sent");
    let mut text = String::new();
    timeout(PATIENCE, tcp.read_to_string(&mut text)).await.expect("in time").expect("an answer");
    text
}

#[tokio::test]
async fn the_program_serves_by_its_configuration_and_stops_on_a_signal() {
    let (dir, api) = api_with_tls().await;
    let mut program = start(dir.path(), api, "spiffe://example.org/snapshot-api").await;
    let vm = call(dir.path(), program.port).await.expect("an answer");
    assert_eq!(unproto("ravada.snapshot.v1.Vm", &vm)["name"], "vms/1");

    let text = metrics(program.metrics).await;
    let method = r#"method="ravada.snapshot.v1.SnapshotService/GetVm""#;
    assert!(text.contains(&format!(r#"snapshot_gateway_calls_total{{{method},code="ok"}} 1"#)), "{text}");
    assert!(text.contains(&format!("snapshot_gateway_call_seconds_count{{{method}}} 1")), "{text}");
    assert!(text.contains(r#"snapshot_gateway_in_flight{kind="unary"} 0"#), "{text}");

    let pid = program.child.id().expect("a process id").to_string();
    let kill = Command::new("sh").args(["-c", "kill -TERM \"$0\"", &pid]).status().await.expect("sh");
    assert!(kill.success());
    let status = timeout(PATIENCE, program.child.wait()).await.expect("stopped in time").expect("a status");
    assert!(status.success(), "{status}");

    let log = program.log.await.expect("its log");
    assert!(log.contains(r#""request_id":"#) && log.contains("SnapshotService/GetVm"), "{log}");
    assert!(!log.contains(TOKEN), "the token is in the log");
}

#[tokio::test]
async fn it_speaks_to_no_other_peer_than_the_one_it_is_told() {
    let (dir, api) = api_with_tls().await;
    let program = start(dir.path(), api, "spiffe://example.org/somebody-else").await;
    let status = call(dir.path(), program.port).await.expect_err("an error");
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.get_details_error_info().expect("ErrorInfo").reason, "API_UNAVAILABLE");
}

#[tokio::test]
async fn it_refuses_a_configuration_that_it_does_not_understand() {
    let dir = TempDir::new().expect("a folder");
    let file = dir.path().join("gateway.toml");
    std::fs::write(&file, "listen = \"127.0.0.1:0\"\nsecure = true\n").expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_snapshot-gateway")).arg("--config").arg(&file).output().await;
    let output = output.expect("a process");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("secure"), "{output:?}");
}

//! An API that answers by the machine that a test names: `vms/echo` tells which headers arrived, `vms/missing` is an
//! error with details, `vms/stuck` never answers, `vms/forever` is a stream that does not end, `vms/torn` one that breaks.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use gateway::codec::RawCodec;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService};
use tonic::transport::Server;
use tonic::transport::server::{Router, TcpIncoming};
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};
use tower::service_fn;

use super::{proto, unproto};

const VM: &str = "ravada.snapshot.v1.Vm";
const EVENT: &str = "ravada.snapshot.v1.WatchVmResponse";

/// Has one permit for each call about `vms/brief` that has arrived.
pub(crate) static BEGUN: Semaphore = Semaphore::const_new(0);

/// Starts one that serves until the test ends.
pub(crate) async fn start() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let router = router().await;
    tokio::spawn(async move { router.serve_with_incoming(incoming).await });
    address
}

/// All that it serves.
pub(crate) async fn router() -> Router {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
    Server::builder().add_service(SnapshotService).add_service(health)
}

#[derive(Clone)]
struct SnapshotService;

impl NamedService for SnapshotService {
    const NAME: &'static str = "ravada.snapshot.v1.SnapshotService";
}

impl tower::Service<http::Request<Body>> for SnapshotService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let watch = request.uri().path().ends_with("/WatchVm");
        Box::pin(async move {
            let mut grpc = Grpc::new(RawCodec);
            Ok(if watch {
                grpc.server_streaming(service_fn(watch_vm), request).await
            } else {
                grpc.unary(service_fn(get_vm), request).await
            })
        })
    }
}

fn name(request: &Request<Bytes>) -> String {
    let request = unproto("ravada.snapshot.v1.GetVmRequest", request.get_ref());
    request["name"].as_str().unwrap_or_default().to_owned()
}

async fn get_vm(request: Request<Bytes>) -> Result<Response<Bytes>, Status> {
    let name = name(&request);
    match name.as_str() {
        "vms/missing" => return Err(missing()),
        "vms/plain" => return Err(Status::aborted("no details")),
        "vms/stuck" => tokio::time::sleep(Duration::from_secs(600)).await,
        "vms/brief" => {
            BEGUN.add_permits(1);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        _ => {}
    }
    // Strings of a message that this test may use as it likes.
    let headers: BTreeMap<_, _> = request.metadata().clone().into_headers().iter().map(header).collect();
    let vm = json!({ "name": name, "displayName": json!(headers).to_string(), "memoryBytes": "4294967296" });
    Ok(Response::new(proto(VM, vm)))
}

fn header((name, value): (&http::HeaderName, &http::HeaderValue)) -> (String, String) {
    (name.to_string(), value.to_str().unwrap_or("?").to_owned())
}

type Events = BoxStream<'static, Result<Bytes, Status>>;

async fn watch_vm(request: Request<Bytes>) -> Result<Response<Events>, Status> {
    let event = |event: Value| Ok(proto(EVENT, event));
    let begin = [event(json!({ "reset": {} })), event(json!({ "vm": { "name": "vms/1" }, "resumeToken": "7" }))];
    let end: Events = match name(&request).as_str() {
        "vms/missing" => return Err(missing()),
        "vms/brief" => {
            BEGUN.add_permits(1);
            stream::pending().boxed()
        }
        "vms/forever" => stream::pending().boxed(),
        "vms/torn" => stream::iter([Err(missing())]).boxed(),
        _ => stream::iter([event(json!({ "synced": {} }))]).boxed(),
    };
    Ok(Response::new(stream::iter(begin).chain(end).boxed()))
}

fn missing() -> Status {
    let mut details = ErrorDetails::new();
    details
        .set_error_info("VM_NOT_FOUND", "snapshots.ravada", HashMap::from([("vm".to_owned(), "missing".to_owned())]))
        .set_retry_info(Some(Duration::from_millis(2500)))
        .add_bad_request_violation("name", "names nothing")
        .add_precondition_failure_violation("VM", "vms/missing", "must exist")
        .add_quota_failure_violation("vms", "too few");
    Status::with_error_details(Code::NotFound, "there is no such machine", details)
}
